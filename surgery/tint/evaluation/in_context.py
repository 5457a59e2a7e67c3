"""run_task: accuracy on an in-context task, zero-shot and few-shot, with and without an update on the demonstrations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from surgery.errors import OptionError, TaskError, TintError
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.resuming import Memo, digest, resumable
from surgery.tasks.examples import Example
from surgery.tasks.readout import WordReadout
from surgery.tasks.task import Task
from surgery.tint.auxiliary import Auxiliary, Block, fingerprint_of, name_of
from surgery.tint.descent import DivergedError
from surgery.tint.evaluation.report import Run, best, difference, pick_rates
from surgery.tint.evaluation.texts import load_whole
from surgery.tint.modules import check_mode
from surgery.tint.simulator import BlockNumbers, TinT, check_steps

RATES = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
_PACKED = 1024  # tokens of test prompts in one row


# Long: many options, each with its line of documentation; the body is four steps.
def run_task(
    model: Any,
    task: Task,
    *,
    shots: int = 16,
    lr: float | Sequence[float] | None = None,
    steps: int = 1,
    layers: BlockNumbers = "all",
    modes: Sequence[str] = ("paper", "exact"),
    loss: str = "label",
    dev_examples: int = 48,
    tests: int | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Run:
    """Accuracy on a task's test examples by what the model may do with demonstrations.

    Zero-shot: nothing. Few-shot: read them. TinT zero-shot: learn from them, each on its own, then read the test prompt
    alone. TinT few-shot: learn from them as one text, and read them too (the paper's "multiple" and "single").

    Args:
        shots: demonstrations in all, as many of each label as of any other, from the task's training examples.
        lr: a rate, or several to choose among on the task's development examples, or on training examples that
            aren't demonstrations; never on test examples.
        steps, layers: as `TinT.build` takes them. `modes`: one way of learning each.
        loss: `label`: only label words are learnt; `all`: every token of the demonstrations.
        dev_examples: how many examples choose a rate, at most.
        tests: how many test examples, drawn by `seed`; default all. A task without any is tested on training examples
            that are neither demonstrations nor chose the learning rate.
        seed: of the draw of demonstrations and of test examples.
        resume: a folder for the scores that are done; a later call with the same arguments goes on from there. The caller
            deletes it.

    Raises:
        TaskError: as reading the task does, or a label with fewer training examples than it has to demonstrate with.
        TintError: demonstrations longer than the model's positions; a descent that became NaN. OptionError: an option out
            of range.
    """
    rates = pick_rates(lr, RATES)
    if loss not in ("label", "all"):
        raise OptionError(f"loss {loss!r} isn't one of label, all")
    check_steps(steps)
    for name in modes:
        check_mode(name)
    examples = _Examples.pick(task, shots, dev_examples, tests, seed)
    if len(rates) > 1 and not examples.dev:
        raise TintError(
            f"task {task.name} has no examples left to choose the learning rate by: give `dev` examples or one `lr`"
        )
    model = load_whole(model, device, dtype)
    auxiliary = Auxiliary.of(model, device=device, dtype=dtype)
    # Built, and refused, before any work is spent.
    simulations = {mode: TinT.build(auxiliary, steps, layers, mode) for mode in modes}
    asked = {
        "model": name_of(model),
        "task": task.spec(),
        "shots": shots,
        "lr": list(rates),
        "steps": steps,
        "layers": layers if isinstance(layers, str) else list(layers),
        "modes": list(modes),
        "loss": loss,
        "dev_examples": dev_examples,
        "tests": tests,
        "dtype": str(auxiliary.dtype).removeprefix("torch."),
    }
    inputs = {**fingerprint_of(model, resume), "examples": digest(list(examples))}
    with resumable(resume, {**asked, **inputs}) as state:
        known = Memo(state and state / "figures.jsonl")
        prompting = Prompting(auxiliary, WordReadout.of(model, task), task, examples.demonstrations, loss, known)
        points = _points(prompting, simulations, rates, examples, progress)
    content = {
        **provenance(call={"run_task": asked}, inputs=inputs, seed=seed),
        "kind": "task",
        "task": task.spec(),
        "metric": "accuracy",
        "shots": len(examples.demonstrations),
        "tests": len(examples.test),
        "tested_on": "test examples" if task.test else "training examples left over",
        "dev_examples": len(examples.dev) if len(rates) > 1 else 0,
        "rates": rates,
        "majority": max(np.bincount(task.targets(examples.test))) / len(examples.test),
        "points": points,
    }
    return Run(content)


class _Examples(NamedTuple):
    """A task's examples by what they are for."""

    demonstrations: list[Example]
    dev: list[Example]
    test: list[Example]

    @classmethod
    def pick(cls, task: Task, shots: int, dev_examples: int, tests: int | None, seed: int) -> "_Examples":
        """Demonstrations from the training examples; these also stand in for a development or test split that isn't there."""
        demonstrations, spare = draw_demonstrations(task, shots, seed)
        dev = (list(task.dev) or spare)[:dev_examples]
        test = list(task.test) or (spare if task.dev else spare[dev_examples:]) or list(task.need("test"))
        if tests is not None and tests < len(test):
            random = np.random.default_rng(seed)
            test = [test[i] for i in sorted(random.permutation(len(test))[:tests])]
        return cls(demonstrations, dev, test)


def _points(
    prompting: "Prompting",
    simulations: Mapping[str, TinT],
    rates: Sequence[float],
    examples: _Examples,
    progress: Progress,
) -> list[dict[str, Any]]:
    """An entry for each way to use the demonstrations: its accuracy and, where it learns, what it gains by that."""
    ways = [(shown, mode) for shown in (False, True) for mode in (None, *simulations)]
    targets = np.array(prompting.task.targets(examples.test))
    points: list[dict[str, Any]] = []
    frozen: dict[bool, NDArray] = {}  # which answers are right without learning, by whether demonstrations are read
    for number, (shown, mode) in enumerate(ways):
        name = f"{'few' if shown else 'zero'}-shot" + (f", TinT {mode}" if mode else "")
        progress(number, len(ways), name)
        rate = None
        blocks: Sequence[Block] = prompting.auxiliary.blocks
        if mode is not None:
            rate = rates[0]
            if len(rates) > 1:
                scores = {r: prompting.dev_loss(simulations[mode], r, shown, examples.dev) for r in rates}
                rate = best(scores, lowest=True)
            blocks = prompting.update(simulations[mode], rate, shown)
        logits = prompting.logits(blocks, examples.test, shown, [name, rate])
        right = (logits.argmax(1) == targets).astype(float)
        points.append({"method": name, "lr": rate, **_wilson(int(right.sum()), len(right))})
        if mode is None:
            frozen[shown] = right
        else:
            points[-1] |= difference((right - frozen[shown]).tolist())
    progress(len(ways), len(ways), "done")
    return points


@dataclass(frozen=True, eq=False)
class Prompting:
    """Demonstrations and prompts of a task as tokens; what the model learns from them and what it answers.

    Attributes:
        loss: `label` or `all`: which tokens of the demonstrations are learnt.
        known: answers of an earlier run of the same call, by key.
    """

    auxiliary: Auxiliary
    readout: WordReadout
    task: Task
    demonstrations: Sequence[Example]
    loss: str
    known: Memo = field(default_factory=lambda: Memo(None))

    def shown_ids(self, *, together: bool) -> tuple[list[int], list[int], list[int]]:
        """The demonstrations: ids, which of them are labels, and which demonstration each belongs to.

        Together they are one text, a line each, and only the first starts as a text does; else each does.
        """
        break_ids = self.readout.tokenizer("\n", add_special_tokens=False)["input_ids"] if together else []
        ids: list[int] = []
        labels: list[int] = []
        owner: list[int] = []
        targets = self.task.targets(self.demonstrations)
        encoded = self.readout.encode(self.demonstrations)
        for number, (prompt, target) in enumerate(zip(encoded, targets, strict=True), 1):
            start = self._inner(prompt.ids) if together and ids else prompt.ids
            piece = [*start, self.readout.word_ids[target], *break_ids]
            labels += [0] * len(start) + [1] + [0] * len(break_ids)
            ids += piece
            owner += [number] * len(piece)
        return ids, labels, owner

    def update(self, simulation: TinT, lr: float, shown: bool) -> Sequence[Block]:
        """Learn from the demonstrations: as one text, or each on its own."""
        ids, labels, owner = self.shown_ids(together=shown)
        update = simulation.update(
            [ids],
            None,
            lr,
            loss_mask=[labels] if self.loss == "label" else None,
            segments=None if shown else [owner],
        )
        return update.blocks

    def logits(
        self, blocks: Sequence[Block], examples: Sequence[Example], shown: bool, key: Sequence[Any] | None = None
    ) -> NDArray:
        """Label words' logits, [examples, labels]. Test prompts lie side by side in a row; none reads another.

        With a key each row of prompts is kept under it, so that an interrupted run goes on after the last.
        """
        context = self.shown_ids(together=True)[0] if shown else []
        rows: list[list[float]] = []
        prompts = [self._inner(e.ids) if context else e.ids for e in self.readout.encode(examples)]
        for number, group in enumerate(_groups(prompts)):
            find = partial(self._row, blocks, context, group)
            rows += find() if key is None else self.known.get([*key, number], find)
        return np.array(rows, dtype=np.float32)

    def _row(self, blocks: Sequence[Block], context: list[int], group: list[list[int]]) -> list[list[float]]:
        ids, segments, ends = list(context), [0] * len(context), []
        for number, prompt in enumerate(group, 1):
            ids += prompt
            segments += [number] * len(prompt)
            ends.append(len(ids) - 1)
        hidden = TinT.build(self.auxiliary, mode="exact").hidden([ids], blocks, segments=[segments])
        logits = F.linear(hidden[0, ends], self.auxiliary.head[list(self.readout.word_ids)]).float()
        if not bool(torch.isfinite(logits).all()):  # an accuracy of NaN would look like one of the first label
            raise DivergedError("the label words' logits are NaN or infinite: lower the learning rate")
        return logits.tolist()

    def dev_loss(self, simulation: TinT, lr: float, shown: bool, dev: Sequence[Example]) -> float:
        """The loss of the right label on development examples; infinite where the descent became NaN."""

        def find() -> float:
            try:
                logits = torch.from_numpy(self.logits(self.update(simulation, lr, shown), dev, shown))
            except DivergedError:
                return math.inf
            return float(F.cross_entropy(logits, torch.tensor(self.task.targets(dev))))

        return self.known.get(["dev", simulation.mode, shown, lr], find)

    def _inner(self, ids: list[int]) -> list[int]:
        """A prompt within a text: without the token that starts one."""
        start = self.readout.tokenizer.bos_token_id
        return ids[1:] if len(ids) > 1 and start is not None and ids[0] == start else ids


def _groups(prompts: Sequence[list[int]]) -> list[list[list[int]]]:
    groups: list[list[list[int]]] = [[]]
    for prompt in prompts:
        if groups[-1] and sum(map(len, groups[-1])) + len(prompt) > _PACKED:
            groups.append([])
        groups[-1].append(prompt)
    return groups


def draw_demonstrations(task: Task, shots: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Demonstrations, label by label in turn and then mixed, and the training examples that are left, mixed."""
    if shots < len(task.labels):
        raise OptionError(
            f"`shots` {shots} is too few: task {task.name} has {len(task.labels)} labels, give one of each at least"
        )
    random = np.random.default_rng(seed)
    train = list(task.need("train"))
    mixed = [train[i] for i in random.permutation(len(train))]
    chosen: list[Example] = []
    each = shots // len(task.labels)
    for label in task.labels:
        own = [example for example in mixed if example.label == label][:each]
        if len(own) < each:
            raise TaskError(
                f"label {label!r} of task {task.name} has {len(own)} training examples, fewer than the {each} that {shots} shots take of each: lower `shots`"
            )
        chosen += own
    kept = set(chosen)
    order = random.permutation(len(chosen))
    return [chosen[i] for i in order], [example for example in mixed if example not in kept]


def _wilson(right: int, count: int) -> dict[str, float]:
    """A share with Wilson's 95% interval."""
    z, p = 1.96, right / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return {"value": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}
