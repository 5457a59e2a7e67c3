"""Several tasks in one model without training: unions of skills, and ways to merge whole tuned checkpoints, at equal terms.

Every way is given the same tuned checkpoints. Where one has something to choose (a scale, a rule, a density), it is
chosen on examples that training never saw, by the gain of the task that gains least; the report shows test examples.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from surgery.checkpoints.delta import Row, SparseDelta
from surgery.grafting.algebra import Aligned, aligned, merge
from surgery.grafting.skill import Skill
from surgery.grafting.study.bench import Bench

_SCALES = (0.5, 0.7, 1.0, 1.3, 1.6)
_RULES = ("mean", "sum", "first", "last")
_TRIMMED = 0.2  # density of TIES, as published
_DROPPED = 0.5  # density of DARE: the weights that are kept, and rescaled
_REGION = 0.01  # Localize-and-Stitch's share of the weights

Candidate = tuple[dict[str, Any], SparseDelta]


def merges(bench: Bench, seed: int) -> dict[str, Any]:
    """Each way's scores on the test examples, with what was chosen and how many weights it moves."""
    names = bench.settings.tasks
    skills = [Skill.load(bench.folder / "skills" / f"seed{seed}-{name}").delta for name in names]
    tuned = [bench.kept(f"seed{seed}-tuned-{name}") for name in names]
    base = bench.accuracies(None, seed)
    alone = {name: bench.accuracies(delta, seed)[name] - base[name] for name, delta in zip(names, tuned, strict=True)}

    def worst(delta: SparseDelta) -> float:
        found = bench.accuracies(delta, seed)
        return min((found[name] - base[name]) / max(alone[name], 0.01) for name in names)

    scores, chosen = {}, {}
    for number, (way, candidates) in enumerate(ways(skills, tuned).items()):
        bench.progress(number, 9, f"merging: {way}")
        tried = list(candidates())
        values = [worst(delta) if len(tried) > 1 else 0.0 for _, delta in tried]
        about, delta = tried[max(range(len(tried)), key=lambda place: values[place])]
        scores[way] = bench.scores(delta)
        chosen[way] = {**about, "weights": delta.weights, "tried": len(tried)}
    missing = {} if _has_peft() else {"missing": "TIES and DARE: peft isn't installed (pip install 'surgery[lora]')"}
    return {"scores": scores, "chosen": chosen, **missing}


def ways(skills: Sequence[SparseDelta], tuned: Sequence[SparseDelta]) -> dict[str, Callable[[], Iterator[Candidate]]]:
    """Candidates of each way, made one after another."""
    limit = max(1, int(_REGION * skills[0].movable))
    found: dict[str, Callable[[], Iterator[Candidate]]] = {
        "union, mean": lambda: iter([({"rule": "mean"}, merge(skills, "mean"))]),
        "union, sum": lambda: iter([({"rule": "sum"}, merge(skills, "sum"))]),
        "union, chosen rule and scale": lambda: (
            ({"rule": rule, "scale": scale}, scaled(merge(skills, rule), scale)) for rule in _RULES for scale in _SCALES
        ),
        "task arithmetic": lambda: (({"scale": scale}, combined(tuned, _sum, scale)) for scale in _SCALES),
        "top movement, overlaps averaged": lambda: iter([({}, merge([_furthest(d, limit) for d in tuned], "mean"))]),
    }
    if _has_peft():
        from peft.utils import merge_utils

        def ties(moves: list[Tensor], weights: Tensor) -> Tensor:
            return merge_utils.ties(moves, weights, _TRIMMED)

        def dare(moves: list[Tensor], weights: Tensor) -> Tensor:
            torch.manual_seed(0)
            return merge_utils.dare_linear(moves, weights, _DROPPED)

        def dare_ties(moves: list[Tensor], weights: Tensor) -> Tensor:
            torch.manual_seed(0)
            return merge_utils.dare_ties(moves, weights, _DROPPED)

        for name, rule in (("TIES", ties), ("DARE", dare), ("DARE with TIES", dare_ties)):
            found[name] = lambda rule=rule: (  # type: ignore[misc]
                ({"scale": scale}, combined(tuned, rule, scale)) for scale in _SCALES
            )
    return found


def scaled(delta: SparseDelta, scale: float) -> SparseDelta:
    """Each weight moved `scale` times as far from the base."""
    base = delta.base_values.double()
    return replace(delta, values=(base + scale * (delta.values.double() - base)).to(delta.values.dtype))


def combined(
    deltas: Sequence[SparseDelta], rule: Callable[[list[Tensor], Tensor], Tensor], scale: float
) -> SparseDelta:
    """One delta out of several by a rule on how far each moves the weights that any of them touches.

    Args:
        rule: takes each delta's moves, [weights] over all tensors, and a weight for each delta, which is `scale`.
    """
    parts: list[Aligned] = list(aligned(deltas))
    moves = [torch.cat([part.values[i].float() - part.base.float() for part in parts]) for i in range(len(deltas))]
    together = rule(moves, torch.full((len(deltas),), scale))
    rows, start = [], 0
    for part in parts:
        stop = start + len(part.indices)
        values = (part.base.float() + together[start:stop]).to(part.base.dtype)
        extent = part.extent
        rows.append(Row(extent.name, extent.dtype, extent.shape, part.indices, values, part.base))
        start = stop
    first = deltas[0]
    return SparseDelta.from_rows(
        rows,
        movable=first.movable,
        base_fingerprint=first.base_fingerprint,
        base_digests=first.base_digests,
        traits=first.traits,
    )


def _sum(moves: list[Tensor], weights: Tensor) -> Tensor:
    return (torch.stack(moves) * weights[:, None]).sum(0)


def _furthest(delta: SparseDelta, limit: int) -> SparseDelta:
    """The weights that moved furthest."""
    distance = (delta.values.float() - delta.base_values.float()).abs()
    mask = torch.zeros(delta.weights, dtype=torch.bool)
    mask[distance.topk(min(limit, delta.weights), sorted=False).indices] = True
    return delta.keep(mask)


def _has_peft() -> bool:
    return importlib.util.find_spec("peft") is not None
