"""unlearn(): what each method changes and leaves, which pairs it picks, and what is refused."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import BottleneckError, OptionError, TaskError
from surgery.progress import silent
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.forget_set import ForgetSet
from surgery.unlearning.forgetting import unlearn
from surgery.unlearning.key_selection import CLOSED, OPEN, SILENT
from tests.support.edits import LABELS, MASKS, NAMES, REST, C, K, X, fitted, flat, rows_of


@pytest.mark.parametrize("values", ["sgd", "counts"])
@pytest.mark.parametrize("top", [1, 3])
@pytest.mark.parametrize("how", [*MASKS, *REST], ids=lambda how: "-".join(how.values()))
@pytest.mark.parametrize(
    "what", [{"forget": "ant"}, {"forget": ["bee", "ant"]}, {"rows": [4, 7, 30]}], ids=["class", "two", "rows"]
)
def test_only_listed_pairs_and_rows_change_and_undo_gives_them_back(values, top, how, what):
    before = fitted(values, top)
    if how["method"] == "counts" and values == "sgd":
        with pytest.raises(OptionError, match="`method` counts needs counted values"):
            unlearn(before, **what, **how)
        return
    edit = unlearn(before, **what, **how)
    after = edit.apply(before)
    gone = np.array(what["rows"]) if "rows" in what else rows_of(*np.atleast_1d(what["forget"]))
    rest = np.ones(C * K, bool)
    rest[edit.pairs] = False
    assert len(edit.pairs) == len(set(edit.pairs.tolist())) == edit.edit["pairs"]
    for old, new in ((before.entries, after.entries), (before.selector.states, after.selector.states)):
        np.testing.assert_array_equal(flat(old)[rest], flat(new)[rest])
    for name in ("center", "projections", "keys"):
        assert getattr(before.selector, name) is getattr(after.selector, name)
    masks = how["method"] in ("activations", "examples")
    states = flat(after.selector.states)[edit.pairs]
    assert (states == ({"next": CLOSED, "drop": SILENT}[how["answer"]] if masks else OPEN)).all()
    assert edit.masked == edit.edit["masked"] == (len(edit.pairs) if masks else 0)
    if masks:
        assert not flat(after.entries)[edit.pairs].any()
        active = {(c, k) for row in before.training.ids[gone].tolist() for c, ks in enumerate(row) for k in ks}
        assert {divmod(pair, K) for pair in edit.pairs.tolist()} <= active
        assert edit.edit["active"] == len(active)
        for name, old, new in (("values", flat(before.values), flat(after.values)),):  # also of counted ones
            np.testing.assert_array_equal(old[rest], new[rest], name)
    stay = np.delete(np.arange(len(X)), gone)
    for name in ("features", "ids", "targets", "digests"):
        np.testing.assert_array_equal(getattr(after.training, name), getattr(before.training, name)[stay])
    assert edit.undo(after).fingerprint == before.fingerprint != after.fingerprint
    if "forget" in what and (how.get("answer") != "drop"):
        forgotten = set(np.atleast_1d(what["forget"]).tolist())
        if "not enough" not in (edit.edit["rule"] or ""):
            answered = after.predict(X[gone]).tolist()
            assert not forgotten & set(answered)


def test_a_class_without_rows_is_not_answered_even_where_nothing_is_left_to_say():
    """Classes far apart: no row of another class ever selects the forgotten one's keys."""
    targets = np.arange(60) % 3
    features = (np.eye(3)[targets] * 50 + np.random.default_rng(0).standard_normal((60, 3))).astype(np.float32)
    for values, via in product(("sgd", "counts"), ("activations", "examples", "refit", "counts")):
        if (values, via) == ("sgd", "counts"):
            continue
        bottleneck = Bottleneck.fit_features(features, targets, codebooks=4, keys=9, key_dim=2, values=values)
        for number in range(3):
            assert (bottleneck.predict(features) == targets).all()
            after = unlearn(bottleneck, number, method=via).apply(bottleneck)
            answered = after.predict(features)
            assert not (answered[targets == number] == number).any()
            assert (answered == targets)[targets != number].all()


@pytest.mark.parametrize("what", [{"forget": "cat"}, {"rows": [0]}, {"rows": list(range(1, 80, 3))}])
@pytest.mark.parametrize("top", [1, 2])
def test_refit_is_the_bottleneck_fitted_on_the_rest_with_the_same_keys(what, top):
    for values in ("sgd", "counts"):
        before = fitted(values, top, keys_from=True)
        gone = rows_of("cat") if "forget" in what else np.array(what["rows"])
        stay = np.delete(np.arange(len(X)), gone)
        after = unlearn(before, **what, method="refit").apply(before)
        assert after.entries.tobytes() == before.refitted(stay).entries.tobytes()
        assert after.values.tobytes() == before.refitted(stay).values.tobytes()
        if "rows" in what:  # all classes are left, so that a fit of its own knows as many
            fresh = fitted(values, top, keys_from=True, X=X[stay], labels=LABELS[stay])
            assert fresh.selector.keys.tobytes() == before.selector.keys.tobytes()
            assert after.entries.tobytes() == fresh.entries.tobytes()
            assert after.values.tobytes() == fresh.values.tobytes()


@pytest.mark.parametrize("top", [1, 3])
def test_counts_without_a_row_are_the_counts_of_the_rest(top):
    """Single rows and classes, keys from other rows: bit for bit a fit on the rest."""
    before = fitted("counts", top, keys_from=True)
    everything = [{"rows": [row]} for row in range(40)] + [{"forget": name} for name in NAMES] + [{"rows": [1, 2, 50]}]
    for what in everything:
        gone = np.array(what["rows"]) if "rows" in what else rows_of(what["forget"])
        stay = np.delete(np.arange(len(X)), gone)
        edit = unlearn(before, **what, method="counts")
        after = edit.apply(before)
        assert edit.edit["keys_saw_them"] == 0
        fewer = before.entries.astype(int) - after.entries
        assert fewer.sum() == len(gone) * C * top and fewer.min() == 0
        expected = np.zeros(before.entries.shape, int)
        for row in gone:
            for codebook, chosen in enumerate(before.training.ids[row].tolist()):
                for key in chosen:
                    expected[codebook, key, NAMES.index(LABELS[row])] += 1
        np.testing.assert_array_equal(fewer, expected)
        assert after.entries.tobytes() == before.refitted(stay).entries.tobytes()
        assert after.values.tobytes() == before.refitted(stay).values.tobytes()
    fresh = fitted("counts", top, keys_from=True, X=X[stay], labels=LABELS[stay])
    assert after.entries.tobytes() == fresh.entries.tobytes() and after.values.tobytes() == fresh.values.tobytes()


def test_edits_after_masks_neither_count_below_zero_nor_bring_masked_values_back():
    before = fitted("counts")
    masked = unlearn(before, "ant", keys=20).apply(before)
    closed = flat(masked.selector.states)[:, 0] != OPEN
    for via in ("counts", "refit"):
        after = unlearn(masked, "bee", method=via).apply(masked)
        assert (after.entries >= 0).all() and np.isfinite(after.values).all()
        assert not flat(after.entries)[closed].any()
        assert not (after.predict(X[rows_of("bee")]) == "bee").any()
    learnt = fitted("sgd")
    masked = unlearn(learnt, "ant", keys=20).apply(learnt)
    closed = flat(masked.selector.states)[:, 0] != OPEN
    after = unlearn(masked, "bee", method="refit").apply(masked)
    assert not flat(after.entries)[closed].any()
    np.testing.assert_array_equal(
        flat(after.entries)[~closed], flat(learnt.refitted(rows_of("cat", "dog")).entries)[~closed]
    )


@pytest.mark.parametrize("answer", ["next", "drop"])
def test_masking_everything_makes_rows_abstain_and_never_answers_the_first_class(answer):
    before = fitted()
    pairs = np.arange(C * K)
    after = before.masked(pairs, answer)
    assert after.predict(X).tolist() == [None] * len(X)
    found = after.answer(X)
    assert found.abstained.all() and (found.targets == -1).all() and not found.logits.any()


def test_drop_lets_a_row_abstain_and_next_answers_it():
    before = fitted()
    row = before.training.ids[7, :, 0].astype(int) + np.arange(C) * K
    dropped, nexted = (before.masked(row, answer) for answer in ("drop", "next"))
    assert dropped.predict(X[7:8]).tolist() == [None]
    assert nexted.predict(X[7:8])[0] in NAMES
    others = [i for i in range(len(X)) if not (before.training.ids[i] == before.training.ids[7]).any()]
    assert others
    np.testing.assert_array_equal(dropped.answer(X[others]).logits, before.answer(X[others]).logits)


def test_rules_and_given_numbers():
    before = fitted()
    active = unlearn(before, "ant").edit["active"]
    for number in (1, 5, active):
        edit = unlearn(before, "ant", keys=number)
        assert len(edit.pairs) == number and edit.edit["rule"] == "given"
    for number in (1, 5, 20):
        edit = unlearn(before, "ant", method="examples", examples=number, seed=3)
        chosen = np.random.default_rng([3, 3]).permutation(20)[:number]
        expected = {(c, int(k)) for row in rows_of("ant")[chosen] for c, k in enumerate(before.training.ids[row, :, 0])}
        assert {divmod(pair, K) for pair in edit.pairs.tolist()} == expected
    one = unlearn(before, "ant", method="examples", examples=5, seed=1)
    again = unlearn(before, "ant", method="examples", examples=5, seed=1)
    assert one.pairs.tolist() == again.pairs.tolist() and one.edit == again.edit and one.hash != again.hash
    assert one.hash != unlearn(before, "ant", method="examples", examples=5, seed=2).hash


def test_single_rows_are_masked_until_no_more_are_right_than_after_refitting():
    before = fitted()
    for rows in ([3], [5, 6], list(range(0, 80, 2))):
        edit = unlearn(before, rows=rows, method="activations")
        after = edit.apply(before)
        refitted = before.refitted(np.delete(np.arange(80), rows))
        if "not enough" not in edit.edit["rule"]:
            right = [(model.predict(X[rows]) == LABELS[rows]).sum() for model in (after, refitted)]
            assert right[0] <= right[1]


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 30))
def test_the_best_pairs_by_plain_sorting(seed, rank, number):
    before = fitted("counts")
    rows = np.unique(np.random.default_rng(seed).integers(80, size=12))
    rank = ("influence", "count", "purity")[rank - 1]
    mine, everyone, says = {}, {}, {}
    for row, chosen in enumerate(before.training.ids[:, :, 0].tolist()):
        for codebook, key in enumerate(chosen):
            pair = codebook * K + key
            everyone[pair] = everyone.get(pair, 0) + 1
            if row in rows:
                mine[pair] = mine.get(pair, 0) + 1
                says[pair] = says.get(pair, 0) + float(before.values[codebook, key, NAMES.index(LABELS[row])])
    score = {
        "count": lambda pair: mine[pair],
        "purity": lambda pair: mine[pair] / everyone[pair],
        "influence": lambda pair: says[pair] / (everyone[pair] - mine[pair] + 1),
    }[rank]
    forgotten = ForgetSet(before, rows, np.empty(0, np.int64), torch.device("cpu"), silent)
    scores = forgotten.scores(rank)
    assert forgotten.active.tolist() == sorted(mine)
    np.testing.assert_allclose(scores, [score(pair) for pair in sorted(mine)], rtol=1e-4, atol=1e-6)
    exact = dict(zip(forgotten.active.tolist(), scores.tolist(), strict=True))
    expected = sorted(exact, key=lambda pair: (-exact[pair], pair))[:number]
    assert forgotten.best(scores, number).tolist() == sorted(expected)
    assert forgotten.best(scores, 0).tolist() == []


def test_masked_pairs_are_no_longer_active():
    before = fitted()
    for answer in ("next", "drop"):
        masked = unlearn(before, "ant", answer=answer, method="examples", examples=20).apply(before)
        closed = np.flatnonzero(flat(masked.selector.states)[:, 0])
        for via in ("activations", "examples"):
            edit = unlearn(masked, "bee", method=via)
            assert not set(edit.pairs.tolist()) & set(closed.tolist())
            chosen = masked.select(X[rows_of("bee")])[:, :, 0].astype(int) + np.arange(C) * K
            assert edit.edit["active"] == len(set(chosen.ravel().tolist()) - set(closed.tolist()))


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"forget": "emu"}, TaskError, "no class 'emu' in this bottleneck: it knows ant, bee, cat, dog"),
        ({"forget": ["ant", "emu"]}, TaskError, "no class 'emu'"),
        ({"forget": 0}, TaskError, "no class 0"),
        ({"forget": []}, TaskError, "there is no class to forget"),
        ({"forget": ""}, TaskError, "no class ''"),
        ({"rows": []}, TaskError, "there are no rows to forget"),
        ({"rows": np.empty(0)}, TaskError, "there are no rows to forget"),
        ({"rows": [80]}, TaskError, "row 80 isn't one of the 80 training rows"),
        ({"rows": [3, -1]}, TaskError, "row -1 isn't one of"),
        ({"rows": np.arange(80) < 3}, TaskError, "rows to forget are of type bool: give their numbers"),
        ({"rows": np.array([1.5])}, TaskError, "rows to forget are of type float64"),
        ({"rows": range(80)}, TaskError, "that is every training row"),
        ({"forget": np.array([["ant"]])}, TaskError, "no class ['ant']"),
        ({"forget": "ant", "seed": -1}, OptionError, "`seed` -1 must be at least 0"),
        ({"forget": list(NAMES)}, TaskError, "that is every training row"),
        ({}, OptionError, "one of the two"),
        ({"forget": "ant", "rows": [1]}, OptionError, "one of the two"),
        ({"forget": "ant", "keys": 61}, OptionError, "`keys` 61 is more than the"),
        ({"forget": "ant", "keys": 0}, OptionError, "`keys` 0 must be at least 1"),
        (
            {"forget": "ant", "method": "examples", "examples": 21},
            OptionError,
            "`examples` 21 is more than the 20 forget rows",
        ),
        ({"forget": "ant", "method": "examples", "examples": 0}, OptionError, "`examples` 0 must be at least 1"),
        (
            {"forget": "ant", "method": "examples", "keys": 3},
            OptionError,
            "`keys` is an option of `method` activations",
        ),
        ({"forget": "ant", "examples": 3}, OptionError, "`examples` is an option of `method` examples"),
        ({"forget": "ant", "method": "refit", "keys": 3}, OptionError, "`keys` is an option of"),
        ({"forget": "ant", "method": "counts"}, OptionError, "`method` counts needs counted values"),
        (
            {"forget": "ant", "method": "magic"},
            OptionError,
            "`method` magic isn't one of activations, examples, refit, counts",
        ),
        ({"forget": "ant", "rank": "age"}, OptionError, "`rank` age isn't one of"),
        ({"forget": "ant", "answer": "no"}, OptionError, "`answer` no isn't one of next, drop"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(asked, error, message):
    with pytest.raises(error) as raised:
        unlearn(fitted(), **asked)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_class_that_was_forgotten_before_and_the_last_ones_left():
    now = fitted()
    for name in ("ant", "bee", "cat"):
        now = unlearn(now, name, method="refit").apply(now)
        with pytest.raises(TaskError, match=f"class '{name}' has no training rows left: it was forgotten before"):
            unlearn(now, name)
    assert set(now.predict(X).tolist()) == {"dog"}
    with pytest.raises(TaskError, match="that is every training row"):
        unlearn(now, "dog")
    with pytest.raises(BottleneckError, match="comes without its training rows"):
        unlearn(replace(now, training=None), "dog")


def test_the_earlier_name_of_method_goes_on_working_and_says_so():
    with pytest.warns(DeprecationWarning, match="called method= now") as said:
        edit = unlearn(fitted(), "ant", via="refit")
    assert edit.edit == unlearn(fitted(), "ant", method="refit").edit
    assert len(said) == 1
    with pytest.raises(OptionError, match="two names of one option"):
        unlearn(fitted(), "ant", via="refit", method="refit")
