"""From the label scores that stages kept to the figures of the report."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from surgery.grafting.study.settings import ROWS, Settings, Stage
from surgery.tasks.calibration import Reliability, softmax

Found = Mapping[Stage, Mapping[str, Any]]
_RESAMPLES = 1000


class Interval(NamedTuple):
    """A figure with its 95% bootstrap interval over test examples."""

    value: float
    low: float
    high: float


class Seed:
    """What the stages of one seed have found, those that are done."""

    def __init__(self, found: Found, seed: int, settings: Settings) -> None:
        self.names = settings.tasks
        self._found = {(stage.kind, stage.task): content for stage, content in found.items() if stage.seed == seed}
        self._targets = self.of("base").get("targets", {})

    def of(self, kind: str, task: str = "") -> Mapping[str, Any]:
        """What a stage found; empty where it isn't done."""
        return self._found.get((kind, task), {})

    def targets(self, name: str) -> NDArray:
        """The right labels of a task's test examples."""
        return np.array(self._targets[name])

    def logits(self, kind: str, task: str, model: str, name: str) -> NDArray | None:
        """Label scores that a stage kept of a model on a task; None where it kept none."""
        kept = self.of(kind, task).get("scores", {}).get(model, {}).get(name)
        return None if kept is None else np.array(kept)

    def right(self, kind: str, task: str, model: str, name: str) -> NDArray | None:
        """Which test examples a model gets right; None where no stage says."""
        logits = self.logits(kind, task, model, name)
        return None if logits is None else logits.argmax(1) == self.targets(name)

    def gain(self, right: NDArray | None, name: str, tuned: NDArray | None) -> Interval | None:
        """(model - base) / (tuned - base) of a task; None where tuning gained nothing."""
        base = self.right("base", "", "base", name)
        if right is None or base is None or tuned is None or tuned.mean() <= base.mean():
            return None
        rows = np.random.default_rng(0).integers(len(base), size=(_RESAMPLES, len(base)))
        low, middle, high = (each[rows].mean(1) for each in (base, right, tuned))
        kept = high > low
        bounds = np.percentile((middle - low)[kept] / (high - low)[kept], [2.5, 97.5])
        value = (right.mean() - base.mean()) / (tuned.mean() - base.mean())
        return Interval(float(value), *map(float, bounds))

    def tuned(self, name: str) -> NDArray | None:
        """Which test examples the checkpoint tuned on this task alone gets right."""
        return self.right("skill", name, "tuned", name)


def accuracy(right: NDArray) -> Interval:
    """The share that is right."""
    rows = np.random.default_rng(0).integers(len(right), size=(_RESAMPLES, len(right)))
    return Interval(float(right.mean()), *map(float, np.percentile(right[rows].mean(1), [2.5, 97.5])))


def brier(logits: NDArray, targets: NDArray) -> float:
    """Brier score: the mean squared distance between the predicted probabilities and the right answer's, 0 to 2."""
    probabilities = softmax(logits)
    probabilities[np.arange(len(targets)), targets] -= 1.0
    return float((probabilities**2).sum(1).mean())


def alone(seed: Seed) -> list[dict[str, Any]]:
    """Each task's own skill: accuracies, the gain and its interval, weights."""
    rows = []
    for name in seed.names:
        right = {"base": seed.right("base", "", "base", name), "tuned": seed.tuned(name)}
        right["graft"] = seed.right("skill", name, "graft", name)
        if any(each is None for each in right.values()):
            continue
        content = seed.of("skill", name)
        shares = {who: float(each.mean()) for who, each in right.items() if each is not None}
        gain = seed.gain(right["graft"], name, right["tuned"])
        rows.append({"task": name, **shares, "gain": gain, "moved": content["moved"], "weights": content["weights"]})
    return rows


def transfer(seed: Seed) -> list[dict[str, Any]]:
    """Each model tuned on a task, on every task with the same labels: accuracy, calibration, and with a temperature."""
    models = [("skill", "tuned"), ("skill", "graft"), ("biases", "biases only"), ("lora", "LoRA")]
    rows = []
    for source in seed.names:
        for kind, model in models:
            for name in seed.of(kind, source).get("scores", {}).get(model, {}):
                logits = seed.logits(kind, source, model, name)
                assert logits is not None
                rows.append(_calibrated(seed, source, name, model, logits))
        base = seed.logits("base", "", "base", source)
        if base is not None:
            rows.append(_calibrated(seed, source, source, "base", base))
    return rows


def _calibrated(seed: Seed, source: str, name: str, model: str, logits: NDArray) -> dict[str, Any]:
    targets, temperature = seed.targets(name), seed.of("skill", source).get("temperature", {}).get(model)
    scaled = None if temperature is None else Reliability.of(softmax(logits / temperature), targets).ece
    return {
        "from": source,
        "on": name,
        "model": model,
        "accuracy": accuracy(logits.argmax(1) == targets),
        "ece": Reliability.of(softmax(logits), targets).ece,
        "brier": brier(logits, targets),
        "ece_scaled": scaled,
    }


def regions(seed: Seed) -> dict[str, Any] | None:
    """Of the model of all tasks: what each task gains under each task's region, and the regions' overlaps."""
    shares = seed.of("regions").get("overlap")
    if shares is None:
        return None
    names, multi = seed.names, {name: seed.right("multi", "", "multi", name) for name in seed.names}
    gains = [[seed.gain(seed.right("locate", of, "region", on), on, multi[on]) for of in names] for on in names]
    # Row: the task; column: whose region. |A and B| / |B| with B the task's own region.
    overlaps = [[shares[of][on] for of in names] for on in names]
    off = [(r, c) for r in range(len(names)) for c in range(len(names)) if r != c and gains[r][c] is not None]
    pairs = np.array([[overlaps[r][c], gains[r][c].value] for r, c in off])  # type: ignore[union-attr]
    varied = len(off) > 2 and bool((pairs.std(0) > 0).all())
    union = {
        way: {name: seed.gain(seed.right("regions", "", way, name), name, multi[name]) for name in names}
        for way in ("union", "union, ten more steps")
    }
    return {
        "multi": {name: float(right.mean()) for name, right in multi.items() if right is not None},
        "gains": gains,
        "overlaps": overlaps,
        "correlation": float(np.corrcoef(pairs.T)[0, 1]) if varied else None,
        "union": union,
    }


def in_a_row(seed: Seed) -> list[dict[str, Any]]:
    """Ways to learn one task after another: accuracies after every stage, and what is forgotten of the earlier tasks."""
    names, rows = seed.names, []
    for kind in ROWS:
        first = "tuned" if kind == "plain" else "graft"
        start = seed.right("skill", names[0], first, names[0])
        steps = [{name: seed.right(kind, task, "after", name) for name in names} for task in names[1:]]
        if start is None or any(right is None for step in steps for right in step.values()):
            continue
        learnt = {names[0]: float(start.mean())}
        table = [{name: float(right.mean()) for name, right in step.items() if right is not None} for step in steps]
        learnt |= {task: step[task] for task, step in zip(names[1:], table, strict=True)}
        rows.append(_row(kind, learnt, table[-1], table))
    if scores := seed.of("merges").get("scores"):
        final = {
            name: float((np.array(scores["union, mean"][name]).argmax(1) == seed.targets(name)).mean())
            for name in names
        }
        own = {row["task"]: row["graft"] for row in alone(seed)}
        rows.append(_row("union of separate skills", own, final, [], lost_of_all=True))
    return rows


def _row(
    kind: str,
    learnt: Mapping[str, float],
    final: Mapping[str, float],
    table: Sequence[Mapping[str, float]],
    lost_of_all: bool = False,
) -> dict[str, Any]:
    names = list(learnt) if lost_of_all else list(learnt)[:-1]
    lost = [learnt[name] - final[name] for name in names]
    mean = float(np.mean(list(final.values())))
    return {
        "way": kind,
        "learnt": dict(learnt),
        "final": dict(final),
        "after": [dict(step) for step in table],
        "forgotten": float(np.mean(lost)),
        "mean": mean,
    }


def merged(seed: Seed) -> list[dict[str, Any]]:
    """Ways to put all tasks into one model without training: each task's gain, and the least of them."""
    content = seed.of("merges")
    rows = []
    for way, scores in content.get("scores", {}).items():
        rights = {name: np.array(scores[name]).argmax(1) == seed.targets(name) for name in seed.names}
        gains = {name: seed.gain(right, name, seed.tuned(name)) for name, right in rights.items()}
        known = [gain.value for gain in gains.values() if gain is not None]
        least = min(known) if known else None
        rows.append({"way": way, "gains": gains, "least": least, "chosen": content["chosen"][way]})
    return rows
