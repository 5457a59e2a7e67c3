"""Auxiliary: the small model that TinT simulates, as blocks of matrices with the same names in every family."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.errors import OptionError, TintError
from surgery.tint.shape import Shape

# A block's tensors by the names used throughout: projections are [out, in], whatever the library stores.
Block = dict[str, Tensor]


class Site(NamedTuple):
    """Place of a block's tensor: a parameter of the Hugging Face model, possibly transposed, or some rows of it."""

    parameter: str
    rows: slice = slice(None)
    transposed: bool = False

    def view(self, tensor: Tensor) -> Tensor:
        """The block's tensor as a view of the parameter, or of anything of its shape."""
        return (tensor.T if self.transposed else tensor)[self.rows]


@dataclass(frozen=True, eq=False, repr=False)
class Auxiliary:
    """A Hugging Face decoder taken apart; its tensors are views, nothing is copied.

    Attributes:
        module: the Hugging Face model, never changed.
        blocks: each block's tensors by name: norm1, q, k, v, o, norm2, gate (gated ones), up, down; `.weight` and `.bias`.
        sites: where each of them lies in `module`.
        final: the final norm's weight and bias. `head`: output embeddings [vocabulary, width].
        checkpoint: what the model was loaded from, where that is known.
    """

    module: Any
    shape: Shape
    blocks: tuple[Block, ...]
    sites: tuple[Mapping[str, Site], ...]
    final: Block
    head: Float[Tensor, "vocabulary width"]
    checkpoint: Checkpoint | None = None

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"<Auxiliary: {type(self.module).__name__}, {self.shape.layers} blocks of width {self.shape.width}, {dtype} on {self.device}>"

    @classmethod
    def of(
        cls,
        model: Any,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "Auxiliary":
        """Take apart a Hugging Face model, a loaded `Model`, a Checkpoint, a folder or a hub id.

        Args:
            device, dtype: of the simulated model. A model in memory stays as and where it is: what differs is a copy.

        Raises:
            TintError: an architecture that can't be simulated, or weights that aren't plain numbers of one precision, by
                name; CheckpointError: as loading does; OptionError: a device or dtype that isn't one.
        """
        if isinstance(model, Auxiliary) and device is None and dtype is None:
            return model
        model = load_named(model, device=device, dtype=dtype)
        module = _placed(_plain(model), device, dtype)
        shape = Shape.of_config(module.config.to_dict(), type(module).__name__)
        if module.get_output_embeddings() is None or getattr(module, "base_model_prefix", "") == "":
            raise TintError(f"a {type(module).__name__} has no language-model head: load it as a causal language model")
        named = dict(module.named_parameters(remove_duplicate=False))
        sites = tuple(_SITES[shape.family](shape, layer) for layer in range(shape.layers))
        _check_numbers(module, named, sites)
        return cls(
            checkpoint=getattr(model, "checkpoint", None),
            module=module,
            shape=shape,
            blocks=tuple(
                {name: site.view(named[site.parameter]).detach() for name, site in block.items()} for block in sites
            ),
            sites=sites,
            final={
                leaf: named[f"{_FINAL[shape.family]}.{leaf}"].detach()
                for leaf in ("weight", "bias")
                if f"{_FINAL[shape.family]}.{leaf}" in named
            },
            head=module.get_output_embeddings().weight.detach(),
        )

    @property
    def bytes(self) -> int:
        """Size of the model's weights in bytes, tied ones once."""
        return sum(parameter.nbytes for parameter in self.module.parameters())

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.head.dtype

    def embed(
        self, input_ids: Int[Tensor, "batch tokens"], positions: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Word embeddings, and position embeddings where the family has a table of them."""
        words = nn.functional.embedding(input_ids, self.module.get_input_embeddings().weight.detach())
        table = self.position_table
        if table is None:
            return words
        # OPT's table starts with two unused rows.
        return words + nn.functional.embedding(positions + (2 if self.shape.family == "opt" else 0), table.detach())

    @property
    def position_table(self) -> Tensor | None:
        """The table of position embeddings, where the family has one."""
        if self.shape.family == "gpt2":
            return self.module.transformer.wpe.weight
        return self.module.model.decoder.embed_positions.weight if self.shape.family == "opt" else None

    def rotation(self, x: Tensor, positions: Int[Tensor, "batch tokens"]) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines [batch, tokens, 1, head_width] of rotary positions; None for families without."""
        if self.shape.family != "llama":
            return None
        cos, sin = self.module.model.rotary_emb(x, positions)
        return cos.unsqueeze(2), sin.unsqueeze(2)


def _plain(model: Any) -> Any:
    """The Hugging Face model within what a user may have: a loaded `Model`, a compiled or a wrapped one."""
    module: Any = getattr(model, "module", model)
    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper
    if not hasattr(module, "named_parameters") or not hasattr(getattr(module, "config", None), "to_dict"):
        raise TintError(f"a {type(model).__name__} is no Hugging Face model: give one, a Checkpoint or a folder")
    if hasattr(module, "merge_and_unload"):
        raise TintError("a model with an adapter can't be simulated: give model.merge_and_unload()")
    return module


def _placed(module: Any, device: str | torch.device | None, dtype: str | torch.dtype | None) -> Any:
    """The model itself where it is as asked for, else a copy that is."""
    from surgery.checkpoints.models import pick_dtype
    from surgery.devices import pick_device

    weight = next(module.parameters())
    place = weight.device if device is None else pick_device(device)
    kind = weight.dtype if dtype is None else pick_dtype(dtype)
    if (place, kind) == (weight.device, weight.dtype) or getattr(module, "is_quantized", False):
        return module
    return copy.deepcopy(module).to(place, kind)


def _check_numbers(module: Any, named: Mapping[str, Tensor], sites: tuple[Mapping[str, Site], ...]) -> None:
    """Raise TintError for weights that descent can't move: quantised ones, and a mix of precisions."""
    kind = module.get_output_embeddings().weight.dtype
    for site in (site for block in sites for site in block.values()):
        if site.parameter not in named:
            raise TintError(f"a {type(module).__name__} here has no parameter {site.parameter}: give the plain model")
        dtype = str(named[site.parameter].dtype).removeprefix("torch.")
        if getattr(module, "is_quantized", False) or not named[site.parameter].is_floating_point():
            raise TintError(
                f"{site.parameter} is quantised ({dtype}): load the model in float32, or give model.dequantize()"
            )
        if named[site.parameter].dtype != kind:
            raise TintError(
                f"{site.parameter} is {dtype}, but the head {str(kind).removeprefix('torch.')}: give dtype='float32' to simulate all of it in one precision"
            )


def load_named(
    model: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenized: bool = False,
) -> Any:
    """What a folder, a hub id or a Checkpoint names, as a loaded `Model`; anything else as it is.

    Args:
        tokenized: with its tokenizer; token ids need none.

    Raises:
        TintError: an architecture that can't be simulated, before it is loaded; CheckpointError: as loading does.
    """
    if not isinstance(model, str | Path | Checkpoint):
        return model
    from surgery.checkpoints.models import load_model

    checkpoint = open_checkpoint(model)
    Shape.of_config(checkpoint.config, str(checkpoint))
    return load_model(checkpoint, device=device, dtype=dtype, tokenized=tokenized)


def name_of(model: Any) -> str:
    """Name of a model in a report: its folder or hub id, or the class of one in memory."""
    checkpoint = getattr(model, "checkpoint", None)
    return type(_plain(model)).__name__ if checkpoint is None else str(checkpoint)


def fingerprint_of(model: Any, resume: str | Path | None = None) -> dict[str, str]:
    """The checkpoint's fingerprint, where there is one; raises OptionError where there is none to resume by."""
    checkpoint = getattr(model, "checkpoint", None)
    if checkpoint is None and resume is not None:
        raise OptionError("resume needs a folder, a hub id or a loaded Model: nothing says what another model is")
    return {} if checkpoint is None else {"model": checkpoint.fingerprint}


def _gpt2_sites(shape: Shape, layer: int) -> dict[str, Site]:
    at, d = f"transformer.h.{layer}", shape.width
    sites = {}
    for leaf in ("weight", "bias"):
        transposed = leaf == "weight"  # the library's Conv1D holds [in, out]
        sites[f"norm1.{leaf}"] = Site(f"{at}.ln_1.{leaf}")
        for number, name in enumerate("qkv"):
            rows = slice(number * d, (number + 1) * d)
            sites[f"{name}.{leaf}"] = Site(f"{at}.attn.c_attn.{leaf}", rows, transposed)
        sites[f"o.{leaf}"] = Site(f"{at}.attn.c_proj.{leaf}", transposed=transposed)
        sites[f"norm2.{leaf}"] = Site(f"{at}.ln_2.{leaf}")
        sites[f"up.{leaf}"] = Site(f"{at}.mlp.c_fc.{leaf}", transposed=transposed)
        sites[f"down.{leaf}"] = Site(f"{at}.mlp.c_proj.{leaf}", transposed=transposed)
    return sites


def _named_sites(at: str, names: Mapping[str, str], biased: Mapping[str, bool]) -> dict[str, Site]:
    return {
        f"{name}.{leaf}": Site(f"{at}.{theirs}.{leaf}")
        for name, theirs in names.items()
        for leaf in ("weight", "bias")
        if leaf == "weight" or biased[name]
    }


def _opt_sites(shape: Shape, layer: int) -> dict[str, Site]:
    names = {
        "norm1": "self_attn_layer_norm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.out_proj",
        "norm2": "final_layer_norm",
        "up": "fc1",
        "down": "fc2",
    }
    biased = {name: shape.attention_bias or "norm" in name for name in names}
    return _named_sites(f"model.decoder.layers.{layer}", names, biased)


def _llama_sites(shape: Shape, layer: int) -> dict[str, Site]:
    names = {
        "norm1": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "o": "self_attn.o_proj",
        "norm2": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    }
    biased = {name: name in "qkv" and shape.attention_bias for name in names} | {
        "o": shape.attention_bias and shape.output_bias
    }
    biased |= dict.fromkeys(("gate", "up", "down"), shape.mlp_bias)
    return _named_sites(f"model.layers.{layer}", names, biased)


_SITES = {"gpt2": _gpt2_sites, "opt": _opt_sites, "llama": _llama_sites}
_FINAL = {"gpt2": "transformer.ln_f", "opt": "model.decoder.final_layer_norm", "llama": "model.norm"}
