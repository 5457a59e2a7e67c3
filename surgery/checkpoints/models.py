"""Loading a checkpoint as a transformers model, and knowing which of its parameters is which tensor of the files."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.counterparts import counterparts
from surgery.checkpoints.structure import Kind
from surgery.devices import pick_device
from surgery.errors import CheckpointError, OptionError, first_line
from surgery.quiet import quiet

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True, eq=False)
class Model:
    """A model in memory, in evaluation mode (dropout off), with no parameter trainable.

    Attributes:
        parameters: the checkpoint's tensor name -> the parameter that holds it.
    """

    module: Any
    tokenizer: Any
    checkpoint: Checkpoint
    device: torch.device
    parameters: Mapping[str, nn.Parameter]

    @property
    def kind(self) -> Kind:
        """Kind of model, which picks the readout."""
        return self.checkpoint.structure.kind

    @property
    def pad_id(self) -> int:
        """A token to pad with. A classifier may look for its own; elsewhere padding is masked, and any token will do."""
        config = self.module.config
        own = getattr(config, "pad_token_id", None) if self.kind == "classifier" else None
        return next(
            token
            for token in (own, self.tokenizer.pad_token_id, _first(config, "eos_token_id"), 0)
            if token is not None
        )

    @property
    def wants_types(self) -> bool:
        """Whether the tokenizer gives token types (first or second text of a pair) and the model takes them."""
        taken = inspect.signature(self.module.forward).parameters
        return "token_type_ids" in self.tokenizer.model_input_names and "token_type_ids" in taken

    @cached_property
    def padding_matters(self) -> bool:
        """Whether padding changes a text's scores: tokens after its end, though masked.

        They do where something beside attention mixes places: Fourier transforms (FNet), convolutions (ConvBERT, YOSO,
        Nystromformer, MobileBERT's embeddings), pooling (Funnel), a summary at the last place (XLNet). Tried out on a
        text of seven tokens, a length that no stride divides. Raises CheckpointError when the model can't be run.
        """
        size = getattr(self.module.config.get_text_config(), "vocab_size", None) or len(self.tokenizer)
        text = [self.pad_id + 1 + number for number in range(0, 42, 6)]
        row = torch.tensor([[token % size for token in text]], device=self.device)
        alone = self._try(row, row.shape[1])
        spread = float(alone.abs().max())
        exact = alone.dtype in (torch.float32, torch.float64)
        for more in (1, 8):
            padded = F.pad(row, (0, more), value=self.pad_id)
            gap = float((self._try(padded, row.shape[1]) - alone).abs().max())
            if not self.agree(gap <= (1e-5 if exact else 0.05) * spread):
                return True
        return False

    def _try(self, ids: torch.Tensor, real: int) -> torch.Tensor:
        """What the model says of the first `real` tokens of one row."""
        mask = (torch.arange(ids.shape[1], device=self.device) < real).long()[None]
        batch = {"input_ids": ids, "attention_mask": mask}
        if self.wants_types:
            batch["token_type_ids"] = torch.zeros_like(ids)
        with torch.no_grad():
            output = run(self.module, batch)
        if self.kind == "classifier":
            return output[0]
        if output.shape[1] != ids.shape[1]:
            raise CheckpointError(
                f"{self.checkpoint}: a {type(self.module).__name__} gives {output.shape[1]} states for {ids.shape[1]} tokens: no readout fits it"
            )
        return output[0, :real]

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Copy another checkpoint's tensors into this model, one at a time."""
        with torch.no_grad():
            for tensor, other in counterparts(self.checkpoint, checkpoint).items():
                # Embeddings may have been resized; `check_alike` lets nothing else of another shape pass.
                self.fill(tensor, checkpoint.finite_tensor(other, self.device))

    # -- what is otherwise where processes share the weights (`surgery.checkpoints.sharding`) -------------------------

    @property
    def copies(self) -> int:
        """Number of processes whose gradients are averaged."""
        return 1

    def movable(self, name: str) -> nn.Parameter:
        """What an optimizer moves of a tensor here."""
        parameter = self.parameters[name]
        parameter.requires_grad_(True)
        return parameter

    def collect(self, values: Mapping[str, nn.Parameter]) -> None:
        """Give what `movable` made its gradients, after backward passes."""

    def own(self, indices: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Of places in flattened tensors those that are here, as places in what `movable` gives; tensors without any are left out."""
        return indices

    def agree(self, is_so: bool) -> bool:
        """Whether all processes find that it is so."""
        return is_so

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """The norm of tensors, such as gradients, put end to end."""
        return torch.nn.utils.get_total_norm(tensors)

    def whole(self, name: str) -> Tensor:
        """A tensor with all its rows."""
        return self.parameters[name].detach()

    def put(self, name: str, places: Tensor, values: Tensor) -> None:
        """Set weights of a tensor, by their places in it flattened."""
        parameter = self.parameters[name]
        with torch.no_grad():
            parameter.view(-1)[places.to(parameter.device)] = values.to(parameter.device, parameter.dtype)

    def fill(self, name: str, values: Tensor) -> None:
        """Set a tensor, or as many of its first rows as there are values for."""
        parameter = self.parameters[name]
        if parameter.numel() != values.numel():
            rows = min(len(parameter), len(values))
            parameter, values = parameter[:rows], values[:rows]  # type: ignore[assignment]
        with torch.no_grad():
            parameter.copy_(values.view(parameter.shape))

    @contextmanager
    def taking(self, names: Sequence[str], take: Callable[[str, Tensor], None]) -> Iterator[Callable[[Tensor], None]]:
        """Yield a way to run backward passes, in which `take` is given each tensor's name and whole gradient, which is then dropped."""

        def hand_over(parameter: Any, name: str) -> None:
            take(name, parameter.grad)
            parameter.grad = None  # each as it comes: all of them would take as much memory as the model

        handles = []
        for name in names:
            parameter = self.parameters[name].requires_grad_(True)
            handles.append(parameter.register_post_accumulate_grad_hook(partial(hand_over, name=name)))
        try:
            yield Tensor.backward
        finally:
            for handle in handles:
                handle.remove()
            for name in names:
                self.parameters[name].requires_grad_(False)


def run(module: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Run a model on a batch; returns its logits, or the last hidden state of a bare encoder.

    Raises CheckpointError, with the library's own words, for a model that gives none: some need more than text, and
    some more tokens than there are.
    """
    try:
        output = module(**batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a model's code raises
        raise CheckpointError(
            f"a {type(module).__name__} can't be run on text alone, here {batch['input_ids'].shape[1]} tokens ({first_line(error)}): no readout fits it"
        ) from error
    states = getattr(output, "logits", None)
    states = getattr(output, "last_hidden_state", None) if states is None else states
    if not isinstance(states, torch.Tensor):
        raise CheckpointError(
            f"a {type(module).__name__} gives {', '.join(output)}, neither logits nor hidden states: no readout fits it"
        )
    return states


def load_model(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenized: bool = True,
) -> Model:
    """Load weights and tokenizer.

    Args:
        device: as torch names them; default CUDA when there is one, else the CPU.
        dtype: float32 (default), bfloat16, float16 or float64.
        tokenized: load the tokenizer too, without which a language model takes token ids only.

    Raises:
        CheckpointError: tensors that the model needs are missing, or hold NaN or infinity.
    """
    place, precision = pick_device(device), pick_dtype(dtype)
    structure = checkpoint.structure
    with quiet():
        module, info = read_module(structure.model_class, checkpoint, precision)
        tokenizer = load_tokenizer(checkpoint) if tokenized else None
    # A bare encoder's pooler isn't read by any readout, and many checkpoints come without one.
    if missing := [name for name in info["missing_keys"] if structure.kind != "encoder" or "pooler" not in name]:
        raise CheckpointError(
            f"{checkpoint} lacks {len(missing)} tensors of a {structure.model_class.__name__}, {min(missing)} first: fetch it again"
        )
    module = module.to(place).eval().requires_grad_(False)
    if structure.kind == "classifier" and getattr(module.config, "pad_token_id", None) is None:
        pad = getattr(tokenizer, "pad_token_id", None)
        module.config.pad_token_id = _first(module.config, "eos_token_id") if pad is None else pad
    named = dict(module.named_parameters(remove_duplicate=False))
    model = Model(
        module, tokenizer, checkpoint, place, {tensor: named[name] for tensor, name in structure.parameters.items()}
    )
    for tensor, parameter in model.parameters.items():
        if not bool(torch.isfinite(parameter).all()):
            raise CheckpointError(f"{checkpoint}: tensor {tensor} holds NaN or infinity: fetch or make it again")
    for tensor in structure.blocks:
        # The library may rename or fuse tensors while loading; a skill is only right if none of that happened.
        if not torch.equal(model.parameters[tensor], checkpoint.tensor(tensor, place).to(precision)):
            raise CheckpointError(
                f"{checkpoint}: transformers changes tensor {tensor} while loading it, so it can't be grafted"
            )
    return model


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the library raises on files it can't use
        raise CheckpointError(
            f"{checkpoint}: no tokenizer can be loaded from it ({first_line(error)}): copy the one of the checkpoint it was tuned from"
        ) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        # For some families the library makes up an empty tokenizer when the files are missing.
        raise CheckpointError(
            f"{checkpoint}: no tokenizer can be loaded from it (it knows no words): copy the one of the checkpoint it was tuned from, or fetch its files"
        )
    return tokenizer


def _first(config: Any, name: str) -> int | None:
    """A config's field that may be missing, a number or a list of numbers."""
    value = getattr(config, name, None)
    return value[0] if isinstance(value, list) and value else value if isinstance(value, int) else None


def pick_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """float32 unless another is asked for, by name or as torch's own; raises OptionError for one that models don't run in."""
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype is not None and dtype not in _DTYPES:
        raise OptionError(f"`dtype` {dtype} isn't one of {', '.join(_DTYPES)}")
    return _DTYPES[dtype or "float32"]


def steady_attention() -> AbstractContextManager[None]:
    """Attention without cuDNN's kernels, which are built anew for each shape of a batch: seconds for kernels that run once."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def read_module(kind: Any, checkpoint: Checkpoint, precision: torch.dtype) -> tuple[Any, Mapping[str, Any]]:
    """A model by one of transformers' classes, from this disk alone and without running code of the folder's; and what was missing."""
    try:
        return kind.from_pretrained(
            checkpoint.folder,
            dtype=precision,
            local_files_only=True,
            output_loading_info=True,
            weights_only=True,
            trust_remote_code=False,
        )
    except Exception as error:  # whatever the library raises on files it can't use
        raise CheckpointError(f"{checkpoint}: transformers can't load it ({first_line(error)})") from error
