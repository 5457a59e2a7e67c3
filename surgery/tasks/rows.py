"""Rows of instruction data: labelled text, prompts with completions, or messages; and the file that a pool is kept in."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from surgery.errors import OptionError, SelectionError
from surgery.jsonfile import JsonError, parse_loose
from surgery.tasks.data_files import READERS, read_dataset
from surgery.tasks.examples import label_text

# A file by its ending, a dataset id, or rows in memory.
Source = str | Path | Sequence[Mapping[str, Any]]
Piece = tuple[str, bool]  # text, and whether the loss counts it


class Row(NamedTuple):
    """One row.

    Attributes:
        text, pair: what comes before the answer: a text, or two of them.
        answer: what is to be learnt; empty where there is only text.
        labelled: whether the answer is a label, which a template puts behind the text.
        messages: turns (role, content) of a conversation, whose assistant's turns are to be learnt; then there is no text.
        source: where it comes from, as the row says it; may be empty.
        subtask: which part of a target it belongs to; may be empty.
        learn: whether each of the messages is to be learnt, where the row says so, as a dialogue of teacher and student does.
    """

    text: str
    pair: str
    answer: str
    labelled: bool
    messages: tuple[tuple[str, str], ...]
    source: str
    subtask: str
    learn: tuple[bool, ...] = ()

    @property
    def prompt(self) -> str:
        """What comes before the answer, or what others than the assistant say."""
        said = [content for (_, content), told in zip(self.messages, self._told, strict=True) if not told]
        return "\n".join(part for part in (self.text, self.pair, *said) if part)

    @property
    def answers(self) -> str:
        """What is to be learnt."""
        said = [content for (_, content), told in zip(self.messages, self._told, strict=True) if told]
        return "\n".join([self.answer] * bool(self.answer) + said)

    @property
    def _told(self) -> tuple[bool, ...]:
        return self.learn or tuple(role == "assistant" for role, _ in self.messages)

    @property
    def key(self) -> int:
        """A number that rows with the same prompt share, case and spaces aside; without one, rows with the same answers."""
        told = (self.prompt or self.answers).lower().split()
        return (
            xxhash.xxh3_64_intdigest(" ".join(told).encode("utf-8", "backslashreplace")) >> 1
        )  # fits 64 bits with a sign

    def pieces(self, tokenizer: Any) -> list[Piece]:
        """The text that a language model reads, and which of it is to be learnt."""
        if self.learn:
            return turn_pieces(self.messages, self.learn, tokenizer)
        if self.messages:
            return _conversation(tokenizer, self.messages)
        if not self.labelled:
            return [(self.text, not self.answer), (self.answer, True)] if self.answer else [(self.text, True)]
        before = f"{self.text}\n{self.pair}" if self.pair else self.text
        return [(f"{before}\nAnswer:", False), (f" {self.answer}", True)]


def read_row(raw: Mapping[str, Any], where: str, subtasks: str | None = None) -> Row:
    """One row from its fields: `text` (and `text_pair`) with `label`, `prompt` with `completion`, or `messages`.

    Args:
        subtasks: the field that says which part of a target a row belongs to; by default `subtask`.

    Raises:
        SelectionError: other fields, or fields that aren't text.
    """
    source = _word(raw, "source")
    subtask = _word(raw, subtasks or "subtask")
    if "messages" in raw:
        messages = _messages(raw["messages"], where, told=not raw.get("learn"))
        return Row("", "", "", False, messages, source, subtask, _learn(raw.get("learn"), len(messages), where))
    if "prompt" in raw:
        prompt, completion = (_text(raw, name, where) for name in ("prompt", "completion"))
        return Row(prompt, "", completion, False, (), source, subtask)
    if "text" in raw:
        pair = _text(raw, "text_pair", where) if raw.get("text_pair") else ""
        label = label_text(raw.get("label"))
        return Row(_text(raw, "text", where), pair, label, bool(label), (), source, subtask)
    raise SelectionError(
        f"{where}: its fields are {', '.join(map(str, raw)) or 'none'}: text with label, prompt with completion, or messages are wanted"
    )


def raw_rows(source: Source, split: str = "train") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a source one after the other, each with where it stands.

    Raises:
        TaskError, SelectionError: a file that can't be read, naming the line.
    """
    if not isinstance(source, str | Path):
        yield from ((f"row {number}", row) for number, row in enumerate(source, 1))
        return
    path = Path(source).expanduser()
    reader = READERS.get(path.suffix.lower())
    if reader and not path.is_file():
        raise SelectionError(f"{path}: there is no such file")
    if path.suffix.lower() == ".jsonl":
        yield from _lines(path)
    elif reader:
        yield from ((f"{path}, line {number}", row) for number, row in reader(path))
    elif path.exists():
        raise SelectionError(f"{path}: rows come as {', '.join(READERS)}, or as a Hugging Face dataset id")
    else:
        yield from ((f"{source}, row {number}", row) for number, row in read_dataset(str(source), split))


def read_rows(source: Source, subtasks: str | None = None, split: str = "train") -> list[Row]:
    """All rows of a source; raises SelectionError for none."""
    rows, known = [], False
    for where, raw in raw_rows(source, split):
        rows.append(read_row(raw, where, subtasks))
        known = known or subtasks in raw
    if not rows:
        raise SelectionError(f"{_named(source)} holds no rows: give one at least")
    if subtasks is not None and not known:
        raise OptionError(f"`subtasks` {subtasks}: no row of {_named(source)} has such a field")
    return rows


@dataclass(frozen=True)
class RowFile:
    """A pool on disk: JSON lines, and where each begins.

    Attributes:
        file: the lines as they were given.
        offsets: byte at which each begins, and the end, [rows + 1].
    """

    file: Path
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def write(cls, source: Source, file: Path, split: str = "train") -> "RowFile":
        """Copy a source's rows into a file, line by line, and check each; raises SelectionError for none."""
        offsets = [0]
        with file.open("wb") as lines:
            for where, raw in raw_rows(source, split):
                read_row(raw, where)
                offsets.append(
                    offsets[-1] + lines.write(json.dumps(dict(raw), ensure_ascii=True, default=str).encode() + b"\n")
                )
        if len(offsets) == 1:
            raise SelectionError(f"{_named(source)} holds no rows: give one at least")
        return cls(file, np.array(offsets, np.int64))

    def raw(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Rows as they were given, by number."""
        with self.file.open("rb") as lines:
            return [json.loads(self._line(lines, int(number))) for number in numbers]

    def rows(self, numbers: Iterable[int]) -> list[Row]:
        """Rows by number."""
        numbers = list(numbers)
        return [
            read_row(raw, f"row {number + 1} of the pool")
            for number, raw in zip(numbers, self.raw(numbers), strict=True)
        ]

    def _line(self, lines: Any, number: int) -> bytes:
        lines.seek(self.offsets[number])
        return lines.read(int(self.offsets[number + 1] - self.offsets[number]))


def _named(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the list of rows"


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = parse_loose(line)
            except JsonError as error:
                raise SelectionError(f"{where} isn't JSON ({error}): one object a line is wanted") from None
            if not isinstance(row, dict):
                raise SelectionError(f"{where} isn't a JSON object: one object a line is wanted")
            yield where, row


def _text(raw: Mapping[str, Any], name: str, where: str) -> str:
    value = raw.get(name)
    if not isinstance(value, str) or not value.strip():
        raise SelectionError(f"{where}: no {name}, or one that isn't text: fill it in, or leave the row out")
    return value


def _word(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    return "" if value is None else str(value)


def _messages(turns: Any, where: str, *, told: bool) -> tuple[tuple[str, str], ...]:
    found = []
    for turn in turns if isinstance(turns, list) else [None]:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise SelectionError(f"{where}: messages is to be a list of turns, each with a role and a content of text")
        found.append((role, content))
    if told and not any(role == "assistant" and content.strip() for role, content in found):
        raise SelectionError(f"{where}: the assistant says nothing in it: leave the row out")
    return tuple(found)


def _learn(given: Any, count: int, where: str) -> tuple[bool, ...]:
    if not given:
        return ()
    if not isinstance(given, list) or len(given) != count or not any(given):
        raise SelectionError(
            f"{where}: learn is to say of each of the {count} messages whether it counts, and of one that it does"
        )
    return tuple(map(bool, given))


def turn_pieces(messages: Sequence[tuple[str, str]], learn: Sequence[bool], tokenizer: Any) -> list[Piece]:
    """A dialogue's turns as TutorChat's were written: `user: ` and `assistant: ` before them, the tokenizer's end token behind, a chapter by itself first."""
    end, start = tokenizer.eos_token or "", tokenizer.bos_token or ""
    pieces = []
    for number, ((role, text), told) in enumerate(zip(messages, learn, strict=True)):
        turn = f"{text}{end}\n{start}" if role == "chapter" else f"\n{role}: {text}{end}"
        pieces.append((start + turn if number == 0 and role != "chapter" else turn, told))
    return pieces


def _conversation(tokenizer: Any, messages: Sequence[tuple[str, str]]) -> list[Piece]:
    """A conversation by the tokenizer's chat template; each of the assistant's turns is what the template puts behind its opening."""
    if not getattr(tokenizer, "chat_template", None):
        raise SelectionError(
            "messages need a tokenizer with a chat template: take such a model, or give `prompt` and `completion`"
        )
    turns = [{"role": role, "content": content} for role, content in messages]

    def text(count: int, opened: bool) -> str:
        return (
            tokenizer.apply_chat_template(turns[:count], tokenize=False, add_generation_prompt=opened) if count else ""
        )

    if messages[0][0] == "assistant":
        raise SelectionError(
            "a conversation begins with the assistant, before whom a chat template puts what it isn't to learn: begin with another's turn, or give `prompt` and `completion`"
        )
    pieces: list[Piece] = []
    told = ""
    for number, (role, _) in enumerate(messages):
        if role != "assistant":
            continue
        opened, closed = text(number, True), text(number + 1, False)
        if not (opened.startswith(told) and closed.startswith(opened)):
            raise SelectionError(
                "the tokenizer's chat template changes earlier turns when one is added, so the assistant's can't be told apart: give `prompt` and `completion`"
            )
        pieces += [(opened[len(told) :], False), (closed[len(opened) :], True)]
        told = closed
    return pieces
