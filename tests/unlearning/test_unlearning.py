"""Edits of a bottleneck: what each kind changes and leaves, what it gives away, and the way back, bit for bit."""

import json
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from surgery.errors import BottleneckError, OptionError, TaskError
from surgery.progress import silent
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.eraser import Eraser
from surgery.unlearning.features.rows import Rows
from surgery.unlearning.forget_set import ForgetSet
from surgery.unlearning.forgetting import unlearn
from surgery.unlearning.key_selection import CLOSED, OPEN, SILENT
from surgery.unlearning.values import Sgd
from tests.support.tiny import hashes

NAMES = ("ant", "bee", "cat", "dog")
C, K, Y = 6, 10, len(NAMES)


def data(rows=80, seed=0, spread=2.0):
    """Classes that overlap a little, as rows and labels."""
    random = np.random.default_rng(seed)
    targets = np.arange(rows) % Y
    features = np.eye(5)[targets] * 4 + random.standard_normal((rows, 5)) * spread / 2
    return features.astype(np.float32), np.array(NAMES)[targets]


X, LABELS = data()
OTHERS = data(60, seed=9)[0]
MADE = {}


def fitted(values="sgd", top=1, keys_from=False, X=X, labels=LABELS, **more):  # noqa: N803
    """A bottleneck, made once a session: it never changes."""
    key = (values, top, keys_from, X.tobytes(), tuple(labels), str(more))
    if key not in MADE:
        MADE[key] = Bottleneck.fit_rows(
            Rows.of(X, labels),
            keys_from=Rows.of(OTHERS) if keys_from else None,
            values=values,
            **{"codebooks": C, "keys": K, "key_dim": 3, "sgd": Sgd(epochs=3), "top": top, **more},
        )
    return MADE[key]


def flat(array):
    return array.reshape(C * K, -1)


def rows_of(*names):
    return np.flatnonzero(np.isin(LABELS, names))


MASKS = [
    *(
        {"method": "activations", "rank": r, "answer": a}
        for r, a in product(("influence", "count", "purity"), ("next", "drop"))
    ),
    *({"method": "examples", "answer": a} for a in ("next", "drop")),
]
REST = [{"method": "refit"}, {"method": "counts"}]


# -- what edits do ---------------------------------------------------------------------------------------------------


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
    for old, new in ((before.table, after.table), (before.selector.states, after.selector.states)):
        np.testing.assert_array_equal(flat(old)[rest], flat(new)[rest])
    for name in ("center", "projections", "keys"):
        assert getattr(before.selector, name) is getattr(after.selector, name)
    masks = how["method"] in ("activations", "examples")
    states = flat(after.selector.states)[edit.pairs]
    assert (states == ({"next": CLOSED, "drop": SILENT}[how["answer"]] if masks else OPEN)).all()
    assert edit.masked == edit.edit["masked"] == (len(edit.pairs) if masks else 0)
    if masks:
        assert not flat(after.table)[edit.pairs].any()
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
        assert after.table.tobytes() == before.refitted(stay).table.tobytes()
        assert after.values.tobytes() == before.refitted(stay).values.tobytes()
        if "rows" in what:  # all classes are left, so that a fit of its own knows as many
            fresh = fitted(values, top, keys_from=True, X=X[stay], labels=LABELS[stay])
            assert fresh.selector.keys.tobytes() == before.selector.keys.tobytes()
            assert after.table.tobytes() == fresh.table.tobytes()
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
        fewer = before.table.astype(int) - after.table
        assert fewer.sum() == len(gone) * C * top and fewer.min() == 0
        expected = np.zeros(before.table.shape, int)
        for row in gone:
            for codebook, chosen in enumerate(before.training.ids[row].tolist()):
                for key in chosen:
                    expected[codebook, key, NAMES.index(LABELS[row])] += 1
        np.testing.assert_array_equal(fewer, expected)
        assert after.table.tobytes() == before.refitted(stay).table.tobytes()
        assert after.values.tobytes() == before.refitted(stay).values.tobytes()
    fresh = fitted("counts", top, keys_from=True, X=X[stay], labels=LABELS[stay])
    assert after.table.tobytes() == fresh.table.tobytes() and after.values.tobytes() == fresh.values.tobytes()


def test_edits_after_masks_neither_count_below_zero_nor_bring_masked_values_back():
    before = fitted("counts")
    masked = unlearn(before, "ant", keys=20).apply(before)
    closed = flat(masked.selector.states)[:, 0] != OPEN
    for via in ("counts", "refit"):
        after = unlearn(masked, "bee", method=via).apply(masked)
        assert (after.table >= 0).all() and np.isfinite(after.values).all()
        assert not flat(after.table)[closed].any()
        assert not (after.predict(X[rows_of("bee")]) == "bee").any()
    learnt = fitted("sgd")
    masked = unlearn(learnt, "ant", keys=20).apply(learnt)
    closed = flat(masked.selector.states)[:, 0] != OPEN
    after = unlearn(masked, "bee", method="refit").apply(masked)
    assert not flat(after.table)[closed].any()
    np.testing.assert_array_equal(
        flat(after.table)[~closed], flat(learnt.refitted(rows_of("cat", "dog")).table)[~closed]
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


def test_classes_by_name_or_number_and_rows_by_content():
    numbers = fitted(labels=np.array([10 * NAMES.index(name) for name in LABELS]))
    assert unlearn(numbers, "20").edit == unlearn(numbers, 20).edit == unlearn(numbers, [20, 20]).edit
    assert unlearn(numbers, 20).edit["forget"] == [20]
    for first in (np.int64(0), np.array([0])):
        assert unlearn(numbers, first).edit == unlearn(numbers, 0).edit
    before = fitted()
    found = before.training.find(Rows.of(X[[8, 3]]).digests)
    assert found.tolist() == [3, 8]
    for rows in ([3, 8], (8, 3, 3), np.array([8, 3]), found, found.astype(np.uint8)):
        assert unlearn(before, rows=rows).positions.tolist() == [3, 8]
    with pytest.raises(TaskError, match="row 1 of those to forget, counted from 0, is none of the 80"):
        before.training.find(Rows.of(np.stack([X[8], X[8] + 1])).digests)


@pytest.mark.parametrize("via", ["refit", "activations", "counts"])
@pytest.mark.parametrize(
    "asked",
    [{"rows": [1]}, {"rows": [81]}, {"rows": [1, 81]}, {"examples": X[1:2]}, {"examples": X[[1, 1]]}],
    ids=["1", "81", "both", "content", "twice"],
)
def test_twins_of_a_row_go_with_it_by_number_and_by_content(asked, via):
    """Row 1 again as row 81, under another label: what is left must not hold it."""
    labels = np.concatenate([LABELS, LABELS[4:8]])
    labels[81] = "dog"
    twice = fitted("counts" if via == "counts" else "sgd", X=np.concatenate([X, X[:4]]), labels=labels)
    assert twice.training.find(Rows.of(X[1:2]).digests).tolist() == [1, 81]
    edit = unlearn(twice, **asked, method=via)
    after = edit.apply(twice)
    assert edit.positions.tolist() == [1, 81] and edit.edit["rows"] == 2 and edit.edit["twins"] == 1
    digest = Rows.of(X[1:2]).digests[0]
    assert digest not in after.training.digests and digest not in after.training.placed
    assert not (after.training.features == X[1]).all(1).any()
    assert edit.undo(after).fingerprint == twice.fingerprint
    assert unlearn(twice, "ant").edit["twins"] == 0


CONTENT = {
    "array": lambda folder: X[[8, 3]],
    "float64": lambda folder: X[[8, 3]].astype(np.float64),
    "tensor": lambda folder: torch.from_numpy(X[[8, 3]]),
    "tensor of float64": lambda folder: torch.from_numpy(X[[8, 3]]).double(),
    "lists": lambda folder: X[[8, 3]].tolist(),
    "list of rows": lambda folder: [X[8], X[3]],
    "list of tensors": lambda folder: [torch.from_numpy(X[8]), torch.from_numpy(X[3])],
    "Rows": lambda folder: Rows.of(X[[8, 3]]),
    "labelled Rows": lambda folder: Rows.of(X, LABELS).take([8, 3]),
    "file": lambda folder: np.savez(folder / "rows.npz", X=X[[8, 3]]) or folder / "rows.npz",
    "name of a file": lambda folder: np.savez(folder / "rows.npz", X=X[[8, 3]]) or str(folder / "rows.npz"),
}


@pytest.mark.parametrize("kind", CONTENT)
def test_rows_by_content_of_any_kind(kind, tmp_path):
    edit = unlearn(fitted(), examples=CONTENT[kind](tmp_path))
    assert edit.positions.tolist() == [3, 8] and edit.edit == unlearn(fitted(), rows=[3, 8]).edit


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (X[8:10] + 1, "row 0 of those to forget, counted from 0, is none of the 80 training rows"),
        (np.stack([X[8], X[9] + 1]), "row 1 of those to forget"),
        (X[8:10, :4], "row 0 of those to forget"),
        (["a text"], "row 0 of those to forget"),
        ([], "there are no rows to forget"),
        (X[8], "aren't rows"),
        (np.empty((0, 5)), "aren't rows"),
        ([[1.0], [1.0, 2.0]], "aren't rows of one length"),
        ("nowhere.npz", "there is no such file"),
        (2.5, "rows to forget can't be a float"),
        ({"text": "a"}, "rows to forget can't be a dict"),
        ([{"label": "a"}], "give tables with text"),
    ],
)
def test_content_that_no_training_row_has_is_refused(content, message):
    with pytest.raises(TaskError) as raised:
        unlearn(fitted(), examples=content)
    assert message in str(raised.value)


def test_an_integer_still_says_how_many_examples():
    for number in (5, np.int64(5)):
        assert unlearn(fitted(), "ant", method="examples", examples=number).edit["examples"] == 5
    with pytest.raises(OptionError, match="one of the two"):
        unlearn(fitted(), rows=[3], examples=X[:1])
    with pytest.raises(OptionError, match="one of the two"):
        unlearn(fitted(), "ant", examples=X[:1])
    edit = unlearn(fitted(), examples=X[:8], method="examples")
    assert edit.positions.tolist() == list(range(8)) and edit.edit["via"] == "examples"


def test_single_rows_are_forgotten_by_refitting_or_counts_unless_masks_are_asked_for():
    assert unlearn(fitted(), rows=[3]).edit["via"] == "refit"
    assert unlearn(fitted(values="counts"), rows=[3]).edit["via"] == "counts"
    assert unlearn(fitted(), "ant").edit["via"] == "activations"


def test_counts_are_the_way_where_they_are_exact_unless_a_mask_is_asked_for():
    exact = fitted("counts", keys_from=True)
    for forget in ("ant", ["bee", "cat"]):
        edit = unlearn(exact, forget)
        after = edit.apply(exact)
        assert edit.edit["via"] == "counts" and not edit.edit["keys_saw_them"]
        rest = np.flatnonzero(~np.isin(LABELS, forget))
        assert after.table.tobytes() == exact.refitted(rest).table.tobytes()
        assert not np.isin(after.predict(X), forget).any()
    for asked in ({"keys": 3}, {"rank": "purity"}, {"answer": "drop"}, {"method": "activations"}):
        assert unlearn(exact, "ant", **asked).edit["via"] == "activations"
    for other in (fitted("counts"), fitted("sgd", keys_from=True)):
        assert unlearn(other, "ant").edit["via"] == "activations"


# -- what a reader of the edited folder could work out ----------------------------------------------------------------


def test_the_center_does_not_give_a_deleted_row_away():
    before = fitted()
    after = unlearn(before, rows=[7]).apply(before)
    guess = len(X) * after.selector.center.astype(np.float64) - after.training.features.sum(0, dtype=np.float64)
    others = np.linalg.norm(X - X[7], axis=1)
    assert np.linalg.norm(guess - X[7]) > np.median(others)  # a guess at random does better


def test_nothing_confirms_a_guess_at_the_deleted_row(tmp_path):
    """No hash in the folder follows from what is in it and the right row."""
    before = fitted("counts", keys_from=True)
    edit = unlearn(before, rows=[7])
    after = edit.apply(before)
    after.save(tmp_path / "forgot")
    said = b"".join(file.read_bytes() for file in (tmp_path / "forgot").iterdir())
    assert before.report["inputs"] and after.report["inputs"] == {}
    for secret in (before.fingerprint, before.report["inputs"]["rows"], edit.salt.tobytes()):
        assert (secret.encode() if isinstance(secret, str) else secret) not in said
    again = unlearn(before, rows=[7])  # what an attacker with the right guess would do
    assert again.edit == edit.edit and again.hash != edit.hash
    assert edit.undo(after).report == before.report


def test_rows_that_placed_keys_are_listed_once_whoever_else_was_there():
    twice = fitted(X=np.concatenate([X, X[:4]]), labels=np.concatenate([LABELS, LABELS[:4]]))
    after = unlearn(twice, rows=[1]).apply(twice)
    assert after.training.placed.tolist() == sorted(set(after.training.digests.tolist()))


# -- the order of pairs ----------------------------------------------------------------------------------------------


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


# -- what is given away ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "via"),
    [*product(("sgd", "counts"), ("activations", "examples", "refit")), ("counts", "counts")],
)
def test_the_folder_to_give_away_holds_nothing_of_what_is_gone(values, via, tmp_path):
    before = fitted(values)
    edit = unlearn(before, "dog", method=via)
    after = edit.apply(before)
    after.save(tmp_path / "forgot")
    edit.save(tmp_path / "eraser")
    content = b"".join(file.read_bytes() for file in (tmp_path / "forgot").iterdir())
    kept = (tmp_path / "eraser" / "eraser.safetensors").read_bytes()
    for row in rows_of("dog"):
        digest = xxhash.xxh3_64_intdigest(X[row].tobytes())
        secrets = [digest.to_bytes(8, "little"), f"{digest:016x}".encode(), str(digest).encode(), X[row].tobytes()]
        assert not any(secret in content for secret in secrets)
        assert secrets[0] in kept and secrets[-1] in kept
    stored = load_file(tmp_path / "forgot" / "model.safetensors")
    if edit.masked:
        assert not flat(stored["table"])[flat(stored["states"])[:, 0] != OPEN].any()
        for pair in edit.pairs:
            entry = flat(before.table)[pair]
            assert values == "counts" or entry.tobytes() not in content
    training = load_file(tmp_path / "forgot" / "training.safetensors")
    assert (training["targets"] != NAMES.index("dog")).all() and len(training["placed"]) == 60
    note = json.loads((tmp_path / "forgot" / "config.json").read_text())["history"]
    assert [one["hash"] for one in note] == [edit.hash] and "positions" not in note[0]


def test_keys_from_other_rows_lose_only_what_they_saw():
    mixed = Bottleneck.fit_rows(
        Rows.of(X, LABELS), keys_from=Rows.of(np.concatenate([X[:10], OTHERS])), codebooks=C, keys=K, key_dim=3
    )
    edit = unlearn(mixed, rows=[2, 5, 40])
    assert edit.edit["keys_saw_them"] == 2
    after = edit.apply(mixed)
    assert len(after.training.placed) == 68
    assert not np.isin(Rows.of(X[[2, 5]]).digests, after.training.placed).any()
    assert edit.undo(after).fingerprint == mixed.fingerprint


# -- the way back ----------------------------------------------------------------------------------------------------


CHAINS = {
    "sgd": [
        {"forget": "ant"},
        {"rows": [3, 17], "method": "refit"},
        {"forget": "cat", "method": "examples", "answer": "drop"},
    ],
    "counts": [
        {"rows": [9], "method": "counts"},
        {"forget": "dog", "answer": "drop"},
        {"forget": "bee", "method": "counts"},
    ],
}


@pytest.mark.parametrize("values", ["sgd", "counts"])
def test_edits_chain_and_are_undone_in_order_to_the_same_files(values, tmp_path):
    fitted(values).save(tmp_path / "0")
    now, previous = Bottleneck.load(tmp_path / "0"), ""
    for number, how in enumerate(CHAINS[values]):
        edit = unlearn(now, **how)
        assert edit.previous == previous
        edit.save(tmp_path / f"eraser{number}")
        now = Eraser.load(tmp_path / f"eraser{number}").apply(now)
        now.save(tmp_path / f"{number + 1}")
        now, previous = Bottleneck.load(tmp_path / f"{number + 1}"), edit.hash
    erasers = [Eraser.load(tmp_path / f"eraser{number}") for number in range(3)]
    assert [one["hash"] for one in now.history] == [eraser.hash for eraser in erasers]
    for number, count in ((0, "2 later edits"), (1, "1 later edit ")):
        with pytest.raises(BottleneckError, match=f"{count}.*must be undone first") as error:
            erasers[number].undo(now)
        assert str(error.value).count(". ") == 0
    for number in (2, 1, 0):
        now = erasers[number].undo(now)
        now.save(tmp_path / f"back{number}")
        assert hashes(tmp_path / f"back{number}") == hashes(tmp_path / f"{number}")
        with pytest.raises(BottleneckError, match="undone already"):
            erasers[number].undo(now)


STEPS = st.fixed_dictionaries(
    {
        "how": st.sampled_from([*MASKS, *REST]),
        "names": st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        "rows": st.lists(st.integers(0, 60), min_size=1, max_size=5),
        "whole": st.booleans(),
    }
)


@settings(max_examples=30)
@given(st.sampled_from(["sgd", "counts"]), st.sampled_from([1, 2]), st.lists(STEPS, min_size=1, max_size=4))
def test_any_edits_undone_in_reverse_leave_no_trace(values, top, steps):
    start = now = fitted(values, top)
    done = []
    for step in steps:
        what = {"forget": step["names"]} if step["whole"] else {"rows": step["rows"]}
        try:
            edit = unlearn(now, **what, **step["how"])
        except (TaskError, OptionError):  # nothing left of it, or nothing that it could be done by
            continue
        after = edit.apply(now)
        assert (after.values == after.values).all() and (after.table >= 0).all() | (values == "sgd")
        assert not flat(after.table)[flat(after.selector.states)[:, 0] != OPEN].any()
        done.append((edit, now.fingerprint))
        now = after
    for edit, fingerprint in reversed(done):
        now = edit.undo(now)
        assert now.fingerprint == fingerprint
    assert now.fingerprint == start.fingerprint


def test_an_eraser_fits_one_bottleneck_once():
    before, other = fitted(), fitted("counts")
    edit = unlearn(before, "ant")
    after = edit.apply(before)
    with pytest.raises(BottleneckError, match="is applied already: undo it first"):
        edit.apply(after)
    with pytest.raises(BottleneckError, match="isn't applied to this bottleneck"):
        edit.undo(before)
    with pytest.raises(BottleneckError, match="belongs to another bottleneck"):
        edit.apply(other)
    with pytest.raises(BottleneckError, match=r"can be taken back from .* after its edit"):
        edit.undo(unlearn(other, "ant").apply(other))
    alone = replace(after, training=None)
    with pytest.raises(BottleneckError, match="comes without its training rows"):
        edit.undo(alone)


def tampered(bottleneck, name):
    selector, training = bottleneck.selector, bottleneck.training
    open_pair = np.flatnonzero(selector.states.reshape(-1) == OPEN)[0]
    if name == "table":
        table = bottleneck.table.copy()
        flat(table)[open_pair, 0] += 1
        return replace(bottleneck, table=table)
    if name == "keys":
        return replace(bottleneck, selector=replace(selector, keys=selector.keys + 1))
    if name == "states":
        states = selector.states.copy()
        states.reshape(-1)[open_pair] = SILENT
        return replace(bottleneck, selector=replace(selector, states=states))
    if name == "fewer":
        return replace(bottleneck, training=training.without(np.arange(30)))
    if name == "none":
        return replace(bottleneck, training=training.without(np.arange(len(training))))
    return replace(bottleneck, training=replace(training, features=training.features + 1))


@pytest.mark.parametrize("name", ["table", "keys", "states", "fewer", "none", "features"])
def test_a_bottleneck_changed_since_is_refused(name):
    before = fitted()
    edit = unlearn(before, "ant", keys=10)
    with pytest.raises(BottleneckError, match="doesn't give back the bottleneck"):
        edit.undo(tampered(edit.apply(before), name))


def test_erasers_are_saved_whole_and_damaged_ones_refused(tmp_path):
    before = fitted()
    edit = unlearn(before, "ant")
    edit.save(tmp_path / "eraser")
    again = Eraser.load(tmp_path / "eraser")
    again.save(tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "eraser") and again.hash == edit.hash

    def broken(name, change):
        folder = shutil.copytree(tmp_path / "eraser", tmp_path / name)
        change(folder)
        with pytest.raises(BottleneckError) as error:
            Eraser.load(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    def edit_array(name):
        def change(folder):
            arrays = {key: array.copy() for key, array in load_file(folder / "eraser.safetensors").items()}
            arrays[name].reshape(-1).view(np.uint8)[0] ^= 1
            save_file(arrays, folder / "eraser.safetensors")

        return change

    def edit_json(key, value):
        def change(folder):
            report = json.loads((folder / "report.json").read_text())
            report[key] = value
            (folder / "report.json").write_text(json.dumps(report))

        return change

    for name in load_file(tmp_path / "eraser" / "eraser.safetensors"):
        assert "was changed since" in broken(name, edit_array(name))
    assert "was changed since" in broken("json", edit_json("bottleneck", "0" * 64))
    assert "was changed since" in broken("edit", edit_json("edit", {**edit.edit, "forget": ["bee"]}))
    assert "isn't an eraser's folder" in broken("format", edit_json("format", "other"))
    assert "is damaged" in broken("keys", edit_json("edit", None))
    assert "is missing" in broken("gone", lambda folder: (folder / "eraser.safetensors").unlink())
    assert "holds no report.json" in broken("bare", lambda folder: (folder / "report.json").unlink())
    assert "can't be read" in broken("cut", lambda folder: (folder / "eraser.safetensors").write_bytes(b"12345"))
    assert "can't be read" in broken("text", lambda folder: (folder / "report.json").write_text("{"))
    assert "isn't a JSON table" in broken("list", lambda folder: (folder / "report.json").write_text("[]"))
    before.save(tmp_path / "bn")
    with pytest.raises(BottleneckError, match="isn't an eraser's folder"):
        Eraser.load(tmp_path / "bn")
    with pytest.raises(BottleneckError, match=r"holds no config\.json"):
        Bottleneck.load(tmp_path / "eraser")


def test_no_flipped_bit_of_an_eraser_is_loaded(tmp_path):
    edit = unlearn(fitted(), "ant")
    edit.save(tmp_path / "eraser")
    random, refused = np.random.default_rng(0), 0
    for name in ("eraser.safetensors", "report.json"):
        file = tmp_path / "eraser" / name
        whole = file.read_bytes()
        for _ in range(100):
            raw = bytearray(whole)
            raw[random.integers(len(raw))] ^= 1 << random.integers(8)
            file.write_bytes(raw)
            try:
                found = Eraser.load(tmp_path / "eraser")
            except BottleneckError:
                refused += 1
            else:  # a space in JSON, or the name of the checksum itself, which the hash makes up for
                assert found.hash == edit.hash
        file.write_bytes(whole)
    assert refused >= 180


# -- what is refused -------------------------------------------------------------------------------------------------


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
