"""Algebra of skills, seen as sets of weights with values: union by a rule, intersection, difference, overlap.

Overlap is Panigrahi et al. 2023, section 5. A file holds values, never differences: where skills share a weight, `mean`
and `sum` are taken over how far each moved it (tuned - base), and the result is a value again, rounded once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Int64, Shaped
from msgspec import Meta
from torch import Tensor

from surgery.checkpoints.delta import Extent, Row, SparseDelta, as_integers
from surgery.errors import OptionError, SkillError
from surgery.grafting.figures import layer_and_module

RULES = ("mean", "sum", "error", "first", "last")


@dataclass(frozen=True, eq=False)
class Aligned:
    """One tensor's weights that any of several deltas touches.

    Attributes:
        extent: the tensor, as one of the deltas describes it.
        indices: [weights], ascending.
        base: [weights], in the tensor's dtype.
        values: [deltas, weights], in the tensor's dtype; the base's value where a delta doesn't touch the weight.
        touched: [deltas, weights].
    """

    extent: Extent
    indices: Int64[Tensor, " weights"]
    base: Shaped[Tensor, " weights"]
    values: Shaped[Tensor, "deltas weights"]
    touched: Bool[Tensor, "deltas weights"]


def aligned(deltas: Sequence[SparseDelta]) -> Iterator[Aligned]:
    """Each touched tensor in order of its name, the deltas' weights side by side.

    Raises SkillError where two of them can't be of one base: another shape, dtype or base value.
    """
    for name in sorted({name for delta in deltas for name in delta.tensors}):
        parts = {number: delta.part(name) for number, delta in enumerate(deltas) if name in delta.tensors}
        extents = [delta.tensors[name] for delta in deltas if name in delta.tensors]
        if len({(extent.dtype, extent.shape) for extent in extents}) > 1:
            raise SkillError(f"the skills start from different bases: tensor {name} has another shape or dtype")
        indices = torch.cat([index for index, _, _ in parts.values()]).unique()  # sorted
        base = torch.empty(len(indices), dtype=extents[0].dtype)
        touched = torch.zeros(len(deltas), len(indices), dtype=torch.bool)
        places = {number: torch.searchsorted(indices, index) for number, (index, _, _) in parts.items()}
        for number, (_, _, before) in parts.items():
            base[places[number]] = before
            touched[number, places[number]] = True
        values = base.repeat(len(deltas), 1)
        for number, (_, tuned, before) in parts.items():
            if not torch.equal(as_integers(base[places[number]]), as_integers(before)):
                raise SkillError(f"the skills start from different bases: tensor {name} holds other values")
            values[number, places[number]] = tuned
        yield Aligned(extents[0], indices, base, values, touched)


def check_one_base(deltas: Sequence[SparseDelta], names: Sequence[str] = ()) -> None:
    """Raise SkillError unless all deltas start from the same weights, config and tokenizer; `names` name them there."""
    first = deltas[0]
    for number, delta in enumerate(deltas[1:], 1):
        whose = names[number] if names else ("the second" if number == 1 else f"number {number + 1}")
        if first.base_fingerprint != delta.base_fingerprint:
            both = f" ({names[0]} and {names[number]})" if names else ""
            raise SkillError(
                f"the skills{both} start from different bases ({first.base_fingerprint[:12]} and {delta.base_fingerprint[:12]}): "
                "take skills of one base"
            )
        if first.traits and delta.traits and (trait := first.traits.difference(delta.traits)):
            raise SkillError(f"the skills start from different bases: {whose}'s {trait}: take skills of one base")


def merge(deltas: Sequence[SparseDelta], rule: str = "mean", names: Sequence[str] = ()) -> SparseDelta:
    """Union: the weights that any delta touches. A weight that one alone touches keeps that one's value, bit for bit.

    Args:
        rule: what stands where several touch one weight. `mean` and `sum`: the base's value plus the mean or the sum of
            their differences from it, in float64, whatever their order. `first`, `last`: that one's value. `error`: only
            what they agree on.
        names: what to call the deltas in errors; by default their numbers.

    Raises:
        SkillError: deltas of different bases; with `error`, the first weight that two of them disagree on; a mean or sum
            that the checkpoint's dtype can't hold.
    """
    if rule not in RULES:
        raise OptionError(f"`rule` {rule!r} isn't one of {', '.join(RULES)}")
    if not deltas:
        raise OptionError("no skills to merge: name two or more")
    check_one_base(deltas, names)
    shown = list(names) or [f"number {number}" for number in range(1, len(deltas) + 1)]
    rows = [
        Row(a.extent.name, a.extent.dtype, a.extent.shape, a.indices, _by_rule(a, rule, shown), a.base)
        for a in aligned(deltas)
    ]
    return SparseDelta.from_rows(
        rows,
        movable=max(delta.movable for delta in deltas),
        base_fingerprint=deltas[0].base_fingerprint,
        base_digests=deltas[0].base_digests,
        traits=next((delta.traits for delta in deltas if delta.traits), None),
    )


def _by_rule(a: Aligned, rule: str, names: Sequence[str]) -> Tensor:
    touched = a.touched.int()
    first = touched.argmax(0)
    last = len(touched) - 1 - touched.flip(0).argmax(0)
    alone = a.values.gather(0, (first if rule == "first" else last)[None])[0]
    if rule in ("first", "last"):
        return alone
    shared = touched.sum(0) > 1
    if rule == "error":
        _refuse_conflict(a, names)
        return alone
    # Sorted, so that rounding doesn't depend on the order of the skills.
    if rule == "mean":  # the base's value plus the mean difference is the mean of the values
        values = a.values.double().where(a.touched, 0).sort(dim=0).values
        together = values.sum(0) / touched.sum(0)
    else:
        moved = (a.values.double() - a.base.double()).where(a.touched, 0).sort(dim=0).values
        together = a.base.double() + moved.sum(0)
    together = together.to(a.base.dtype)
    if len(wrong := (shared & ~together.double().isfinite()).nonzero().reshape(-1)):
        place = f"tensor {a.extent.name}, weight {int(a.indices[wrong[0]])}"
        raise SkillError(f"the skills' {rule} at {place} is more than {a.extent.dtype} holds: take another rule")
    return torch.where(shared, together, alone)


def _refuse_conflict(a: Aligned, names: Sequence[str]) -> None:
    raw = torch.stack([as_integers(row) for row in a.values])
    top = raw.gather(0, a.touched.int().argmax(0)[None])
    differs = a.touched & (raw != top)
    if not len(places := differs.any(0).nonzero().reshape(-1)):
        return
    place = int(places[0])
    one, other = int(a.touched[:, place].int().argmax()), int(differs[:, place].int().argmax())
    raise SkillError(
        f"{names[one]} and {names[other]} disagree on tensor {a.extent.name}, weight {int(a.indices[place])} "
        f"({a.values[one, place].item():g} and {a.values[other, place].item():g}): take another rule, such as mean"
    )


def touches(delta: SparseDelta, other: SparseDelta) -> Bool[Tensor, " weights"]:
    """Which of the delta's weights the other touches too."""
    shared = torch.zeros(delta.weights, dtype=torch.bool)
    for name, extent in delta.tensors.items():
        if name in other.tensors:
            shared[extent.start : extent.stop] = torch.isin(delta.part(name)[0], other.part(name)[0])
    return shared


def intersection(delta: SparseDelta, other: SparseDelta) -> SparseDelta:
    """The weights that both touch, with `delta`'s values."""
    check_one_base((delta, other))
    return delta.keep(touches(delta, other))


def difference(delta: SparseDelta, other: SparseDelta) -> SparseDelta:
    """The delta's weights that the other doesn't touch."""
    check_one_base((delta, other))
    return delta.keep(~touches(delta, other))


# -- overlap ---------------------------------------------------------------------------------------------------------

# What a comparison's file may say, too.
_Count = Annotated[int, Meta(ge=0)]
_Square = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True)
class Overlap:
    """How far two skills touch the same weights, and whether they move these alike; sums, so that parts can be added.

    Attributes:
        first, second: weights of each skill.
        shared: weights of both.
        agreeing: shared weights that both move in the same direction.
        product, first_square, second_square: over shared weights, the sums of the products of the two differences
            (tuned - base), and of their squares.
        by_tensor: the weights that would be shared by chance if each skill had as many in every tensor as it has, placed
            at random there.
    """

    first: _Count = 0
    second: _Count = 0
    shared: _Count = 0
    agreeing: _Count = 0
    product: float = 0.0
    first_square: _Square = 0.0
    second_square: _Square = 0.0
    by_tensor: _Square = 0.0

    def __add__(self, other: "Overlap") -> "Overlap":
        return Overlap(**{name: value + vars(other)[name] for name, value in vars(self).items()})

    @property
    def of_first(self) -> float:
        """The share of the first skill's weights that the second touches too."""
        return self.shared / self.first if self.first else 0.0

    @property
    def of_second(self) -> float:
        """The share of the second skill's weights that the first touches too."""
        return self.shared / self.second if self.second else 0.0

    @property
    def sign_agreement(self) -> float | None:
        """The share of shared weights that both move in the same direction (.5: a coin); None where none is shared."""
        return self.agreeing / self.shared if self.shared else None

    @property
    def alignment(self) -> float | None:
        """The cosine of the two differences from the base on shared weights, -1 to 1; None where none moves."""
        norms = (self.first_square * self.second_square) ** 0.5
        return max(-1.0, min(1.0, self.product / norms)) if norms else None


def overlap(delta: SparseDelta, other: SparseDelta) -> Overlap:
    """The overlap of two skills of one base over all tensors."""
    return sum(overlap_by_layer(delta, other).values(), Overlap())


def overlap_by_layer(delta: SparseDelta, other: SparseDelta) -> dict[int, Overlap]:
    """The overlap within each layer that either touches; what lies outside the layers counts as layer 0."""
    check_one_base((delta, other))
    overlaps: dict[int, Overlap] = {}
    for a in aligned((delta, other)):
        layer = layer_and_module(a.extent.name)[1]
        overlaps[layer] = overlaps.get(layer, Overlap()) + _overlap_within(a)
    return dict(sorted(overlaps.items()))


def _overlap_within(a: Aligned) -> Overlap:
    first, second = (int(row.sum()) for row in a.touched)
    shared = a.touched.all(0)
    one, two = a.values[:, shared].double() - a.base[shared].double()
    return Overlap(
        first=first,
        second=second,
        shared=int(shared.sum()),
        agreeing=int((one.sign() == two.sign()).sum()),
        product=float(one @ two),
        first_square=float(one @ one),
        second_square=float(two @ two),
        by_tensor=first * second / a.extent.size,
    )


def shared_by_chance(first: int, second: int, among: int) -> float:
    """The expected number of shared weights when two skills draw theirs from the same `among` weights at random.

    For chance among all block weights `among` is their number. For chance among the weights that tuning moved it is the
    larger of the two tunings' counts, which supposes that the smaller set lies within the larger: the most that chance
    can do when only the counts are known, and exact where both tunings moved the same weights.
    """
    return first * second / among if among else 0.0
