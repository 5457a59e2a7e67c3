"""The page that travels with a skill: a model card for hubs and the same as `index.html`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.low_rank import LowRankDelta
from surgery.grafting.figures import CAPTIONS, LABELS, by_layer
from surgery.grafting.products import WHAT
from surgery.grafting.remarks import carries, remarks
from surgery.reporting.page import Code, Commands, Figure, Heading, Page, Part, Table, Text
from surgery.reporting.plural import number_of
from surgery.tasks.task import Task

_LEGEND = {
    "accuracy": "share of test examples whose label is predicted",
    "F1": "of the task's last label, the metric that counts for it",
    "ECE": "expected calibration error: how far confidence is from accuracy, over 15 bins; 0 is best",
    "agreement": "share of test examples on which graft and tuned predict the same label",
    "gain recovered": "(graft - base) / (tuned - base) in the task's metric: 1 is all that tuning gained, 0 nothing",
    "low": "lower end of the gain's 95% interval, by resampling the test examples; empty where tuning's own gain isn't clear",
    "high": "upper end of that interval",
    "sparsity": "share of the weights that could have been in the graft, the block weights unless told otherwise",
}
UNCLEAR = "unclear"
Held = SparseDelta | LowRankDelta
_SPLITS = {"dev": "dev examples", "train": "training examples"}
_TASKS = ("library_name: surgery", "tags: [skill, sparse-delta, model-editing]")
_METHOD = "Panigrahi, Saunshi, Zhao, Arora, Task-Specific Skill Localization in Fine-tuned Language Models, ICML 2023"


def skill_page(held: Held, tasks: Sequence[Task], report: Mapping[str, Any], figures: Sequence[str]) -> Page:
    """A skill's page; `figures` are the names of those drawn beside it."""
    low_rank = isinstance(held, LowRankDelta)
    unit, back = ("numbers", " --base BASE") if low_rank else ("weights", "")
    return Page(
        f"Skill: {' + '.join(task.name for task in tasks)}",
        sentences(held, tasks, report),
        [
            *(Text(*_pieces(remark)) for remark in remarks(report)),
            *_made_of(report),
            *_results(report),
            Heading("Use"),
            Text("Put it in, and take it out again:"),
            Commands(
                f"surgery skill apply THIS_FOLDER BASE -o grafted/\nsurgery skill revert THIS_FOLDER grafted/{back} -o base-again/"
            ),
            _base(held.base_fingerprint, report),
            *([Heading("Figures")] if figures else []),
            *(Figure(name, *CAPTIONS[name]) for name in figures),
            *_points(report),
            *_prospects(report),
            *_target(report),
            Heading(f"Where the {unit} are"),
            Table(
                f"{unit.capitalize()} of the skill in each block.",
                ["block", unit],
                by_block(counts_of(held)),
                folded=True,
            ),
            Heading("How it was made"),
            Text(
                f"Method: {_METHOD}; weights located by ",
                Code(report.get("method", "unknown")),
                f". Made by surgery {report.get('surgery', '')}. Every setting is in ",
                Code("report.json"),
                ".",
            ),
        ],
        _TASKS,
    )


def sentences(held: Held, tasks: Sequence[Task], report: Mapping[str, Any]) -> list[str]:
    """What a skill is, and how much of what tuning gained it carries."""
    does = "that carry" if carries(report) else "which don't carry"
    named = " and ".join(f"{task.name} (labels: {', '.join(task.labels)})" for task in tasks)
    outcome = [_outcome(report)] if "graft" in report else []
    label = [WHAT[kind]] if (kind := report.get("values", held.metadata.get("values"))) in WHAT else []
    if isinstance(held, LowRankDelta):
        what = (
            f"{held.numbers:,} numbers, as many as {100 * held.share:.4g}% of the block weights, in {held.rank:,} components of "
            f"{len(held.factors):,} tensors' changes, {does} the task{'s' * (len(tasks) > 1)} {named} from a base checkpoint to a fine-tuned one."
        )
        return [what, *label, *outcome]
    delta = held
    what = (
        f"{delta.weights:,} weights, {100 * delta.sparsity:.4g}% of the block weights{_of_moved(report)}, {does} the task{'s' * (len(tasks) > 1)} "
        f"{named} from a base checkpoint to a fine-tuned one: values are replaced, not added."
    )
    return [what, *label, *outcome]


def _outcome(report: Mapping[str, Any]) -> str:
    key, metric = ("f1", "F1") if _by_f1(report) else ("accuracy", "accuracy")
    base, tuned, graft = (report[name][key] for name in ("base", "tuned", "graft"))
    told = f"On the test examples {metric} is {base:.3f} for the base, {tuned:.3f} tuned and {graft:.3f} grafted"
    if (recovered := gain(report["graft"])) == UNCLEAR:
        told += "; tuning's own gain may be chance, so no share of it is told"
    elif recovered:
        told += f", {recovered} of tuning's gain"
    agreement = report["graft"].get("agreement")
    if agreement is None:
        return f"{told}."
    return f"{told}; graft and tuned agree on {agreement:.1%} of them{_against_control(report)}."


def _against_control(report: Mapping[str, Any]) -> str:
    """Whether the agreement is more than that of a graft that never saw the tuned checkpoint."""
    control = report.get("control", {})
    if "agreement_above" not in control:
        return ""
    more, low, high = control["agreement_above"]
    said = f", a control of {control['weights']:,} weights that never saw tuned on {control['agreement']:.1%} ({more:+.3f} [{low:.3f}, {high:.3f}]): "
    return said + (
        "the graft carries this checkpoint" if low > 0 else "no evidence that the graft carries this checkpoint"
    )


def base_of(report: Mapping[str, Any]) -> str:
    """What the base of a skill was called when it was made; empty where its report doesn't say."""
    calls = [call for call in report.get("call", {}).values() if isinstance(call, dict)]
    return next((str(call["base"]) for call in calls if call.get("base")), "")


def _made_of(report: Mapping[str, Any]) -> list[Part]:
    """The skills that a merged one is made of."""
    if not (parts := report.get("made_of", ())):
        return []
    rows = [[part["skill"], ", ".join(part["tasks"]), part["weights"]] for part in parts]
    return [
        Table(f"Made of these skills ({report['method']}), not measured itself.", ["skill", "tasks", "weights"], rows)
    ]


def gain(figures: Mapping[str, Any]) -> str:
    """The gain recovered with its interval; "unclear" where tuning's own gain may be none, as a share of it says nothing."""
    value, interval = figures.get("gain_recovered"), figures.get("gain_interval")
    if value is None:
        return ""
    if interval is None and "gain_interval" in figures:
        return UNCLEAR
    return f"{value:.3f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def figures_table(report: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Base, tuned, graft and, if there is one, the control, with the columns of `_LEGEND`."""
    names = [name for name in ("base", "tuned", "graft", "control") if "accuracy" in report.get(name, {})]
    return ["checkpoint", *_columns(report)], [[name, *_cells(report, report[name])] for name in names]


def counts_of(held: Held) -> list[tuple[str, int]]:
    """Each touched tensor's name and how many weights, or numbers of factors, are held of it."""
    if isinstance(held, LowRankDelta):
        return [(name, factors.numbers) for name, factors in held.factors.items()]
    return [(extent.name, extent.weights) for extent in held.extents]


def by_block(counts: Sequence[tuple[str, int]]) -> list[list[Any]]:
    """Number of the block and how many of its weights are in the skill."""
    return [list(row) for row in by_layer(counts).items()]


def _results(report: Mapping[str, Any]) -> list[Part]:
    if "graft" not in report:
        return []
    examples = report.get("examples", {})
    count = f"{number_of(examples['test'], 'test example')}" if "test" in examples else "the test examples"
    parts: list[Part] = [Heading("Results"), Table(f"On {count}.", *figures_table(report), legend=_LEGEND)]
    if repeated := examples.get("test_in_train"):
        parts.append(Text(f"{repeated:,} of the test texts are training texts too."))
    return parts


def _points(report: Mapping[str, Any]) -> list[Part]:
    points = report.get("points", ())
    if len(points) < 2:
        return []
    columns = ["method", "weights", "sparsity", *_columns(report)]
    rows = [
        [LABELS.get(point["method"], point["method"]), point["weights"], point["sparsity"], *_cells(report, point)]
        for point in points
    ]
    return [Table("Each method at each number of weights.", columns, rows, _LEGEND)]


def _columns(report: Mapping[str, Any]) -> list[str]:
    return ["accuracy", *(["F1"] if _by_f1(report) else []), "ECE", "agreement", "gain recovered", "low", "high"]


def _cells(report: Mapping[str, Any], figures: Mapping[str, Any]) -> list[Any]:
    keys = ["accuracy", *(["f1"] if _by_f1(report) else []), "ece", "agreement", "gain_recovered"]
    return [*(figures.get(key) for key in keys), *(figures.get("gain_interval") or (None, None))]


def _by_f1(report: Mapping[str, Any]) -> bool:
    return report.get("task", {}).get("metric") == "f1"


def _base(fingerprint: str, report: Mapping[str, Any]) -> Text:
    base = base_of(report) or "see the fingerprint"
    mark = Code(fingerprint[:16])
    if given := report.get("head_given"):
        return Text(
            "It fits one base only: ",
            Code(base),
            ", fingerprint ",
            mark,
            ", which has the tuned checkpoint's head (",
            Code(", ".join(given)),
            "); anything else is refused.",
        )
    return Text("It fits one base only: ", Code(base), ", fingerprint ", mark, "; anything else is refused.")


def _prospects(report: Mapping[str, Any]) -> list[Part]:
    """What was to be expected before anything was located."""
    points = report.get("prospects", {}).get("points", ())
    if not points:
        return []
    rows = [[point["weights"], point["sparsity"], point["ceiling"]] for point in points]
    legend = {"ceiling": "the largest of -(tuned - base) * gradient at the base, as a share of what tuning gained"}
    return [
        Table(
            "What so many weights at their tuned values gain, to first order and at most.",
            ["weights", "sparsity", "ceiling"],
            rows,
            legend,
            folded=True,
        )
    ]


def _target(report: Mapping[str, Any]) -> list[Part]:
    """How the number of weights was found."""
    if not (target := report.get("target")):
        return []
    rows = [[point["weights"], point["sparsity"], point["gain"]] for point in target["points"]]
    title = f"The smallest number found to recover {target['gain']:g} of tuning's gain on the {_SPLITS[target['judged_on']]}: {target['weights']:,}."
    return [Table(title, ["weights", "sparsity", "gain recovered"], rows)]


def _of_moved(report: Mapping[str, Any]) -> str:
    moved = report.get("moved")
    return f" and {100 * report['weights'] / moved:.2g}% of those that tuning moved" if moved else ""


def _pieces(sentence: str) -> list[str | Code]:
    """A sentence with what stands in backticks as code."""
    return [Code(part) if number % 2 else part for number, part in enumerate(re.split("`", sentence)) if part]
