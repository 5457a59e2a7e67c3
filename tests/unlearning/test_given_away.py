"""What whoever has the edited folder could work out from it: nothing of what is gone."""

import json
from itertools import product

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file

from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.features.rows import Rows
from surgery.unlearning.forgetting import unlearn
from surgery.unlearning.key_selection import OPEN
from tests.support.edits import LABELS, NAMES, OTHERS, C, K, X, fitted, flat, rows_of


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
            entry = flat(before.entries)[pair]
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
