"""graft(): from a base and a tuned checkpoint to a skill with its evidence."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.models import load_model, pick_dtype
from surgery.checkpoints.pairing import check_alike
from surgery.devices import pick_device
from surgery.grafting.baselines import BASELINES, load_baseline
from surgery.grafting.budget import budget, candidate_limit
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.grafting.differences import block_dtype, head_tensors, left_out
from surgery.grafting.evaluation import Evaluator
from surgery.grafting.memory_need import graft_need, most_of_grafting
from surgery.grafting.methods import Evidence, locate, method_named
from surgery.grafting.regions import kept_region
from surgery.grafting.skill import Skill
from surgery.memory import check_before
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.resuming import digest, resumable
from surgery.tasks.calibration import fit_bias, softmax
from surgery.tasks.classifier_heads import check_one_order
from surgery.tasks.examples import Example
from surgery.tasks.gradients import check_gradients
from surgery.tasks.readout import PhraseReadout, pick_readout, readout_file
from surgery.tasks.scoring import Score, predict
from surgery.tasks.task import Task

_EXAMPLES = 1024


# Long: options and what they mean; the work is the last lines.
def graft(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    task: Task,
    *,
    sparsity: float | None = None,
    weights: int | None = None,
    method: str = "dual-averaging",
    epochs: int | None = None,
    sweep: Sequence[float] = (),
    baselines: bool = False,
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    batch_size: int = 32,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Skill:
    """Find the few weights that carry a task from base to tuned (Panigrahi et al. 2023, sections 2 and 3).

    The graft is the base with exactly `weights` of its block weights replaced by their tuned values; nothing is
    trained afterwards. Locating reads the training examples, the figures come from the test examples.

    Args:
        base, tuned: checkpoints of one architecture and tokenizer: Checkpoint, folder or hub id.
        sparsity: the share of the block weights to take, in (0, 1]; default 1e-4. `weights` gives their number instead.
        method: `dual-averaging` (default; `averaging` is its earlier name), `sigmoid` (the published one) or `movement`.
        epochs: of `sigmoid`; by default their number, 10 to 100, is chosen on training examples held out for it.
        sweep: further sparsities at which to locate and score.
        baselines: score top movement, random weights, biases only and zeroing outside the region at every sparsity too.
        include, exclude: patterns over tensor names, as `Checkpoint.block_weights` takes them.
        resume: a folder for what was located at each sparsity; a later call with the same arguments goes on from there
            (`surgery.resuming`). The caller deletes it.

    Raises:
        CheckpointError: checkpoints that don't fit together, hold NaN, or don't differ.
        OptionError: a sparsity outside (0, 1], more weights than are movable, or more memory than the device has free.
        TaskError: no training or no test examples, or a task that doesn't fit the model.
    """
    began = time.monotonic()
    method, pair = method_named(method, epochs), _open(base, tuned, task, include, exclude, seed)
    place, precision = pick_device(device), pick_dtype(dtype)
    k = budget(pair.movable, sparsity, weights)
    ladder = sorted({budget(pair.movable, share, None) for share in sweep} | {k})
    asked: dict[str, Any] = {"include": list(include), "exclude": list(exclude), "batch_size": batch_size}
    check_before(
        most_of_grafting(pair.base, task, candidate_limit(ladder), batch_size, precision),
        lambda: graft_need(
            pair.base, task, weights=k, sweep=sweep, method=method, device=place, dtype=precision, **asked
        ),
        place,
    )
    search = _Search.start(pair, task, candidate_limit(ladder), method, place, precision, batch_size, progress)
    call = {
        "base": str(pair.base),
        "tuned": str(pair.tuned),
        "method": method,
        **({} if epochs is None else {"epochs": epochs}),
        "weights": k,
        "sweep": list(sweep),
        "baselines": baselines,
        "include": asked["include"],
        "exclude": asked["exclude"],
        "dtype": None if dtype is None else str(precision).removeprefix("torch."),
        "batch_size": batch_size,
    }
    about = {"task": task.spec(), "examples": digest([pair.train, task.test]), "device": place.type}
    with resumable(resume, {"graft": call, "inputs": pair.inputs, "seed": seed, **about}) as state:
        points, chosen, score = search.climb(ladder, k, method, epochs, seed, baselines, state)
    return search.skill(points, chosen, score, provenance(call={"graft": call}, inputs=pair.inputs, seed=seed), began)


class _Pair(NamedTuple):
    """A base and its tuned checkpoint that fit together, which weights may move, and the examples that locating looks at."""

    base: Checkpoint
    tuned: Checkpoint
    names: tuple[str, ...]
    movable: int
    train: Sequence[Example]
    resized: list[str]

    @property
    def inputs(self) -> dict[str, str]:
        return {"base": self.base.fingerprint, "tuned": self.tuned.fingerprint}


def _open(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    task: Task,
    include: Sequence[str],
    exclude: Sequence[str],
    seed: int,
) -> _Pair:
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    names = before.block_weights(include, exclude)
    train = _sample(task.need("train"), seed)
    task.need("test")
    resized = check_alike(before, after, [example.text for example in train[:100]])
    check_one_order(before, after, task)
    return _Pair(before, after, names, sum(before.entries[name].size for name in names), train, resized)


def _sample(examples: Sequence[Example], seed: int) -> Sequence[Example]:
    """At most so many examples as locating looks at (the published method's number), drawn by seed."""
    if len(examples) <= _EXAMPLES:
        return examples
    return [examples[number] for number in np.random.default_rng(seed).permutation(len(examples))[:_EXAMPLES]]


@dataclass(frozen=True, eq=False)
class _Search:
    """A base model in memory, what methods learn from, and what a graft is held against.

    Attributes:
        bias: a constant per label, fitted on the base's scores of the training examples.
    """

    pair: _Pair
    task: Task
    grafted: GraftedModel
    evidence: Evidence
    evaluator: Evaluator
    bias: Any
    progress: Progress

    @classmethod
    def start(
        cls,
        pair: _Pair,
        task: Task,
        limit: int,
        method: str,
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        progress: Progress,
    ) -> "_Search":
        """Load the base, and score it with its own weights and with the tuned ones."""
        candidates = Candidates.between(pair.base, pair.tuned, pair.names, limit, device)
        model = load_model(pair.base, device=device, dtype=dtype)
        readout = pick_readout(model, task)
        rows = readout.encode(pair.train)
        if method != "movement":  # which looks at distances only
            check_gradients(model, readout, pair.names, rows[0])
        labels = np.array(task.targets(pair.train))
        evaluator = Evaluator(model, readout, task, batch_size, progress)
        evaluator.base = evaluator.score("base")
        bias = fit_bias(predict(model, readout, rows, batch_size), labels)
        model.load_weights(pair.tuned)
        evaluator.tuned = evaluator.score("tuned")
        soft = torch.from_numpy(softmax(predict(model, readout, rows, batch_size))).float()
        model.load_weights(pair.base)
        evidence = Evidence(rows, torch.from_numpy(labels), soft)
        return cls(pair, task, GraftedModel(model, readout, candidates), evidence, evaluator, bias, progress)

    def climb(
        self,
        ladder: Sequence[int],
        k: int,
        method: str,
        epochs: int | None,
        seed: int,
        baselines: bool,
        state: Path | None,
    ) -> tuple[list[dict[str, Any]], Tensor, Score]:
        """Locate and score at every number of weights; the report's points, and the candidates and the score at k."""
        model, pair, candidates = self.grafted.model, self.pair, self.grafted.candidates
        points, regions, scores = [], {}, {}
        for count in ladder:
            regions[count], seconds = kept_region(
                state and state / f"{count}.safetensors",
                len(candidates),
                lambda count=count: locate(  # type: ignore[misc]
                    method, self.grafted, self.evidence, count, epochs=epochs, seed=seed, progress=self.progress
                ),
            )
            self.grafted.set_chosen(regions[count])
            size = len(regions[count])
            scores[count] = self.evaluator.score(f"graft of {size:,} weights")
            points.append({**self.evaluator.point(method, size, pair.movable, scores[count]), "seconds": seconds})
            for name in BASELINES if baselines else ():
                model.load_weights(pair.base)
                size = load_baseline(name, model, pair.tuned, pair.names, candidates, count, regions[count], seed)
                points.append(self.evaluator.point(name, size, pair.movable, self.evaluator.score(f"baseline {name}")))
            if baselines:
                model.load_weights(pair.base)
        return points, regions[k], scores[k]

    def skill(
        self, points: list[dict[str, Any]], chosen: Tensor, score: Score, origin: Mapping[str, Any], began: float
    ) -> Skill:
        """The skill of the chosen candidates, with its report."""
        pair, task, candidates = self.pair, self.task, self.grafted.candidates
        figures = self.evaluator.summary(score)
        figures["base"]["accuracy_bias_fitted"] = self.evaluator.accuracy_with(self.bias)
        parts, header = candidates.parts(chosen), _header(task, figures)
        delta = SparseDelta.from_parts(pair.base, parts, movable=pair.movable, metadata=header)
        others = left_out(pair.base, pair.tuned, pair.names)
        report = {
            **origin,
            "task": task.spec(),
            "examples": {
                "train": len(task.train),
                "located_on": len(pair.train),
                "test": len(task.test),
                "test_in_train": task.repeated("test"),
            },
            "device": str(self.grafted.model.device),
            "method": points[0]["method"],
            **figures,
            "weights": delta.weights,
            "sparsity": delta.sparsity,
            "movable": pair.movable,
            "moved": candidates.moved,
            "left_out": others,
            "head": head_tensors(pair.base, pair.tuned, others, pair.resized),
            "resized": pair.resized,
            "dtypes": {"base": block_dtype(pair.base), "tuned": block_dtype(pair.tuned)},
            "bytes": len(delta.to_bytes()),
            "points": points,
            "seconds": round(time.monotonic() - began, 2),
        }
        readout, inherited = self.grafted.readout, (pair.base.folder / readout_file(task)).exists()
        own = readout.to_bytes() if isinstance(readout, PhraseReadout) and not inherited else None
        return Skill(delta, task, report, own)


def _header(task: Task, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a skill file says of itself without its report."""
    keys = ("accuracy", "ece", "agreement", "gain_recovered")
    metrics = {
        who: {key: round(own[key], 6) for key in keys if own.get(key) is not None} for who, own in figures.items()
    }
    return {"task": json.dumps(task.spec()), "metrics": json.dumps(metrics)}
