"""Plain fine-tuning with a frozen readout: what grafting starts from.

The default is SGD with a proximal L1 pull towards the base, which leaves most weights exactly where they were: then
few weights carry the skill, and grafting can find them. AdamW without L1 moves every weight a little and doesn't
localise (Panigrahi et al. 2023, section 5.2).
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint, rewrite
from surgery.checkpoints.models import Model, load_model, pick_device, steady_attention
from surgery.checkpoints.structure import Kind
from surgery.errors import OptionError, SurgeryError, first_line
from surgery.files import check_apart, new_folder, replace_bytes, replace_json
from surgery.jsonfile import parse_json
from surgery.locks import hold
from surgery.memory import check_before
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.tasks.gradients import check_gradients
from surgery.tasks.readout import Encoded, PhraseReadout, Readout, alike, collate, pick_readout, readout_file
from surgery.tasks.scoring import score_model
from surgery.tasks.task import Task

OPTIMIZERS = ("sgd-l1", "sgd", "adamw", "adamw-l1")
_SAVE_SECONDS = 30.0
# Set so that trec gets the pull that did best on its held-out training examples; subj and cr were scored on test only.
_PULL = 11


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune. Raises OptionError for a value out of its range.

    Attributes:
        rate: peak learning rate; None picks 1e-4 for AdamW, for SGD .05 on sentence encoders and .004 on language models.
        l1: strength of the pull: after each step every difference from the base shrinks by rate * l1, down to zero; None
            picks 11 times the root mean square of the gradient at the base (its norm counts up to twice `clip`): then a
            weight stays put unless its gradient is about that much larger than most. Made for SGD: give your own for adamw-l1.
        steps: optimiser steps; None picks one pass over the examples, within 150 and 1,000.
        batch_size: examples a step; `accumulate` splits them into that many pieces of memory.
        warmup: the share of the steps over which the rate rises; it then falls linearly to zero.
        clip: the longest gradient that is used as it is.
        patience: with dev examples, stop after this many evaluations without a better one; the best weights are kept.
    """

    optimizer: str = "sgd-l1"
    rate: float | None = None
    l1: float | None = None
    steps: int | None = None
    batch_size: int = 16
    accumulate: int = 1
    momentum: float = 0.9
    warmup: float = 0.1
    clip: float = 5.0
    evaluations: int = 10
    patience: int = 3

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise OptionError(f"--optimizer {self.optimizer} isn't one of {', '.join(OPTIMIZERS)}")
        positive = {
            "rate": self.rate,
            "steps": self.steps,
            "batch-size": self.batch_size,
            "accumulate": self.accumulate,
            "clip": self.clip,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise OptionError(f"--{name} must be above 0, not {value}")
        if self.l1 is not None and not self.l1 >= 0:
            raise OptionError(f"--l1 must be 0 or more, not {self.l1}")
        if self.accumulate > self.batch_size:
            raise OptionError(
                f"--accumulate {self.accumulate} leaves pieces smaller than one example of a batch of {self.batch_size}"
            )

    @property
    def needs_slope(self) -> bool:
        """Whether `pace` looks at the base's gradient norm."""
        return self.l1 is None and self.optimizer.endswith("-l1")

    def pace(self, kind: Kind, movable: int, examples: int, slope: float) -> "Pace":
        """The numbers in force for a kind of model, a number of weights and of examples, and the base's gradient norm."""
        sgd = self.optimizer.startswith("sgd")
        rate = (0.05 if kind == "encoder" else 0.004) if sgd else 1e-4
        l1 = _PULL * min(slope, 2 * self.clip) / math.sqrt(movable) if self.l1 is None else self.l1
        steps = min(1000, max(150, math.ceil(examples / self.batch_size)))
        return Pace(self.rate or rate, l1 if self.optimizer.endswith("-l1") else 0.0, self.steps or steps, self.warmup)


class Pace(NamedTuple):
    """Peak learning rate, strength of the pull, number of steps, and the share of them over which the rate rises."""

    rate: float
    l1: float
    steps: int
    warmup: float

    def rate_at(self, step: int) -> float:
        """The learning rate of step 0 to steps - 1."""
        rising = max(1, round(self.warmup * self.steps))
        return self.rate * min((step + 1) / rising, (self.steps - step) / max(1, self.steps - rising))


@dataclass(frozen=True, eq=False)
class Tuned:
    """A fine-tuned checkpoint in memory.

    Attributes:
        base: what it was tuned from.
        tensors: the tensors that may have moved, by their name in the base's files.
        readout: the base's phrase embeddings, for a sentence encoder.
        report: what was done, with losses, dev scores and the number of weights moved.
    """

    base: Checkpoint
    tensors: dict[str, Tensor]
    task: Task
    readout: PhraseReadout | None
    report: dict[str, Any]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Checkpoint:
        """Write a Hugging Face folder with the base's files, dtypes and tensor names."""
        check_apart(Path(folder), self.base.folder)
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            rewrite(self.base, self.tensors, staged)
            if self.readout:
                replace_bytes(staged / readout_file(self.task), self.readout.to_bytes())
            replace_json(staged / "report.json", self.report)
        return Checkpoint(folder)


def tune(
    base: str | Path | Checkpoint,
    task: Task,
    recipe: Recipe | None = None,
    *,
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Fine-tune a checkpoint's block weights on a task's training examples; dropout is off.

    Args:
        include, exclude: patterns over tensor names, as `Checkpoint.block_weights` takes them.
        dtype: float32, or bfloat16 for mixed precision over float32 weights; default bfloat16 where CUDA has it.
        resume: a folder for the state, saved every half minute and when interrupted; a later call with the same
            arguments goes on from there. The caller deletes it.
        progress: called with step, steps and a line on how it goes.

    Raises:
        OptionError: more memory than the device has free. SurgeryError: the loss becomes NaN.
    """
    from surgery.tuning.memory_need import most_of_tuning, tune_need  # which rehearses what is here

    checkpoint = open_checkpoint(base)
    examples = task.need("train")
    began = time.monotonic()
    recipe, place = recipe or Recipe(), pick_device(device)
    dtype = None if dtype is None else str(dtype).removeprefix("torch.")
    mixed = mixed_precision(place, dtype)  # refused before the model is loaded
    names = checkpoint.block_weights(include, exclude)
    asked: dict[str, Any] = {"include": include, "exclude": exclude, "device": place, "dtype": dtype}
    check_before(
        most_of_tuning(checkpoint, names, task, recipe), lambda: tune_need(checkpoint, task, recipe, **asked), place
    )
    model = load_model(checkpoint, device=place)
    readout = pick_readout(model, task)
    movable = sum(checkpoint.entries[name].size for name in names)
    rows, targets = readout.encode(examples), torch.tensor(task.targets(examples))
    check_gradients(model, readout, names, rows[0])
    slope = slope_at_base(model, readout, names, rows, targets, seed) if recipe.needs_slope else 0.0
    pace = recipe.pace(model.kind, movable, len(examples), slope)
    about = {
        "base": checkpoint.fingerprint,
        "task": task.spec(),
        "recipe": asdict(recipe),
        "seed": seed,
        "tensors": names,
    }
    identity = _digest({**about, "examples": examples, "dev": task.dev})
    state = Path(resume) if resume else None
    with hold(state) if state else nullcontext():
        loop = TrainingLoop(model, readout, recipe, pace, names, identity, state)
        history = loop.run(rows, targets, seed, task, mixed, progress)
    # What is counted is what the files will hold: in 16 bits a small difference may round to none.
    tensors = {name: loop.weights[name].detach().to(checkpoint.entries[name].dtype) for name in names}
    trained = sum(int((loop.weights[name] != loop.base[name]).sum()) for name in names)
    moved = sum(int((tensors[name] != loop.base[name].to(tensors[name].dtype)).sum()) for name in names)
    call = {"base": str(checkpoint), "dtype": dtype, "include": list(include), "exclude": list(exclude)}
    report = {
        **provenance(call={"tune": call}, inputs={"base": checkpoint.fingerprint}, seed=seed),
        "task": task.spec(),
        "examples": {"train": len(task.train), "dev": len(task.dev), "dev_in_train": task.repeated("dev")},
        "recipe": {**asdict(recipe), **loop.pace._asdict()},
        "moved": moved,
        "rounded_away": trained - moved,
        "movable": movable,
        **history,
        "seconds": round(time.monotonic() - began, 2),
    }
    return Tuned(checkpoint, tensors, task, readout if isinstance(readout, PhraseReadout) else None, report)


class _Scored(TypedDict):
    step: int
    value: float
    ece: float


class TrainingLoop:
    """The weights being trained, the optimiser's state, and the file they survive in."""

    def __init__(
        self,
        model: Model,
        readout: Readout,
        recipe: Recipe,
        pace: Pace,
        names: Sequence[str],
        identity: str,
        folder: Path | None,
    ) -> None:
        self.model, self.readout, self.recipe, self.pace = model, readout, recipe, pace
        for name in names:
            model.parameters[name].requires_grad_(True)
        self.weights = {name: model.parameters[name] for name in names}
        self.base = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.identity = identity
        self.file = folder / "state.safetensors" if folder else None
        self.step = 0
        self._whole = True  # no update is half done
        self.losses: list[float] = []
        self.dev: list[Any] = []
        self.best: dict[str, Tensor] = {}
        parameters: list[nn.Parameter] = list(self.weights.values())
        if recipe.optimizer.startswith("sgd"):
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=pace.rate, momentum=recipe.momentum)
        else:
            self.optimizer = torch.optim.AdamW(parameters, lr=pace.rate, weight_decay=0.0)
        if self.file and self.file.exists():
            self._load()

    def run(
        self, rows: Sequence[Encoded], targets: Tensor, seed: int, task: Task, autocast: Any, progress: Progress
    ) -> dict[str, Any]:
        """Train to the end, or until dev examples say stop; the best weights, or the last, are in `weights` after."""
        every = max(1, self.pace.steps // self.recipe.evaluations)
        saved = time.monotonic()
        try:
            for numbers in _batches(len(rows), self.recipe.batch_size, seed, self.step, self.pace.steps):
                loss = self.advance(rows, targets, numbers, autocast)
                self.losses.append(round(loss, 5))
                self.step += 1
                self._whole = True
                if task.dev and (self.step % every == 0 or self.step == self.pace.steps) and self._evaluate(task):
                    break
                dev = f", dev {self.dev[-1]['value']:.3f}" if self.dev else ""
                progress(self.step, self.pace.steps, f"tuning: loss {np.mean(self.losses[-20:]):.3f}{dev}")
                if self.file and time.monotonic() - saved > _SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if self.file and self._whole:  # else the last half minute is lost, but nothing is wrong
                self._save()
            raise
        with torch.no_grad():
            for name, tensor in self.best.items():
                self.weights[name].copy_(tensor)
        return {"losses": self.losses, "dev": self.dev, "stopped_at": self.step}

    def advance(self, rows: Sequence[Encoded], targets: Tensor, numbers: Sequence[int], autocast: Any) -> float:
        """Make one step on the examples of these numbers; their mean loss."""
        total = 0.0
        pieces = np.array_split(np.asarray(numbers), self.recipe.accumulate)
        for piece in (part for numbered in pieces for part in alike(self.model, rows, numbered.tolist())):
            batch, positions = collate(self.model, [rows[number] for number in piece])
            with autocast, steady_attention():
                scores = self.readout.logits(self.model.module, batch, positions)
            loss = F.cross_entropy(scores, targets[piece].to(self.model.device)) * (len(piece) / len(numbers))
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise SurgeryError(
                f"the loss became {total} at step {self.step + 1}: lower --rate (now {self.pace.rate:g})"
            )
        rate = self.pace.rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.recipe.clip)
        self._whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.pace.l1:
            pull_towards(self.weights, self.base, rate * self.pace.l1)
        return total

    def _evaluate(self, task: Task) -> bool:
        """Score the dev examples, keep the weights if they are the best so far, and say whether to stop."""
        result = score_model(self.model, self.readout, task, task.dev)
        self.dev.append({"step": self.step, "value": result.value, "ece": result.ece})
        values = [entry["value"] for entry in self.dev]
        best = int(np.argmax(values))
        if best == len(values) - 1:
            self.best = {name: weight.detach().clone() for name, weight in self.weights.items()}
        return len(values) - 1 - best >= self.recipe.patience

    def _save(self) -> None:
        assert self.file is not None
        tensors = {f"weight/{name}": weight.detach() for name, weight in self.weights.items()}
        tensors |= {f"best/{name}": weight for name, weight in self.best.items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"state/{number}/{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        header = {
            "identity": self.identity,
            "step": str(self.step),
            "losses": json.dumps(self.losses),
            "dev": json.dumps(self.dev),
            "pace": json.dumps(self.pace),
        }
        replace_bytes(
            self.file, save({key: value.contiguous().cpu() for key, value in tensors.items()}, metadata=header)
        )

    def _load(self) -> None:
        try:
            self._take_up()
        except (
            SafetensorError,
            KeyError,
            ValueError,
            RuntimeError,
            TypeError,
            OSError,
            AttributeError,
            IndexError,
        ) as error:
            raise OptionError(f"{self.file} can't be read ({first_line(error)}): delete it to begin anew") from None

    def _take_up(self) -> None:
        with safe_open(self.file, "pt") as opened:
            header = opened.metadata()
            if header["identity"] != self.identity:
                raise OptionError(
                    f"{self.file} is the state of another run (other data, base or options): delete it to begin anew"
                )
            state: dict[int, dict[str, Tensor]] = {}
            with torch.no_grad():
                for key in opened.keys():  # noqa: SIM118 (not a dict)
                    what, _, name = key.partition("/")
                    tensor = opened.get_tensor(key)
                    number, _, field = name.partition("/")
                    like = (
                        self.optimizer.param_groups[0]["params"][int(number)] if what == "state" else self.weights[name]
                    )
                    if tensor.shape != like.shape and not (what == "state" and not tensor.dim()):
                        raise ValueError(f"{key} has shape {tuple(tensor.shape)}")
                    if what == "weight":
                        self.weights[name].copy_(tensor)
                    elif what == "best":
                        self.best[name] = tensor.to(self.model.device)
                    else:
                        state.setdefault(int(number), {})[field] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        # As it was then: on some devices the gradient it came from isn't the same to the last bit.
        self.pace = parse_json(header["pace"], Pace)
        self.step = int(header["step"])
        self.losses, self.dev = parse_json(header["losses"], list[float]), parse_json(header["dev"], list[_Scored])


def slope_at_base(
    model: Model, readout: Readout, names: Sequence[str], rows: Sequence[Encoded], targets: Tensor, seed: int
) -> float:
    """The norm of the gradient at the base, over 64 training examples."""
    weights = [model.parameters[name].requires_grad_(True) for name in names]
    numbers = np.random.default_rng(seed).permutation(len(rows))[:64]
    pieces = np.array_split(numbers, math.ceil(len(numbers) / 16))
    for piece in (part for numbered in pieces for part in alike(model, rows, numbered.tolist())):
        batch, positions = collate(model, [rows[number] for number in piece])
        with steady_attention():
            scores = readout.logits(model.module, batch, positions)
        (F.cross_entropy(scores, targets[piece].to(model.device), reduction="sum") / len(numbers)).backward()
    norm = float(torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None]))
    for weight in weights:
        weight.grad = None
    return norm


def pull_towards(weights: dict[str, nn.Parameter], base: dict[str, Tensor], threshold: float) -> None:
    """Soft thresholding of the differences: the proximal step of threshold * L1 norm.

    What falls to zero takes the base's exact value, bit for bit.
    """
    with torch.no_grad():
        for name, weight in weights.items():
            delta = F.softshrink(weight - base[name], threshold)
            weight.copy_(torch.where(delta == 0, base[name], base[name] + delta))


def _batches(examples: int, size: int, seed: int, first: int, steps: int) -> Iterator[list[int]]:
    """The example numbers of steps `first` to `steps`: each pass is a permutation of its own, by seed and pass."""
    size = min(size, examples)
    each = examples // size
    for step in range(first, steps):
        order = np.random.default_rng([seed, step // each]).permutation(examples)
        yield order[(step % each) * size : (step % each + 1) * size].tolist()


def mixed_precision(device: torch.device, dtype: str | None) -> Any:
    """The context in which a model runs: bfloat16 where that is asked for, or by default on CUDA that has it."""
    if dtype not in (None, "float32", "bfloat16"):
        raise OptionError(f"--dtype {dtype} isn't for training: float32 or bfloat16")
    if dtype == "bfloat16" or (dtype is None and device.type == "cuda" and torch.cuda.is_bf16_supported()):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()
