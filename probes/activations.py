"""The one place that runs TransformerLens: hidden states of every layer, word by word, and hooks that change them.

Layers are numbered as in transformers' `hidden_states`: 0 is what goes into the first block, the last is what comes out
of the model (after its final norm, where it has one), and the numbers are transformers' own to 1e-5.
"""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Float32, Int64
from tokenizers.models import WordLevel
from torch import Tensor

from pcfg.devices import Device, working_device
from probes.alignment import PENN, Encoded, named, owners
from probes.errors import ProbeError
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import CheckpointError, MissingPackageError, OptionError, first_line
from surgery.locks import hold
from surgery.progress import Progress, silent

PARITY = 1e-5
_TOKENS = 4096  # in a batch

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
    def load(
        cls, source: "str | Path | Checkpoint", *, device: Device | None = None, untrained: int | None = None
    ) -> "ProbedModel":
        """A Hugging Face folder or hub id.

        Args:
            untrained: take random weights of the same shape, drawn with this seed.

        Raises:
            CheckpointError: no language model or encoder, weights missing, or layers of different widths.
            ProbeError: no fast tokenizer.
        """
        checkpoint = source if isinstance(source, Checkpoint) else Checkpoint(source)
        place = working_device(device)
        tokenizer = _tokenizer(checkpoint)
        module, head, causal = _module(checkpoint, untrained, place)
        name = f"{checkpoint} with random weights" if untrained is not None else str(checkpoint)
        wanted = _own_states(checkpoint, module)
        config = module.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 0
        sizes = (len(wanted) - 1, wanted[0].shape[-1], heads)
        bridge, note = None, "it has no attention heads"
        if heads:
            bridge, note = _bridge(checkpoint, module, tokenizer, place)
        found = cls(module, tokenizer, bridge, name, checkpoint.fingerprint, *sizes, head, causal, note)
        if bridge is not None and not found._agrees(wanted):
            note = "TransformerLens' states differ from transformers' own"
        if note:  # what failed may have changed the module
            module, head, causal = _module(checkpoint, untrained, place)
            note = f"{note}: states are transformers' own, and the causal check is left out"
            found = cls(module, tokenizer, None, name, checkpoint.fingerprint, *sizes, head, causal, note)
        return found

    def _agrees(self, wanted: Sequence[Tensor]) -> bool:
        ids, mask = _some_tokens(self.module)
        if self.bridge.cfg.n_layers != self.layers:
            return False
        try:
            found = self.hidden_states(ids, mask, range(self.layers + 1))
            patterns = self.attention(ids, mask)
        except Exception:  # whatever the library raises on models that it takes and can't run; a hook by another name
            return False
        return all(pattern.shape[1] == self.heads for pattern in patterns) and all(
            layer in found and bool(((found[layer] - states).abs() <= PARITY * (1 + states.abs())).all())
            for layer, states in enumerate(wanted)
        )

    @property
    def most_tokens(self) -> int:
        """Tokens that fit into the position table; some families (RoBERTa, MPNet, Longformer) begin behind the padding's."""
        config = self.module.config
        most = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 0
        for name, table in self.module.base_model.named_modules():
            if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
                most = len(table.weight) - table.padding_idx - 1
        return most if most > 0 else 1 << 30

    @property
    def _vocabulary(self) -> int:
        return len(self.module.get_input_embeddings().weight)

    def encode(self, sentences: Sequence[Sequence[str]]) -> list[Encoded]:
        """Tokens of sentences, and the word that each belongs to.

        Raises ProbeError, naming the first sentence and word, where a token spans two words, a word has no token, or a
        sentence is too long for the model.
        """
        found = []
        for first in range(0, len(sentences), 1000):
            some = [[self._spelled.get(word, word) for word in s] for s in sentences[first : first + 1000]]
            texts = [" ".join(words) for words in some]
            coded = self.tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
            columns = (coded["input_ids"], coded["offset_mapping"], coded["special_tokens_mask"])
            for number, (words, text, ids, spans, special) in enumerate(
                zip(some, texts, *columns, strict=True), first + 1
            ):
                found.append(Encoded(tuple(ids), owners(words, text, spans, special, number)))
                if max(ids) >= self._vocabulary:
                    raise ProbeError(
                        f"{named(number, words)} has token {max(ids)}, and {self.name} embeds {self._vocabulary}: its tokenizer is another model's"
                    )
                if len(ids) > self.most_tokens:
                    raise ProbeError(
                        f"{named(number, words)} has {len(ids)} tokens, and {self.name} takes {self.most_tokens}: leave out long sentences with --max-length"
                    )
        return found

    @cached_property
    def _spelled(self) -> Mapping[str, str]:
        """How the model saw the treebank's odd words; one that knows whole words, as a grammar's, saw them as they are."""
        return {} if isinstance(self.tokenizer.backend_tokenizer.model, WordLevel) else PENN

    def hidden_states(
        self, ids: Tensor, mask: Tensor, layers: Sequence[int]
    ) -> dict[int, Float[Tensor, "batch tokens width"]]:
        """States after some layers, 0 to `layers`, for a padded batch of tokens."""
        if self.bridge is None:
            return (self._unpadded_states if self._padding_matters else self._own_states)(ids, mask, layers)
        found: dict[int, Tensor] = {}

        def keep(layer: int) -> Callable[..., None]:
            def hook(value: Tensor, hook: Any) -> None:
                found[layer] = value

            return hook

        with torch.no_grad(), self._hooks([(self._point(layer), keep(layer)) for layer in layers]):
            self.module.base_model(input_ids=ids, attention_mask=mask)
        return found

    def _own_states(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        with torch.no_grad():
            states = self.module.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        return {layer: states.hidden_states[layer] for layer in layers}

    @cached_property
    def _padding_matters(self) -> bool:
        """Whether masked places change states, as in models that mix places by more than attention (FNet, ConvBERT)."""
        places = torch.arange(15, device=self.module.device)[None]
        ids, mask = places % self._vocabulary, (places < 7).long()
        alone, padded = (self._own_states(ids[:, :n], mask[:, :n], [self.layers])[self.layers][:, :7] for n in (7, 15))
        return not torch.allclose(alone, padded, rtol=0, atol=1e-4 * float(alone.abs().max()))

    def _unpadded_states(self, ids: Tensor, mask: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """States where padding matters: rows of one length go through the model together; 0 behind their ends."""
        found: dict[int, Tensor] = {}
        lengths = mask.sum(1)
        for length in lengths.unique().tolist():
            rows = lengths == length
            for layer, states in self._own_states(ids[rows, :length], mask[rows, :length], layers).items():
                whole = found.setdefault(layer, states.new_zeros(*ids.shape, states.shape[2]))
                whole[rows, :length] = states
        return found

    @contextlib.contextmanager
    def changed(self, changes: Mapping[int, Change]) -> Iterator[None]:
        """While the block runs, `module` computes with the states after some layers changed on the way."""

        def apply(change: Change) -> Callable[..., Tensor]:
            return lambda value, hook: change(value)

        with self._hooks([(self._point(layer), apply(change)) for layer, change in changes.items()]):
            yield

    def attention(self, ids: Tensor, mask: Tensor) -> list[Float[Tensor, "_ _ _ _"]]:
        """What each head attends to, from row to column, a tensor a block."""
        found: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any) -> None:
            found[hook.name] = value

        names = [f"blocks.{block}.attn.hook_pattern" for block in range(self.layers)]
        with torch.no_grad(), self._hooks([(name, keep) for name in names]):
            self.module.base_model(input_ids=ids, attention_mask=mask)
        return [found[name] for name in names]

    def check_layers(self, layers: "str | Sequence[int]") -> tuple[int, ...]:
        """`all`, or numbers from 0 to `layers`, sorted; raises OptionError for one that isn't there."""
        if isinstance(layers, str):
            if layers == "all":
                return tuple(range(self.layers + 1))
            parts = [part.strip() for part in layers.split(",")]
            if not all(part.isdecimal() for part in parts):
                raise OptionError(f"--layers {layers} must be all, or numbers such as 0,3,6")
            layers = [int(part) for part in parts]
        for layer in layers:
            if not 0 <= layer <= self.layers:
                raise OptionError(
                    f"there is no layer {layer}: {self.name} has 0 (embeddings) to {self.layers}, name some of those"
                )
        if not layers:
            raise OptionError("no layers were asked for: name some, or all")
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
    """Token numbers and attention mask of a batch, padded on the right."""
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


@dataclass(frozen=True, eq=False)
class Activations:
    """States of words on disk, a file a layer: a word's is the mean of its tokens'.

    Attributes:
        folder: named after what the states are of (model, tokens and words), so no other states are ever written there.
        offsets: sentence k's words are rows offsets[k] to offsets[k + 1] - 1.
    """

    folder: Path
    layers: tuple[int, ...]
    offsets: Int64[np.ndarray, " bounds"]
    width: int

    def layer(self, number: int) -> Float32[np.ndarray, "words width"]:
        """One layer's states, mapped into memory as they are read."""
        return np.memmap(_file(self.folder, number), np.float32, "r", shape=(int(self.offsets[-1]), self.width))

    @classmethod
    def collect(
        cls,
        model: ProbedModel,
        sentences: Sequence[Sequence[str]],
        folder: Path,
        layers: Sequence[int],
        *,
        progress: Progress = silent,
    ) -> "Activations":
        """Run a model over sentences and write states as they come, so that memory holds a batch and no more.

        States of that very model and those sentences that are in `folder` already are taken from there.
        """
        lengths = np.array([len(sentence) for sentence in sentences])
        offsets = np.append(0, np.cumsum(lengths))
        encoded = model.encode(sentences)
        found = cls(folder / _content(model, encoded), tuple(layers), offsets, model.width)
        size = int(offsets[-1]) * model.width * 4
        with hold(found.folder):
            missing = [layer for layer in layers if not found._holds(layer, size)]
            if missing:
                found.folder.mkdir(parents=True, exist_ok=True)
                found._write(model, encoded, missing, progress)
        return found

    def _holds(self, layer: int, size: int) -> bool:
        file = _file(self.folder, layer)
        return file.exists() and file.stat().st_size == size

    def _write(self, model: ProbedModel, encoded: Sequence[Encoded], layers: Sequence[int], progress: Progress) -> None:
        """Files take their names when all are whole; what a killed run left under the names before is written over."""
        order, lengths = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].ids)), np.diff(self.offsets)
        staged = {layer: _file(self.folder, layer).with_suffix(".part") for layer in layers}
        with contextlib.ExitStack() as stack:
            files = {layer: stack.enter_context(path.open("wb")) for layer, path in staged.items()}
            done = 0
            while done < len(order):
                size = max(1, _TOKENS // len(encoded[order[done]].ids))
                batch = order[done : done + size]
                ids, mask = pad(model, [encoded[i] for i in batch])
                for layer, states in model.hidden_states(ids, mask, layers).items():
                    words = _pool(states, [encoded[i] for i in batch], lengths[batch])
                    first = 0
                    for i in batch:
                        files[layer].seek(int(self.offsets[i]) * model.width * 4)
                        files[layer].write(words[first : first + lengths[i]].tobytes())
                        first += lengths[i]
                done += len(batch)
                progress(done, len(order), f"activations: {model.name}")
        for layer, path in staged.items():
            path.replace(_file(self.folder, layer))


def _content(model: ProbedModel, encoded: Sequence[Encoded]) -> str:
    """A name for all that decides the states: weights as they are in memory, configuration, how it is run, tokens, words."""
    config = {key: value for key, value in model.module.config.to_dict().items() if key != "_name_or_path"}
    about = [config, model.bridge is None, str(model.module.device), torch.__version__]
    total = xxhash.xxh3_128(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in model.module.state_dict().items():
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    for sentence in encoded:
        total.update(json.dumps([sentence.ids, sentence.words]).encode())
    return total.hexdigest()


def _pool(states: Tensor, batch: Sequence[Encoded], lengths: Int64[np.ndarray, " batch"]) -> np.ndarray:
    """Mean state of each word's tokens, words of all sentences in turn."""
    first, rows, columns, owners = 0, [], [], []
    for row, (encoded, length) in enumerate(zip(batch, lengths, strict=True)):
        for column, word in enumerate(encoded.words):
            if word >= 0:
                rows.append(row)
                columns.append(column)
                owners.append(first + word)
        first += int(length)
    owner = torch.tensor(owners, device=states.device)
    total = torch.zeros(first, states.shape[2], device=states.device, dtype=torch.float32)
    total.index_add_(0, owner, states[rows, columns].float())
    counts = torch.bincount(owner, minlength=first)
    return (total / counts[:, None]).cpu().numpy()


def _file(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer:02d}.f32"


def _module(checkpoint: Checkpoint, untrained: int | None, device: torch.device) -> tuple[Any, bool, bool]:
    """The model, whether it has a trained head, and whether it is causal."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    checkpoint.check_readable()
    causal = _predicts_next(checkpoint.config)
    family = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    with _quiet():
        try:
            if untrained is not None:
                torch.manual_seed(untrained)
                config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
                fresh = family.from_config(
                    config, trust_remote_code=False, attn_implementation="eager", dtype=torch.float32
                )
                return fresh.to(device).eval().requires_grad_(False), False, causal
            module, info = family.from_pretrained(
                checkpoint.folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                output_loading_info=True,
                weights_only=True,
                trust_remote_code=False,
            )
        except Exception as error:  # whatever the library raises on files it can't use
            raise CheckpointError(
                f"{checkpoint} can't be loaded as a language model or an encoder ({first_line(error)}): name one such as BERT, RoBERTa, GPT-2, OPT or LLaMA"
            ) from error
    prefix = f"{module.base_model_prefix}."
    inner = [name for name in info["missing_keys"] if name.startswith(prefix) and "pooler" not in name]
    if inner:
        raise CheckpointError(f"{checkpoint} lacks {len(inner)} tensors, {min(inner)} first: fetch it again")
    return module.to(device).eval().requires_grad_(False), not info["missing_keys"], causal


def _predicts_next(config: Mapping[str, Any]) -> bool:
    """Whether a model is, or its family's language model is, one of next words; a bare body or a classifier goes by the latter."""
    from transformers.models.auto import modeling_auto as auto

    tables = (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    masked, following = (table.get(str(config.get("model_type"))) for table in tables)
    own = str((config.get("architectures") or ["?"])[0])
    if own in (masked, following) and masked != following:
        return own == following
    alone = masked is None or config.get("is_decoder") or config.get("causal")  # XLM has one class for both
    return following is not None and bool(alone)


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the library raises on files it can't use
        raise CheckpointError(f"{checkpoint}: no tokenizer can be loaded from it ({first_line(error)})") from error
    if not found.is_fast:
        raise ProbeError(f"{checkpoint} has a tokenizer that doesn't say which characters a token is: use a fast one")
    return found


def _some_tokens(module: Any) -> tuple[Tensor, Tensor]:
    ids = torch.arange(12, device=module.device)[None] % len(module.get_input_embeddings().weight)
    return ids, torch.ones_like(ids)


def _own_states(checkpoint: Checkpoint, module: Any) -> Sequence[Tensor]:
    """Transformers' own hidden states of some tokens."""
    ids, mask = _some_tokens(module)
    try:
        with torch.no_grad():
            output = module.base_model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        states = tuple(state.clone() for state in output.hidden_states)
    except Exception as error:  # whatever a model's code raises that wants more than tokens, or gives no states
        raise CheckpointError(
            f"{checkpoint} gives no hidden states for tokens alone ({first_line(error)}): name a decoder or an encoder of text"
        ) from error
    if {state.shape for state in states} != {(*ids.shape, states[0].shape[-1])}:
        raise CheckpointError(
            f"{checkpoint} has layers of different widths or lengths, which can't be compared: name a model of one width"
        )
    return states


def _bridge(checkpoint: Checkpoint, module: Any, tokenizer: Any, device: torch.device) -> tuple[Any, str]:
    """TransformerLens' view of a model; or None, and why."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        raise MissingPackageError("transformer-lens", "probes", "probing") from None
    try:
        with _quiet():
            return TransformerBridge.boot_transformers(
                str(checkpoint.folder), hf_model=module, tokenizer=tokenizer, device=str(device)
            ), ""
    except Exception as error:  # whatever the library raises on models it doesn't know
        return None, f"TransformerLens can't load it ({first_line(error)[:120]})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' bars and tables; what matters is checked and raised here."""
    from transformers.utils import logging as library

    level, bars, root = library.get_verbosity(), library.is_progress_bar_enabled(), logging.root.manager.disable
    library.set_verbosity_error()
    library.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),  # TransformerLens prints what it loads
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        library.set_verbosity(level)
        logging.disable(root)
        if bars:
            library.enable_progress_bar()
