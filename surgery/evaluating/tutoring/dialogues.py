"""Dialogues of a teacher and a student over a chapter, as examples to train on with a loss mask.

After Chevalier et al. 2024, Language Models as Science Tutors (arXiv:2402.11111), section 4, and the published processing: only
what the teacher says is learnt, the chapter never; in exams questions are learnt too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.errors import EvaluationError, OptionError
from surgery.evaluating.calls import Call, Log, Message
from surgery.evaluating.models import open_language_model
from surgery.evaluating.opening import Opened
from surgery.evaluating.runner import LanguageModel, Runner, Usage
from surgery.files import new_folder, replace_bytes, replace_json
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.resuming import digest
from surgery.tasks.rows import turn_pieces

MODES = ("openbook", "closedbook", "exam")
NOT_LEARNT = -100  # what torch's cross-entropy leaves out

_TEACHER = (
    "You are a teacher. You and a student talk about the chapter below. Say one thing at a time, in a few sentences: explain, correct "
    "what the student gets wrong, and ask a question now and then.\n\nThe chapter:\n{chapter}"
)
_STUDENT = (
    "You are a student who has just read the chapter below and talks with a teacher. Say one thing at a time, in a sentence or two: ask "
    "about what is hard, or answer what you were asked; sometimes you are wrong.\n\nThe chapter:\n{chapter}"
)
_EXAMINER = (
    "You write an exam on the chapter below: one question at a time, each on something else.\n\nThe chapter:\n{chapter}"
)
_ANSWERER = (
    "You write model answers to an exam on the chapter below, each in a few sentences.\n\nThe chapter:\n{chapter}"
)


@dataclass(frozen=True)
class Dialogue:
    """A conversation and which of its turns are learnt.

    Attributes:
        mode: `openbook` begins with the chapter and the student, `closedbook` with the teacher, without the chapter; `exam`
            has questions and answers in turn, both learnt.
        messages: the turns as (role, text): `chapter`, `user` (the student) and `assistant` (the teacher); in an exam
            questions are `user`, answers `assistant`.
        learn: whether each turn counts in the loss.
    """

    mode: str
    messages: tuple[tuple[str, str], ...]
    learn: tuple[bool, ...]

    @classmethod
    def of(cls, mode: str, messages: Sequence[tuple[str, str]]) -> "Dialogue":
        """A dialogue with the loss mask of its mode."""
        learnt = ("user", "assistant") if mode == "exam" else ("assistant",)
        return cls(mode, tuple(messages), tuple(role in learnt for role, _ in messages))

    def row(self) -> dict[str, Any]:
        """The dialogue as a row of a JSONL file, messages as chat templates take them."""
        messages = [{"role": role, "content": text} for role, text in self.messages]
        return {"mode": self.mode, "messages": messages, "learn": list(self.learn)}

    @classmethod
    def of_row(cls, row: Any) -> "Dialogue":
        """The inverse of `row`; raises EvaluationError for anything else."""
        try:
            messages = tuple((str(message["role"]), str(message["content"])) for message in row["messages"])
            learn, mode = tuple(bool(each) for each in row["learn"]), row["mode"]
        except (KeyError, TypeError, AttributeError) as error:
            raise EvaluationError(f"a row is no dialogue ({error!r}): it wants messages and learn") from None
        if len(messages) != len(learn) or mode not in MODES:
            raise EvaluationError(
                "a row is no dialogue: learn must be as long as messages, and mode one of " + ", ".join(MODES)
            )
        return cls(mode, messages, learn)

    def encode(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """Token ids and labels of one training example, both as long: `NOT_LEARNT` where a token is not in the loss.

        Written as published: each turn ends with the tokenizer's end token, `user: ` and `assistant: ` before them, and the
        chapter by itself first.
        """
        ids: list[int] = []
        labels: list[int] = []
        for turn, learnt in turn_pieces(self.messages, self.learn, tokenizer):
            tokens = tokenizer(turn, add_special_tokens=False)["input_ids"]
            ids += tokens
            labels += tokens if learnt else [NOT_LEARNT] * len(tokens)
        return ids, labels


@dataclass(frozen=True)
class Dialogues:
    """Dialogues that were made, and what making them took.

    Attributes:
        missing: how many weren't finished, as a call had no answer; they are left out.
    """

    dialogues: tuple[Dialogue, ...]
    missing: int
    usage: dict[str, Usage]
    origin: dict[str, Any]

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `dialogues.jsonl`, a row a dialogue, and `report.json`."""
        rows = "".join(json.dumps(dialogue.row(), ensure_ascii=False) + "\n" for dialogue in self.dialogues)
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_bytes(staged / "dialogues.jsonl", rows.encode())
            usage = {name: use.content() for name, use in self.usage.items()}
            content = {"dialogues": len(self.dialogues), "missing": self.missing, "usage": usage, **self.origin}
            replace_json(staged / "report.json", content)
        return Path(folder)


def read_dialogues(file: str | Path) -> list[Dialogue]:
    """Dialogues of a file that `Dialogues.save` wrote; raises EvaluationError, naming the line."""
    found = []
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise EvaluationError(f"{file} can't be read ({error})") from None
    for number, line in enumerate(lines, 1):
        try:
            found.append(Dialogue.of_row(json.loads(line)))
        except (ValueError, AttributeError, EvaluationError) as error:
            raise EvaluationError(f"{file}, line {number}: {error}") from None
    return found


def make_dialogues(
    book: str | Path,
    teacher: str | Path | LanguageModel,
    student: str | Path | LanguageModel,
    *,
    count: int = 4,
    turns: int = 6,
    mode: str = "openbook",
    max_tokens: int = 200,
    temperature: float = 0.9,
    seed: int = 0,
    log: str | Path | Log | None = None,
    dry_run: bool = False,
    progress: Progress = silent,
    prices: tuple[float, float] | None = None,
    **opening: Any,
) -> Dialogues:
    """Have a teacher and a student talk about a chapter.

    Args:
        book: a text file with the chapter.
        count, turns: dialogues, and turns of each, both sides together.
        log, dry_run, prices, opening: as `evaluate_skillmix` takes them.

    Raises:
        OptionError, EvaluationError: options or a book that don't fit, before any call.
    """
    if mode not in MODES:
        raise OptionError(f"`mode` {mode} isn't one of {', '.join(MODES)}")
    if count < 1 or turns < 2:
        raise OptionError("`count` must be 1 or more, and `turns` 2 or more: a question and an answer")
    try:
        chapter = Path(book).expanduser().read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeError) as error:
        raise EvaluationError(f"`book` {book} can't be read ({error}): give a text file with a chapter") from None
    if not chapter:
        raise EvaluationError(f"`book` {book} is empty: give a text file with a chapter")
    sides = {"assistant": open_language_model(teacher, **opening), "user": open_language_model(student, **opening)}
    talk: list[list[tuple[str, str]] | None] = [[] for _ in range(count)]
    options = {"max_tokens": max_tokens, "temperature": temperature}
    with Opened(opening, log, dry_run, progress, prices).runner() as runner:
        if prices:
            runner.prices = {side.name: prices for side in sides.values() if side.name.startswith("openai:")}
        for turn in range(turns):
            role = "assistant" if (turn % 2 == 1) != (mode == "closedbook") else "user"
            _take_turn(talk, role, sides[role], runner, chapter, mode, seed, options)
        usage = runner.usage
    whole = [messages for messages in talk if messages is not None]
    head = [("chapter", chapter)] if mode == "openbook" else []
    call = {"count": count, "turns": turns, "mode": mode, **options}
    inputs = {"book": digest(chapter), **{role: side.name for role, side in sides.items()}}
    origin = provenance(call={"eval dialogue": call}, inputs=inputs, seed=seed)
    found = tuple(Dialogue.of(mode, [*head, *messages]) for messages in whole)
    return Dialogues(found, count - len(found), usage, origin)


def _take_turn(
    talk: list[list[tuple[str, str]] | None], role: str, side: LanguageModel, runner: Runner, chapter: str, mode: str, seed: int, options: Mapping[str, Any]
) -> None:  # fmt: skip
    """One side's next turn in every dialogue that is still going; one without an answer ends, as None."""
    told = (
        (_ANSWERER if role == "assistant" else _EXAMINER)
        if mode == "exam"
        else (_TEACHER if role == "assistant" else _STUDENT)
    )
    going = [number for number, messages in enumerate(talk) if messages is not None]
    calls = [
        Call(_view(talk[number] or [], role, told.format(chapter=chapter)), seed=seed * 1_000_003 + number, **options)
        for number in going
    ]
    for number, answer in zip(going, runner.ask(side, calls, f"{role}s speak"), strict=True):
        messages = talk[number]
        if answer.text is None or (not answer.text and not runner.dry):
            talk[number] = None
        elif messages is not None:
            messages.append((role, answer.text))


def _view(messages: Sequence[tuple[str, str]], role: str, told: str) -> tuple[Message, ...]:
    """A conversation as one side sees it: itself as the assistant, the other as the user, its part told first."""
    seen = [Message("assistant" if who == role else "user", text) for who, text in messages]
    if not seen or seen[0].role == "assistant":
        return (Message("user", f"{told}\n\nBegin."), *seen)
    return (Message("user", f"{told}\n\nThe other begins:\n{seen[0].content}"), *seen[1:])
