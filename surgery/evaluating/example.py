"""The embedded example: a small model that is made on the spot and reads formal skills, with a program in a grader's place."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.evaluating.calls import Answer, Call
from surgery.evaluating.evaluation import Evaluation
from surgery.evaluating.formal.run import evaluate_formal
from surgery.evaluating.formal.sentences import sentences
from surgery.evaluating.tutoring.chapters import QUESTIONS
from surgery.evaluating.tutoring.run import evaluate_tutor
from surgery.files import check_output, new_folder
from surgery.progress import Progress, silent

FOLDER = "surgery-eval-example"


class KeyPointCounter:
    """A stand-in for a grader: a program that grades by the share of the key points' words that an answer has.

    It shows the form of an evaluation, offline and in no time. It can't tell a good answer from a list of words.
    """

    name = "a program that counts words"
    identity: Mapping[str, Any] = {"program": "key point counter 1"}
    context: int | None = None
    remarks: tuple[str, ...] = ()

    def count_tokens(self, text: str) -> int:
        """Words of a text."""
        return len(text.split())

    def answer(self, calls: Sequence[Call], given: Callable[[int, Answer], None], failed: Any) -> None:
        """Grade each answer."""
        for number, call in enumerate(calls):
            asked = call.messages[-1].content
            points = _long_words(asked.partition("Key points:\n")[2].partition("\n\nThe answer:")[0])
            text = asked.partition("<answer>\n")[2].partition("\n</answer>")[0]
            share = len(points & _long_words(text)) / max(1, len(points))
            grade = round(6 * share) / 2
            presentation = 2.0 if len(text.split()) > 5 else 0.5
            given(number, Answer(text=f"Presentation: {presentation}/3\nCorrectness: {grade}/3"))


def _long_words(text: str) -> set[str]:
    return {word.strip(".,;:!?()") for word in text.lower().split() if len(word) > 4}


class Reader:
    """A stand-in for a tutor, who answers with the sentence of the chapter that shares most words with the question."""

    name = "a program that quotes the chapter"
    identity: Mapping[str, Any] = {"program": "chapter reader 1"}
    context: int | None = None
    remarks: tuple[str, ...] = ()

    def count_tokens(self, text: str) -> int:
        """Words of a text."""
        return len(text.split())

    def answer(self, calls: Sequence[Call], given: Callable[[int, Answer], None], failed: Any) -> None:
        """Quote the chapter."""
        for number, call in enumerate(calls):
            book, _, question = call.messages[-1].content.partition("Question: ")
            wanted = _long_words(question)
            found = sentences(book.replace("\n", " ")) or ["I don't know."]
            given(number, Answer(text=max(found, key=lambda sentence: len(wanted & _long_words(sentence)))))


def run_example(
    output: Path | None = None,
    *,
    overwrite: bool = False,
    device: Any = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> tuple[Evaluation, Evaluation, Path]:
    """Train a tiny model on texts that fit instructions, evaluate it before and after, and show a graded run."""
    from surgery.evaluating.formal.pupil import save_pupil
    from surgery.evaluating.local import LocalModel

    folder = output or Path(FOLDER)
    overwrite = overwrite or output is None
    check_output(folder, overwrite=overwrite, replaces="calls.jsonl")
    with new_folder(folder, overwrite=overwrite, replaces="calls.jsonl") as staged:
        say("1. A small model learns which texts go with which instructions; another like it learns nothing")
        save_pupil(staged, seed=seed, device=device, progress=progress)
        say("2. Formal skills by likelihood: which of four instructions fits a text, after and before")
        after, before = (LocalModel(staged / name, device=device) for name in ("after", "before"))
        after.name, before.name = "after", "before"  # not by where they lie for now
        asked: dict[str, Any] = {"k": (1,), "items": 60, "readings": ["likelihood"], "seed": seed + 1}
        log = staged / "calls.jsonl"
        formal = evaluate_formal(after, against=before, floor=(0.0,), log=log, progress=progress, **asked)
        for line in formal.summary:
            say(f"   {line}")
        say("3. Questions on three short chapters, answered and graded by programs that stand in for models")
        tutor = evaluate_tutor(Reader(), data=QUESTIONS, graders=[KeyPointCounter()], log=log, progress=progress)
        for line in tutor.summary:
            say(f"   {line}")
        formal.save(staged / "formal")
        tutor.save(staged / "tutor")
    return formal, tutor, folder
