"""The runner: puts calls to models, each answered once, and counts what was asked, answered, missing and paid."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from surgery.evaluating.calls import Answer, Call, Log
from surgery.progress import Progress, silent

Given = Callable[[int, Answer], None]


@runtime_checkable
class LanguageModel(Protocol):
    """A model that can be asked: weights on a device, or a server.

    Attributes:
        name: what people call it.
        identity: all that decides its answers, as JSON: a hash of the weights, or a server's model id.
        context: tokens that a question and its answer may have together; None where that isn't known.
        remarks: sentences on what this model can't be expected to do.
    """

    name: str
    identity: Mapping[str, Any]
    context: int | None

    @property
    def remarks(self) -> tuple[str, ...]: ...  # noqa: D102

    def answer(self, calls: Sequence[Call], given: Given, failed: Callable[[int, str, int], None]) -> None:
        """Answer calls in any order, each told to `given` with its number as soon as it is known.

        An attempt that failed is told to `failed`, with the error and the attempt's number.
        """

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, exactly or estimated."""


@dataclass
class Usage:
    """Counts of the calls to one model.

    Attributes:
        calls: all; `known`: those that the log answered; `missing`: those without an answer.
        prompt_tokens, tokens: of the calls that were made now.
        errors: how many calls are missing for which reason.
        fingerprints: what the server called its configuration, and in how many answers.
        price: dollars for a million tokens of questions, and of answers.
    """

    calls: int = 0
    known: int = 0
    missing: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    fingerprints: dict[str, int] = field(default_factory=dict)
    price: tuple[float, float] | None = None

    def add(self, answer: Answer, known: bool) -> None:
        """Count one answer."""
        self.calls += 1
        self.known += known
        if not known:
            self.prompt_tokens += answer.prompt_tokens
            self.tokens += answer.tokens
        if answer.missing:
            self.missing += 1
            self.errors[answer.error] = self.errors.get(answer.error, 0) + 1
        if answer.fingerprint:
            self.fingerprints[answer.fingerprint] = self.fingerprints.get(answer.fingerprint, 0) + 1

    @property
    def cost(self) -> float | None:
        """Dollars for the calls that were made now; None without a price."""
        if self.price is None:
            return None
        return (self.prompt_tokens * self.price[0] + self.tokens * self.price[1]) / 1e6

    def content(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {**vars(self), "price": self.price and list(self.price), "cost": self.cost}


@dataclass
class Runner:
    """Asks models, by way of a log: a call that the log knows isn't made again.

    Attributes:
        dry: count calls and make none; what the log doesn't know has an empty answer then.
        fresh: make every call, though the log knows it, and leave the log as it is.
        prices: dollars for a million tokens of questions and of answers, by the model's name.
    """

    log: Log = field(default_factory=Log)
    dry: bool = False
    fresh: bool = False
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    progress: Progress = silent
    usage: dict[str, Usage] = field(default_factory=dict)

    def ask(self, model: LanguageModel, calls: Sequence[Call], stage: str = "asking") -> list[Answer]:
        """The answers to calls, in their order; the same call twice is made once."""
        keys = [call.key(model.identity) for call in calls]
        answers: dict[str, Answer] = {}
        if not self.fresh:
            answers = {key: known for key in keys if (known := self.log.known(key))}
        before = frozenset(answers)
        new = {key: call for key, call in zip(keys, calls, strict=True) if key not in answers}
        if self.dry:
            answers |= {key: Answer(text="", log_likelihood=0.0) for key in new}
        elif new:
            self._make(model, list(new), list(new.values()), answers, stage)
        usage = self.usage.setdefault(model.name, Usage(price=self.prices.get(model.name)))
        for key, answer in {key: answers[key] for key in keys}.items():
            usage.add(answer, key in before)
        return [answers[key] for key in keys]

    def _make(
        self, model: LanguageModel, keys: list[str], calls: list[Call], answers: dict[str, Answer], stage: str
    ) -> None:
        done = missing = 0

        def given(number: int, answer: Answer) -> None:
            nonlocal done, missing
            if not self.fresh:
                self.log.add(keys[number], model.name, calls[number], answer)
            answers[keys[number]] = answer
            done, missing = done + 1, missing + answer.missing
            note = f", {missing} missing" if missing else ""
            self.progress(done, len(keys), f"{stage}: {model.name}{note}")

        def failed(number: int, error: str, attempt: int) -> None:
            if not self.fresh:
                self.log.failed(keys[number], error, attempt)

        if not self.fresh:
            self.log.sent(keys)
        model.answer(calls, given, failed)


def run_async(make: Callable[[], Any]) -> None:
    """Run a coroutine to its end; within a running loop, such as a notebook's, on a thread of its own."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(make())
        return
    trouble: list[BaseException] = []

    def body() -> None:
        try:
            asyncio.run(make())
        except BaseException as error:
            trouble.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if trouble:
        raise trouble[0]
