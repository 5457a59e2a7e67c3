"""What is to be forgotten: classes by name, rows by number or content with their twins, and the method usual for each."""

import numpy as np
import pytest
import torch

from surgery.errors import OptionError, TaskError
from surgery.unlearning.features.rows import Rows
from surgery.unlearning.forgetting import unlearn
from tests.support.edits import LABELS, NAMES, X, fitted


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
        assert after.entries.tobytes() == exact.refitted(rest).entries.tobytes()
        assert not np.isin(after.predict(X), forget).any()
    for asked in ({"keys": 3}, {"rank": "purity"}, {"answer": "drop"}, {"method": "activations"}):
        assert unlearn(exact, "ant", **asked).edit["via"] == "activations"
    for other in (fitted("counts"), fitted("sgd", keys_from=True)):
        assert unlearn(other, "ant").edit["via"] == "activations"
