"""What must be said with figures: what a verification shows, and what an edit did that its owner may not have wanted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from surgery.reporting.plural import number_of
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.descriptions import listed, promises
from surgery.unlearning.evaluation.attacks import ATTACKS

_FEW = 10  # members below which resampling them says little
_ANSWERED, _COST = 0.01, 0.05  # shares of what was forgotten and of the rest above which a remark is due


def remarks(content: Mapping[str, Any], after: Bottleneck) -> list[str]:
    """What must be said with a report's figures."""
    points, examples = content["points"], content["examples"]
    kept = points["refitted"]["retain_accuracy"]
    sentences = [
        f"Compare with the refitted bottleneck, not with before: on {examples['test'] - examples['test_forgotten']:,} test rows it retains {100 * kept:.1f}%."
        if kept is not None
        else "Every test row is of a forgotten class: nothing is said of what stayed."
    ]
    sentences += promises(after.history, counted=after.counted, identical=content["bit_identical"])
    if known := content["known_test_rows"]:
        sentences.append(
            f"{known:,} of {known + examples['test']:,} test rows were left out: they are training rows, from which nothing of the kind can be told."
        )
    if after.history:
        sentences += cautions(points["after"], points["refitted"], classes_left(after), "test rows")
        sentences += _narrow(content, after)
    if content["probe"]["forgotten"] is not None:
        sentences.append(
            f"The encoder is as it was: a linear probe on its features still tells {100 * content['probe']['forgotten']:.0f}% of the test rows of the forgotten classes."
        )
    if "before" not in points:
        why = "The last edit's eraser isn't at hand" if after.history else "Nothing was forgotten here"
        sentences.append(f"{why}, so nothing is said of before, of membership and of relearning.")
        return sentences
    return sentences + _attacks(content)


def cautions(
    edited: Mapping[str, float | None], reference: Mapping[str, float | None], left: Sequence[int | str], rows: str
) -> list[str]:
    """What an edit may have missed or broken.

    Args:
        edited: `forget_accuracy` and `retain_accuracy` after it. `reference`: what they ought to be.
        left: classes that still have training rows.
        rows: what the accuracies are of.
    """
    sentences = []
    still, usual = edited["forget_accuracy"], reference["forget_accuracy"] or 0.0
    if still is not None and still - usual > _ANSWERED:
        sentences.append(
            f"Not all is forgotten: {100 * still:.1f}% of the forgotten {rows} are still answered right, where {100 * usual:.1f}% ought to be. Mask more keys, or use refit."
        )
    now, kept = edited["retain_accuracy"], reference["retain_accuracy"]
    if now is not None and kept is not None and kept - now > _COST:
        sentences.append(
            f"The edit costs {100 * (kept - now):.1f} points of the rest: {100 * now:.1f}% of the other {rows} are answered right, where {100 * kept:.1f}% ought to be. Mask fewer keys, or use refit."
        )
    if len(left) == 1:
        sentences.append(f"Only the class {listed(left)} is left to answer, so that what is retained says nothing.")
    return sentences


def classes_left(bottleneck: Bottleneck) -> list[int | str]:
    """Classes that still have training rows."""
    return [bottleneck.classes[number] for number in np.unique(bottleneck.need_training().targets)]


def _narrow(content: Mapping[str, Any], after: Bottleneck) -> list[str]:
    gone = {str(name) for edit in after.history for name in edit["forget"]}
    asked = [
        name for name, rows in zip(content["classes"], content["class_rows"], strict=True) if rows and name not in gone
    ]
    if len(asked) != 1 or len(classes_left(after)) == 1:
        return []
    return [f"All test rows of what is retained are of the class {listed(asked)}: nothing is said of the others."]


def _attacks(content: Mapping[str, Any]) -> list[str]:
    points, examples, sentences = content["points"], content["examples"], []
    attacked = points["after"].get("membership", {})
    for attack in ATTACKS:
        beyond = attacked.get(attack.key, {}).get("against_refitted", {}).get("beyond")
        if beyond and beyond["low"] > 0:
            areas = [points[who]["membership"][attack.key]["auc"] for who in ("after", "refitted")]
            sentences.append(
                f"The attack by {attack.name} tells more of the forgotten rows than after refitting: an area of {areas[0]:.2f} against {areas[1]:.2f}, {beyond['auc']:.2f} further from guessing (95% {beyond['low']:.2f} to {beyond['high']:.2f}). Where that matters, refit."
            )
    sentences += _yardstick(points["refitted"].get("membership", {}), content["history"])
    if "membership" not in points["after"]:
        sentences.append("No test row is of a forgotten class, so nothing is said of membership and relearning.")
    elif content["call"]["verify"]["shadows"] and "likelihood_ratio" not in attacked:
        sentences.append("Edits of different kinds, or earlier ones without an eraser: no attack by likelihood ratio.")
    if examples["forgotten"] < _FEW:
        sentences.append(
            f"Forgotten was only {number_of(examples['forgotten'], 'row')}: the intervals of the attacks mean little."
        )
    return sentences


def _yardstick(attacked: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[str]:
    """That the refitted bottleneck, which everything is compared with, is told from a stranger itself."""
    told = []
    for attack in ATTACKS:
        area = attacked.get(attack.key)
        if area and not area["low"] <= 0.5 <= area["high"]:
            told.append(f"by {attack.name} {area['auc']:.2f} (95% {area['low']:.2f} to {area['high']:.2f})")
    if not told:
        return []
    why = (
        "its keys were placed by the forgotten rows too"
        if any(edit["keys_saw_them"] for edit in history)
        else "the test rows of the forgotten classes differ from the forgotten rows by more than training"
    )
    return [
        f"The refitted bottleneck gives the forgotten rows away itself, an area {' and '.join(told)} where guessing gives .50, "
        f"probably since {why}: to leak no more than it does is not to leak nothing."
    ]
