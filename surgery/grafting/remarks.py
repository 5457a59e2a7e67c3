"""Remarks on a skill: what its report's figures mean for the next step, in sentences, on screen and on its page."""

from collections.abc import Mapping
from typing import Any

from surgery.grafting.prospects import proposal, too_few
from surgery.reporting.plural import number_of

_LITTLE, _NEARLY_ALL = 0.25, 0.9


def carries(report: Mapping[str, Any]) -> bool:
    """Whether the graft recovers a gain worth the name; a report without the figure isn't doubted."""
    graft = report.get("graft", {})
    return (graft.get("gain_recovered") or 0.0) >= _LITTLE if "gain_recovered" in graft else True


def remarks(report: Mapping[str, Any]) -> list[str]:
    """Sentences, each with what to do; none for a skill that does what it is for.

    Args:
        report: a skill's `report.json`; fields that older versions didn't write may be missing.
    """
    sentences = []
    if head := report.get("head"):
        sentences.append(
            f"The head differs ({_some(head)}), and the graft has the base's: `surgery graft --head tuned` gives the base the tuned one's (with_tuned_head in Python)."
        )
    if resized := report.get("resized"):
        sentences.append(f"Tuning resized {_some(resized)}; the graft has the base's rows and the base's tokenizer.")
    sentences += _fewer(report)
    sentences += _gain(report)
    sentences += _moved(report)
    if why := report.get("control", {}).get("skipped"):
        sentences.append(f"There is no control to hold the agreement against ({why}).")
    return sentences


def _fewer(report: Mapping[str, Any]) -> list[str]:
    weights, asked = report.get("weights", 0), report.get("call", {}).get("graft", {}).get("weights", 0)
    if not 0 < weights < asked or report.get("values", "tuned") != "tuned":  # components seldom fill a budget
        return []
    return [
        f"It holds {number_of(weights, 'weight')} and not the {asked:,} that were asked for: no more moved in tuning."
    ]


def _gain(report: Mapping[str, Any]) -> list[str]:
    if carries(report):
        return []
    gain = report["graft"]["gain_recovered"]
    metric = "f1" if report.get("task", {}).get("metric") == "f1" else "accuracy"
    if gain is None:
        figures = ", ".join(f"{name} {report[name][metric]:.3f}" for name in ("base", "tuned"))
        return [
            f"Tuning gained nothing on the test examples ({metric}: {figures}), so there is no skill to carry: check that the second "
            "checkpoint is the tuned one, that its labels are in the task's order, and that the test examples are of its task."
        ]
    taken = number_of(report["weights"], "weight") if "weights" in report else "its weights"
    return [
        f"The graft recovers {gain:.3f} of tuning's gain: {taken} don't carry this skill. "
        "See how many it takes with `surgery graft --sweep 1e-4:1`."
    ]


def _moved(report: Mapping[str, Any]) -> list[str]:
    moved, movable = report.get("moved", 0), report.get("movable", 0)
    if not movable or moved / movable < _NEARLY_ALL or report.get("values", "tuned") != "tuned":
        return []
    dtypes = report.get("dtypes", {})
    if dtypes and dtypes["base"] != dtypes["tuned"]:
        return [
            f"Nearly all block weights differ ({moved:,} of {movable:,}), if only by rounding: the base is stored as {dtypes['base']}, "
            f"the tuned one as {dtypes['tuned']}. Save both in one dtype."
        ]
    if too_few(held := report.get("prospects", {"moved": 0, "movable": 1, "ceiling": None})):
        return [
            f"Tuning moved nearly all block weights ({moved:,} of {movable:,}), as AdamW does, which spreads a skill over many of them: "
            f"at their tuned values the best {held['asked']:,} gain {held['ceiling']:.2f} of it, to first order and at most. {proposal(held)}"
        ]
    return [
        f"Tuning moved nearly all block weights ({moved:,} of {movable:,}), as AdamW does, which spreads a skill over many of them: "
        "tune with `surgery tune`, whose default leaves it in few, or take more weights (`surgery graft --sparsity`)."
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
