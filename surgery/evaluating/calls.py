"""Calls: what a model is asked, what it answered, and the log that an answer is in before it counts."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from surgery.errors import EvaluationError
from surgery.jsonfile import JsonError, conform, parse_json, parse_loose
from surgery.resuming import digest


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Call:
    """A question to a model: messages to answer, or a continuation of them to score.

    Attributes:
        max_tokens: tokens that the answer may have.
        temperature: 0 takes the likeliest token each time.
        seed: decides the draws at other temperatures, so that several answers to the same messages differ.
        continuation: a text whose log-likelihood after the messages is asked for, in place of an answer.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    continuation: str | None = None

    @classmethod
    def of(cls, text: str, **options: Any) -> "Call":
        """A call of one user message."""
        return cls((Message("user", text),), **options)

    def content(self) -> dict[str, Any]:
        """All that decides the answer, as JSON."""
        return asdict(self)

    def key(self, identity: Mapping[str, Any]) -> str:
        """Name of this call to the model of an identity; 64 hex digits."""
        return digest({"model": dict(identity), "call": self.content()})


@dataclass(frozen=True)
class Answer:
    """What a model gave for a call.

    Attributes:
        text: None where there is no answer, which `error` explains: then the answer is missing, and counts as nothing.
        log_likelihood: of a continuation, in nats, summed over its tokens.
        prompt_tokens, tokens: of the question, and of the answer or continuation.
        cut: whether the answer ended because it had no more tokens.
        fingerprint: what a server calls its configuration.
        attempts: how often it was asked.
    """

    text: str | None = None
    log_likelihood: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    cut: bool = False
    fingerprint: str = ""
    attempts: int = 1
    error: str = ""

    @property
    def missing(self) -> bool:
        """Whether there is neither a text nor a log-likelihood."""
        return self.text is None and self.log_likelihood is None


class _Row(TypedDict):
    key: str
    model: str
    call: dict[str, Any]
    answer: Answer
    check: str


@dataclass
class Log:
    """Answers by key, appended to a JSONL file, line by line, before they count; an earlier run's are known again.

    Nothing in the file is ever changed. A line that a kill cut short is skipped, and so is one that was changed since.

    Attributes:
        file: None for a log that is kept in memory only.
        unanswered: keys that an earlier run sent and had no answer to when it ended.
    """

    file: Path | None = None
    unanswered: set[str] = field(default_factory=set)
    _known: dict[str, Answer] = field(default_factory=dict, repr=False)
    _handle: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.file is not None and self.file.exists():
            self._read(self.file)

    def _read(self, file: Path) -> None:
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError as error:
            raise EvaluationError(f"{file} can't be read ({error.strerror}): name another `log`") from None
        for line in lines:
            try:
                row = parse_loose(line)
            except (JsonError, UnicodeError):
                continue
            if not isinstance(row, dict):
                continue
            if "sent" in row:
                self.unanswered.add(str(row["sent"]))
            elif "key" in row and (answer := _answer(row)):
                self._known[row["key"]] = answer
            elif "failed" in row:
                self.unanswered.discard(str(row["failed"]))
        self.unanswered -= set(self._known)

    def known(self, key: str) -> Answer | None:
        """The answer to a call that was made before."""
        return self._known.get(key)

    def sent(self, keys: Sequence[str]) -> None:
        """Note that calls are about to be made."""
        self._append([{"sent": key} for key in keys])

    def failed(self, key: str, error: str, attempt: int) -> None:
        """Note that an attempt gave no answer."""
        self._append([{"failed": key, "attempt": attempt, "error": error}])

    def add(self, key: str, model: str, call: Call, answer: Answer) -> None:
        """Write an answer to the disk; from then on it is known. Missing ones are only noted, to be asked for again."""
        if answer.missing:
            self.failed(key, answer.error, answer.attempts)
            return
        row = {"key": key, "model": model, "call": call.content(), "answer": asdict(answer)}
        self._append([{**row, "check": digest(row)}])
        self._known[key] = answer

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if self.file is None:
            return
        if self._handle is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            size = os.fstat(self._handle).st_size
            if size and os.pread(self._handle, 1, size - 1) != b"\n":  # a kill cut the last line short
                os.write(self._handle, b"\n")
        # Escaped: JSON holds half a letter so, which a file in UTF-8 doesn't.
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()
        while text:
            text = text[os.write(self._handle, text) :]
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _answer(row: dict[str, Any]) -> Answer | None:
    check = row.pop("check", None)
    if check != digest(row):
        return None
    try:
        conform({**row, "check": check}, _Row)
        return parse_json(json.dumps(row["answer"]), Answer)
    except JsonError:
        return None
