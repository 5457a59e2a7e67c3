"""graft(): from a base and a tuned checkpoint to a skill with its evidence."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.counterparts import counterparts
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.models import Model, load_model, pick_dtype
from surgery.checkpoints.pairing import check_alike
from surgery.devices import pick_device
from surgery.errors import OptionError
from surgery.grafting.baselines import BASELINES, wear_baseline
from surgery.grafting.budget import budget, candidate_limit
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.grafting.memory_need import graft_need, most_of_grafting
from surgery.grafting.methods import METHODS, Evidence, averaging, movement, sigmoid
from surgery.grafting.skill import Skill
from surgery.memory import check_before
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.tasks.calibration import fit_bias, softmax
from surgery.tasks.classifier_heads import check_one_order
from surgery.tasks.examples import Example
from surgery.tasks.gradients import check_gradients
from surgery.tasks.readout import Encoded, PhraseReadout, Readout, pick_readout, readout_file
from surgery.tasks.scoring import Score, predict
from surgery.tasks.task import Task

_EXAMPLES = 1024


def graft(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    task: Task,
    *,
    sparsity: float | None = None,
    weights: int | None = None,
    method: str = "averaging",
    epochs: int | None = None,
    sweep: Sequence[float] = (),
    baselines: bool = False,
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
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
        epochs: of `sigmoid`; by default their number, 10 to 100, is chosen on training examples held out for it.
        sweep: further sparsities at which to locate and score.
        baselines: score top movement, random weights, biases only and zeroing outside the region at every sparsity too.
        include, exclude: patterns over tensor names, as `Checkpoint.block_weights` takes them.

    Raises:
        CheckpointError: checkpoints that don't fit together, hold NaN, or don't differ.
        OptionError: a sparsity outside (0, 1], more weights than are movable, or more memory than the device has free.
        TaskError: no training or no test examples, or a task that doesn't fit the model.
    """
    began = time.monotonic()
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    names = before.block_weights(include, exclude)
    movable = sum(before.entries[name].size for name in names)
    k = budget(movable, sparsity, weights)
    ladder = sorted({budget(movable, share, None) for share in sweep} | {k})
    place = pick_device(device)
    if method not in METHODS:
        raise OptionError(f"--method {method} isn't one of {', '.join(METHODS)}")
    if epochs is not None and (method != "sigmoid" or epochs < 1):
        raise OptionError(f"--epochs {epochs} goes with --method sigmoid, and must be 1 or more")
    train, test = _sample(task.need("train"), seed), task.need("test")
    resized = check_alike(before, after, [example.text for example in train[:100]])
    check_one_order(before, after, task)
    limit = candidate_limit(ladder)
    given: dict[str, Any] = {"sparsity": sparsity, "weights": weights, "sweep": sweep, "method": method, "dtype": dtype}
    given |= {"include": include, "exclude": exclude, "batch_size": batch_size}
    check_before(
        most_of_grafting(before, task, limit, batch_size, pick_dtype(dtype)),
        lambda: graft_need(before, task, device=place, **given),
        place,
    )
    candidates = Candidates.between(before, after, names, limit, place)

    model = load_model(before, device=place, dtype=dtype)
    readout = pick_readout(model, task)
    rows = readout.encode(train)
    if method != "movement":  # which looks at distances only
        check_gradients(model, readout, names, rows[0])
    labels = np.array(task.targets(train))
    exam = _Exam(model, readout, task, readout.encode(test), batch_size, progress)
    exam.base = exam.score("base")
    bias = fit_bias(predict(model, readout, rows, batch_size), labels)
    model.hold(after)
    exam.tuned = exam.score("tuned")
    soft = torch.from_numpy(softmax(predict(model, readout, rows, batch_size))).float()
    model.hold(before)

    evidence = Evidence(rows, torch.from_numpy(labels), soft)
    grafted = GraftedModel(model, readout, candidates)
    points: list[dict[str, Any]] = []
    regions: dict[int, Tensor] = {}
    for count in ladder:
        started = time.monotonic()
        regions[count] = _locate(method, grafted, evidence, count, seed, epochs, progress)
        seconds = round(time.monotonic() - started, 2)
        grafted.wear_only(regions[count])
        size = len(regions[count])
        result = exam.score(f"graft of {size:,} weights")
        points.append({**exam.point(method, size, movable, result), "seconds": seconds})
        if count == k:
            exam.graft = result
        for name in BASELINES if baselines else ():
            model.hold(before)
            size = wear_baseline(name, model, after, names, candidates, count, regions[count], seed)
            points.append(exam.point(name, size, movable, exam.score(f"baseline {name}")))
        if baselines:
            model.hold(before)

    asked = {
        "base": str(before),
        "tuned": str(after),
        "method": method,
        **({} if epochs is None else {"epochs": epochs}),
        "weights": k,
        "sweep": list(sweep),
        "baselines": baselines,
        "include": list(include),
        "exclude": list(exclude),
        "dtype": None if dtype is None else str(pick_dtype(dtype)).removeprefix("torch."),
        "batch_size": batch_size,
    }
    summary = exam.summary()
    summary["base"]["accuracy_bias_fitted"] = exam.accuracy_with(bias)
    delta = SparseDelta.from_parts(
        before, candidates.parts(regions[k]), movable=movable, metadata=_header(task, summary)
    )
    left_out = _left_out(before, after, names)
    report = {
        **provenance(call={"graft": asked}, inputs={"base": before.fingerprint, "tuned": after.fingerprint}, seed=seed),
        "task": task.spec(),
        "examples": {
            "train": len(task.train),
            "located_on": len(train),
            "test": len(test),
            "test_in_train": task.repeated("test"),
        },
        "device": str(model.device),
        "method": method,
        **summary,
        "weights": delta.weights,
        "sparsity": delta.sparsity,
        "movable": movable,
        "moved": candidates.moved,
        "left_out": left_out,
        "head": _head(before, after, left_out, resized),
        "resized": resized,
        "dtypes": {side: _dtype(checkpoint) for side, checkpoint in (("base", before), ("tuned", after))},
        "bytes": len(delta.to_bytes()),
        "points": points,
        "seconds": round(time.monotonic() - began, 2),
    }
    inherited = (before.folder / readout_file(task)).exists()
    return Skill(
        delta, task, report, readout.to_bytes() if isinstance(readout, PhraseReadout) and not inherited else None
    )


def gain_interval(base: Score, tuned: Score, other: Score) -> tuple[float, float] | None:
    """A 95% bootstrap interval of (other - base) / (tuned - base) over test examples, paired; None where tuned - base may be 0."""
    random, found = np.random.default_rng(0), []
    for _ in range(10):  # in parts, for memory
        rows = random.integers(len(base.targets), size=(100, len(base.targets)))
        found.append([score.resampled(rows) for score in (base, other, tuned)])
    low, middle, high = np.concatenate(found, axis=1)
    gained = high - low
    if (gained <= 0).mean() > 0.025:
        return None
    kept = gained > 0
    bounds = np.percentile((middle - low)[kept] / gained[kept], [2.5, 97.5])
    return float(bounds[0]), float(bounds[1])


class _Exam:
    """Scores a model on the test examples as it is at the moment, and sets one score against another."""

    base: Score
    tuned: Score
    graft: Score

    def __init__(
        self, model: Model, readout: Readout, task: Task, rows: Sequence[Encoded], batch_size: int, progress: Progress
    ) -> None:
        self._model, self._readout, self._task, self._rows = model, readout, task, rows
        self._batch_size, self._progress = batch_size, progress
        self._targets = np.array(task.targets(task.test))

    def score(self, line: str) -> Score:
        def progress(done: int, total: int, _: str) -> None:
            self._progress(done, total, f"scoring {line}")

        logits = predict(self._model, self._readout, self._rows, self._batch_size, progress)
        return Score(self._task.labels, self._task.metric, logits, self._targets)

    def gain(self, score: Score) -> float | None:
        """(score - base) / (tuned - base) in the task's metric; None unless tuning gained."""
        gained = self.tuned.value - self.base.value
        return (score.value - self.base.value) / gained if gained > 0 else None

    def gain_interval(self, score: Score) -> tuple[float, float] | None:
        """95% of the gain over 1,000 resamples of the test examples, the same for all three; None where tuning's isn't clear."""
        return gain_interval(self.base, self.tuned, score)

    def point(self, method: str, weights: int, movable: int, score: Score) -> dict[str, Any]:
        return {
            "method": method,
            "weights": weights,
            "sparsity": weights / movable,
            "accuracy": score.accuracy,
            "f1": score.f1,
            "ece": score.ece,
            "agreement": score.agreement_with(self.tuned),
            "gain_recovered": self.gain(score),
            "gain_interval": self.gain_interval(score),
        }

    def accuracy_with(self, bias: NDArray) -> float:
        """The base's accuracy once a constant per label, fitted on training examples, is added to its scores."""
        return float(((self.base.logits + bias).argmax(1) == self._targets).mean())

    def summary(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, score in (("base", self.base), ("tuned", self.tuned), ("graft", self.graft)):
            found[name] = {**score.summary(), "reliability": asdict(score.reliability)}
        found["graft"] |= {
            "agreement": self.graft.agreement_with(self.tuned),
            "gain_recovered": self.gain(self.graft),
            "gain_interval": self.gain_interval(self.graft),
        }
        return found


def _left_out(base: Checkpoint, tuned: Checkpoint, names: Sequence[str]) -> list[str]:
    """Tensors that differ but may not move, such as an embedding or a head that was tuned too."""
    pairs = {tensor: other for tensor, other in counterparts(base, tuned).items() if tensor not in names}
    return sorted(tensor for tensor, other in pairs.items() if _differ(base, tensor, tuned, other))


def _head(base: Checkpoint, tuned: Checkpoint, left_out: Sequence[str], resized: Sequence[str]) -> list[str]:
    """Those left out that belong to the head; not one that only has other rows for tokens that were added."""
    theirs, found = counterparts(base, tuned), []
    for name in sorted(set(left_out) - set(base.structure.body)):
        if name in resized:
            ours, other = base.tensor(name), tuned.tensor(theirs[name])
            rows = min(len(ours), len(other))
            if torch.equal(ours[:rows], other[:rows].to(ours.dtype)):
                continue
        found.append(name)
    return found


def _differ(base: Checkpoint, name: str, tuned: Checkpoint, other: str) -> bool:
    """Whether two tensors differ in the base's dtype, which a skill holds values in."""
    ours, theirs = base.entries[name], tuned.entries[other]
    if (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype):
        return base.digests[name] != tuned.digests[other]
    return not torch.equal(base.tensor(name), tuned.tensor(other).to(ours.dtype))


def _dtype(checkpoint: Checkpoint) -> str:
    """What the blocks are stored in."""
    return " and ".join(sorted({str(checkpoint.entries[name].dtype)[6:] for name in checkpoint.structure.blocks}))


def _sample(examples: Sequence[Example], seed: int) -> Sequence[Example]:
    """At most so many examples as locating looks at (the published method's number), drawn by seed."""
    if len(examples) <= _EXAMPLES:
        return examples
    return [examples[number] for number in np.random.default_rng(seed).permutation(len(examples))[:_EXAMPLES]]


def _locate(
    method: str,
    grafted: GraftedModel,
    evidence: Evidence,
    k: int,
    seed: int,
    epochs: int | None,
    progress: Progress,
) -> Tensor:
    if method == "movement":
        return movement(grafted, k)
    if method == "sigmoid":
        return sigmoid(grafted, evidence, k, epochs=epochs, seed=seed, progress=progress)
    return averaging(grafted, evidence, k, seed=seed, progress=progress)


def _header(task: Task, summary: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What a skill file says of itself without its report."""
    keys = ("accuracy", "ece", "agreement", "gain_recovered")
    metrics = {
        who: {key: round(found[key], 6) for key in keys if found.get(key) is not None} for who, found in summary.items()
    }
    return {"task": json.dumps(task.spec()), "metrics": json.dumps(metrics)}
