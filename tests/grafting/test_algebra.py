"""Union by rule, intersection, difference and overlap, against Python dictionaries of weights, fractions and simulation."""

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from surgery.errors import OptionError, SkillError
from surgery.grafting.algebra import (
    RULES,
    Overlap,
    check_one_base,
    difference,
    intersection,
    merge,
    overlap,
    overlap_by_layer,
    shared_by_chance,
)
from tests.support.deltas import (
    applied,
    bases,
    changes,
    content,
    delta_of,
    equal,
    expected_after,
    pairs,
    same,
    tensor_of,
    triples,
)
from tests.support.tiny import raw

several = bases().flatmap(lambda base: st.tuples(st.just(base), st.lists(changes(base), min_size=1, max_size=4)))


def tuned_bits(delta):
    return {place: tuned for place, (_, tuned) in content(delta).items()}


def number(base, place, bits=None):
    """A weight's value as a Python number: the base's, or that of some bits."""
    name, index = place
    value = base[name].reshape(-1)[index] if bits is None else tensor_of([bits], base[name].dtype, 1)[0]
    return value.item()


# -- union -----------------------------------------------------------------------------------------------------------


@given(several, st.sampled_from(["first", "last"]))
def test_first_and_last_against_dictionaries(drawn, rule):
    base, changed = drawn
    merged = merge([delta_of(base, each) for each in changed], rule)
    ordered = changed if rule == "last" else changed[::-1]
    assert tuned_bits(merged) == {place: bits for each in ordered for place, bits in each.items()}
    assert same(applied(base, merged), expected_after(base, *ordered))
    assert same(applied(base, merged, merged, restore=True), expected_after(base))


@given(several, st.sampled_from(["mean", "sum"]))
def test_mean_and_sum_against_fractions(drawn, rule):
    base, changed = drawn
    holders = Counter(place for each in changed for place in each)
    shared = {place for place, count in holders.items() if count > 1}
    terms = {place: [number(base, place, each[place]) for each in changed if place in each] for place in shared}
    assume(all(map(math.isfinite, [t for place in shared for t in (*terms[place], number(base, place))])))
    expected, slack = {}, {}
    for place in shared:
        before, exact = Fraction(number(base, place)), [Fraction(t) for t in terms[place]]
        moved = sum(t - before for t in exact)
        value = before + (moved / len(exact) if rule == "mean" else moved)
        kind = torch.finfo(base[place[0]].dtype)
        assume(abs(value) < Fraction(kind.max) / 4 and sum(map(abs, exact)) < Fraction(1e300))
        expected[place] = value
        slack[place] = kind.eps * abs(value) + kind.tiny * kind.eps + 1e-15 * float(sum(map(abs, exact)) + abs(before))
    merged = merge([delta_of(base, each) for each in changed], rule)
    found = tuned_bits(merged)
    assert found.keys() == holders.keys()
    for place, bits in found.items():
        if place in shared:
            assert abs(Fraction(number(base, place, bits)) - expected[place]) <= slack[place]
        else:  # bit for bit what the one skill says
            assert bits == next(each[place] for each in changed if place in each)
    assert same(applied(base, merged, merged, restore=True), expected_after(base))


@given(several, st.sampled_from(["mean", "sum"]))
def test_mean_and_sum_do_not_depend_on_the_order(drawn, rule):
    base, changed = drawn
    deltas = [delta_of(base, each) for each in changed]
    try:
        first = merge(deltas, rule)
    except SkillError:
        assume(False)
    assert all(equal(merge(order, rule), first) for order in permutations(deltas))


@pytest.mark.parametrize("rule", ["mean", "sum"])
def test_not_even_where_rounding_would_tell(rule):
    base = {"a.weight": torch.zeros(1, dtype=torch.float64)}
    deltas = [delta_of(base, {("a.weight", 0): raw(torch.tensor([v]).double())[0]}) for v in (1e16, 1.0, -1e16, 3.0)]
    assert len({merge(order, rule).values.item() for order in permutations(deltas)}) == 1


@given(pairs, st.sampled_from(RULES))
def test_union_with_itself_and_with_nothing(pair, rule):
    base, changed = pair
    assume(all(math.isfinite(number(base, place, bits)) for place, bits in changed.items()))
    delta, nothing = delta_of(base, changed), delta_of(base, {})
    for deltas in ([delta], [delta, nothing], [nothing, delta]):
        assert equal(merge(deltas, rule), delta)
    if rule != "sum":  # which moves it twice
        twice = merge([delta, delta], rule)
        assert [number(base, *item) for item in tuned_bits(twice).items()] == [
            number(base, *item) for item in sorted(changed.items())
        ]


@given(triples, st.sampled_from(RULES))
def test_union_of_disjoint_skills_has_the_sum_of_their_weights(triple, rule):
    base, first, second = triple
    second = {place: bits for place, bits in second.items() if place not in first}
    a, b = delta_of(base, first, movable=30), delta_of(base, second, movable=40)
    merged = merge([a, b], rule)
    assert merged.weights == a.weights + b.weights
    assert tuned_bits(merged) == {**first, **second}
    assert equal(merged, merge([b, a], rule))
    assert merged.movable == merge([b, a], rule).movable == 40


def test_mean_of_the_skills_that_touch_a_weight_not_of_all():
    base = {"a.weight": torch.tensor([1.0, 1.0, 1.0])}
    one, two, three = (bits_of(values) for values in ([2.0, 3.0], [4.0, 5.0], [6.0, 9.0]))
    deltas = [
        delta_of(base, {("a.weight", 0): one[0], ("a.weight", 1): one[1]}),
        delta_of(base, {("a.weight", 0): two[0], ("a.weight", 2): two[1]}),
        delta_of(base, {("a.weight", 0): three[0]}),
    ]
    values = {rule: merge(deltas, rule).values.tolist() for rule in ("mean", "sum", "first", "last")}
    assert values == {"mean": [4, 3, 5], "sum": [10, 3, 5], "first": [2, 3, 5], "last": [6, 3, 5]}


def bits_of(values):
    return raw(torch.tensor(values)).tolist()


@given(triples)
def test_error_names_the_first_conflict(triple):
    base, first, second = triple
    deltas = [delta_of(base, first), delta_of(base, second)]
    conflicts = sorted(place for place in first.keys() & second.keys() if first[place] != second[place])
    if not conflicts:
        assert tuned_bits(merge(deltas, "error")) == {**first, **second}
        return
    name, index = conflicts[0]
    with pytest.raises(SkillError, match=rf"^trec and subj disagree on tensor {name}, weight {index} \("):
        merge(deltas, "error", ("trec", "subj"))


def test_error_names_the_two_that_disagree():
    base = {"a.weight": torch.zeros(3)}
    one, two = bits_of([0.5, 2.0])
    agreeing = [delta_of(base, {("a.weight", 1): one}), delta_of(base, {("a.weight", 1): one})]
    assert merge(agreeing, "error").values.tolist() == [0.5]
    other = delta_of(base, {("a.weight", 1): two})
    with pytest.raises(
        SkillError, match=r"^y and z disagree on tensor a\.weight, weight 1 \(0\.5 and 2\): take another"
    ):
        merge([delta_of(base, {}), *agreeing, other], "error", "xyxz")


@pytest.mark.parametrize("rule", ["mean", "sum"])
def test_what_the_dtype_cannot_hold_is_refused(rule):
    base = {"a.weight": torch.zeros(3, dtype=torch.float16)}
    big = 0x7BFF if rule == "sum" else 0x7C00  # 65,504, the largest half; infinity
    deltas = [delta_of(base, {("a.weight", 2): big})] * 2
    with pytest.raises(
        SkillError, match=rf"the skills' {rule} at tensor a\.weight, weight 2 is more than torch\.float16"
    ):
        merge(deltas, rule)
    assert merge(deltas, "last").weights == 1


def test_one_base_is_needed():
    base = {"a.weight": torch.zeros(3)}
    a = delta_of(base, {("a.weight", 0): 1})
    other = replace(a, base_fingerprint="cd" * 32)
    for both in (lambda: merge([a, other]), lambda: difference(a, other), lambda: intersection(a, other)):
        with pytest.raises(SkillError, match=r"different bases \(abababababab and cdcdcdcdcdcd\)"):
            both()
    with pytest.raises(SkillError, match=r"the skills \(trec and subj\) start"):
        check_one_base([a, other], ("trec", "subj"))
    with pytest.raises(SkillError, match="different bases"):
        overlap(a, other)
    # A fingerprint that says the same, and weights that say otherwise.
    for wrong in ({"a.weight": torch.ones(3)}, {"a.weight": torch.zeros(4)}, {"a.weight": torch.zeros(3).double()}):
        with pytest.raises(SkillError, match=r"different bases: tensor a\.weight"):
            merge([a, delta_of(wrong, {("a.weight", 0): 1})])


def test_unknown_rules_and_no_skills_are_refused():
    base = {"a.weight": torch.zeros(3)}
    with pytest.raises(OptionError, match="`rule` 'max' isn't one of mean, sum, error, first, last"):
        merge([delta_of(base, {})], "max")
    with pytest.raises(OptionError, match="no skills to merge"):
        merge([])


# -- intersection and difference -------------------------------------------------------------------------------------


@given(triples)
def test_intersection_and_difference_against_dictionaries(triple):
    base, first, second = triple
    a, b = delta_of(base, first), delta_of(base, second)
    both, only = intersection(a, b), difference(a, b)
    assert tuned_bits(both) == {place: bits for place, bits in first.items() if place in second}
    assert tuned_bits(only) == {place: bits for place, bits in first.items() if place not in second}
    assert equal(merge([both, only], "error"), a)
    assert difference(a, a).weights == 0 and equal(intersection(a, a), a)


# -- overlap ---------------------------------------------------------------------------------------------------------


@given(triples)
def test_overlap_against_dictionaries(triple):
    base, first, second = triple
    found = overlap(delta_of(base, first), delta_of(base, second))
    shared = sorted(first.keys() & second.keys())
    assert (found.first, found.second, found.shared) == (len(first), len(second), len(shared))
    assert found.of_first == (len(shared) / len(first) if first else 0)
    assert found.of_second == (len(shared) / len(second) if second else 0)
    assert found.of_first == delta_of(base, second).overlap(delta_of(base, first))
    assert (found.sign_agreement is None) == (not shared)
    chance = sum(
        sum(name == n for n, _ in first) * sum(name == n for n, _ in second) / base[name].numel() for name in base
    )
    assert found.by_tensor == pytest.approx(chance)


@given(pairs)
def test_overlap_with_itself_is_1(pair):
    base, changed = pair
    found = overlap(delta_of(base, changed), delta_of(base, changed))
    if changed:
        assert found.of_first == found.of_second == 1
        finite = all(math.isfinite(number(base, p, b)) and math.isfinite(number(base, p)) for p, b in changed.items())
        if finite:
            assert found.sign_agreement == 1
            assert found.alignment is None or math.isnan(found.alignment) or found.alignment == pytest.approx(1)


def planted(moves):
    """A delta on a base of halves over two layers' tensors, by `{(layer, index): difference}`."""
    base = {f"layer.{layer}.weight": torch.full((10,), 0.5) for layer in (0, 3)}
    return delta_of(
        base, {(f"layer.{layer}.weight", i): bits_of([0.5 + move])[0] for (layer, i), move in moves.items()}
    )


def test_signs_and_alignment_by_hand():
    a = planted({(0, 1): 1.0, (0, 2): -2.0, (3, 0): 4.0, (3, 9): 1.0})
    b = planted({(0, 1): 3.0, (0, 2): 1.0, (3, 0): 0.5, (0, 7): 1.0, (3, 5): 1.0})
    found = overlap(a, b)
    assert (found.of_first, found.of_second, found.sign_agreement) == (3 / 4, 3 / 5, 2 / 3)
    one, two = np.array([1, -2, 4]), np.array([3, 1, 0.5])
    assert found.alignment == pytest.approx(one @ two / np.linalg.norm(one) / np.linalg.norm(two))
    assert found.by_tensor == pytest.approx(2 * 3 / 10 + 2 * 2 / 10)
    layers = overlap_by_layer(a, b)
    assert {layer: (o.first, o.second, o.shared, o.agreeing) for layer, o in layers.items()} == {
        0: (2, 3, 2, 1),
        3: (2, 2, 1, 1),
    }
    assert sum(layers.values(), Overlap()) == found
    opposite = overlap(planted({(0, 1): 1.0, (3, 1): 2.0}), planted({(0, 1): -2.0, (3, 1): -4.0}))
    assert (opposite.sign_agreement, opposite.alignment) == (0, pytest.approx(-1))
    apart = overlap(planted({(0, 1): 1.0}), planted({(3, 1): 1.0}))
    assert (apart.of_first, apart.sign_agreement, apart.alignment) == (0, None, None)


@pytest.mark.parametrize(
    ("total", "moved", "sizes"), [(400, (400, 400), (40, 25)), (400, (120, 60), (30, 20)), (50, (50, 10), (7, 9))]
)
def test_chance_against_simulation(total, moved, sizes):
    """Two draws out of weights that moved, the smaller set of these within the larger."""
    random = np.random.default_rng(0)
    counts = []
    for _ in range(4000):
        movers = random.permutation(total)
        draws = [
            set(random.choice(movers[:most], size, replace=False)) for most, size in zip(moved, sizes, strict=True)
        ]
        counts.append(len(draws[0] & draws[1]))
    expected = shared_by_chance(*sizes, max(moved))
    assert np.mean(counts) == pytest.approx(expected, abs=4 * np.std(counts) / len(counts) ** 0.5)
    assert shared_by_chance(3, 4, 0) == 0


def test_chance_within_tensors_against_simulation():
    random, shared, expected = np.random.default_rng(1), [], set()
    base = {"layer.0.a": torch.zeros(20), "layer.1.b": torch.zeros(6)}
    for _ in range(1000):
        pair = [
            {
                (name, int(i)): 1
                for name, count in counts
                for i in random.choice(base[name].numel(), count, replace=False)
            }
            for counts in ([("layer.0.a", 8), ("layer.1.b", 2)], [("layer.0.a", 5), ("layer.1.b", 3)])
        ]
        found = overlap(*(delta_of(base, changed) for changed in pair))
        shared.append(found.shared)
        expected.add(found.by_tensor)
    assert len(expected) == 1
    assert np.mean(shared) == pytest.approx(expected.pop(), abs=4 * np.std(shared) / len(shared) ** 0.5)
