"""Candidates: the weights a skill may be made of, as flat arrays over all tensors, and a model that can switch them between base and tuned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.counterparts import check_pair, counterparts
from surgery.checkpoints.models import Model
from surgery.errors import CheckpointError
from surgery.grafting.task_model import TaskModel
from surgery.tasks.readout import Encoded, Readout


@dataclass(frozen=True, eq=False)
class Candidates:
    """Weights in which base and tuned differ, those that moved furthest when there are too many.

    Attributes:
        names: the tensors that hold any, sorted; `bounds[i]:bounds[i + 1]` is the stretch of tensor i in the arrays.
        indices: [candidates], into each flattened tensor, ascending.
        base, tuned: [candidates], float32 (float64 for float64 checkpoints).
        movable: the number of weights that were looked at; `moved`: of those, how many differ.
    """

    names: tuple[str, ...]
    bounds: tuple[int, ...]
    indices: Int64[Tensor, " candidates"]
    base: Float[Tensor, " candidates"]
    tuned: Float[Tensor, " candidates"]
    movable: int
    moved: int

    @classmethod
    def between(
        cls,
        base: Checkpoint,
        tuned: Checkpoint,
        names: Sequence[str],
        limit: int,
        device: torch.device | None = None,
    ) -> "Candidates":
        """Read two checkpoints tensor by tensor and keep at most `limit` candidates, by |tuned - base|.

        They are read straight to `device` and compared there; the candidates come back on the CPU.
        Memory there: one pair of tensors and up to twice `limit` candidates.
        Raises CheckpointError for NaN or infinity, and when nothing differs.
        """
        theirs = counterparts(base, tuned)
        parts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        held = movable = moved = 0
        for name in sorted(names):
            check_pair(base, name, tuned, theirs[name])
            before = base.finite_tensor(name, device).reshape(-1)
            after = tuned.finite_tensor(theirs[name], device).reshape(-1)
            after = after.to(base.entries[name].dtype)  # a skill holds values in the base's dtype
            exact = torch.float64 if before.dtype == torch.float64 else torch.float32
            before, after = before.to(exact), after.to(exact)
            index = (before != after).nonzero().reshape(-1)
            movable += len(before)
            moved += len(index)
            parts[name] = (index, before[index], after[index])
            held += len(index)
            if held > 2 * limit:
                parts = _furthest(parts, limit)
                held = limit
        if not moved:
            raise CheckpointError(
                f"{base} and {tuned} agree in all {movable:,} movable weights: there is no skill to find (is it the right pair?)"
            )
        parts = {name: part for name, part in _furthest(parts, limit).items() if len(part[0])}
        indices, before, after = (torch.cat(column).cpu() for column in zip(*parts.values(), strict=True))
        bounds = np.cumsum([0, *(len(part[0]) for part in parts.values())])
        return cls(tuple(parts), tuple(bounds.tolist()), indices, before, after, movable=movable, moved=moved)

    def __len__(self) -> int:
        return len(self.indices)

    def stretches(self) -> Iterable[tuple[str, slice]]:
        """Each tensor's name and its stretch of the arrays."""
        return ((name, slice(self.bounds[i], self.bounds[i + 1])) for i, name in enumerate(self.names))

    def with_values(self, values: Float[Tensor, " candidates"]) -> "Candidates":
        """The same weights with other values in place of the tuned ones."""
        return replace(self, tuned=values.to(self.tuned.dtype))

    def subset(self, chosen: Int64[Tensor, " chosen"]) -> "Candidates":
        """The chosen ones alone."""
        chosen = chosen.cpu().sort().values
        edges = torch.searchsorted(chosen, torch.tensor(self.bounds)).tolist()
        held = [number for number in range(len(self.names)) if edges[number + 1] > edges[number]]
        return replace(
            self,
            names=tuple(self.names[number] for number in held),
            bounds=(*(edges[number] for number in held), len(chosen)),
            indices=self.indices[chosen],
            base=self.base[chosen],
            tuned=self.tuned[chosen],
        )

    def parts(self, chosen: Int64[Tensor, " chosen"]) -> dict[str, tuple[Tensor, Tensor]]:
        """The chosen candidates as `SparseDelta.from_parts` takes them."""
        chosen = chosen.cpu().sort().values
        edges = torch.searchsorted(chosen, torch.tensor(self.bounds))
        picked = {name: chosen[edges[i] : edges[i + 1]] for i, name in enumerate(self.names)}
        return {name: (self.indices[numbers], self.tuned[numbers]) for name, numbers in picked.items()}


class GraftedModel(TaskModel):
    """A base model in memory whose candidates can be switched between base and tuned, and asked which way to go.

    Memory beyond the model and its activations: a few numbers for each candidate. Gradients are reduced to the
    candidates tensor by tensor, as they appear, and dropped.
    """

    def __init__(self, model: Model, readout: Readout, candidates: Candidates) -> None:
        super().__init__(model, readout)
        self.candidates = candidates
        self.base = candidates.base.to(model.device)
        self.delta = (candidates.tuned - candidates.base).to(model.device)
        self.tuned = candidates.tuned.to(model.device)
        self._indices = candidates.indices.to(model.device)

    def set_mask(self, mask: Bool[Tensor, " candidates"] | Float[Tensor, " candidates"]) -> None:
        """Set every candidate to base + mask * (tuned - base): for booleans the exact base or tuned value."""
        values = torch.where(mask, self.tuned, self.base) if mask.dtype == torch.bool else self.base + mask * self.delta
        for name, stretch in self.candidates.stretches():
            self.model.put(name, self._indices[stretch], values[stretch])

    def set_chosen(self, chosen: Int64[Tensor, " chosen"]) -> None:
        """Tuned values for the chosen candidates, base values for all others."""
        mask = torch.zeros(len(self.candidates), dtype=torch.bool, device=self.model.device)
        mask[chosen.to(self.model.device)] = True
        self.set_mask(mask)

    def mask_gradient(self, rows: Sequence[Encoded], targets: Tensor) -> Float[Tensor, " candidates"]:
        """The derivative of the mean cross-entropy with respect to each candidate's entry of the mask (`set_mask`).

        Args:
            targets: label numbers [rows], or label probabilities [rows, labels].
        """
        gradient, places = torch.zeros_like(self.delta), dict(self.candidates.stretches())

        def take(name: str, whole: Tensor) -> None:
            stretch = places[name]
            gradient[stretch] += whole.view(-1)[self._indices[stretch]].to(gradient.dtype)

        self.gradients(self.candidates.names, rows, targets, take)
        return gradient * self.delta


def _furthest(parts: dict[str, tuple[Tensor, Tensor, Tensor]], limit: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    distance = torch.cat([(after - before).abs() for _, before, after in parts.values()])
    if len(distance) <= limit:
        return parts
    keep = torch.zeros(len(distance), dtype=torch.bool, device=distance.device)
    keep[distance.topk(limit, sorted=False).indices] = True
    kept, start = {}, 0
    for name, part in parts.items():
        mask = keep[start : start + len(part[0])]
        kept[name] = (part[0][mask], part[1][mask], part[2][mask])
        start += len(mask)
    return kept
