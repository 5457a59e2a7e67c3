"""graft(): from a base and a tuned checkpoint to a skill with its evidence."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surgery.checkpoint import Checkpoint, open_checkpoint
from surgery.delta import SparseDelta
from surgery.errors import OptionError
from surgery.grafting.baselines import BASELINES, wear_baseline
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.grafting.methods import METHODS, Evidence, averaging, movement, sigmoid
from surgery.grafting.skill import Skill
from surgery.models import check_alike, load_model
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.tasks.calibration import fit_bias, softmax
from surgery.tasks.readout import PhraseReadout, pick_readout, readout_file
from surgery.tasks.scoring import Score, predict
from surgery.tasks.task import Task

_CANDIDATES_PER_WEIGHT, _FEWEST_CANDIDATES = 16, 1 << 20


def graft(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    task: Task,
    *,
    sparsity: float | None = None,
    weights: int | None = None,
    method: str = "averaging",
    sweep: Sequence[float] = (),
    baselines: bool = False,
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    progress: Progress = silent,
) -> Skill:
    """Find the few weights that carry a task from base to tuned (Panigrahi et al. 2023, sections 2 and 3).

    The graft is the base with exactly `weights` of its block weights replaced by their tuned values; nothing is
    trained afterwards. Locating reads the training examples, the figures come from the test examples.

    Args:
        base, tuned: checkpoints of one architecture and tokenizer: Checkpoint, folder or hub id.
        sparsity: the share of the block weights to take, in (0, 1]; default 1e-4. `weights` gives their number instead.
        method: `averaging` (default), `sigmoid` (the published one) or `movement`.
        sweep: further sparsities at which to locate and score.
        baselines: score top movement, random weights, biases only and zeroing outside the region at every sparsity too.
        include, exclude: patterns over tensor names, as `Checkpoint.block_weights` takes them.

    Raises:
        CheckpointError: checkpoints that don't fit together, hold NaN, or don't differ.
        OptionError: a sparsity outside (0, 1], or more weights than are movable.
        TaskError: no training or no test examples, or a task that doesn't fit the model.
    """
    began = time.monotonic()
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    names = before.block_weights(include, exclude)
    movable = sum(before.entries[name].size for name in names)
    k = budget(movable, sparsity, weights)
    ladder = sorted({budget(movable, share, None) for share in sweep} | {k})
    if method not in METHODS:
        raise OptionError(f"--method {method} isn't one of {', '.join(METHODS)}")
    train, test = task.need("train"), task.need("test")
    check_alike(before, after, [example.text for example in train[:100]])
    candidates = Candidates.between(before, after, names, max(_FEWEST_CANDIDATES, _CANDIDATES_PER_WEIGHT * ladder[-1]))

    model = load_model(before, device=device, dtype=dtype)
    readout = pick_readout(model, task)
    rows, test_rows = readout.encode(train), readout.encode(test)
    targets = np.array(task.targets(test))

    def scored(line: str) -> Score:
        logits = predict(
            model, readout, test_rows, batch_size, lambda done, total, _: progress(done, total, f"scoring {line}")
        )
        return Score(task.labels, task.metric, logits, targets)

    results = _Results(scored("base"), task.metric)
    bias = fit_bias(predict(model, readout, rows, batch_size), np.array(task.targets(train)))
    model.hold(after)
    results.tuned = scored("tuned")
    soft = torch.from_numpy(softmax(predict(model, readout, rows, batch_size))).float()
    model.hold(before)

    evidence = Evidence(rows, torch.tensor(task.targets(train)), soft)
    grafted = GraftedModel(model, readout, candidates)
    points: list[dict[str, Any]] = []
    chosen = torch.empty(0, dtype=torch.int64)
    located = 0.0
    for count in ladder:
        started = time.monotonic()
        found = _locate(method, grafted, evidence, count, seed, progress)
        seconds = time.monotonic() - started
        grafted.wear_only(found)
        points.append(results.point(method, len(found), movable, scored(f"graft of {len(found):,} weights"), seconds))
        if count == k:
            chosen, located, results.graft = found, seconds, results.last
        if baselines:
            for name in BASELINES:
                model.hold(before)
                size = wear_baseline(name, model, after, candidates, count, found, seed)
                points.append(results.point(name, size, movable, scored(f"baseline {name}")))
            model.hold(before)
    parts = candidates.parts(chosen)
    report: dict[str, Any] = {
        **provenance(
            call={
                "graft": {
                    "base": str(before),
                    "tuned": str(after),
                    "method": method,
                    "include": list(include),
                    "exclude": list(exclude),
                }
            },
            inputs={"base": before.fingerprint, "tuned": after.fingerprint},
            seed=seed,
        ),
        "task": task.spec(),
        "examples": {"train": len(train), "test": len(test)},
        "device": str(model.device),
        "method": method,
        **results.summary(),
        "weights": len(chosen),
        "sparsity": len(chosen) / movable,
        "movable": movable,
        "moved": candidates.moved,
        "points": points,
        "seconds": {"locate": round(located, 2), "all": 0.0},
    }
    report["base"]["accuracy_bias_fitted"] = float(((results.base.logits + bias).argmax(1) == targets).mean())
    delta = SparseDelta.from_parts(before, parts, movable=movable, metadata=_header(task, report))
    report["layers"] = _where(delta)
    report["bytes"] = len(delta.to_bytes())
    report["seconds"]["all"] = round(time.monotonic() - began, 2)
    own = isinstance(readout, PhraseReadout) and not (before.folder / readout_file(task)).exists()
    return Skill(delta, task, report, readout.to_bytes() if own and isinstance(readout, PhraseReadout) else None)


def budget(movable: int, sparsity: float | None, weights: int | None) -> int:
    """The number of weights a graft may have; raises OptionError when it is out of range."""
    if sparsity is not None and weights is not None:
        raise OptionError("give --sparsity or --weights, not both")
    if weights is not None:
        if not 1 <= weights <= movable:
            raise OptionError(f"--weights {weights} must lie between 1 and the {movable:,} movable weights")
        return weights
    share = 1e-4 if sparsity is None else sparsity
    if not 0 < share <= 1:
        raise OptionError(f"--sparsity {share:g} must lie above 0 and be at most 1")
    return max(1, int(share * movable))


def parse_sweep(text: str) -> list[float]:
    """`1e-5:1e-2` as sparsities from the first to the second, two a decade; or a comma-separated list of them."""
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        low, high = (float(part) for part in text.split(":"))
        if not 0 < low < high <= 1:
            raise ValueError
    except ValueError:
        raise OptionError(
            f"--sweep {text!r} must be LOW:HIGH with 0 < LOW < HIGH <= 1, such as 1e-5:1e-2, or sparsities with commas"
        ) from None
    return np.geomspace(low, high, max(2, round(2 * math.log10(high / low)) + 1)).tolist()


@dataclass
class _Results:
    """The scores as they come in."""

    base: Score
    metric: str
    tuned: Score = None  # type: ignore[assignment]  # scored second
    graft: Score = None  # type: ignore[assignment]  # scored when located
    last: Score = None  # type: ignore[assignment]

    def gain(self, score: Score) -> float | None:
        """(score - base) / (tuned - base) in the task's metric; None when tuning gained nothing."""
        gained = self.tuned.value - self.base.value
        return (score.value - self.base.value) / gained if gained else None

    def point(
        self, method: str, weights: int, movable: int, score: Score, seconds: float | None = None
    ) -> dict[str, Any]:
        self.last = score
        return {
            "method": method,
            "weights": weights,
            "sparsity": weights / movable,
            "accuracy": score.accuracy,
            "f1": score.f1,
            "ece": score.ece,
            "agreement": score.agreement_with(self.tuned),
            "gain_recovered": self.gain(score),
            "seconds": seconds and round(seconds, 2),
        }

    def summary(self) -> dict[str, Any]:
        graft = {
            **self.graft.summary(),
            "agreement": self.graft.agreement_with(self.tuned),
            "gain_recovered": self.gain(self.graft),
        }
        found: dict[str, Any] = {"base": self.base.summary(), "tuned": self.tuned.summary(), "graft": graft}
        for name, score in (("base", self.base), ("tuned", self.tuned), ("graft", self.graft)):
            bins = score.reliability
            found[name]["reliability"] = {"confidence": bins.confidence, "accuracy": bins.accuracy, "share": bins.share}
        return found


def _locate(method: str, grafted: GraftedModel, evidence: Evidence, k: int, seed: int, progress: Progress) -> Tensor:
    if method == "movement":
        return movement(grafted, k)
    if method == "sigmoid":
        return sigmoid(grafted, evidence, k, progress=progress)
    return averaging(grafted, evidence, k, seed=seed, progress=progress)


def _where(delta: SparseDelta) -> dict[str, int]:
    """Weights of the skill by tensor."""
    return {extent.name: extent.weights for extent in delta.extents}


def _header(task: Task, report: Mapping[str, Any]) -> dict[str, str]:
    keys = ("accuracy", "ece", "agreement", "gain_recovered")
    metrics = {
        name: {key: round(report[name][key], 6) for key in keys if report[name].get(key) is not None}
        for name in ("base", "tuned", "graft")
    }
    return {"task": json.dumps(task.spec()), "metrics": json.dumps(metrics), "surgery": str(report["surgery"])}
