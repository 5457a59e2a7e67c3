"""ProbedModel: the hidden states of every layer of a model, and hooks that change them, by TransformerLens.

Layers are numbered as in transformers' `hidden_states`: 0 is what goes into the first block, the last is what comes out
of the model (after its final norm, where it has one), and the numbers are transformers' own to 1e-5.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from tokenizers.models import WordLevel
from torch import Tensor

from pcfg.devices import Device, working_device
from probes.alignment import PENN, Encoded, named, owners
from probes.errors import ProbeError, ProbeOptionError, probe_errors
from probes.loading import load_bridge, load_module, load_tokenizer, own_states, some_tokens
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.tasks.readout import position_limit

PARITY = 1e-5

Change = Callable[[Float[Tensor, "batch tokens width"]], Tensor]


@dataclass(frozen=True, eq=False)
class ProbedModel:
    """A model with hooks, in evaluation mode, its weights frozen.

    Attributes:
        bridge: TransformerLens' view of `module`; None for a model that it can't load: then there are hidden states, as
            transformers gives them, and no hooks.
        head: whether it predicts words (a bare encoder's fresh head doesn't).
        causal: whether a token sees only those before it.
        note: what a reader of results must know; empty otherwise.
    """

    module: Any
    tokenizer: Any
    bridge: Any
    name: str
    fingerprint: str
    layers: int
    width: int
    heads: int
    head: bool
    causal: bool
    note: str

    @classmethod
    @probe_errors()
    def load(
        cls, source: "str | Path | Checkpoint", *, device: Device | None = None, untrained: int | None = None
    ) -> "ProbedModel":
        """Load a Hugging Face folder or hub id.

        Args:
            untrained: take random weights of the same shape, drawn with this seed.

        Raises:
            CheckpointError: no language model or encoder, weights missing, or layers of different widths.
            ProbeError: no fast tokenizer.
        """
        checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
        place = working_device(device)
        tokenizer = load_tokenizer(checkpoint)
        module, head, causal = load_module(checkpoint, untrained, place)
        name = f"{checkpoint} with random weights" if untrained is not None else str(checkpoint)
        wanted = own_states(checkpoint, module)
        config = module.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 0
        sizes = (len(wanted) - 1, wanted[0].shape[-1], heads)
        bridge, note = None, "it has no attention heads"
        if heads:
            bridge, note = load_bridge(checkpoint, module, tokenizer, place)
        model = cls(module, tokenizer, bridge, name, checkpoint.fingerprint, *sizes, head, causal, note)
        if bridge is not None and not model._agrees(wanted):
            note = "TransformerLens' states differ from transformers' own"
        if note:  # what failed may have changed the module
            module, head, causal = load_module(checkpoint, untrained, place)
            note = f"{note}: states are transformers' own, and the causal check is left out"
            model = cls(module, tokenizer, None, name, checkpoint.fingerprint, *sizes, head, causal, note)
        return model

    def _agrees(self, wanted: Sequence[Tensor]) -> bool:
        ids, mask = some_tokens(self.module)
        if self.bridge.cfg.n_layers != self.layers:
            return False
        try:
            own = self.hidden_states(ids, mask, range(self.layers + 1))
            patterns = self.attention(ids, mask)
        except Exception:  # whatever the library raises on models that it takes and can't run; a hook by another name
            return False
        return all(pattern.shape[1] == self.heads for pattern in patterns) and all(
            layer in own and bool(((own[layer] - states).abs() <= PARITY * (1 + states.abs())).all())
            for layer, states in enumerate(wanted)
        )

    @property
    def most_tokens(self) -> int:
        """Number of tokens that fit into the position table."""
        return position_limit(self.module) or 1 << 30

    @property
    def _vocabulary(self) -> int:
        return len(self.module.get_input_embeddings().weight)

    def encode(self, sentences: Sequence[Sequence[str]]) -> list[Encoded]:
        """Tokenize sentences, and find the word that each token belongs to.

        Raises ProbeError, naming the first sentence and word, where a token spans two words, a word has no token, or a
        sentence is too long for the model.
        """
        sentences_read = []
        for first in range(0, len(sentences), 1000):
            some = [[self._spelled.get(word, word) for word in s] for s in sentences[first : first + 1000]]
            texts = [" ".join(words) for words in some]
            coded = self.tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
            columns = (coded["input_ids"], coded["offset_mapping"], coded["special_tokens_mask"])
            for number, (words, text, ids, spans, special) in enumerate(
                zip(some, texts, *columns, strict=True), first + 1
            ):
                sentences_read.append(Encoded(tuple(ids), owners(words, text, spans, special, number)))
                if max(ids) >= self._vocabulary:
                    raise ProbeError(
                        f"{named(number, words)} has token {max(ids)}, and {self.name} embeds {self._vocabulary}: its tokenizer is another model's"
                    )
                if len(ids) > self.most_tokens:
                    raise ProbeError(
                        f"{named(number, words)} has {len(ids)} tokens, and {self.name} takes {self.most_tokens}: leave out long sentences by `max_length`"
                    )
        return sentences_read

    def unknown_words(self, sentences: Sequence[Sequence[str]]) -> list[str]:
        """The words, as often as they come, of which the tokenizer knows nothing: every one has the same token."""
        number = self.tokenizer.unk_token_id
        unknown = []
        for words, encoded in zip(sentences, self.encode(sentences), strict=True):
            numbers = {word for word, token in zip(encoded.words, encoded.ids, strict=True) if token == number}
            unknown += [words[word] for word in sorted(numbers - {-1}) if words[word] != self.tokenizer.unk_token]
        return unknown

    @cached_property
    def _spelled(self) -> Mapping[str, str]:
        """Spelling of the treebank's escaped words in the model's text; a model of whole words, as a grammar's, saw them escaped."""
        return {} if isinstance(self.tokenizer.backend_tokenizer.model, WordLevel) else PENN

    def hidden_states(
        self, ids: Tensor, mask: Tensor, layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "batch tokens width"]]:
        """Run a padded batch of tokens; return states after some layers, 0 to `layers`."""
        if self.bridge is None:
            return (self._unpadded_states if self._padding_matters else self._own_states)(ids, mask, layers)
        kept: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(value: Tensor, hook: Any) -> None:
                kept[layer] = value

            return hook

        with torch.no_grad(), self._hooks([(self._point(layer), keep(layer)) for layer in layers]):
            self.module.base_model(input_ids=ids, attention_mask=mask)
        return kept

    def _own_states(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        with torch.no_grad():
            states = self.module.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        return {layer: states.hidden_states[layer] for layer in layers}

    @cached_property
    def _padding_matters(self) -> bool:
        """Whether masked places change states, as in models that mix places by more than attention (FNet, ConvBERT)."""
        ids, mask = some_tokens(self.module, 15)
        few, all = ids.shape[1] // 2, ids.shape[1]
        mask[:, few:] = 0
        alone, padded = (
            self._own_states(ids[:, :n], mask[:, :n], [self.layers])[self.layers][:, :few] for n in (few, all)
        )
        return not torch.allclose(alone, padded, rtol=0, atol=1e-4 * float(alone.abs().max()))

    def _unpadded_states(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """States where padding matters: rows of one length go through the model together; 0 behind their ends."""
        kept: dict[int, Tensor] = {}
        lengths = mask.sum(1)
        for length in lengths.unique().tolist():
            rows = lengths == length
            for layer, states in self._own_states(ids[rows, :length], mask[rows, :length], layers).items():
                whole = kept.setdefault(layer, states.new_zeros(*ids.shape, states.shape[2]))
                whole[rows, :length] = states
        return kept

    @contextlib.contextmanager
    def changed(self, changes: Mapping[int, Change]) -> Iterator[None]:
        """Change the states after some layers on the way through `module`, as long as the block runs."""

        def apply(change: Change) -> Callable[..., Tensor]:
            return lambda value, hook: change(value)

        with self._hooks([(self._point(layer), apply(change)) for layer, change in changes.items()]):
            yield

    def attention(self, ids: Tensor, mask: Tensor) -> list[Float[Tensor, "_ _ _ _"]]:
        """Run a padded batch; return each block's attention, [batch, heads, tokens, tokens], from row to column."""
        patterns: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> None:
            patterns[hook.name] = value

        names = [f"blocks.{block}.attn.hook_pattern" for block in range(self.layers)]
        with torch.no_grad(), self._hooks([(name, keep) for name in names]):
            self.module.base_model(input_ids=ids, attention_mask=mask)
        return [patterns[name] for name in names]

    def check_layers(self, layers: "str | Sequence[int]") -> tuple[int, ...]:
        """Parse `all`, or numbers from 0 to `layers`, and sort them; raise ProbeOptionError for one that isn't there."""
        if isinstance(layers, str):
            if layers == "all":
                return tuple(range(self.layers + 1))
            parts = [part.strip() for part in layers.split(",")]
            if not all(part.isdecimal() for part in parts):
                raise ProbeOptionError(f"`layers` {layers!r} must be all, or numbers such as 0,3,6")
            layers = [int(part) for part in parts]
        for layer in layers:
            if not 0 <= layer <= self.layers:
                raise ProbeOptionError(
                    f"there is no layer {layer}: {self.name} has 0 (embeddings) to {self.layers}, name some of those"
                )
        if not layers:
            raise ProbeOptionError("`layers` is empty: name some, or all")
        return tuple(sorted(set(layers)))

    def _point(self, layer: int) -> str:
        """The hook that sees a layer's states."""
        if layer == self.layers and self.causal:
            return "ln_final.hook_out"
        return "blocks.0.hook_in" if layer == 0 else f"blocks.{layer - 1}.hook_out"

    def _hooks(self, hooks: list[tuple[str, Any]]) -> Any:
        if self.bridge is None:
            raise ProbeError(f"{self.name}: {self.note}")
        return self.bridge.hooks(fwd_hooks=hooks)


def pad(model: ProbedModel, batch: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Pad a batch on the right; return token numbers and attention mask, on the model's device."""
    width = max(len(encoded.ids) for encoded in batch)
    filler = model.tokenizer.pad_token_id or 0
    if filler >= model._vocabulary:  # added to the tokenizer and not to the model
        filler = 0
    ids = torch.full((len(batch), width), filler)
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    for row, encoded in enumerate(batch):
        ids[row, : len(encoded.ids)] = torch.tensor(encoded.ids)
        mask[row, : len(encoded.ids)] = 1
    return ids.to(model.module.device), mask.to(model.module.device)
