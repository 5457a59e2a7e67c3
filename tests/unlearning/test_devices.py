"""Unlearning on a GPU: which results are the same bits there, and that nothing is left behind on another device.

Without a card its way is taken on the CPU, and walked with fake tensors.
"""

import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from surgery import devices
from surgery.errors import OptionError
from surgery.unlearning import Bottleneck, Encoder, Rows, fitting, key_selection, keys, unlearn, values, verify
from surgery.unlearning.evaluation.baselines import BASELINES
from surgery.unlearning.evaluation.comparison import run_baseline
from surgery.unlearning.evaluation.evaluator import Evaluator
from surgery.unlearning.keys import KEY_METHODS
from surgery.unlearning.values import Chosen, Sgd, Table, batches, learn_values
from tests.support.fake_card import CARD, fake_card

CPU = torch.device("cpu")
SIZES = {"codebooks": 6, "keys": 9, "key_dim": 3}
VIAS = (
    {"method": "activations"},
    {"method": "activations", "answer": "drop", "keys": 4},
    {"method": "examples"},
    {"method": "refit"},
)


def whole(rows=90, classes=3, width=6, seed=0):
    """Rows of small integers, so that projections that pick features, and sums, are exact; and their labels."""
    random = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    return (np.eye(width)[y] * 9 + random.integers(-5, 6, (rows, width))).astype(np.float32), y


X, Y = whole()
SEGMENTS = {"codebooks": 3, "keys": 12, "key_dim": 2, "projection": "segments"}


@contextmanager
def as_on_a_gpu():
    """A GPU's way through the code, on the CPU, where that is asked for as a device."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (fitting, key_selection, keys, values):
            patch.setattr(module, "off_cpu", lambda device: device is not None)
        yield


# -- the same as on a CPU --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [{}, {"top": 2}, {"values": "counts"}, {"key_init": "sample"}, {"keys_from": whole(60, seed=5)[0]}], ids=str
)
def test_a_fit_is_that_of_a_cpu(more):
    plain = Bottleneck.fit_features(X, Y, **SEGMENTS, **more, device="cpu")
    with as_on_a_gpu():
        found = Bottleneck.fit_features(torch.from_numpy(X), torch.from_numpy(Y), **SEGMENTS, **more, device="cpu")
        np.testing.assert_array_equal(found.selector.keys, plain.selector.keys)
        np.testing.assert_array_equal(found.training.ids, plain.training.ids)
        np.testing.assert_allclose(found.entries, plain.entries, atol=1e-5)
        np.testing.assert_allclose(
            found.answer(X, device="cpu").logits, plain.answer(X, device="cpu").logits, atol=1e-5
        )
        np.testing.assert_array_equal(found.predict(X[:1], device="cpu"), plain.predict(X[:1], device="cpu"))


@pytest.mark.parametrize("how", VIAS, ids=str)
@pytest.mark.parametrize("top", [1, 2])
def test_edits_and_edits_after_masks_are_those_of_a_cpu(how, top):
    plain = Bottleneck.fit_features(X, Y, **SEGMENTS, top=top, device="cpu")
    edit = unlearn(plain, 1, **how, device="cpu")
    then = unlearn(edit.apply(plain), 2, device="cpu")
    with as_on_a_gpu():
        again = unlearn(plain, 1, **how, device="cpu")
        np.testing.assert_array_equal(again.pairs, edit.pairs)
        np.testing.assert_allclose(again.new_entries, edit.new_entries, atol=1e-5)
        later = unlearn(edit.apply(plain), 2, device="cpu")
        np.testing.assert_array_equal(later.pairs, then.pairs)
        assert again.edit["rule"] == edit.edit["rule"] and later.edit["rule"] == then.edit["rule"]


def test_a_report_is_that_of_a_cpu():
    plain = Bottleneck.fit_features(X, Y, **SEGMENTS, device="cpu")
    edit, test = unlearn(plain, 1, device="cpu"), whole(60, seed=3)
    expected = verify(plain, edit, test, shadows=4, device="cpu").content
    with as_on_a_gpu():
        found = verify(plain, edit, test, shadows=4, device="cpu").content
    for name, point in expected["points"].items():
        for key in ("forget_accuracy", "retain_accuracy", "per_class", "abstained"):
            assert found["points"][name][key] == pytest.approx(point[key]), (name, key)
    assert [point["keys"] for point in found["sweep"]] == [point["keys"] for point in expected["sweep"]]
    assert found["remarks"][:2] == expected["remarks"][:2]


# -- nothing left behind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more", [{}, {"key_init": "ema", "top": 2}, {"key_init": "sample", "values": "counts"}], ids=str
)
def test_rows_from_anywhere_meet_keys_and_values_on_the_card(more):
    """Every public function with its inputs on the CPU and its work on a card that isn't there."""
    with fake_card():
        found = Bottleneck.fit_features(X, Y, **SIZES, **more, sgd=Sgd(epochs=1), device=CARD)
        found.answer(X, device=CARD), found.predict(torch.from_numpy(X), device=CARD), found.select(X, device=CARD)
        for how in (
            {"method": "activations", "keys": 3},
            {"method": "examples", "answer": "drop"},
            {"method": "refit"},
        ):
            edit = unlearn(found, 1, **how, device=CARD)
            after = edit.apply(found)
            after.answer(X, device=CARD)
            unlearn(after, 2, device=CARD), unlearn(after, rows=[0, 3], method="activations", device=CARD)
        verify(found, edit, whole(60, seed=3), shadows=4, device=CARD)
        evaluator = Evaluator(
            found, Rows.of(X, Y), [1], found.training.take(np.flatnonzero(Y == 1)), torch.device(CARD)
        )
        evaluator.relearn(after, found.training.take(np.flatnonzero(Y == 1)), 1.0, 0)
        for baseline in BASELINES:
            run_baseline(
                baseline, after, np.flatnonzero(after.training.targets == 2), np.array([2]), 0, torch.device(CARD)
            )


# -- bad input -------------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused():
    fitted = Bottleneck.fit_features(X, Y, **SIZES, device="cpu")
    for ask in (
        lambda: Bottleneck.fit_features(X, Y, **SIZES, device="cuda:99"),
        lambda: fitted.predict(X, device="cuda:99"),
        lambda: unlearn(fitted, 1, device="cuda:99"),
        lambda: verify(fitted, [], whole(60, seed=3), device="cuda:99"),
    ):
        with pytest.raises(OptionError, match="`device` cuda:99 can't be used here"):
            ask()


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda: Bottleneck.fit_features(X, Y, **SIZES, device=CARD), "holding 90 rows of 6 features needs 0 MiB"),
        (lambda: keys.fit_keys(X, np.zeros((4, 6, 2), np.float32), 5, device=torch.device(CARD)), r"placing 5 keys a codebook by 90 rows needs \d\d\d MiB"),
        (lambda: FITTED.select(X, device=CARD), r"selecting keys of 90 rows needs \d+ MiB"),
        (lambda: FITTED.refit_entries(device=torch.device(CARD)), r"learning values of 54 keys for 3 classes needs \d MiB"),
    ],
    ids=["rows", "keys", "selecting", "values"],
)  # fmt: skip
def test_too_little_memory_is_told_with_what_how_much_and_what_to_lower(ask, what, monkeypatch):
    with fake_card():
        monkeypatch.setattr(devices, "free_memory", lambda device: 1000)
        with pytest.raises(OptionError, match=rf"^{what} on cuda:0, which has 0 MiB free: .*or give `device` cpu"):
            ask()


FITTED = Bottleneck.fit_features(X, Y, **SIZES, device="cpu")


def test_memory_that_runs_out_all_the_same_is_told_too(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda device: 3 << 30)
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
    with pytest.raises(OptionError) as error, devices.memory_for(torch.device(CARD), 5 << 20, "this", "do that"):
        raise torch.OutOfMemoryError(said)
    assert str(error.value) == "this needs 5 MiB and then 2.00 GiB more on cuda:0, which had 3.0 GiB free: do that"
    more = r"^this needs 2.00 GiB more on cuda:0, which had 3.0 GiB free: do that$"
    with pytest.raises(OptionError, match=more), devices.memory_for(torch.device(CARD), 0, "this", "do that"):
        raise torch.OutOfMemoryError(said)
    with pytest.raises(torch.OutOfMemoryError), devices.memory_for(CPU, 1 << 60, "this", "do that"):
        raise torch.OutOfMemoryError(said)


# -- full precision --------------------------------------------------------------------------------------------------


def settings():
    """What torch says of the precision of products and convolutions."""
    cudnn = torch.backends.cudnn
    conv = cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32
    return torch.get_float32_matmul_precision(), conv, cudnn.deterministic, cudnn.benchmark


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="needs the names of torch 2.9")
def test_settings_by_torchs_newer_names_are_set_again_too():
    """In a process of its own: once they are used the older names can't be read any more."""
    script = """
import torch
from surgery.devices import full_float32
matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
for one, two in (("tf32", "ieee"), ("ieee", "tf32"), ("tf32", "tf32")):
    matmul.fp32_precision, conv.fp32_precision = one, two
    with full_float32():
        assert matmul.fp32_precision != "tf32" and conv.fp32_precision != "tf32", (one, two)
    assert (matmul.fp32_precision, conv.fp32_precision) == (one, two)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_float32_is_computed_as_such_and_what_was_set_before_is_set_again(precision):
    torch.set_float32_matmul_precision(precision)
    try:
        before = settings()
        with pytest.raises(KeyError), devices.full_float32():
            inside = settings()
            raise KeyError
        assert settings() == before and before[0] == precision
        assert inside[0] == "highest" and inside[1] not in ("tf32", True) and inside[2:] == (True, False)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_encoder_computes_in_full_float32_and_too_large_a_batch_is_told(tiny, monkeypatch):
    encoder = Encoder.open(tiny("bert"), device="cpu", batch_size=2)
    seen, real = [], type(encoder.extractor).features

    def features(reader, rows, pooling):
        seen.append(settings())
        return real(reader, rows, pooling)

    monkeypatch.setattr(type(encoder.extractor), "features", features)
    encoder.encode(["good", "bad", "fun"])
    assert len(seen) == 2 and all(one[1] not in ("tf32", True) and one[2] for one in seen) and settings() != seen[0]

    def too_much(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(type(encoder.extractor), "features", too_much)
    monkeypatch.setattr(devices, "free_memory", lambda device: 1 << 30)
    monkeypatch.setattr(type(encoder.module), "device", property(lambda module: torch.device(CARD)))
    with pytest.raises(
        OptionError, match=r"^encoding 2 texts at once needs 2.00 GiB more on cuda:0, .* lower `batch_size`"
    ):
        encoder.encode(["good", "bad", "fun"])


# -- on a card -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    """Pixels and labels of training and test."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order[:1200]].astype(np.float32), y[order[:1200]], x[order[1200:]].astype(np.float32), y[order[1200:]]


def on_card(digits, **more):
    sizes = {"codebooks": 32, "keys": 64, "key_dim": 8, "device": "cuda", **more}
    return Bottleneck.fit_features(digits[0], digits[1], **sizes)


@pytest.mark.cuda
@pytest.mark.parametrize("method", KEY_METHODS)
@pytest.mark.parametrize("top", [1, 3])
def test_the_same_fit_is_the_same_bits(digits, method, top):
    one, two = (on_card(digits, key_init=method, top=top) for _ in range(2))
    assert one.fingerprint == two.fingerprint
    plain = on_card(digits, key_init=method, top=top, device="cpu")
    right = [(model.predict(digits[2]) == digits[3]).mean() for model in (one, plain)]
    assert right[0] == pytest.approx(right[1], abs=0.02) and right[1] > 0.9


@pytest.mark.cuda
def test_values_learnt_from_the_same_ids_are_the_same_bits_and_a_cpus_to_rounding(digits):
    fitted = on_card(digits)
    given = (fitted.training.ids, fitted.training.targets, fitted.selector.states, 10, Sgd())
    one, two, plain = (learn_values(*given, 0, torch.device(place)) for place in ("cuda", "cuda", "cpu"))
    assert one.tobytes() == two.tobytes() == fitted.entries.tobytes()
    np.testing.assert_allclose(one, plain, atol=1e-3)


@pytest.mark.cuda
@pytest.mark.parametrize("more", [{}, {"top": 2}, {"values": "counts"}], ids=str)
def test_refitting_is_a_fit_that_never_saw_the_rows(digits, more):
    more = {**more, "keys_from": digits[2]}
    before, gone = on_card(digits, **more), np.arange(0, 1200, 7)
    after = unlearn(before, rows=gone, method="refit", device="cuda").apply(before)
    stay = np.delete(np.arange(1200), gone)
    fresh = on_card((digits[0][stay], digits[1][stay]), **more)
    assert fresh.selector.keys.tobytes() == before.selector.keys.tobytes()
    assert fresh.training.ids.tobytes() == before.training.ids[stay].tobytes()
    assert after.entries.tobytes() == fresh.entries.tobytes()


@pytest.mark.cuda
def test_a_rows_keys_and_answer_do_not_depend_on_the_rows_beside_it(digits):
    fitted, mixed = on_card(digits), np.random.default_rng(0).permutation(len(digits[2]))
    ids, logits = fitted.select(digits[2], device="cuda"), fitted.answer(digits[2], device="cuda").logits
    for rows in (mixed, mixed[:1], mixed[:100]):
        np.testing.assert_array_equal(fitted.select(digits[2][rows], device="cuda"), ids[rows])
        np.testing.assert_array_equal(fitted.answer(digits[2][rows], device="cuda").logits, logits[rows])


@pytest.mark.cuda
@pytest.mark.parametrize("how", [{"method": "activations"}, {"method": "examples"}, {"method": "refit"}], ids=str)
def test_edits_are_the_same_each_time_and_can_be_undone(digits, how):
    before = on_card(digits)
    one, two = (unlearn(before, 3, **how, device="cuda") for _ in range(2))
    assert one.pairs.tolist() == two.pairs.tolist() and one.new_entries.tobytes() == two.new_entries.tobytes()
    after = one.apply(before)
    assert one.undo(after).fingerprint == before.fingerprint
    if how["method"] != "refit":  # what another codebook says of a row that dropped none stays as it was
        shut = after.selector.states.reshape(-1)[before.training.ids[:, :, 0] + np.arange(32) * 64] != 0
        rows = np.flatnonzero(~shut.any(1))
        found = after.selector.reselect(before.training.features, before.training.ids, device=torch.device("cuda"))
        np.testing.assert_array_equal(found[rows], before.training.ids[rows])
        assert (after.selector.states[np.arange(32)[:, None], found] == 0).all()
    report = verify(before, one, digits[2:], shadows=0, baselines=False, device="cuda")
    assert report.content["bit_identical"] == (how["method"] == "refit")
    assert report.content["points"]["after"]["forget_accuracy"] < 0.05


@pytest.mark.cuda
@pytest.mark.parametrize("baseline", BASELINES, ids=lambda baseline: baseline.name)
def test_baselines_are_the_same_bits_each_time(digits, baseline):
    before = on_card(digits, sgd=Sgd(epochs=2))
    given = (before, np.flatnonzero(before.training.targets == 3), np.array([3]), 0, torch.device("cuda"))
    one, two = run_baseline(baseline, *given), run_baseline(baseline, *given)
    assert one.entries.tobytes() == two.entries.tobytes() != before.entries.tobytes()


@pytest.mark.cuda
def test_steps_with_pairs_that_give_no_answer_are_the_same_bits(digits):
    fitted = on_card(digits)
    states = np.random.default_rng(0).integers(0, 3, fitted.selector.states.shape).astype(np.uint8)
    tables = []
    for _ in range(2):
        place = torch.device("cuda")
        table, chosen = Table(fitted.values, states, place), Chosen(fitted.training.ids, place)
        push = values.toward(fitted.training.targets, 10, Sgd(), place)
        for rows in batches(1200, Sgd(epochs=2), 0, place):
            table.step(chosen, rows, push)
        tables.append(table.values.tobytes())
    assert tables[0] == tables[1]


@pytest.mark.cuda
def test_features_and_labels_may_be_on_the_card(digits):
    there = [torch.from_numpy(array).cuda() for array in digits]
    assert on_card(there).fingerprint == on_card(digits).fingerprint
    np.testing.assert_array_equal(on_card(digits).predict(there[2]), on_card(digits).predict(digits[2]))


@pytest.mark.cuda
def test_more_than_the_card_holds_is_refused_before_work():
    features = np.lib.stride_tricks.as_strided(np.zeros(4, np.float32), (1 << 26, 4), (0, 4))
    with pytest.raises(OptionError, match=r"placing 60000 keys a codebook by 67,108,864 rows needs [\d.]+ GiB on cuda"):
        keys.place_on_device(
            torch.from_numpy(features), np.zeros(4, np.float32), np.zeros((200, 4, 1024), np.float32), 60_000,
            "kmeans", [np.random.default_rng(0)] * 200, torch.device("cuda"), lambda *_: None,
        )  # fmt: skip
