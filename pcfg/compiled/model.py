"""InsideOutsideTransformer: the compiled model, in the form that the transformers library gives models."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel, initialization
from transformers.modeling_outputs import ModelOutput

from pcfg.compiled.circuit import circuit
from pcfg.compiled.layers import InsideLayer, OutsideLayer, with_roots
from pcfg.compiled.places import Places
from pcfg.compiled.slots import Slots
from pcfg.errors import GrammarError, OptionError
from pcfg.sampling.tokenizer import SPECIAL, UNKNOWN

_SPECIAL, _MASK, _UNKNOWN = len(SPECIAL), SPECIAL.index("<mask>"), SPECIAL.index(UNKNOWN)
MOST_WORDS = 10_000  # of a sentence, each with two layers


class InsideOutsideConfig(PretrainedConfig):
    """What decides the model's shape, and what its dimensions are called.

    Attributes:
        nonterminals, preterminals: the grammar's symbols, in its order.
        max_words: L, the most words of a sentence.
        vocab_size: tokens, as `pcfg.sampling.tokenizer.tokenizer` numbers them: special ones first, then the grammar's words.
        mask_token_id, unk_token_id: of <mask>; of <unk>, -1 where that is one of the grammar's own words.
        symbols_digest: of symbols and words, by which a file is found out in which they were exchanged or renamed.

    Raises OptionError for values that no grammar's transformer has.
    """

    model_type = "inside-outside"

    def __init__(  # values of any type, as a file may hold them
        self,
        nonterminals: Any = (),
        preterminals: Any = (),
        max_words: Any = 2,
        vocab_size: Any = _SPECIAL,
        mask_token_id: Any = _MASK,
        unk_token_id: Any = _UNKNOWN,
        **options: Any,
    ) -> None:
        digest = options.pop("symbols_digest", None)
        super().__init__(**options)
        self.nonterminals, self.preterminals = list(nonterminals), list(preterminals)
        _check_config(self.nonterminals, self.preterminals, max_words, vocab_size, (mask_token_id, unk_token_id))
        self.symbols_digest = _digest([self.nonterminals, self.preterminals, max_words])
        if digest not in (None, self.symbols_digest):
            raise OptionError(
                "the configuration's symbols, or its number of words, aren't those that the weights were compiled for: compile the grammar again"
            )
        self.max_words, self.vocab_size = max_words, vocab_size
        self.mask_token_id, self.unk_token_id = mask_token_id, unk_token_id
        self.max_position_embeddings = max_words + 2  # with <s> and </s>
        slots = self.slots
        self.hidden_size, self.num_hidden_layers = slots.width, 2 * (max_words - 1)
        self.num_attention_heads = len(slots.symbols)

    @property
    def slots(self) -> Slots:
        """What each dimension of the state holds."""
        return Slots(tuple(self.nonterminals), tuple(self.preterminals), self.max_words)


def _check_config(
    nonterminals: list[Any], preterminals: list[Any], words: Any, vocabulary: Any, special: tuple[Any, ...]
) -> None:
    symbols = [*nonterminals, *preterminals]
    if not all(isinstance(each, str) for each in symbols) or len(set(symbols)) < len(symbols):
        raise OptionError("`nonterminals` and `preterminals` must be names, each once: compile the grammar again")
    for name, value, least in (("max_words", words, 2), ("vocab_size", vocabulary, len(SPECIAL))):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise OptionError(f"`{name}` must be a whole number of {least} or more, not {value!r}")
    if words > MOST_WORDS:
        raise OptionError(f"`max_words` is {words:,}: give at most {MOST_WORDS:,}")
    for number in special:
        if not isinstance(number, int) or not -1 <= number < vocabulary:
            raise OptionError(f"{number!r} is no token of a vocabulary of {vocabulary}: compile the grammar again")


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass
class InsideOutsideOutput(ModelOutput):
    """What the model says of B sentences of T tokens, n words at most.

    Attributes:
        logits: [B, T, V] log posterior of each word at each token given all *other* words (the word that stands there, or
            <mask>, isn't read); the least number of the dtype for what can't be, and everywhere where no tree is left.
        log_z: [B] log probability of each sentence, summed over what masked words may be.
        span_marginals: [B, n, n + 1] posterior that words i..j-1, two or more, are a constituent; as `Chart` has them.
        label_marginals: [B, n, n + 1, N] the same for each nonterminal.
        tag_posteriors: [B, n, P] posterior of each preterminal over each word.
        hidden_states: the state [B, T, width] after the embedding and after each layer, if asked for.
        attentions: of each layer what its heads attend to, if asked for: [B, S, T, T] in inside layers, [B, 2 S, T, T] in outside
            ones, from the token that reads to the one that is read; scores of linear attention, which don't sum to 1.
        loss: mean cross-entropy of `labels`, if given.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    log_z: Tensor | None = None
    span_marginals: Tensor | None = None
    label_marginals: Tensor | None = None
    tag_posteriors: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class InsideOutsideTransformer(PreTrainedModel):
    """A transformer that computes the exact Inside-Outside algorithm, as Zhao et al. (2023, section 3) prove that one can.

    Nearest to their theorem for soft attention and relative positions (2 L layers, S heads, about 2 S L dimensions), with
    absolute starts of spans instead. 2 (L - 1) layers of two kinds (`pcfg.compiled.layers` says what they do and what isn't standard about them), all of a
    kind with the same weights: S heads an inside layer, 2 S heads an outside layer, states of 1 + 2 (N L + P) dimensions.
    Nothing is trained. Marginals, log Z and logits are products, quotients and logarithms of slots, taken at the end.

    Its weights: `rules` [N, S, S] are P(A -> B C); `words` [V, P] are P(word | tag) times the word's scale; `scales` [V] the
    logarithms of those scales, which keep long sentences within the range of floating-point numbers and are taken out
    of log Z again; `roots` [S] the start distribution.
    """

    config_class = InsideOutsideConfig
    base_model_prefix = "inside_outside"
    main_input_name = "input_ids"

    def __init__(self, config: InsideOutsideConfig) -> None:
        super().__init__(config)
        self.slots = slots = config.slots
        inner, symbols = len(slots.nonterminals), len(slots.symbols)
        self.rules = nn.Parameter(torch.zeros(inner, symbols, symbols))
        self.words = nn.Embedding(config.vocab_size, symbols - inner)
        self.scales = nn.Parameter(torch.zeros(config.vocab_size))
        self.roots = nn.Parameter(torch.zeros(symbols))
        self.layers = nn.ModuleList(
            kind(slots) for kind in (InsideLayer, OutsideLayer) for _ in range(config.max_words - 1)
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """A random grammar: what an untrained transformer is to a trained one. No weight that was loaded is drawn."""
        if isinstance(module, InsideOutsideTransformer):
            for name, dims in (("rules", (1, 2)), ("roots", (0,))):
                drawn = torch.rand_like(getattr(module, name))
                initialization.copy_(getattr(module, name), drawn / drawn.sum(dims, keepdim=True))
            initialization.zeros_(module.scales)
        elif isinstance(module, nn.Embedding):
            initialization.uniform_(module.weight)

    def get_input_embeddings(self) -> nn.Embedding:
        """P(word | tag), scaled."""
        return self.words

    def forward(
        self,
        input_ids: Shaped[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        head_mask: Float[Tensor, "layers heads"] | None = None,
        output_hidden_states: bool | None = None,
        labels: Integer[Tensor, "B T"] | None = None,
        inputs_embeds: Float[Tensor, "B T P"] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> InsideOutsideOutput | tuple[Any, ...]:
        """Inside and outside scores of sentences.

        Args:
            input_ids: words and <mask>, with or without <s>, </s> and <pad> around them.
            attention_mask: 0 for tokens to leave out; without it only <pad> is.
            head_mask: multiplies heads: [2 (L - 1), 2 S]; inside layers have the first S.
            labels: the words at tokens that count towards `loss`, -100 elsewhere.
            inputs_embeds: P(word | tag), scaled, in place of `input_ids`; tokens of zeros alone are no words. Scales aren't known
                then: log Z is that of the embeddings.
            output_attentions: also what each head attends to; slower, as heads are computed one by one.
            return_dict: False for a tuple of what there is.

        A sentence whose scores leave the range of the model's dtype is warned of: float32 holds e^-87 to e^88 times what is
        usual for its number of words, float64 e^-708 to e^709.

        Raises:
            OptionError: a sentence longer than the model was compiled for, or without words; numbers that are no tokens;
                both or neither of `input_ids` and `inputs_embeds`.
            GrammarError: <unk>: a word that the grammar doesn't have.
        """
        embeds, is_word, scale = self._inputs(input_ids, inputs_embeds, attention_mask)
        places = Places.of(is_word, self.slots.length, self.rules.dtype)
        states, attentions = [self._embedded(embeds, is_word, places)], list[Tensor]()
        config = self.config
        wanted = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with self._attention_kept(
            attentions, config.output_attentions if output_attentions is None else output_attentions
        ):
            for number, layer in enumerate(self.layers):
                mask = None if head_mask is None else head_mask[number]
                if isinstance(layer, InsideLayer):
                    mask = None if mask is None else mask[: len(self.slots.symbols)]
                    state = layer(states[-1], self.rules, places, mask)
                else:
                    state = layer(states[-1], self.rules, self.roots, places, mask)
                states = [*states, state] if wanted else [state]
        found = self._read(states[-1], is_word, places, scale)
        self._check_range(self._total(states[-1], places), embeds, is_word, head_mask)
        if labels is not None and found.logits is not None:
            found.loss = nn.functional.cross_entropy(found.logits.flatten(0, 1), labels.flatten())
        found.hidden_states = tuple(states) if wanted else None
        found.attentions = tuple(attentions) or None
        as_dict = config.return_dict if return_dict is None else return_dict
        return found if as_dict else found.to_tuple()

    def keep_heads_apart(self, apart: bool = True) -> None:
        """Compute heads one by one without hooks too: for libraries that patch modules in other ways, such as nnsight."""
        for layer in cast(Iterable[InsideLayer | OutsideLayer], self.layers):
            layer.heads_apart = apart

    @contextlib.contextmanager
    def _attention_kept(self, kept: list[Tensor], wanted: bool) -> Iterator[None]:
        """Put each layer's attention scores into `kept` as it runs."""
        layers = cast(Iterable[InsideLayer | OutsideLayer], self.layers if wanted else ())
        hooks = [layer.attention.register_forward_hook(lambda _, __, scores: kept.append(scores)) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write the folder, and beside the weights `slots.json` (what dimensions hold) and `circuit.json` (what heads do)."""
        super().save_pretrained(save_directory, **options)
        folder = Path(save_directory)
        (folder / "slots.json").write_text(json.dumps(self.slots.to_json(), ensure_ascii=False, indent=1))
        (folder / "circuit.json").write_text(json.dumps(self.circuit(), ensure_ascii=False, indent=1))

    def circuit(self) -> dict[str, Any]:
        """Which head serves which child, what it reads and writes, and every edge: see `pcfg.compiled.circuit`."""
        return circuit(self.slots, self.rules.detach())

    def _inputs(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled P(word | tag) of each token, which tokens are words or masks, and the logarithm of each sentence's scale."""
        if (input_ids is None) == (inputs_embeds is None):
            raise OptionError(
                "give one of `input_ids` and `inputs_embeds`: the words, or what is embedded in their place"
            )
        if input_ids is not None:
            is_word = self._words_of(input_ids)
            embeds, scales = self.words(input_ids), self.scales[input_ids]
        else:
            embeds = cast(Tensor, inputs_embeds).to(self.rules.dtype)
            tags = len(self.slots.preterminals)
            if embeds.dim() != 3 or embeds.shape[2] != tags:
                raise OptionError(f"inputs_embeds must be [sentences, tokens, {tags}]: a number for each preterminal")
            is_word, scales = (embeds != 0).any(-1), embeds.new_zeros(embeds.shape[:2])
        if attention_mask is not None:
            is_word = is_word & attention_mask.bool()
        longest = int(is_word.sum(1).max())
        if longest > self.slots.length:
            raise OptionError(
                f"a sentence has {longest} words and the model was compiled for {self.slots.length}: compile it with a larger max_length"
            )
        if not longest or bool((is_word.sum(1) == 0).any()):
            raise OptionError("a sentence has no words: leave it out")
        return embeds, is_word, (scales * is_word).sum(1)

    def _words_of(self, input_ids: Tensor) -> Tensor:
        """Which tokens are words or masks, bool [B, T]."""
        config = self.config
        if (
            input_ids.dim() != 2
            or input_ids.is_floating_point()
            or bool(((input_ids < 0) | (input_ids >= config.vocab_size)).any())
        ):
            raise OptionError(
                f"input_ids must be [sentences, tokens] of numbers from 0 to {config.vocab_size - 1}: take the model's own tokenizer"
            )
        if (input_ids == config.unk_token_id).any():
            row, place = (input_ids == config.unk_token_id).nonzero()[0].tolist()
            raise GrammarError(f"token {place} of sentence {row} is {UNKNOWN}: give words of the grammar's only")
        is_word = input_ids >= len(SPECIAL)
        is_word |= input_ids == config.mask_token_id
        if config.unk_token_id < 0:  # <unk> is one of the grammar's words
            is_word |= input_ids == SPECIAL.index(UNKNOWN)
        return is_word

    def _embedded(self, embeds: Tensor, is_word: Tensor, places: Places) -> Tensor:
        state = self.rules.new_zeros(*embeds.shape[:2], self.slots.width)
        state[..., self.slots.tags("inside")] = embeds * is_word[..., None].to(self.rules.dtype)
        state[..., self.slots["last"]] = places.last[..., None]
        return with_roots(state, self.slots, self.roots, places)

    def _total(self, state: Tensor, places: Places) -> Tensor:
        """Scores of whole sentences, [B], scaled."""
        reader = cast(InsideLayer, self.layers[0])
        own = reader.tags(state, "inside") * places.here[..., :1]
        whole = torch.cat([reader.spans(state, "inside")[..., 0], own], -1)
        return torch.einsum("bts,bt,s->b", whole, places.last, self.roots)

    def _check_range(self, z: Tensor, embeds: Tensor, is_word: Tensor, head_mask: Tensor | None) -> None:
        """Warn of sentences whose scores are too small or too large for the dtype; those without trees are right to have 0,
        and with hooks on layers or heads others may."""
        kind = torch.finfo(z.dtype)
        wrong = ~z.isfinite() | ((z > 0) & (z < kind.tiny / kind.eps))
        seen = any(layer.hooked or layer._forward_hooks for layer in cast(Iterable[InsideLayer], self.layers))
        if bool((nothing := z == 0).any()) and not seen:  # hooks may have taken away what there was
            wrong[nothing] = self._has_trees(embeds[nothing], is_word[nothing], head_mask)
        if bool(wrong.any()):
            broken = [name for name, weight in self.named_parameters() if not bool(weight.isfinite().all())]
            if broken:
                raise OptionError(f"the model's weight {broken[0]} holds NaN or infinity: compile the grammar again")
            warnings.warn(
                f"scores of {int(wrong.sum())} of {len(z)} sentences, number {int(wrong.nonzero()[0])} first, are outside the range of "
                f"{str(z.dtype).removeprefix('torch.')} (or states were changed): what is said of them is wrong; compile the grammar in float64",
                RuntimeWarning,
                stacklevel=3,
            )

    @torch.no_grad()
    def _has_trees(self, embeds: Tensor, is_word: Tensor, head_mask: Tensor | None) -> Tensor:
        """Whether sentences have trees at all, bool [B]: the inside pass over zeros and ones."""
        places = Places.of(is_word, self.slots.length, self.rules.dtype)
        state, rules = self._embedded(embeds, is_word, places).sign(), self.rules.sign()
        for number in range(self.slots.length - 1):
            layer = cast(InsideLayer, self.layers[number])
            mask = None if head_mask is None else head_mask[number, : len(self.slots.symbols)]
            written = self.slots.spans("inside")
            state[..., written] = layer.step(state, rules, places, mask)[..., written].sign()  # without hooks
        return self._total(state, places) > 0

    def _read(self, state: Tensor, is_word: Tensor, places: Places, scale: Tensor) -> InsideOutsideOutput:
        reader = cast(InsideLayer, self.layers[0])
        n = int(is_word.sum(1).max())
        inside, outside = reader.spans(state, "inside"), reader.spans(state, "outside")
        tags = reader.tags(state, "inside") * reader.tags(state, "outside")
        z = self._total(state, places)
        share = torch.where(z > 0, 1 / z, torch.zeros_like(z))
        by_end = torch.einsum("btp,btai->bipa", places.here, inside * outside)[:, :n, :n] * share[:, None, None, None]
        labels = torch.cat([torch.zeros_like(by_end[:, :, :1]), by_end], 2)
        return InsideOutsideOutput(
            logits=self._logits(reader.tags(state, "outside"), is_word),
            log_z=z.log() - scale,
            span_marginals=labels.sum(-1),
            label_marginals=labels,
            tag_posteriors=torch.einsum("btp,bta->bpa", places.here, tags)[:, :n] * share[:, None, None],
        )

    def _logits(self, outside: Tensor, is_word: Tensor) -> Tensor:
        """Log posterior of each token from outside scores of preterminals [B, T, P]."""
        table = self.words.weight * torch.exp(-self.scales)[:, None]
        table[self.config.mask_token_id] = 0
        found = outside @ table.T
        logs = (found / found.sum(-1, keepdim=True)).log()
        least = torch.finfo(logs.dtype).min
        return torch.where(is_word[..., None] & logs.isfinite(), logs, torch.full_like(logs, least))


AutoConfig.register("inside-outside", InsideOutsideConfig)
AutoModel.register(InsideOutsideConfig, InsideOutsideTransformer)
AutoModelForMaskedLM.register(InsideOutsideConfig, InsideOutsideTransformer)
