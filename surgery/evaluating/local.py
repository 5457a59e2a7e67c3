"""Weights on a device: answers and log-likelihoods in batches of like length."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from inspect import signature
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint, tokenizer_files
from surgery.checkpoints.models import Model, load_model, steady_attention
from surgery.errors import EvaluationError
from surgery.evaluating.calls import Answer, Call, Message
from surgery.evaluating.runner import Given
from surgery.quiet import quiet
from surgery.resuming import digest
from surgery.tasks.readout import position_limit

Row = tuple[list[int], list[int]]  # tokens of a prompt, and of its continuation

_WORTH_SHARING = 8  # tokens
SCORED_TOKENS = 2048  # at once: their logits over a large vocabulary are what takes memory


class LocalModel:
    """A causal language model's weights.

    Args:
        source: a folder, a hub id, or an open checkpoint.
        batch_size: answers written at once.
        chat: put messages into the checkpoint's chat template; by default where it has one. Without, they are plain text.

    Raises:
        EvaluationError: not a causal language model. CheckpointError: unreadable.
    """

    def __init__(
        self,
        source: str | Path | Checkpoint,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 16,
        chat: bool | None = None,
    ) -> None:
        checkpoint = open_checkpoint(source)
        if checkpoint.structure.kind != "causal":
            raise EvaluationError(
                f"{checkpoint} is no causal language model ({checkpoint.structure.kind}): what it says can't be evaluated"
            )
        self.checkpoint = checkpoint
        self.model: Model = load_model(checkpoint, device=device, dtype=dtype)
        self.tokenizer, self.batch_size = self.model.tokenizer, batch_size
        self._ends = self._without_habits()
        has_template = bool(self.tokenizer.chat_template)
        if chat and not has_template:
            raise EvaluationError(f"{checkpoint} has no chat template: leave out `chat`, and prompts are plain text")
        self.chat = has_template if chat is None else chat
        self.name = str(source if not isinstance(source, Checkpoint) else source.source)
        self.context = position_limit(self.model.module)
        self._has_template = has_template
        self.identity: Mapping[str, Any] = {
            "weights": checkpoint.fingerprint,
            "tokenizer": digest([[file.name, file.read_bytes().hex()] for file in self._text_files()]),
            "chat": self.chat,
            "dtype": str(self.model.module.dtype),
            "ends": self._ends,
        }

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know of its scores: whether prompts are plain text."""
        if self.chat:
            return ()
        plain = "is put to plain text" if self._has_template else "has no chat template, so prompts are plain text"
        return (f"{self.name} {plain}; of a base model, likelihoods say more than what it writes when told to.",)

    def _text_files(self) -> list[Path]:
        templates = sorted(self.checkpoint.folder.glob("chat_template*"))
        return [*tokenizer_files(self.checkpoint.folder), *(path for path in templates if path.is_file())]

    def _without_habits(self) -> list[int]:
        """Tokens that end an answer: those of the folder's generation config, and the tokenizer's.

        Whatever else that config says is dropped: it may sample, or punish repetition, whatever is asked for.
        """
        from transformers import GenerationConfig

        module = self.model.module
        own = getattr(module.generation_config, "eos_token_id", None)
        ends = [*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id]
        module.generation_config = GenerationConfig()
        return sorted({token for token in ends if token is not None})

    def count_tokens(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self._tokens(text))

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text that the model continues with its answer."""
        rows = [{"role": message.role, "content": message.content} for message in messages]
        if self.chat:
            return self.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
        if len(messages) == 1:
            return f"{messages[0].content}\n\n"
        turns = [f"{row['role'].capitalize()}: {row['content']}" for row in rows]
        return "\n\n".join([*turns, "Assistant:"])

    def answer(self, calls: Sequence[Call], given: Given, failed: Callable[[int, str, int], None]) -> None:
        """Answer calls, those that want as many tokens at the same temperature together; short ones first."""
        prompts = [self._prompt_ids(call) for call in calls]
        written: dict[tuple[int, bool], list[int]] = {}
        scored: list[int] = []
        for number, call in enumerate(calls):
            more = call.max_tokens if call.continuation is None else len(self._tokens(call.continuation))
            if self.context is not None and len(prompts[number]) + more > self.context:
                reason = "question and answer together are longer than the model's context"
                given(number, Answer(prompt_tokens=len(prompts[number]), error=reason))
            elif call.continuation is None:
                written.setdefault((call.max_tokens, call.temperature > 0), []).append(number)
            else:
                scored.append(number)
        with torch.no_grad(), quiet(), steady_attention():
            for (most, _), numbers in written.items():
                for batch in self._batches(numbers, prompts):
                    self._write([calls[n] for n in batch], [prompts[n] for n in batch], batch, most, given)
            self._score_all({n: (prompts[n], self._tokens(calls[n].continuation or "")) for n in scored}, given)

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _prompt_ids(self, call: Call) -> list[int]:
        # A chat template writes its own special tokens.
        text = self.prompt(call.messages)
        return self.tokenizer(text, add_special_tokens=not self.chat, verbose=False)["input_ids"]

    def _batches(self, numbers: Sequence[int], prompts: Sequence[list[int]]) -> Iterator[list[int]]:
        ordered = sorted(numbers, key=lambda number: (len(prompts[number]), number))
        batch: list[int] = []
        for number in ordered:
            apart = batch and self.model.padding_matters and len(prompts[number]) != len(prompts[batch[0]])
            if len(batch) == self.batch_size or apart:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _write(
        self, calls: Sequence[Call], prompts: Sequence[list[int]], numbers: Sequence[int], most: int, given: Given
    ) -> None:
        from transformers import GenerationConfig, LogitsProcessorList

        longest, pad, ends = max(map(len, prompts)), self.model.pad_id, self._ends
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=self.model.device)
        config = GenerationConfig(max_new_tokens=most, do_sample=False, pad_token_id=pad, eos_token_id=ends or None)
        draws = [SeededDraws(calls)] if any(call.temperature > 0 for call in calls) else []
        output = self.model.module.generate(
            ids, attention_mask=mask, generation_config=config, logits_processor=LogitsProcessorList(draws)
        )
        for number, row, prompt in zip(numbers, output[:, longest:].tolist(), prompts, strict=True):
            stop = next((place for place, token in enumerate(row) if token in ends), None)
            text = self.tokenizer.decode(row[:stop], skip_special_tokens=True)
            tokens = len(row) if stop is None else stop + 1
            given(number, Answer(text=text.strip(), prompt_tokens=len(prompt), tokens=tokens, cut=stop is None))

    def _score_all(self, rows: Mapping[int, Row], given: Given) -> None:
        together: dict[tuple[int, ...], list[int]] = {}
        for number, (prompt, _) in rows.items():
            together.setdefault(tuple(prompt), []).append(number)
        alone = []
        apart = [list(shared) for shared, numbers in together.items() if len(numbers) > 1]
        start = self._read_start(apart) if self._cached and not self.model.padding_matters else None
        for shared, numbers in together.items():
            if len(numbers) == 1 or not shared or start is None:
                alone += numbers
                continue
            found = self._score_after(start, list(shared), [rows[number][1] for number in numbers])
            self._tell(rows, numbers, found, given)
        for batch in self._batches_of({number: rows[number] for number in alone}):
            self._tell(rows, batch, self._score([rows[number] for number in batch]), given)

    def _tell(self, rows: Mapping[int, Row], numbers: Sequence[int], values: Sequence[float], given: Given) -> None:
        for number, value in zip(numbers, values, strict=True):
            prompt, more = rows[number]
            given(number, Answer(log_likelihood=value, prompt_tokens=len(prompt), tokens=len(more)))

    def _batches_of(self, rows: Mapping[int, Row]) -> Iterator[list[int]]:
        lengths = {number: len(prompt) + len(more) for number, (prompt, more) in rows.items()}
        batch: list[int] = []
        for number in sorted(rows, key=lambda number: (lengths[number], number)):
            apart = batch and self.model.padding_matters and lengths[number] != lengths[batch[0]]
            if batch and (apart or lengths[number] * (len(batch) + 1) > SCORED_TOKENS):
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch

    def _score(self, rows: Sequence[Row]) -> list[float]:
        """Log-likelihood in nats of each continuation after its prompt."""
        ids, mask = self._padded([prompt + more for prompt, more in rows])
        logits = self.model.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        found = []
        for k, (prompt, more) in enumerate(rows):
            start = max(1, len(prompt))  # without a prompt nothing says how likely the first token is
            stop = len(prompt) + len(more)
            found.append(_log_likelihood(logits[k, start - 1 : stop - 1], ids[k, start:stop]))
        return found

    @cached_property
    def _cached(self) -> bool:
        """Whether the model keeps what it made of a prompt in a cache that several continuations can share."""
        ids = torch.tensor([[self.model.pad_id, self.model.pad_id]], device=self.model.device)
        try:
            cache = self.model.module(input_ids=ids, use_cache=True).past_key_values
        except Exception:  # whatever a model's code raises
            return False
        return type(cache).__name__ == "DynamicCache"

    def _read_start(self, prompts: Sequence[list[int]]) -> tuple[int, Any]:
        """How many tokens all prompts begin with, and the cache of these; each prompt has one token more at least."""
        columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
        common = [tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, columns)]
        if len(prompts) < 2 or len(common) < _WORTH_SHARING:
            return 0, None
        ids = torch.tensor([common], device=self.model.device)
        return len(common), self.model.module(input_ids=ids, use_cache=True, **self._last_only).past_key_values

    @cached_property
    def _last_only(self) -> dict[str, int]:
        """The option, where the model has it, that the last token's logits alone are made."""
        return {"logits_to_keep": 1} if "logits_to_keep" in signature(self.model.module.forward).parameters else {}

    def _score_after(self, start: tuple[int, Any], prompt: list[int], mores: Sequence[list[int]]) -> list[float]:
        """`_score` of several continuations of one prompt, which is read once, and its start not even that."""
        ids = torch.tensor([prompt[start[0] :]], device=self.model.device)
        before = {"past_key_values": deepcopy(start[1])} if start[0] else {}
        read = self.model.module(input_ids=ids, use_cache=True, **before, **self._last_only)
        first, found = read.logits[0, -1], {}
        order = sorted(range(len(mores)), key=lambda k: len(mores[k]))
        most = max(1, SCORED_TOKENS // max(1, len(mores[order[-1]])))
        for numbers in (order[start : start + most] for start in range(0, len(order), most)):
            ids, mask = self._padded([mores[k] for k in numbers])
            cache = deepcopy(read.past_key_values)
            cache.batch_repeat_interleave(len(numbers))
            whole = torch.cat([mask.new_ones(len(numbers), len(prompt)), mask], 1)
            logits = self.model.module(input_ids=ids, attention_mask=whole, past_key_values=cache).logits
            for row, k in enumerate(numbers):
                size = len(mores[k])
                predicted = torch.cat([first[None], logits[row, : max(0, size - 1)]])[:size]
                found[k] = _log_likelihood(predicted, ids[row, :size])
        return [found[k] for k in range(len(mores))]

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids padded on the right and their mask, [batch, tokens]."""
        longest, pad = max(1, *map(len, rows)), self.model.pad_id
        ids = [row + [pad] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)


def _log_likelihood(logits: Tensor, ids: Tensor) -> float:
    """Of tokens [n] under logits [n, vocabulary], in nats."""
    return -float(F.cross_entropy(logits.float(), ids, reduction="none").double().sum())


class SeededDraws:
    """Draws a token by temperature for each row from its own seed: the same whatever rows are beside it.

    The likeliest token of logits / temperature + Gumbel noise is a draw from their softmax (Gumbel 1954), so that greedy
    generation takes draws.
    """

    def __init__(self, calls: Sequence[Call]) -> None:
        self._temperatures = [call.temperature for call in calls]
        self._randoms = [torch.Generator().manual_seed(call.seed) for call in calls]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Noisy logits, [batch, vocabulary]."""
        drawn = scores.float().clone()
        for row, (temperature, random) in enumerate(zip(self._temperatures, self._randoms, strict=True)):
            if temperature > 0:
                noise = torch.empty(drawn.shape[1]).exponential_(generator=random).log().neg()
                drawn[row] = drawn[row] / temperature + noise.to(drawn.device)
        return drawn
