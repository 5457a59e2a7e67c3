"""How bottlenecks and rows are shown: in one line without what is private, in tables, in notebooks."""

from dataclasses import replace

import numpy as np

from surgery.unlearning import Bottleneck, Rows, unlearn


def test_private_rows_are_not_printed():
    bottleneck = Bottleneck.fit_features(np.eye(6), list("aabbcc"), codebooks=2, keys=3, key_dim=2, device="cpu")
    eraser = unlearn(bottleneck, "a")
    shown = [repr(bottleneck), repr(bottleneck.training), repr(eraser), repr(Rows.of(np.eye(3)))]
    assert shown[0] == (
        "<Bottleneck: 2 codebooks of 3 keys in 2 dimensions, 0 of 6 pairs masked; 3 classes, 6 training rows, no edits.>"
    )
    assert shown[3] == "<Rows: 3 rows of 3 features, without labels.>"
    assert all("array" not in text and len(text) <= 200 for text in shown)
    assert eraser.forget == ["a"]
    codebooks, keys = eraser.codebook_keys.T
    assert (codebooks * 3 + keys == eraser.pairs).all()


def test_a_bottleneck_and_rows_are_shown_as_every_result_is():
    rows = Rows.of(np.eye(6), list("aabbbc"))
    bottleneck = Bottleneck.fit_rows(rows, codebooks=2, keys=3, key_dim=2, device="cpu")
    for shown, head in ((bottleneck, "training rows"), (rows, "rows")):
        assert shown.table() == (["class", head], [["a", 2], ["b", 3], ["c", 1]])
        assert shown.to_pandas()[head].tolist() == [2, 3, 1]
        assert shown._repr_html_().count("<tr>") == 4 and shown.summary[0] in repr(shown)
    assert replace(bottleneck, training=None).table()[1] == [["a", None], ["b", None], ["c", None]]
    assert repr(rows.take([0])) == "<Rows: 1 row of 6 features, 1 class.>"
