"""Formal skills by generation: whether a model writes what it is told to, beside what it writes untold."""

from collections.abc import Sequence

from surgery.evaluating.calls import Answer, Call
from surgery.evaluating.formal.items import draw_skills, prompt
from surgery.evaluating.formal.skills import check, instruction
from surgery.evaluating.formal.writer import TOPICS
from surgery.evaluating.measured import Item, Metric
from surgery.evaluating.runner import LanguageModel, Runner

METRICS = (
    Metric("generation", "share of texts that show all k skills they were asked for"),
    Metric("unprompted", "share of texts on the same topics, asked for without any skill, that show those skills all the same"),
    Metric("skill fraction", "share of the k skills that a text shows"),
)  # fmt: skip


def read_generations(
    model: LanguageModel,
    k: int,
    count: int,
    seed: int,
    names: Sequence[str] | None,
    runner: Runner,
    *,
    max_tokens: int = 96,
    temperature: float = 0.7,
) -> list[Item]:
    """Items of the reading of generations, each with an unprompted text by the same seed."""
    sets = draw_skills(k, count, seed, names)
    options = {"max_tokens": max_tokens, "temperature": temperature}
    topics = [TOPICS[number % len(TOPICS)] for number in range(count)]
    told = [
        Call.of(prompt(topic, skills), seed=_seed(seed, number), **options)
        for number, (topic, skills) in enumerate(zip(topics, sets, strict=True))
    ]
    untold = [Call.of(prompt(topic), seed=_seed(seed, number), **options) for number, topic in enumerate(topics)]
    answers = runner.ask(model, [*told, *untold], f"texts, k = {k}")
    return [
        _item(f"generation k={k} {number}", topic, skills, answers[number], answers[count + number])
        for number, (topic, skills) in enumerate(zip(topics, sets, strict=True))
    ]


def _seed(seed: int, number: int) -> int:
    return seed * 1_000_003 + number


def _item(name: str, topic: str, skills: Sequence[str], told: Answer, untold: Answer) -> Item:
    shown = None if told.text is None else [check(skill, told.text) for skill in skills]
    values = {
        "generation": None if shown is None else float(all(shown)),
        "unprompted": None if untold.text is None else float(all(check(skill, untold.text) for skill in skills)),
        "skill fraction": None if shown is None else sum(shown) / len(shown),
    }
    points: dict[str, float | None] = {
        instruction(skill): None if shown is None else float(shown[number]) for number, skill in enumerate(skills)
    }
    transcript = [("asked", prompt(topic, skills)), ("answer", told.text or ""), ("unprompted", untold.text or "")]
    labels = {"skill": ", ".join(skills), "topic": topic, "k": str(len(skills))}
    return Item(name, name, values, labels, transcript, points, told.error or untold.error)
