"""Readouts: how label scores are read off a model. Nothing in a readout is ever trained.

Which one is picked depends on what the model is: label words at the mask (masked language models; Gao et al. 2021,
LM-BFF), label words as next token (causal ones), the checkpoint's own head (classifiers), or the cosine between the
mean-pooled embedding and the base's embedding of one phrase a label (sentence encoders without a head).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from surgery.checkpoints.models import Model, run
from surgery.errors import CheckpointError, TaskError
from surgery.tasks.classifier_heads import head_names, head_order
from surgery.tasks.examples import Example
from surgery.tasks.task import Task

_EXACT = (torch.float32, torch.float64)
TEMPERATURE = 20.0  # on cosines, which lie too close together for a softmax


class Encoded(NamedTuple):
    """One example as token ids; `position` is where the label is read."""

    ids: list[int]
    types: list[int]
    position: int


@runtime_checkable
class Readout(Protocol):
    """Turns examples into token ids, and a model's run over them into label scores."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Token ids of each example."""

    def logits(self, module: nn.Module, batch: dict[str, Tensor], positions: Tensor) -> Float[Tensor, "batch labels"]:
        """Scores whose softmax is the prediction."""


@dataclass(frozen=True)
class WordReadout:
    """Label words at the mask of a masked model, or after the prompt of a causal one."""

    tokenizer: Any
    prompt: str
    word_ids: tuple[int, ...]
    max_length: int
    causal: bool
    tail: int = 0  # special tokens that the tokenizer puts behind a text
    whole: bool = False  # whether all positions' logits are made, and one taken

    @classmethod
    def of(cls, model: Model, task: Task) -> "WordReadout":
        """Raises TaskError for a label word that isn't one token in its place, or the same token as another's."""
        causal = model.kind == "causal"
        template = task.causal_prompt if causal else task.prompt
        _check_prompt(template, task, causal)
        prompt = task.causal_prompt if causal else task.prompt.replace("{mask}", _mask(model.tokenizer))
        before = template.partition("{mask}")[0]
        ids: dict[str, int] = {}
        for word in task.words.values():
            token = _one_token(model.tokenizer, before, word)
            if token in ids.values():
                other = next(w for w, i in ids.items() if i == token)
                raise TaskError(
                    f"label words {other!r} and {word!r} are the same token for this tokenizer: choose others (`words` LABEL=WORD)"
                )
            ids[word] = token
        tail = _tail(model.tokenizer) if causal else 0
        return cls(model.tokenizer, prompt, tuple(ids.values()), token_limit(model, task), causal, tail)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Texts that are too long are cut at the end of the longer one; the prompt around them stays whole."""
        return [self._encode(self._plain(example.text), self._plain(example.text_pair)) for example in examples]

    def _plain(self, text: str) -> str:
        # A mask in the text itself would be a second place to read the label at.
        return text.replace(self.tokenizer.mask_token or "\0", " ").strip()

    def _encode(self, text: str, pair: str) -> Encoded:
        while True:
            # Not str.format: a text may hold braces.
            whole = self.prompt.replace("{text_pair}", "\0").replace("{text}", text).replace("\0", pair)
            coded = self.tokenizer(whole, return_token_type_ids=True)
            ids = coded["input_ids"]
            ids = ids[: len(ids) - self.tail]  # the label is to follow the prompt, not its end
            excess = len(ids) - self.max_length
            if excess <= 0:
                break
            if not text and not pair:
                raise TaskError(
                    f"the prompt {self.prompt!r} alone has {len(ids)} tokens, more than `max_length` {self.max_length}: raise it"
                )
            cut = max(1, excess // 2) if pair and text else excess  # of a pair, the longer text each time
            if len(pair) > len(text):
                pair = self._without_last(pair, cut)
            else:
                text = self._without_last(text, cut)
        types = coded["token_type_ids"][: len(ids)]
        return Encoded(ids, types, len(ids) - 1 if self.causal else ids.index(self.tokenizer.mask_token_id))

    def _without_last(self, text: str, tokens: int) -> str:
        if not self.tokenizer.is_fast:  # which doesn't say where in the text its tokens lie
            return self._without_last_words(text, tokens)
        starts = [
            start
            for start, stop in self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
                "offset_mapping"
            ]
            if stop > start
        ]
        return text[: starts[-tokens]].rstrip() if tokens < len(starts) else ""

    def _without_last_words(self, text: str, tokens: int) -> str:
        """Without as many words as it takes, counted from the end, to be that many tokens shorter; at least one."""
        words = text.split()
        while words and tokens > 0:
            tokens -= max(1, len(self.tokenizer(words.pop(), add_special_tokens=False)["input_ids"]))
        return " ".join(words)

    def logits(self, module: nn.Module, batch: dict[str, Tensor], positions: Tensor) -> Float[Tensor, "batch labels"]:
        """The label words' logits. The output matrix is applied at one position a row, not at all of them.

        Raises CheckpointError when the model doesn't call its output matrix as it did when it was tried out.
        """
        more = {"use_cache": False} if self.causal else {}
        words = list(self.word_ids)
        if self.whole:
            return at(run(module, batch | more), positions)[:, words].float()
        with _only_at(module, positions) as called:
            scores = run(module, batch | more)
        if not called or scores.shape[1] != 1:
            raise CheckpointError(
                f"a {type(module).__name__} doesn't put its hidden states through its output matrix: no readout fits it"
            )
        return scores[:, 0, words].float()

    def tried(self, model: Model) -> "WordReadout":
        """Itself, or one that reads all positions' logits where reading at one gives something else (MobileBERT)."""
        batch, positions = collate(
            model, self.encode([Example("It was so.", "It was.", ""), Example("It.", "It.", "")])
        )
        whole = replace(self, whole=True)
        with torch.no_grad():
            wanted = whole.logits(model.module, batch, positions)
            try:
                logits = self.logits(model.module, batch, positions)
            except Exception:  # the matrix isn't called, or not on states [batch, tokens, width]
                return whole
        close = 1e-5 if wanted.dtype == torch.float32 and model.module.dtype in _EXACT else 0.05
        same = (logits - wanted).abs().max() <= close * wanted.abs().max()
        return self if bool(same) else whole


@dataclass(frozen=True)
class HeadReadout:
    """A classifier's own head; `order[i]` is the head's output for the task's i-th label."""

    tokenizer: Any
    order: tuple[int, ...]
    max_length: int

    @classmethod
    def of(cls, model: Model, task: Task) -> "HeadReadout":
        """Labels are matched by the config's names, as `head_order` does; raises TaskError as it does."""
        return cls(model.tokenizer, head_order(head_names(model.module.config), task), token_limit(model, task))

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode single texts and pairs as the tokenizer does."""
        return encode_plain(self.tokenizer, examples, self.max_length)

    def logits(self, module: nn.Module, batch: dict[str, Tensor], positions: Tensor) -> Float[Tensor, "batch labels"]:
        """The head's logits in the task's order."""
        return run(module, batch)[:, list(self.order)].float()


@dataclass(frozen=True)
class PhraseReadout:
    """Cosines with frozen embeddings of one phrase a label, times a temperature."""

    tokenizer: Any
    anchors: Float[Tensor, "labels width"]
    phrases: tuple[str, ...]
    max_length: int
    temperature: float = TEMPERATURE

    @classmethod
    def of(cls, model: Model, task: Task) -> "PhraseReadout":
        """Read the phrases' embeddings from the file beside the checkpoint, else embed them with this model, which then is the base."""
        file = model.checkpoint.folder / readout_file(task)
        phrases = tuple(task.phrases[label] for label in task.labels)
        if file.exists():
            return cls.from_file(file, model.tokenizer, phrases, token_limit(model, task))
        rows = encode_plain(model.tokenizer, [Example(phrase, "", "") for phrase in phrases], token_limit(model, task))
        anchors = torch.empty(len(rows), 0)
        with torch.no_grad():
            for numbers in alike(model, rows, range(len(rows))):
                embedded = _embed(model.module, collate(model, [rows[number] for number in numbers])[0]).float().cpu()
                anchors = anchors if anchors.numel() else torch.empty(len(rows), embedded.shape[1])
                anchors[numbers] = embedded
        return cls(model.tokenizer, anchors, phrases, token_limit(model, task))

    @classmethod
    def from_file(cls, file: Path, tokenizer: Any, phrases: tuple[str, ...], max_length: int) -> "PhraseReadout":
        """Read what `to_bytes` wrote; raises TaskError when it was made for other phrases."""
        try:
            with safe_open(file, "pt") as opened:
                kept, anchors = json.loads((opened.metadata() or {})["phrases"]), opened.get_tensor("anchors")
        except (SafetensorError, KeyError, ValueError, RecursionError, OSError) as error:
            raise TaskError(f"{file} is no readout ({error}): delete it, and the phrases are embedded anew") from None
        if tuple(kept) != phrases:
            raise TaskError(
                f"{file} was made for the phrases {kept}, not {list(phrases)}: give those phrases, or another checkpoint"
            )
        return cls(tokenizer, anchors, phrases, max_length)

    def check_fits(self, model: Model) -> None:
        """Refuse a model that isn't read by these embeddings: one with another tokenizer or of another width."""
        width, own = self.anchors.shape[1], model.module.config.get_text_config().hidden_size
        if own != width or self.tokenizer.get_vocab() != model.tokenizer.get_vocab():
            raise TaskError(
                f"{model.checkpoint} can't be read by another checkpoint's embeddings of the phrases ({width} numbers each): its tokenizer or width ({own}) differs"
            )

    def to_bytes(self) -> bytes:
        """A safetensors file, to lie beside every checkpoint that this readout is to read."""
        return save({"anchors": self.anchors.contiguous()}, metadata={"phrases": json.dumps(self.phrases)})

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode single texts and pairs as the tokenizer does."""
        return encode_plain(self.tokenizer, examples, self.max_length)

    def logits(self, module: nn.Module, batch: dict[str, Tensor], positions: Tensor) -> Float[Tensor, "batch labels"]:
        """Temperature times cosine."""
        embedded = _embed(module, batch)
        with torch.autocast(embedded.device.type, enabled=False):  # cosines lie too close together for half precision
            return self.temperature * embedded.float() @ self.anchors.to(embedded.device).T


def pick_readout(model: Model, task: Task) -> Readout:
    """Pick the readout that fits the model's kind, and try it out.

    Raises TaskError for a task that doesn't fit the model, CheckpointError for a model that needs more than text.
    """
    makers = {"masked": WordReadout, "causal": WordReadout, "classifier": HeadReadout, "encoder": PhraseReadout}
    readout = makers[model.kind].of(model, task)  # type: ignore[attr-defined]
    model.padding_matters  # noqa: B018 (runs the model)
    return readout.tried(model) if isinstance(readout, WordReadout) else readout


def readout_file(task: Task) -> str:
    """The name of the file that carries a task's phrase embeddings from the base to what was made from it."""
    return f"readout-{task.name}.safetensors"


def encode_plain(tokenizer: Any, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """The tokenizer's own way with single texts and pairs, cut at `max_length` tokens."""
    pairs = [example.text_pair for example in examples] if any(example.text_pair for example in examples) else None
    coded = tokenizer(
        [example.text for example in examples],
        pairs,
        truncation=True,
        max_length=max_length,
        return_token_type_ids=True,
    )
    return [
        Encoded(ids, types, len(ids) - 1)
        for ids, types in zip(coded["input_ids"], coded["token_type_ids"], strict=True)
    ]


def collate(model: Model, rows: Sequence[Encoded]) -> tuple[dict[str, Tensor], Tensor]:
    """Pad on the right, on the model's device: the model's inputs [batch, tokens], and the positions [batch]."""
    longest = max(len(row.ids) for row in rows)
    pad = model.pad_id
    batch = {
        "input_ids": torch.tensor([row.ids + [pad] * (longest - len(row.ids)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows]),
    }
    if model.wants_types:
        batch["token_type_ids"] = torch.tensor([row.types + [0] * (longest - len(row.types)) for row in rows])
    positions = torch.tensor([row.position for row in rows])
    return {key: value.to(model.device) for key, value in batch.items()}, positions.to(model.device)


def alike(model: Model, rows: Sequence[Encoded], numbers: Iterable[int]) -> list[list[int]]:
    """The numbers of rows that are to share a batch: all of them, or those of one length where padding matters."""
    if not model.padding_matters:
        return [list(numbers)]
    by_length: dict[int, list[int]] = {}
    for number in numbers:
        by_length.setdefault(len(rows[number].ids), []).append(number)
    return list(by_length.values())


def at(states: Float[Tensor, "batch tokens width"], positions: Tensor) -> Float[Tensor, "batch width"]:
    """One position of each row."""
    return states[torch.arange(len(states), device=states.device), positions]


@contextmanager
def _only_at(module: nn.Module, positions: Tensor) -> Iterator[list[bool]]:
    """Let a model's output matrix see one position a row; yields a list that holds something once it did."""
    called: list[bool] = []

    def at_positions(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        called.append(True)
        return (at(inputs[0], positions).unsqueeze(1), *inputs[1:])

    head = module.get_output_embeddings()  # type: ignore[operator]
    handle = None if head is None else head.register_forward_pre_hook(at_positions)
    try:
        yield called
    finally:
        if handle is not None:
            handle.remove()


def _tail(tokenizer: Any) -> int:
    """How many special tokens the tokenizer puts behind a text."""
    plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    starts = [n for n in range(len(whole) - len(plain) + 1) if whole[n : n + len(plain)] == plain]
    return len(whole) - len(plain) - starts[0] if starts else 0


def _embed(module: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, "batch width"]:
    hidden = run(module, batch)
    kept = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)


def _mask(tokenizer: Any) -> str:
    if tokenizer.mask_token is None:
        raise TaskError(
            "the checkpoint is a masked language model, but its tokenizer has no mask token: fetch its tokenizer files"
        )
    return tokenizer.mask_token


def token_limit(model: Model, task: Task) -> int:
    """Number of tokens that the task and the model's positions both allow."""
    return min(task.max_length, position_limit(model.module) or task.max_length)


def position_limit(module: Any) -> int | None:
    """Number of tokens that fit the model's position table; None where its config sets no limit (XLNet says -1)."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    positions = next((n for name in names if (n := getattr(module.config, name, None))), 0)
    if positions <= 0:
        return None
    # RoBERTa, MPNet, Longformer and others count positions from the padding's number on.
    tables = [part for name, part in module.named_modules() if name.endswith("position_embeddings")]
    paddings = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
    return positions - max((padding + 1 for padding in paddings), default=0)


def _check_prompt(template: str, task: Task, causal: bool) -> None:
    if not template:
        wanted = "ends where the label word goes" if causal else "holds {mask}"
        raise TaskError(
            f"task {task.name} has no prompt for a {'causal' if causal else 'masked'} language model: give `prompt`, one that {wanted}"
        )
    pairs = any(example.text_pair for examples in (task.train, task.dev, task.test) for example in examples)
    if pairs and "{text_pair}" not in template:
        raise TaskError(f"the examples are pairs, but the prompt {template!r} has no {{text_pair}}: add it to `prompt`")


def _one_token(tokenizer: Any, before: str, word: str) -> int:
    """The token of a label word where the prompt puts it: at its beginning, or after what stands `before` it."""
    if before:
        # What a placeholder stands for isn't known here; any word will do to see how one follows it.
        lead = before.rpartition("}")[2].strip() or "a"
        context = tokenizer(lead, add_special_tokens=False)["input_ids"]
        whole = tokenizer(f"{lead} {word}", add_special_tokens=False)["input_ids"]
        own = whole[len(context) :] if whole[: len(context)] == context else whole
    else:
        own = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(own) != 1 or own[0] == tokenizer.unk_token_id:
        pieces = tokenizer.convert_ids_to_tokens(own)
        raise TaskError(
            f"label word {word!r} is {len(own)} tokens for this tokenizer ({' '.join(pieces)}), not one it knows: choose another (`words` LABEL=WORD)"
        )
    return own[0]
