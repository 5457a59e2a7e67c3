"""Formal skills by likelihood: which of four instructions fits a text, for models too small to do what they are told."""

from collections.abc import Sequence

from surgery.evaluating.calls import Call
from surgery.evaluating.formal.items import OPTIONS, Group, draw_groups, prompt
from surgery.evaluating.formal.skills import instruction
from surgery.evaluating.formal.writer import write_neutral
from surgery.evaluating.measured import Item, Metric
from surgery.evaluating.runner import LanguageModel, Runner

NEUTRAL = 1  # texts that an instruction's prior is read from

METRICS = (
    Metric("likelihood", "share of texts whose own instruction is the most likely of four, its prior taken out", 1 / OPTIONS),
    Metric("margin", "nats by which the own instruction leads the best of the other three, priors taken out"),
    Metric("likelihood with priors", "the same share with priors left in", 1 / OPTIONS),
)  # fmt: skip


def read_likelihoods(
    model: LanguageModel, k: int, count: int, seed: int, names: Sequence[str] | None, runner: Runner
) -> list[Item]:
    """Items of the reading of likelihoods, `count` rounded up to whole groups of four."""
    groups = draw_groups(k, -(-count // OPTIONS), seed, names)
    neutral = {group.topic: [write_neutral(group.topic, number) for number in range(NEUTRAL)] for group in groups}
    calls = [
        Call.of(prompt(group.topic, skills), continuation=text)
        for group in groups
        for skills in group.skills
        for text in (*group.texts, *neutral[group.topic])
    ]
    answers = iter(runner.ask(model, calls, f"likelihoods, k = {k}"))
    items: list[Item] = []
    for number, group in enumerate(groups):
        rows = [[next(answers) for _ in range(OPTIONS + NEUTRAL)] for _ in group.skills]
        read = [[answer.log_likelihood for answer in row] for row in rows]
        note = next((answer.error for row in rows for answer in row if answer.missing), "")
        items += _items(group, number, k, read, note)
    return items


def _items(group: Group, number: int, k: int, read: Sequence[Sequence[float | None]], note: str) -> list[Item]:
    """The four items of a group from what was read: log-likelihood by instruction and text."""
    items = []
    whole = all(value is not None for row in read for value in row)
    priors = [prior_of(row[OPTIONS:]) for row in read] if whole else []
    for text in range(OPTIONS):
        values: dict[str, float | None] = dict.fromkeys(metric.name for metric in METRICS)
        points: dict[str, float | None] = {}
        if whole:
            plain = [row[text] or 0.0 for row in read]
            fitted = [value - prior for value, prior in zip(plain, priors, strict=True)]
            others = [value for option, value in enumerate(fitted) if option != text]
            values = {
                "likelihood": _share(fitted, text),
                "margin": fitted[text] - max(others),
                "likelihood with priors": _share(plain, text),
            }
            points = {
                f"{' and '.join(map(instruction, skills))}": round(value, 3)
                for skills, value in zip(group.skills, fitted, strict=True)
            }
        own = group.skills[text]
        items.append(
            Item(
                f"likelihood k={k} {number}.{text}",
                f"likelihood k={k} {number}",
                values,
                {"skill": ", ".join(own), "topic": group.topic, "k": str(k)},
                [("text", group.texts[text]), ("its instruction", prompt(group.topic, own))],
                points,
                note,
            )
        )
    return items


def prior_of(neutral: Sequence[float | None]) -> float:
    """An instruction's prior: mean log-likelihood in nats of texts that show none of the skills."""
    return sum(value or 0.0 for value in neutral) / len(neutral)


def _share(values: Sequence[float], own: int) -> float:
    """1 if the own value is the largest, shared where several are."""
    best = [option for option, value in enumerate(values) if value == max(values)]
    return 1 / len(best) if own in best else 0.0
