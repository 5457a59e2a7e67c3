"""Displacement: how far tuning moved every weight, for checkpoints in which it moved nearly all of them.

`Candidates` keep the few weights that moved furthest and their places; here all movable weights count, in flat arrays
without places.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.counterparts import counterparts
from surgery.checkpoints.models import Model
from surgery.grafting.candidates import Candidates
from surgery.grafting.task_model import TaskModel
from surgery.tasks.readout import Encoded, Readout


class Displacement(TaskModel):
    """A base model in memory, and the base and the tuned value of each of its movable weights.

    Attributes:
        names: the movable tensors, sorted; `bounds[i]:bounds[i + 1]` is the stretch of tensor i in the arrays.
        base, tuned: [movable], on the model's device, float32 (float64 for a float64 checkpoint).
    """

    def __init__(
        self, model: Model, readout: Readout, base: Checkpoint, tuned: Checkpoint, names: Sequence[str]
    ) -> None:
        super().__init__(model, readout)
        self.names = tuple(sorted(names))
        self.bounds = tuple(accumulate((base.entries[name].size for name in self.names), initial=0))
        theirs = counterparts(base, tuned)
        exact = torch.float64 if base.entries[self.names[0]].dtype == torch.float64 else torch.float32
        self.base, self.tuned = (torch.empty(self.bounds[-1], dtype=exact, device=model.device) for _ in range(2))
        for name, stretch in self.stretches():
            self.base[stretch] = base.finite_tensor(name, model.device).reshape(-1)
            # In the base's dtype, which a skill holds values in.
            after = tuned.finite_tensor(theirs[name], model.device).to(base.entries[name].dtype)
            self.tuned[stretch] = after.reshape(-1)

    def __len__(self) -> int:
        return self.bounds[-1]

    def stretches(self) -> Iterable[tuple[str, slice]]:
        """Each tensor's name and its stretch of the arrays."""
        return ((name, slice(*bounds)) for name, bounds in zip(self.names, pairwise(self.bounds), strict=True))

    @property
    def delta(self) -> Float[Tensor, " movable"]:
        """Tuned minus base, computed anew each time: it would be a third array."""
        return self.tuned - self.base

    def put(self, values: Float[Tensor, " movable"]) -> None:
        """Set every movable weight."""
        for name, stretch in self.stretches():
            self.model.fill(name, values[stretch])

    def put_chosen(self, chosen: Int64[Tensor, " chosen"], values: Float[Tensor, " chosen"] | None = None) -> None:
        """Set the chosen weights to `values`, by default the tuned ones, and all others to the base's."""
        whole = self.base.clone()
        whole[chosen] = self.tuned[chosen] if values is None else values.to(whole.device, whole.dtype)
        self.put(whole)

    def put_support(self, support: Candidates) -> None:
        """Set the weights of a support to its tuned values, and all others to the base's."""
        self.put(self.base)
        for name, stretch in support.stretches():
            self.model.put(name, support.indices[stretch], support.tuned[stretch])

    def put_share(self, share: float) -> None:
        """Set every movable weight to base + share * (tuned - base)."""
        self.put(torch.lerp(self.base, self.tuned, share))

    def gradient(self, rows: Sequence[Encoded], targets: Tensor) -> Float[Tensor, " movable"]:
        """The gradient of the mean cross-entropy to labels [rows] or probabilities [rows, labels], as the model stands."""
        total, places = torch.zeros_like(self.base), dict(self.stretches())

        def take(name: str, gradient: Tensor) -> None:
            total[places[name]] += gradient.reshape(-1)

        self.gradients(self.names, rows, targets, take)
        return total

    def saliency(self, rows: Sequence[Encoded], targets: Tensor) -> Float[Tensor, " movable"]:
        """What going to the tuned value gains, to first order: -(tuned - base) * gradient."""
        return self.gradient(rows, targets).mul_(self.base - self.tuned)

    def support(self, chosen: Int64[Tensor, " chosen"], values: Float[Tensor, " chosen"] | None = None) -> Candidates:
        """The chosen weights as candidates, whose tuned values are `values` where given."""
        chosen, order = chosen.sort()
        after = self.tuned[chosen] if values is None else values[order]
        edges = torch.searchsorted(chosen, torch.tensor(self.bounds, device=chosen.device)).tolist()
        held = [number for number, (start, stop) in enumerate(pairwise(edges)) if stop > start]
        starts = torch.tensor(self.bounds[:-1], device=chosen.device)
        indices = chosen - starts.repeat_interleave(torch.tensor(edges, device=chosen.device).diff())
        return Candidates(
            tuple(self.names[number] for number in held),
            tuple([edges[number] for number in held] + [len(chosen)]),
            indices.cpu(),
            self.base[chosen].cpu(),
            after.to(self.base.dtype).cpu(),
            movable=len(self),
            moved=len(chosen),
        )
