"""The training loop: batches, steps, the proximal pull, early stopping, and the state that survives a kill."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from surgery.checkpoints.models import Model
from surgery.errors import OptionError, SurgeryError, first_line
from surgery.files import replace_bytes
from surgery.jsonfile import parse_json
from surgery.progress import Progress
from surgery.resuming import damaged
from surgery.sync.sharding import Sharded
from surgery.sync.together import SyncRecipe, Together
from surgery.sync.workers import Workers
from surgery.tasks.readout import alike
from surgery.tuning.moving import Moving
from surgery.tuning.recipe import Pace, Recipe
from surgery.tuning.training_sets import Figures, TrainingSet

_SAVE_SECONDS = 30.0
_PACES = 0.05  # by which rate and pull may differ on two devices


class Scored(Figures):
    """The dev examples' score at a step."""

    step: int


class TrainingLoop:
    """The numbers being trained, the optimiser's state, and the file they survive in."""

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        pace: Pace,
        moved: Moving,
        state: Path | None,
        workers: Workers | None = None,
        sync: SyncRecipe | None = None,
    ) -> None:
        self.model, self.recipe, self.pace = model, recipe, pace
        self.moved, self.weights = moved, moved.values
        self.base = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.file = state / "state.safetensors" if state else None
        self.step = 0
        self._whole = True  # no update is half done
        self.losses: list[float] = []
        self.dev: list[Any] = []
        self.best: dict[str, Tensor] = {}
        # Where the model is split over workers, one of them may have nothing to move.
        parameters: list[nn.Parameter] = list(self.weights.values()) or [nn.Parameter(torch.empty(0))]
        if recipe.optimizer.startswith("sgd"):
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, lr=pace.rate, momentum=recipe.momentum)
        else:
            self.optimizer = torch.optim.AdamW(parameters, lr=pace.rate, weight_decay=0.0)
        self.together = None if workers is None else self._join(workers, sync or SyncRecipe())
        stopped = self.together.to_go_on_from(state) if self.together and state else self.file
        if stopped and stopped.exists():
            self._load(stopped)

    def _join(self, workers: Workers, sync: SyncRecipe) -> Together:
        rates = [self.pace.rate_at(step) for step in range(self.pace.steps)]
        if sync.kind == "sharded":
            return Sharded(workers, sync, rates)
        origins = list(self.base.values())
        return Together(workers, sync, self.optimizer, rates, warmup=self.pace.rising, origins=origins)

    def run(self, sets: Sequence[TrainingSet], seed: int, autocast: Any, progress: Progress) -> dict[str, Any]:
        """Train to the end, or until dev examples say stop; the best weights, or the last, are in `weights` after.

        Steps take the sets in turn.
        """
        every = max(1, self.pace.steps // self.recipe.evaluations)
        scored = [each for each in sets if each.evaluated]
        saved, owed = time.monotonic(), False
        try:
            for each, numbers in turns(sets, self.recipe.batch_size, seed, self.step, self.pace.steps):
                loss = self.advance(each, numbers, autocast)
                self.losses.append(round(loss, 5))
                self.step += 1
                self._whole = True
                owed = owed or self.step % every == 0 or self.step == self.pace.steps
                same = self.together is None or self._exchange(loss)
                if scored and owed and same:  # workers score the weights that all of them have
                    owed = False
                    if self._evaluate(scored):
                        break
                dev = f", dev {self.dev[-1]['value']:.3f}" if self.dev else ""
                progress(self.step, self.pace.steps, f"tuning: loss {np.mean(self.losses[-20:]):.3f}{dev}")
                if self.together is not None:
                    self._save_with_others()
                elif self.file and time.monotonic() - saved > _SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if (
                self.file and self._whole and self.together is None
            ):  # else the last half minute is lost, but nothing is wrong
                self._save()
            raise
        if self.together is not None:
            self.together.finish()
        with torch.no_grad():
            for name, tensor in self.best.items():
                self.weights[name].copy_(tensor)
        self.moved.after_step()
        return {"losses": self.losses, "dev": self.dev, "stopped_at": self.step}

    def _exchange(self, loss: float) -> bool:
        """Average with the other workers where a round ends; whether all have the same weights now."""
        assert self.together is not None
        same = self.together.after_step(loss)
        if same:
            self.moved.after_step()
        return same

    def _save_with_others(self) -> None:
        assert self.together is not None
        if self.file and self.together.due_to_save():
            self.file = self.together.file(self.file.parent, self.step)
            self._save()
            self.together.sweep(self.file.parent, self.step)

    def advance(self, examples: TrainingSet, numbers: Sequence[int], autocast: Any) -> float:
        """Make one step on examples of these numbers; their mean loss, or that of this worker's part of them."""
        total, whole = 0.0, len(numbers)
        parts = [numbers] if self.together is None else self.together.parts(numbers)
        batches = [self._batches(examples, part) for part in parts]
        own = batches[0 if self.together is None else self.together.workers.rank]
        if self.together is not None and not self.together.data_parallel:
            whole = sum(map(len, own))
        # Workers who share a model run as many batches as the one with the most: the last one again, for nothing.
        runs = len(own) if self.model.copies == 1 else max(map(len, batches))
        for run in range(runs):
            piece, share = (own[run], len(own[run]) / whole) if run < len(own) else (own[-1], 0.0)
            loss = examples.loss(self.model, piece, precision=autocast) * share
            (loss * self.model.copies).backward()
            total += float(loss.detach())
        if self.together is not None:
            total = self.together.add_gradients(total)
        if not math.isfinite(total):
            raise SurgeryError(
                f"the loss became {total} at step {self.step + 1}: lower `rate` (now {self.pace.rate:g})"
            )
        rate = self.pace.rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.moved.before_step()
        weights = list(self.weights.values())
        norm = self.model.norm([weight.grad for weight in weights if weight.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(weights, self.recipe.clip, norm)
        self._whole = False
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.pace.l1:
            pull_towards(self.weights, self.base, rate * self.pace.l1)
        self.moved.after_step()
        return total

    def _batches(self, examples: TrainingSet, numbers: Sequence[int]) -> list[list[int]]:
        """What a worker runs of a step, one after another."""
        pieces = np.array_split(np.asarray(numbers), self.recipe.accumulate)
        return [part for piece in pieces if len(piece) for part in alike(self.model, examples.rows, piece.tolist())]

    def _evaluate(self, sets: Sequence[TrainingSet]) -> bool:
        """Score the dev examples, keep the weights if they are the best on average so far, and say whether to stop."""
        figures = [each.score(self.model) for each in sets]
        means = {key: sum(each[key] for each in figures) / len(sets) for key in ("value", "ece") if key in figures[0]}
        self.dev.append({"step": self.step, **means})
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
            "step": str(self.step),
            "losses": json.dumps(self.losses),
            "dev": json.dumps(self.dev),
            "pace": json.dumps(self.pace),
        }
        if self.together is not None:
            header["sync"] = json.dumps(self.together.state())
        replace_bytes(
            self.file, save({key: value.contiguous().cpu() for key, value in tensors.items()}, metadata=header)
        )

    def _load(self, file: Path) -> None:
        try:
            self._take_up(file)
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
            raise damaged(file, first_line(error)) from None

    def _take_up(self, file: Path) -> None:
        with safe_open(file, "pt") as opened:
            header = opened.metadata()
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
        self.moved.after_step()
        # As it was then: on some devices the gradient it came from isn't the same to the last bit.
        pace = parse_json(header["pace"], Pace)
        close = all(math.isclose(*both, rel_tol=_PACES) for both in zip(pace[:2], self.pace[:2], strict=True))
        if not close or pace[2:] != self.pace[2:]:
            raise ValueError(f"its pace is {pace}, and this run's {self.pace}")
        self.pace = pace
        self.step = int(header["step"])
        if self.together is not None:
            self.together.restore(parse_json(header["sync"]))
        self.losses, self.dev = parse_json(header["losses"], list[float]), parse_json(header["dev"], list[Scored])


def gradient_norm_at_base(model: Model, examples: TrainingSet, names: Sequence[str], seed: int) -> float:
    """The norm of the gradient at the base, over 64 training examples."""
    values = {name: model.movable(name) for name in names}
    numbers = np.random.default_rng(seed).permutation(len(examples.rows))[:64]
    pieces = np.array_split(numbers, math.ceil(len(numbers) / 16))
    for piece in (part for numbered in pieces for part in alike(model, examples.rows, numbered.tolist())):
        (examples.loss(model, piece, reduction="sum") / len(numbers)).backward()
    model.collect(values)
    norm = float(model.norm([value.grad for value in values.values() if value.grad is not None]))
    for value in values.values():
        value.grad = None
    return norm


def pull_towards(weights: dict[str, nn.Parameter], base: dict[str, Tensor], threshold: float) -> None:
    """Soft thresholding of the differences: the proximal step of threshold * L1 norm.

    What falls to zero takes the base's exact value, bit for bit.
    """
    with torch.no_grad():
        for name, weight in weights.items():
            delta = F.softshrink(weight - base[name], threshold)
            weight.copy_(torch.where(delta == 0, base[name], base[name] + delta))


def batches(examples: int, size: int, seed: int, first: int, steps: int) -> Iterator[list[int]]:
    """The example numbers of steps `first` to `steps`: each pass is a permutation of its own, by seed and pass."""
    size = min(size, examples)
    each = examples // size
    for step in range(first, steps):
        order = np.random.default_rng([seed, step // each]).permutation(examples)
        yield order[(step % each) * size : (step % each + 1) * size].tolist()


def turns(
    sets: Sequence[TrainingSet], size: int, seed: int, first: int, steps: int
) -> Iterator[tuple[TrainingSet, list[int]]]:
    """The set and the example numbers of steps `first` to `steps`: sets in turn, each as `batches` has it."""
    count = len(sets)
    own = [
        batches(len(each.rows), size, seed, -(-(first - number) // count), steps) for number, each in enumerate(sets)
    ]
    for step in range(first, steps):
        yield sets[step % count], next(own[step % count])


def mixed_precision(device: torch.device, dtype: str | None) -> Any:
    """The context in which a model runs: bfloat16 where that is asked for, or by default on CUDA that has it."""
    if dtype not in (None, "float32", "bfloat16"):
        raise OptionError(f"`dtype` {dtype} isn't for training: float32 or bfloat16")
    if dtype == "bfloat16" or (dtype is None and device.type == "cuda" and torch.cuda.is_bf16_supported()):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
