"""Models behind a server that speaks OpenAI's protocol: vLLM, Ollama and llama.cpp on this machine, or a service."""

import asyncio
import os
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from surgery.errors import EvaluationError, MissingPackageError, first_line
from surgery.evaluating.calls import Answer, Call
from surgery.evaluating.runner import Given, run_async

PREFIX = "openai:"
_SERVICE = "https://api.openai.com/v1"
_LETTERS_A_TOKEN = 3.5  # an estimate on the safe side, for servers that don't count for us
_SAME = ("id", "root", "owned_by", "digest", "fingerprint", "system_fingerprint", "max_model_len")
_MISTAKES = {
    401: "refuses the key (set OPENAI_API_KEY)",
    403: "doesn't allow this",
    404: "knows no such model or address",
}
_HOPELESS = 20  # calls in a row without an answer, after which a server is given up


class ServerModel:
    """A model by its name on a server.

    Args:
        name: `NAME@URL`, or `NAME` for OpenAI's own service. The key is taken from OPENAI_API_KEY.
        parallel: calls under way at once.
        attempts: how often a call is tried that is refused for now (429), fails (500 and above), times out or has no
            usable answer; between them it waits twice as long each time, or as long as the server says.
        wait: seconds before the second attempt.
        timeout: seconds that an answer may take.
        context: tokens that a question and its answer may have together, if you know.

    Raises:
        MissingPackageError: the package openai isn't installed.
    """

    def __init__(
        self,
        name: str,
        *,
        parallel: int = 8,
        attempts: int = 6,
        wait: float = 1.0,
        timeout: float = 120.0,
        context: int | None = None,
    ) -> None:
        try:
            import openai
        except ImportError:
            raise MissingPackageError("openai", "eval", "a model on a server") from None
        self._openai = openai
        self.model, _, url = name.removeprefix(PREFIX).partition("@")
        self.url = (url or _SERVICE).rstrip("/")
        if not self.model or not self.url.startswith(("http://", "https://")):
            raise EvaluationError(
                f"{name!r} names no model on a server: give openai:NAME@URL, such as openai:llama3@http://localhost:11434/v1"
            )
        self.name = f"{PREFIX}{self.model}" + (f"@{self.url}" if url else "")
        self.parallel, self.attempts, self.wait, self.timeout = parallel, attempts, wait, timeout
        self.context = context
        self.remarks: tuple[str, ...] = ()
        self._key = os.environ.get("OPENAI_API_KEY") or "none"
        self.identity: Mapping[str, Any] = {"server": self.url, "model": self.model, **self._entry()}

    def _client(self, kind: Any) -> Any:
        return kind(api_key=self._key, base_url=self.url, max_retries=0, timeout=self.timeout)

    def _entry(self) -> dict[str, Any]:
        """What the server's list says of the model and doesn't change from one look to the next; empty without a list."""
        try:
            with self._client(self._openai.OpenAI) as client:
                listed = [entry.model_dump() for entry in client.with_options(timeout=10).models.list().data]
        except Exception:  # a server needn't have a list; if it isn't there at all, the first calls say so
            return {}
        own: dict[str, Any] = next((entry for entry in listed if entry.get("id") == self.model), {})
        return {key: own[key] for key in _SAME if isinstance(own.get(key), str | int)}

    def count_tokens(self, text: str) -> int:
        """An estimate from the number of letters, rather too high."""
        return int(len(text) / _LETTERS_A_TOKEN) + 1

    def answer(self, calls: Sequence[Call], given: Given, failed: Callable[[int, str, int], None]) -> None:
        """Answer calls, `parallel` at once.

        Raises:
            EvaluationError: a refusal that asking again doesn't mend, or a server that answers nothing.
        """
        if any(call.continuation is not None for call in calls):
            raise EvaluationError(
                f"{self.name}: a server gives no log-likelihoods of a text: give the model as a folder or hub id"
            )
        run_async(lambda: self._answer_all(calls, given, failed))

    async def _answer_all(self, calls: Sequence[Call], given: Given, failed: Callable[[int, str, int], None]) -> None:
        numbers = iter(range(len(calls)))
        unanswered = 0
        async with self._client(self._openai.AsyncOpenAI) as client:

            async def work() -> None:
                nonlocal unanswered
                for number in numbers:
                    answer = await self._answer(client, calls[number], lambda *what, n=number: failed(n, *what))
                    given(number, answer)
                    unanswered = unanswered + 1 if answer.missing else 0
                    if unanswered >= _HOPELESS and unanswered >= min(len(calls), 2 * self.parallel):
                        raise EvaluationError(
                            f"{self.name} gave no answer to the last {unanswered} calls ({answer.error}): see that it runs, then give the same command again"
                        )

            workers = [asyncio.ensure_future(work()) for _ in range(min(self.parallel, len(calls)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _answer(self, client: Any, call: Call, failed: Callable[[str, int], None]) -> Answer:
        """One call, tried as often as it may be; missing if nothing came of that."""
        error = ""
        for attempt in range(1, self.attempts + 1):
            try:
                reply = await asyncio.wait_for(self._ask(client, call), self.timeout)
                return self._read(reply, attempt)
            except _UnusableError as trouble:
                error, pause = str(trouble), 0.0
            except self._openai.APIStatusError as trouble:
                status = trouble.status_code
                if status in _MISTAKES:
                    raise EvaluationError(f"{self.name}: the server {_MISTAKES[status]} (status {status})") from None
                error, pause = f"status {status}", _asked_to_wait(trouble.response.headers)
                if status < 500 and status not in (408, 409, 429):
                    return Answer(error=error, attempts=attempt)  # it won't take this question, and says so each time
            except (self._openai.APITimeoutError, TimeoutError):
                error, pause = "no answer in time", 0.0
            except (self._openai.OpenAIError, ValueError, OSError) as trouble:
                error, pause = _named(trouble), 0.0
            if attempt < self.attempts:
                failed(error, attempt)
                # Calls that were refused together don't come back together.
                await asyncio.sleep(max(pause, self.wait * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)))
        return Answer(error=error, attempts=self.attempts)

    async def _ask(self, client: Any, call: Call) -> Any:
        return await client.chat.completions.create(
            model=self.model,
            messages=[{"role": message.role, "content": message.content} for message in call.messages],
            max_tokens=call.max_tokens,
            temperature=call.temperature,
            seed=call.seed,
            # The same for the same question: a server that knows this header doesn't charge for it twice.
            extra_headers={"Idempotency-Key": call.key(self.identity)},
        )

    def _read(self, reply: Any, attempt: int) -> Answer:
        try:
            choice = reply.choices[0]
            text, reason = choice.message.content, choice.finish_reason
        except (AttributeError, IndexError, TypeError):
            raise _UnusableError("an answer in another form than the protocol's") from None
        if not isinstance(text, str) or not text.strip():
            raise _UnusableError("an empty answer")
        usage = getattr(reply, "usage", None)
        asked, written = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        return Answer(
            text=text.strip().encode("utf-8", "backslashreplace").decode(),  # JSON can hold half a letter
            prompt_tokens=asked if isinstance(asked, int) else 0,
            tokens=written if isinstance(written, int) else 0,
            cut=reason == "length",
            fingerprint=str(getattr(reply, "system_fingerprint", None) or ""),
            attempts=attempt,
        )


class _UnusableError(Exception):
    """An answer came, and there is no text in it."""


def _named(error: Exception) -> str:
    kind = type(error).__name__
    if kind == "APIConnectionError":
        return "no connection, or one that broke off"
    if isinstance(error, ValueError) or kind == "APIResponseValidationError":
        return "an answer that isn't JSON of the protocol"
    return f"{kind}: {first_line(error)}"


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    try:
        return min(60.0, max(0.0, float(headers.get("retry-after", "0"))))
    except ValueError:
        return 0.0
