"""Loading a model to probe, its tokenizer, and TransformerLens' view of it; whatever fails is named."""

import contextlib
import logging
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probes.errors import ProbeError
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import CheckpointError, MissingPackageError, first_line
from surgery.quiet import quiet
from surgery.tasks.readout import position_limit


def load_module(checkpoint: Checkpoint, untrained: int | None, device: torch.device) -> tuple[Any, bool, bool]:
    """Load the model; return it, whether it has a trained head, and whether it is causal."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    import pcfg.compiled  # which also tells transformers of the architecture

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
            if checkpoint.config.get("model_type") == pcfg.compiled.InsideOutsideConfig.model_type:
                raise CheckpointError(
                    f"{checkpoint} can't be loaded as a compiled grammar ({first_line(error)}): compile it again"
                ) from error
            raise CheckpointError(
                f"{checkpoint} can't be loaded as a language model or an encoder ({first_line(error)}): name one such as BERT, RoBERTa, GPT-2, OPT or LLaMA"
            ) from error
    from pcfg.compiled import InsideOutsideTransformer

    prefix = f"{module.base_model_prefix}."
    whole = isinstance(module, InsideOutsideTransformer)  # all of whose weights are needed, under names of their own
    inner = [name for name in info["missing_keys"] if (whole or name.startswith(prefix)) and "pooler" not in name]
    if inner:
        raise CheckpointError(f"{checkpoint} lacks {len(inner)} tensors, {min(inner)} first: fetch it again")
    if broken := next((name for name, weight in module.named_parameters() if not bool(weight.isfinite().all())), None):
        raise CheckpointError(f"{checkpoint}: its tensor {broken} holds NaN or infinity: fetch it again")
    return module.to(device).eval().requires_grad_(False), not info["missing_keys"], causal


def _predicts_next(config: Mapping[str, Any]) -> bool:
    """Whether a model predicts next words; a bare body or a classifier goes by the language model of its family."""
    from transformers.models.auto import modeling_auto as auto

    tables = (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    masked, following = (table.get(str(config.get("model_type"))) for table in tables)
    own = str((config.get("architectures") or ["?"])[0])
    if own in (masked, following) and masked != following:
        return own == following
    alone = masked is None or config.get("is_decoder") or config.get("causal")  # XLM has one class for both
    return following is not None and bool(alone)


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer; raise CheckpointError for none, ProbeError for one that gives no offsets of characters."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the library raises on files it can't use
        raise CheckpointError(f"{checkpoint}: no tokenizer can be loaded from it ({first_line(error)})") from error
    if not tokenizer.is_fast:
        raise ProbeError(f"{checkpoint} has a tokenizer that doesn't say which characters a token is: use a fast one")
    return tokenizer


def some_tokens(module: Any, count: int = 12) -> tuple[Tensor, Tensor]:
    """Return 12 token numbers that every vocabulary has, or as many as the model reads, and their mask, to try it with.

    A compiled grammar takes sentences of words, so those are its words.
    """
    from pcfg.compiled import InsideOutsideTransformer
    from pcfg.sampling.tokenizer import SPECIAL

    first, count = 0, min(count, position_limit(module) or count)
    if isinstance(module, InsideOutsideTransformer):
        first, count = len(SPECIAL), min(count, module.config.max_words)
    ids = first + torch.arange(count, device=module.device)[None] % (len(module.get_input_embeddings().weight) - first)
    return ids, torch.ones_like(ids)


def own_states(checkpoint: Checkpoint, module: Any) -> Sequence[Tensor]:
    """Transformers' own hidden states of some tokens."""
    ids, mask = some_tokens(module)
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


def load_bridge(checkpoint: Checkpoint, module: Any, tokenizer: Any, device: torch.device) -> tuple[Any, str]:
    """Wrap the model by TransformerLens; return None and the reason where it can't."""
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
        why = textwrap.shorten(first_line(error).partition(". ")[0], 120, placeholder=" ...")
        return None, f"TransformerLens can't load it ({why})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' bars and tables; what matters is checked and raised here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        # TransformerLens prints what it loads.
        with quiet(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.disable(disabled)
