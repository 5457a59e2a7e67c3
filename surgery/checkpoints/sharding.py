"""A model whose weights are split over several processes (FSDP2), for models that one device doesn't hold."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import Model, load_model
from surgery.checkpoints.structure import skeleton
from surgery.errors import CheckpointError, first_line


@dataclass(frozen=True, eq=False)
class ShardedModel(Model):
    """A model of which each process holds its rows of every tensor; whole tensors appear a block at a time, while that is run.

    Every process is to run the same batches in the same order, or as many batches of its own. Gradients are the mean of the
    processes'.

    Attributes:
        mesh: the processes.
    """

    mesh: DeviceMesh = field(kw_only=True)

    @property
    def copies(self) -> int:
        """Number of processes, whose gradients are averaged."""
        return self.mesh.size()

    def local(self, name: str) -> Tensor:
        """This process's rows of a tensor; what is written there is in the model."""
        return self.parameters[name].to_local()  # type: ignore[attr-defined]

    def start(self, name: str) -> int:
        """Place in the flattened tensor at which this process's rows begin."""
        parameter: Any = self.parameters[name]
        rows = -(-parameter.shape[0] // self.mesh.size()) * self.mesh.get_local_rank()
        return min(rows, parameter.shape[0]) * (parameter.numel() // max(1, parameter.shape[0]))

    def movable(self, name: str) -> nn.Parameter:
        """This process's rows, as a parameter of their own over the same memory."""
        return nn.Parameter(self.local(name))

    def collect(self, values: Mapping[str, nn.Parameter]) -> None:
        """Give parameters of `movable` the gradients of their rows."""
        for name, value in values.items():
            gradient, self.parameters[name].grad = self.parameters[name].grad, None
            if gradient is not None:
                value.grad = gradient.to_local()  # type: ignore[attr-defined]

    def own(self, indices: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Of places in flattened tensors those in this process's rows, as places in these; tensors without any are left out."""
        found: dict[str, Tensor] = {}
        for name, places in indices.items():
            start = self.start(name)
            here = places[(places >= start) & (places < start + self.local(name).numel())] - start
            found |= {name: here} if len(here) else {}
        return found

    def agree(self, is_so: bool) -> bool:
        """Whether all processes find that it is so."""
        found = torch.tensor(float(is_so), device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN, group=self.mesh.get_group())
        return bool(found)

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """The norm of all processes' tensors together."""
        square = torch.nn.utils.get_total_norm(tensors).to(self.device, torch.float32) ** 2
        torch.distributed.all_reduce(square, group=self.mesh.get_group())
        return square.sqrt()

    def whole(self, name: str) -> Tensor:
        """A tensor with all processes' rows; every process has to ask for it."""
        return _gathered(self.parameters[name].detach())

    def put(self, name: str, places: Tensor, values: Tensor) -> None:
        """Set weights of a tensor, by their places in it flattened."""
        start, rows = self.start(name), self.local(name)
        places = places.to(rows.device) - start
        here = (places >= 0) & (places < rows.numel())
        with torch.no_grad():
            rows.view(-1)[places[here]] = values.to(rows.device, rows.dtype)[here]

    def fill(self, name: str, values: Tensor) -> None:
        """Set a tensor, or as many of its first rows as there are values for."""
        rows = self.local(name)
        here = values.reshape(-1)[self.start(name) :][: rows.numel()]
        with torch.no_grad():
            rows.view(-1)[: len(here)].copy_(here)

    @contextmanager
    def taking(self, names: Sequence[str], take: Callable[[str, Tensor], None]) -> Iterator[Callable[[Tensor], None]]:
        """Yield a way to run backward passes, after each of which `take` is given each tensor's name and whole gradient."""

        def backward(loss: Tensor) -> None:
            loss.backward()
            for name, parameter in self.parameters.items():
                gradient, parameter.grad = parameter.grad, None  # of tensors that nobody asked for too
                if gradient is not None and name in wanted:
                    take(name, _gathered(gradient))

        wanted = set(names)
        yield backward


def _gathered(split: Tensor) -> Tensor:
    return split.full_tensor()  # type: ignore[attr-defined]


def load_sharded(
    checkpoint: Checkpoint,
    mesh: DeviceMesh,
    names: Sequence[str],
    *,
    dtype: str | torch.dtype | None = None,
    device: torch.device,
    in_turn: Callable[[], None],
    mixed: torch.dtype | None = None,
) -> ShardedModel:
    """Load a checkpoint's weights split over the processes of a mesh.

    Args:
        names: the tensors that are to have gradients.
        in_turn: waits for all processes. They load one after another, so that a machine holds the whole model once.
        mixed: what whole blocks are computed in, where that isn't what weights are held in.

    Raises:
        CheckpointError: an architecture that can't be split.
    """
    for turn in range(mesh.size()):
        if turn == mesh.get_local_rank():
            model = load_model(checkpoint, device="cpu", dtype=dtype)
            for name in names:
                model.parameters[name].requires_grad_(True)  # what is split keeps what it was at first
            module, tokenizer = model.module, model.tokenizer
            del model  # which holds every whole tensor
            try:
                _split(module, mesh, mixed)
            except torch.OutOfMemoryError:  # said where all such are
                raise
            except (ValueError, NotImplementedError, AssertionError, RuntimeError) as error:  # what FSDP2 raises
                raise CheckpointError(
                    f"{checkpoint}: a {type(module).__name__} can't be split over processes ({first_line(error)}): leave out the splitting"
                ) from error
        in_turn()
    named = dict(module.named_parameters(remove_duplicate=False))
    parameters = {tensor: named[name] for tensor, name in checkpoint.structure.parameters.items()}
    return ShardedModel(module, tokenizer, checkpoint, device, parameters, mesh=mesh)


def whole_at_once(checkpoint: Checkpoint) -> int:
    """How many weights of a split model are whole in one process at once, at most.

    What is outside of blocks is whole from the forward pass to the end of the backward one; of blocks the one at work, the next one,
    which is being fetched, and one's gradients are.
    """
    module = skeleton(checkpoint, checkpoint.structure.model_class)
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in _blocks(module)]
    return sum(parameter.numel() for parameter in module.parameters()) - sum(sizes) + 3 * max(sizes, default=0)


def _split(module: nn.Module, mesh: DeviceMesh, mixed: torch.dtype | None) -> None:
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(mixed, reduce_dtype=torch.float32 if mixed else None)
    for block in _blocks(module):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # Else what is outside of blocks would stay whole after a forward pass, and what is written to it meanwhile unread.
    fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_force_sum_reduction_for_comms(True)  # gloo knows no mean
            part.set_gradient_divide_factor(float(mesh.size()))


def _blocks(module: nn.Module, *, listed: bool = False) -> list[nn.Module]:
    """What a model is a pile of: the members of its outermost lists of modules; `listed`: this module is such a list."""
    found: list[nn.Module] = []
    for child in module.children():
        holder = isinstance(child, nn.ModuleList | nn.ModuleDict)
        if not listed or holder:
            found += _blocks(child, listed=isinstance(child, nn.ModuleList) or (listed and holder))
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found
