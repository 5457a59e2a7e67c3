"""Warm-up: low-rank adapters trained on a share of the pool, whose checkpoints the gradients are taken at (Xia et al. 2024, section 4.1)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from surgery.checkpoints.models import Model, steady_attention
from surgery.errors import OptionError, SelectionError
from surgery.files import replace_json
from surgery.jsonfile import JsonError, load_json
from surgery.progress import Progress, silent
from surgery.selecting.lora import MOMENTS, Adapter
from surgery.selecting.seals import digest_of
from surgery.tasks.objectives import Lesson, Objective
from surgery.tasks.readout import alike

BETAS, EPS = (0.9, 0.999), 1e-8
_CLIP = 1.0
_NOTE = "warmup.json"


@dataclass(frozen=True)
class Warmup:
    """Warm-up of low-rank adapters by Adam, with a rate that rises over the first 3% of steps and then falls linearly to zero.

    The paper trains rank 128 with alpha 512 on the attention's matrices at a rate of 2e-5; small models need a larger one.

    Attributes:
        share: of the pool's rows that are trained on, drawn by `seed`; 0 trains nothing.
        epochs: passes over them, each of which ends with a checkpoint.
        rate: largest learning rate.
        rank, alpha: of the adapters, which add alpha / rank times B A.
        targets: shell patterns over names of modules; by default all matrices of the blocks.

    Raises:
        OptionError: a value out of its range.
    """

    share: float = 0.05
    epochs: int = 4
    rate: float = 1e-3
    rank: int = 8
    alpha: float = 16.0
    batch_size: int = 16
    targets: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise OptionError(f"`warmup_share` {self.share} must be from 0 to 1")
        for name in ("epochs", "rate", "rank", "alpha", "batch_size"):
            if not getattr(self, name) > 0:
                raise OptionError(f"`{name}` {getattr(self, name)} must be above 0")

    def rows(self, count: int) -> list[int]:
        """Numbers of the pool's rows that are trained on, sorted."""
        wanted = min(count, math.ceil(self.share * count)) if self.share else 0
        return sorted(np.random.default_rng(self.seed).permutation(count)[:wanted].tolist())


class Noted(TypedDict):
    """What lies beside a warm-up's checkpoints: how it was made, the base's fingerprint, each checkpoint's rate and steps, mean losses."""

    warmup: dict[str, Any]
    base: str
    rates: list[float]
    steps: list[int]
    losses: list[float]
    digests: NotRequired[dict[str, str]]  # of its files of weights and moments


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of a warm-up, in a folder.

    Attributes:
        rates: mean learning rate of the epoch that ended with each, which weighs it in a score.
        steps: optimiser steps before each.
    """

    folder: Path
    warmup: Warmup
    base: str
    rates: tuple[float, ...]
    steps: tuple[int, ...]
    losses: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.rates)

    def files(self) -> list[Path]:
        """The files of weights and moments."""
        return _files(self.folder)

    def place(self, number: int) -> Path:
        """A checkpoint's folder: an adapter for `peft`, with Adam's moments."""
        return self.folder / f"checkpoint-{number + 1}"

    @property
    def weights(self) -> tuple[float, ...]:
        """Shares of the rates, which sum to one."""
        return tuple(rate / sum(self.rates) for rate in self.rates)

    @classmethod
    def load(cls, folder: Path) -> "Checkpoints":
        """Read what `warm_up` wrote, or the warm-up of a store of features; raises SelectionError for anything else."""
        if not (folder / _NOTE).exists() and (folder / "warmup" / _NOTE).exists():
            folder = folder / "warmup"
        try:
            noted: Noted = load_json(folder / _NOTE, Noted)
            warmup = Warmup(**{**noted["warmup"], "targets": tuple(noted["warmup"]["targets"])})
        except (OSError, JsonError, TypeError, KeyError) as error:
            raise SelectionError(
                f"{folder} can't be read as a warm-up ({error}): name a folder of features, or the folder warmup in one"
            ) from None
        for name, digest in noted.get("digests", {}).items():
            if not (folder / name).exists() or digest_of([folder / name]) != digest:
                raise SelectionError(f"{folder / name} isn't what the warm-up wrote: warm up again")
        return cls(folder, warmup, noted["base"], tuple(noted["rates"]), tuple(noted["steps"]), tuple(noted["losses"]))

    def adapter(self, model: Model) -> Adapter:
        """The adapters of the warm-up beside a model's matrices, as they were at the start."""
        made = self.warmup
        return Adapter.beside(model, made.rank, made.alpha, made.targets, made.seed)


def warm_up(
    model: Model,
    objective: Objective,
    rows: Sequence[Lesson],
    warmup: Warmup,
    folder: Path,
    *,
    progress: Progress = silent,
) -> Checkpoints:
    """Train adapters beside a model's matrices and write a checkpoint an epoch into a folder; the model keeps the adapters.

    Without rows the only checkpoint is the start, where Adam's moments are zero.
    """
    adapter = Adapter.beside(model, warmup.rank, warmup.alpha, warmup.targets, warmup.seed)
    trainer = _Trainer(model, objective, adapter, rows, warmup)
    rates, steps, losses = [], [], []
    for epoch in range(warmup.epochs if rows else 1):
        rate, loss = trainer.epoch(epoch, progress) if rows else (warmup.rate, 0.0)
        rates.append(rate)
        losses.append(loss)
        steps.append(trainer.step)
        adapter.save(folder / f"checkpoint-{epoch + 1}", trainer.moments())
    for weight in adapter.weights.values():
        weight.requires_grad_(False)
        weight.grad = None
    noted: Noted = {
        "warmup": asdict(warmup), "base": model.checkpoint.fingerprint, "rates": rates, "steps": steps, "losses": losses,
        "digests": {str(file.relative_to(folder)): digest_of([file]) for file in _files(folder)},
    }  # fmt: skip
    replace_json(folder / _NOTE, noted)
    return Checkpoints(folder, warmup, noted["base"], tuple(rates), tuple(steps), tuple(losses))


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


class _Trainer:
    """The adapters' training, an epoch at a time."""

    def __init__(
        self, model: Model, objective: Objective, adapter: Adapter, rows: Sequence[Lesson], warmup: Warmup
    ) -> None:
        self.model, self.objective, self.rows, self.warmup = model, objective, rows, warmup
        self.tokens = [row.tokens for row in rows]
        self.weights = adapter.weights
        for weight in self.weights.values():
            weight.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.weights.values(), lr=warmup.rate, betas=BETAS, eps=EPS)
        self.step = 0
        self.total = warmup.epochs * math.ceil(len(rows) / warmup.batch_size)

    def rate(self, step: int) -> float:
        rising = math.ceil(0.03 * self.total)
        return self.warmup.rate * min((step + 1) / rising, (self.total - step) / max(1, self.total - rising + 1))

    def epoch(self, number: int, progress: Progress) -> tuple[float, float]:
        """Train one pass; returns its mean rate and loss."""
        order = np.random.default_rng([self.warmup.seed, number]).permutation(len(self.rows)).tolist()
        rates, losses = [], []
        for start in range(0, len(order), self.warmup.batch_size):
            numbers = order[start : start + self.warmup.batch_size]
            losses.append(self._gradients(numbers) / len(numbers))
            rates.append(self.rate(self.step))
            for group in self.optimizer.param_groups:
                group["lr"] = rates[-1]
            torch.nn.utils.clip_grad_norm_(list(self.weights.values()), _CLIP)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            progress(self.step, self.total, f"warming up: loss {losses[-1]:.3f}")
        if not all(map(math.isfinite, losses)):
            raise OptionError(f"the warm-up's loss is {losses[-1]}: lower `rate` {self.warmup.rate}")
        return float(np.mean(rates)), float(np.mean(losses))

    def _gradients(self, numbers: Sequence[int]) -> float:
        total = 0.0
        for piece in alike(self.model, self.tokens, numbers):
            with steady_attention():
                loss = self.objective.losses(self.model, [self.rows[each] for each in piece]).sum()
                (loss / len(numbers)).backward()
            total += float(loss.detach())
        return total

    def moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """Adam's moments by the names of parameters."""
        state = self.optimizer.state
        return {
            name: {moment: state[weight].get(moment, torch.zeros_like(weight)).detach() for moment in MOMENTS}
            for name, weight in self.weights.items()
        }
