"""TutorEval: answers to questions on a chapter, graded against an expert's key points.

After Chevalier et al. 2024, Language Models as Science Tutors (arXiv:2402.11111), section 3. The words of the prompts are ours.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from surgery.errors import OptionError
from surgery.evaluating.agreement import agreement_facts
from surgery.evaluating.calls import Answer, Call, Log
from surgery.evaluating.evaluation import Evaluation
from surgery.evaluating.measured import Facts, Item, Metric
from surgery.evaluating.models import open_language_model
from surgery.evaluating.opening import Opened, evaluate_both
from surgery.evaluating.runner import LanguageModel, Runner
from surgery.evaluating.tutoring.questions import Question, cut_chapter, read_questions
from surgery.progress import Progress, silent

TOP = 3.0
METRICS = (
    Metric("correctness", "how correct and complete answers are against the key points, of 100", scale=100 / TOP),
    Metric("presentation", "how clear and well put answers are, of 100", scale=100 / TOP),
)  # fmt: skip
_GRADE = r"\**\s*{name}\s*\**\s*:?\s*\**\s*(\d(?:\.\d+)?)\s*\**\s*(?:/\s*3(?:\.0)?)?"
_MARGIN = 16  # tokens that a template may add


def answer_prompt(question: Question, chapter: str) -> str:
    """What a tutor is asked; without a chapter the book is closed."""
    if not chapter:
        return f"You are a tutor. Answer the student's question.\n\nQuestion: {question.question}"
    return f"You are a tutor. Here is a chapter of a textbook:\n\n{chapter}\n\nAnswer the student's question about it.\n\nQuestion: {question.question}"


def grading_prompt(question: Question, answer: str) -> str:
    """What a grader is asked."""
    warning = " The question is misleading: a good answer says so." if question.misleading else ""
    return (
        "Grade a tutor's answer to a student's question. An expert noted the key points of a good answer; the answer needn't use their words."
        f"{warning}\n\nQuestion:\n{question.question}\n\nKey points:\n{question.key_points}\n\nThe answer:\n<answer>\n{answer}\n</answer>\n\n"
        "Presentation is how clear and well put it is; correctness is how many of the key points it has, and whether what it says is true. "
        "Grade both from 0 to 3; halves are allowed. End with these two lines and nothing after them:\nPresentation: GRADE/3\nCorrectness: GRADE/3"
    )


def read_grades(reply: str) -> tuple[float, float] | None:
    """Presentation and correctness; None unless both are there, in halves from 0 to 3. Of several, the last counts."""
    grades = []
    for name in ("presentation", "correctness"):
        found = re.findall(_GRADE.format(name=name) + r"(?![\d.]*\d)", reply, re.IGNORECASE)
        if not found or not 0 <= float(found[-1]) <= TOP or (2 * float(found[-1])) % 1:
            return None
        grades.append(float(found[-1]))
    return grades[0], grades[1]


# Long: options and what they mean.
def evaluate_tutor(
    model: str | Path | LanguageModel,
    *,
    data: str | Path | Sequence[Question],
    graders: Sequence[str | Path | LanguageModel],
    against: str | Path | LanguageModel | None = None,
    closed_book: bool = False,
    questions: int | None = None,
    gradings: int = 1,
    max_tokens: int = 800,
    seed: int = 0,
    floor: Sequence[float] = (),
    log: str | Path | Log | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
    prices: tuple[float, float] | None = None,
    **opening: Any,
) -> Evaluation:
    """Evaluate a model as a tutor, and beside it another on the same questions.

    A chapter that is too long for the model's context is cut to its beginning, whole paragraphs; each item says whether it was.

    Args:
        data: the published file, a dataset id, or questions.
        closed_book: ask only the questions that can be understood without their chapter, and leave that out.
        questions: only the first so many.
        gradings: of each answer by each grader; their mean counts.
        graders, floor, log, dry_run, prices, opening: as `evaluate_skillmix` takes them.

    Raises:
        OptionError, EvaluationError: options or files that don't fit, before any call.
    """
    every = read_questions(data) if isinstance(data, str | Path) else list(data)
    chosen = [question for question in every if question.closed_book or not closed_book][:questions]
    if not chosen:
        raise OptionError("`closed_book` leaves no question: none can be understood without its chapter")
    if not graders:
        raise OptionError("`grader` is missing: give openai:NAME@URL, or a folder or hub id of a model that can grade")
    if gradings < 1 or max_tokens < 1:
        raise OptionError("`gradings` and `max_tokens` must be 1 or more")
    opened = [open_language_model(grader, **opening) for grader in graders]
    settings: dict[str, Any] = {
        "closed_book": closed_book,
        "questions": len(chosen),
        "gradings": gradings,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    settings["graders"] = [grader.name for grader in opened]
    facts: list[Facts] = []

    def ask(tutor: LanguageModel, runner: Runner) -> list[Item]:
        cut = [("", False) if closed_book else _fitted(tutor, question, max_tokens) for question in chosen]
        calls = [
            Call.of(answer_prompt(question, chapter), max_tokens=max_tokens)
            for question, (chapter, _) in zip(chosen, cut, strict=True)
        ]
        answers = runner.ask(tutor, calls, "answering")
        items, verdicts = _graded(opened, runner, chosen, answers, [was for _, was in cut], gradings)
        if not facts:
            facts.extend(agreement_facts(verdicts, [question.place for question in chosen]))
        return items

    how = Opened(opening, log, dry_run, progress, prices)
    found = evaluate_both(
        "tutor", METRICS, ask, model, against, settings=settings, floor=floor, how=how, graders=opened
    )
    shortened = sum(item.labels["chapter cut"] == "yes" for item in found.items)
    note = (
        (f"{shortened} of {len(chosen)} chapters are longer than the model's context and were cut to their beginning.",)
        if shortened
        else ()
    )
    return replace(found, facts=tuple(facts), remarks=(*note, *found.remarks))


def _fitted(tutor: LanguageModel, question: Question, max_tokens: int) -> tuple[str, bool]:
    if tutor.context is None:
        return question.chapter, False
    room = tutor.context - max_tokens - tutor.count_tokens(answer_prompt(question, "x")) - _MARGIN
    if room < 1:
        raise OptionError(
            f"`max_tokens` {max_tokens} leaves no room for a chapter in the {tutor.context} tokens of {tutor.name}: lower it"
        )
    return cut_chapter(question.chapter, room, tutor.count_tokens)


def _graded(
    graders: Sequence[LanguageModel],
    runner: Runner,
    chosen: Sequence[Question],
    answers: Sequence[Answer],
    cut: Sequence[bool],
    gradings: int,
) -> tuple[list[Item], dict[str, list[float | None]]]:
    """Items, and each grader's correctness, question by question."""
    grades: dict[tuple[str, int], list[tuple[float, float] | None]] = {}
    for grader in graders:
        places = [
            (place, turn) for place, answer in enumerate(answers) if answer.text is not None for turn in range(gradings)
        ]
        calls = [
            Call.of(
                grading_prompt(chosen[place], answers[place].text or ""), max_tokens=500, temperature=0.7, seed=turn
            )
            for place, turn in places
        ]
        for (place, _), reply in zip(places, runner.ask(grader, calls, "grading"), strict=True):
            grades.setdefault((grader.name, place), []).append(None if reply.text is None else read_grades(reply.text))
    items = []
    verdicts = {
        grader.name: [_mean([g[1] for g in grades.get((grader.name, place), []) if g]) for place in range(len(chosen))]
        for grader in graders
    }
    for place, (question, answer) in enumerate(zip(chosen, answers, strict=True)):
        own = [grade for grader in graders for grade in grades.get((grader.name, place), [])]
        read = [grade for grade in own if grade]
        values = {
            "correctness": _mean([grade[1] for grade in read]),
            "presentation": _mean([grade[0] for grade in read]),
        }
        items.append(_item(place, question, answer, values, cut[place]))
    return items, verdicts


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _item(place: int, question: Question, answer: Answer, values: dict[str, float | None], cut: bool) -> Item:
    labels = {
        "domain": question.domain,
        "difficulty": question.difficulty,
        "misleading": "yes" if question.misleading else "no",
        "answer in chapter": "yes" if question.answer_in_chapter else "no",
        "chapter cut": "yes" if cut else "no",
    }
    transcript = [("question", question.question), ("key points", question.key_points), ("answer", answer.text or "")]
    note = answer.error or ("" if values["correctness"] is not None else "the gradings can't be read")
    return Item(f"{place}: {question.question[:60]}", question.place, values, labels, transcript, dict(values), note)
