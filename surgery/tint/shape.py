"""Shape: the sizes of an auxiliary model, read from its config, or by name for well-known ones, without a hub."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from surgery.errors import TintError

_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "silu": "silu"}


@dataclass(frozen=True)
class Shape:
    """What the simulator must know of a decoder with norms before its sublayers.

    Attributes:
        width: of the residual stream. `inner`: of the feed-forward layer. `head_width`: of one attention head.
        key_heads: heads of keys and values; fewer than `heads` for grouped queries.
        positions: the longest sequence; with a sliding window, what it takes in whole.
        activation: relu, gelu (by erf), gelu_new (by tanh) or silu; `gated`: its output is multiplied by a second projection.
        attention_bias: queries, keys and values have biases, and with `output_bias` the projection after them.
        tied: output embeddings are the input embeddings.
    """

    family: Literal["gpt2", "opt", "llama"]
    width: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    inner: int
    vocabulary: int
    positions: int
    norm: Literal["layer", "rms"]
    epsilon: float
    activation: Literal["relu", "gelu", "gelu_new", "silu"]
    gated: bool
    attention_bias: bool
    mlp_bias: bool
    tied: bool
    output_bias: bool = True

    @classmethod
    def of_config(cls, config: Mapping[str, Any], where: str = "the config") -> "Shape":
        """From a Hugging Face config as a table; raises TintError, by name, for what can't be simulated."""
        reader = _FAMILIES.get(str(config.get("model_type")))
        if reader is None:
            raise TintError(
                f"{where}: architecture {config.get('model_type')!r} can't be simulated: {', '.join(_FAMILIES)} can"
            )
        try:
            shape = reader(config, where)
        except KeyError as error:
            raise TintError(
                f"{where}: the config doesn't say {error.args[0]}: add it, or save the model again"
            ) from None
        if shape.family != "llama" and shape.width % shape.heads:  # a llama's heads may have a width of their own
            raise TintError(
                f"{where}: width {shape.width} can't be cut into {shape.heads} equal heads: check the config"
            )
        if shape.heads % shape.key_heads:
            raise TintError(
                f"{where}: {shape.heads} heads can't share {shape.key_heads} heads of keys evenly: check the config"
            )
        return shape

    @classmethod
    def named(cls, name: str) -> "Shape":
        """A well-known model's, such as `opt-125m` or `facebook/opt-125m`; raises TintError for others."""
        known = _OWNERS.get(name.lower(), name.lower())
        if known not in _KNOWN:  # someone else's gpt2 may have other sizes
            names = [own for own in _OWNERS if not own.startswith("smollm")]  # what nobody can count isn't offered
            raise TintError(f"no sizes of a model called {name!r} are known here: known are {', '.join(names)}")
        return cls.of_config(_KNOWN[known], name)

    @property
    def block_weights(self) -> int:
        """Weights of all blocks, biases and norms included."""
        projections = self.width * self.head_width * (2 * self.heads + 2 * self.key_heads)
        feeding = self.width * self.inner * (3 if self.gated else 2)
        norms = 2 * self.width * (2 if self.norm == "layer" else 1)
        biases = self.head_width * (self.heads + 2 * self.key_heads) * self.attention_bias
        biases += self.width * (self.attention_bias and self.output_bias)
        biases += (self.inner * (2 if self.gated else 1) + self.width) * self.mlp_bias
        return self.layers * (projections + feeding + norms + biases)

    @property
    def weights(self) -> int:
        """Weights of the whole auxiliary model, tied ones once."""
        tables = self.vocabulary * self.width * (1 if self.tied else 2)
        if self.family != "llama":
            tables += self.width * (self.positions + (2 if self.family == "opt" else 0))
        return self.block_weights + tables + self.width * (2 if self.norm == "layer" else 1)


def _activation(name: Any, where: str) -> Any:
    if name not in _ACTIVATIONS:
        raise TintError(f"{where}: activation {name!r} can't be simulated: {', '.join(sorted(set(_ACTIVATIONS)))} can")
    return _ACTIVATIONS[name]


def _need(config: Mapping[str, Any], where: str, **wanted: Any) -> None:
    for key, value in wanted.items():
        if config.get(key, value) not in (value, None):
            raise TintError(f"{where}: {key} {config[key]!r} can't be simulated, only {value!r} can")


def _gpt2(config: Mapping[str, Any], where: str) -> Shape:
    _need(config, where, add_cross_attention=False, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    width, heads = config["n_embd"], config["n_head"]
    return Shape(
        family="gpt2",
        width=width,
        layers=config["n_layer"],
        heads=heads,
        key_heads=heads,
        head_width=width // heads,
        inner=config.get("n_inner") or 4 * width,
        vocabulary=config["vocab_size"],
        positions=config["n_positions"],
        norm="layer",
        epsilon=config.get("layer_norm_epsilon", 1e-5),
        activation=_activation(config.get("activation_function", "gelu_new"), where),
        gated=False,
        attention_bias=True,
        mlp_bias=True,
        tied=config.get("tie_word_embeddings", True),
    )


def _opt(config: Mapping[str, Any], where: str) -> Shape:
    if not config.get("do_layer_norm_before", True):
        raise TintError(
            f"{where}: LayerNorms after the sublayers (do_layer_norm_before false, as in opt-350m) can't be simulated: take an OPT of another size"
        )
    _need(config, where, _remove_final_layer_norm=False, layer_norm_elementwise_affine=True)
    width, heads = config["hidden_size"], config["num_attention_heads"]
    _need(config, where, word_embed_proj_dim=width)
    biased = config.get("enable_bias", True)
    return Shape(
        family="opt",
        width=width,
        layers=config["num_hidden_layers"],
        heads=heads,
        key_heads=heads,
        head_width=width // heads,
        inner=config["ffn_dim"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        norm="layer",
        epsilon=1e-5,
        activation=_activation(config.get("activation_function", "relu"), where),
        gated=False,
        attention_bias=biased,
        mlp_bias=biased,
        tied=config.get("tie_word_embeddings", True),
    )


def _llama(config: Mapping[str, Any], where: str) -> Shape:
    biased, feeding = config.get("attention_bias", False), config.get("mlp_bias", False)
    return _gated(config, where, attention_bias=biased, mlp_bias=feeding)


def _mistral(config: Mapping[str, Any], where: str) -> Shape:
    return _within_window(_gated(config, where), config.get("sliding_window"))


def _qwen2(config: Mapping[str, Any], where: str) -> Shape:
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    return _within_window(_gated(config, where, attention_bias=True, output_bias=False), window)


def _within_window(shape: Shape, window: int | None) -> Shape:
    """A sliding window leaves nothing out of a sequence that it holds whole: up to there it is a LLaMA."""
    return shape if window is None else replace(shape, positions=min(shape.positions, window))


def _gated(
    config: Mapping[str, Any],
    where: str,
    *,
    attention_bias: bool = False,
    output_bias: bool = True,
    mlp_bias: bool = False,
) -> Shape:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", "default") not in ("default", "linear", "llama3"):
        raise TintError(
            f"{where}: rotary positions of type {rope['rope_type']!r} depend on the text's length: not simulated"
        )
    heads = config["num_attention_heads"]
    return Shape(
        family="llama",
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        key_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or config["hidden_size"] // heads,
        inner=config["intermediate_size"],
        vocabulary=config["vocab_size"],
        positions=config["max_position_embeddings"],
        norm="rms",
        epsilon=config.get("rms_norm_eps", 1e-6),
        activation=_activation(config.get("hidden_act", "silu"), where),
        gated=True,
        attention_bias=attention_bias,
        output_bias=output_bias,
        mlp_bias=mlp_bias,
        tied=config.get("tie_word_embeddings", False),
    )


_FAMILIES = {"gpt2": _gpt2, "opt": _opt, "llama": _llama, "mistral": _mistral, "qwen2": _qwen2}


def _known_opt(width: int, layers: int, heads: int, *, norm_before: bool = True) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": norm_before,
    }


def _known_gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "vocab_size": 50257,
        "n_positions": 1024,
    }


def _known_smollm(width: int, layers: int, heads: int, key_heads: int, inner: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": inner,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


# Configs of well-known models by hub id: the figures that their authors published.
_KNOWN = {
    "facebook/opt-125m": _known_opt(768, 12, 12),
    "facebook/opt-350m": _known_opt(1024, 24, 16, norm_before=False),
    "facebook/opt-1.3b": _known_opt(2048, 24, 32),
    "facebook/opt-2.7b": _known_opt(2560, 32, 32),
    "facebook/opt-6.7b": _known_opt(4096, 32, 32),
    "facebook/opt-13b": _known_opt(5120, 40, 40),
    "facebook/opt-30b": _known_opt(7168, 48, 56),
    "facebook/opt-66b": _known_opt(9216, 64, 72),
    "distilbert/distilgpt2": _known_gpt2(768, 6, 12),
    "openai-community/gpt2": _known_gpt2(768, 12, 12),
    "openai-community/gpt2-medium": _known_gpt2(1024, 24, 16),
    "openai-community/gpt2-large": _known_gpt2(1280, 36, 20),
    "openai-community/gpt2-xl": _known_gpt2(1600, 48, 25),
    "huggingfacetb/smollm2-135m": _known_smollm(576, 30, 9, 3, 1536),
    "huggingfacetb/smollm2-360m": _known_smollm(960, 32, 15, 5, 2560),
    "huggingfacetb/smollm2-1.7b": _known_smollm(2048, 24, 32, 32, 8192),
}
_OWNERS = {known.rpartition("/")[2]: known for known in _KNOWN}
