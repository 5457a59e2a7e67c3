"""The page of an evaluation: the answer, the figures, what was asked and said, and why something is missing."""

from collections.abc import Sequence
from typing import Any

from surgery.evaluating.measured import Item, Measured, interval, short
from surgery.evaluating.plots import BREAKDOWNS, by_kind
from surgery.evaluating.statistics import Difference
from surgery.reporting.page import Code, Figure, Folded, Heading, Page, Part, Quote, Table, Text

_TITLES = {"formal": "Formal skills", "skillmix": "Skill-Mix", "tutor": "TutorEval", "regrade": "Gradings"}
_TRANSCRIPTS = 150  # on a page; all are in report.json
_BREAKDOWNS = (*BREAKDOWNS, "difficulty", "misleading", "answer in chapter", "mode")
_LEGEND = {
    "standard error": "of the value, over clusters: the items of a group, a combination or a chapter belong together",
    "low": "lower end of the 95% interval, by bootstrap over clusters",
    "high": "upper end",
    "p": "of McNemar's exact test, for metrics that are yes or no",
    "detectable": "the smallest true difference that so many items find four times in five, at a level of .05",
    "missing": "items without an answer, or with a grading that can't be read: they count as nothing",
}


def evaluation_page(
    evaluation: Measured, answer: Sequence[str], scores: tuple[list[str], list[list[Any]]], figures: Sequence[Figure]
) -> Page:
    """The page of an evaluation with its answer, its table of scores and its figures."""
    columns, rows = scores
    legend = {**_LEGEND, "metric": "; ".join(f"{metric.name}: {metric.about}" for metric in evaluation.metrics)}
    parts: list[Part] = [
        *map(Text, evaluation.remarks),
        Table("Scores.", columns, rows, legend, folded=False),
        *figures,
    ]
    if evaluation.base is not None:
        parts += _against(evaluation)
    parts += [part for label in _BREAKDOWNS if (part := _breakdown(evaluation, label))]
    parts += [Table(fact.caption, fact.columns, fact.rows) for fact in evaluation.facts]
    parts += [Heading("What was asked and said"), *_transcripts(evaluation)]
    parts += [Heading("How it was measured"), *_measured(evaluation)]
    title = f"{_TITLES.get(evaluation.kind, evaluation.kind)}: {evaluation.model}"
    return Page(title, answer, parts)


def _against(evaluation: Measured) -> list[Part]:
    assert evaluation.base is not None
    rows: list[list[Any]] = []
    for metric in evaluation.metrics:
        rows.append([metric.name, "this model", *_difference_cells(evaluation.difference(metric.name), metric.scale)])
        rows += [
            [metric.name, name, *_difference_cells(evaluation.floor_difference(name, metric.name), metric.scale)]
            for name in evaluation.floor
        ]
    columns = ["metric", "against the base", "difference", "low", "high", "gained", "lost", "p", "detectable"]
    legend = {
        **_LEGEND,
        "gained": "items that only the one on the left gets right",
        "lost": "items that only the base gets right",
    }
    caption = f"Paired differences from {evaluation.base.model}, on the same items and seeds."
    parts: list[Part] = [Heading("Before and after"), Table(caption, columns, rows, legend, folded=False)]
    if not evaluation.floor:
        parts.append(
            Text(
                "No noise floor was measured: ",
                Code("--floor 0"),
                " asks the base a second time, ",
                Code("--floor 0.05"),
                " damages its weights by that much.",
            )
        )
    return parts


def _difference_cells(found: Difference, scale: float) -> list[Any]:
    numbers = (found.score.value, found.score.low, found.score.high)
    cells: list[Any] = [None if number is None else number * scale for number in numbers]
    return [
        *cells,
        found.gained,
        found.lost,
        found.p_value,
        None if found.detectable is None else found.detectable * scale,
    ]


def _breakdown(evaluation: Measured, label: str) -> Part | None:
    groups = by_kind(evaluation, label)
    if len(groups) < 2:
        return None
    rows = []
    for name, items in groups.items():
        cells = [interval(evaluation.score(metric.name, items), metric.scale) for metric in evaluation.metrics]
        rows.append([name, len(items), *cells])
    return Table(f"By {label}.", [label, "items", *(metric.name for metric in evaluation.metrics)], rows)


def _transcripts(evaluation: Measured) -> list[Part]:
    before = {item.name: item for item in evaluation.base.items} if evaluation.base else {}
    first = evaluation.metrics[0].name

    def interest(item: Item) -> int:
        other = before.get(item.name)
        if other is not None and other.values.get(first) != item.values.get(first):
            return 0
        return 1 if None in item.values.values() else 2

    order = sorted(evaluation.items, key=interest)[:_TRANSCRIPTS]
    parts: list[Part] = []
    if before:
        parts.append(Text("First those in which the two models differ, then those that are missing."))
    for item in order:
        parts.append(Folded(_headline(item), _conversation(item, before.get(item.name))))
    if len(order) < len(evaluation.items):
        parts.append(Text(f"{len(evaluation.items) - len(order):,} more are in ", Code("report.json"), "."))
    return parts


def _headline(item: Item) -> str:
    values = ", ".join(f"{name} {'missing' if value is None else short(value)}" for name, value in item.values.items())
    about = ", ".join(item.labels.get(label, "") for label in ("topic", "skill", "domain") if item.labels.get(label))
    return f"{item.name}: {about}: {values}" if about else f"{item.name}: {values}"


def _conversation(item: Item, other: Item | None) -> list[Part]:
    parts: list[Part] = [Text(f"Missing: {item.note}")] if item.note else []
    for who, said in item.transcript:
        parts += [Text(f"{who}:"), Quote(said or "(nothing)")]
    if item.points:
        base = {} if other is None else other.points
        columns = ["point", "value", *(["base"] if base else [])]
        rows = [[name, value, *([base.get(name)] if base else [])] for name, value in item.points.items()]
        parts.append(Table("Points.", columns, rows, folded=False))
    if other is not None:
        own = dict(item.transcript)
        for who, said in other.transcript:
            if own.get(who) != said:
                parts += [Text(f"{who}, the base:"), Quote(said or "(nothing)")]
    return parts


def _measured(evaluation: Measured) -> list[Part]:
    rows = [
        [name, use["calls"], use["known"], use["missing"], use["prompt_tokens"], use["tokens"], use["cost"]]
        for name, use in evaluation.usage.items()
    ]
    columns = ["model", "calls", "known", "missing", "tokens read", "tokens written", "dollars"]
    legend = {"known": "answered by the log of earlier calls; tokens and dollars are those of this run alone"}
    parts: list[Part] = [Table("Calls.", columns, rows, legend, folded=False)]
    errors = [[name, why, count] for name, use in evaluation.usage.items() for why, count in use["errors"].items()]
    if errors:
        parts.append(Table("Why calls gave no answer.", ["model", "reason", "calls"], errors))
    parts.append(
        Table("Options.", ["option", "value"], [[name, str(value)] for name, value in evaluation.settings.items()])
    )
    for what, file in evaluation.links.items():
        parts.append(Text(f"The model was made by {what}; its report: ", Code(file)))
    return parts
