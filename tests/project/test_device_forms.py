"""Devices and dtypes by name and as torch's own objects, in every public function that takes them."""

import inspect
import pkgutil
import typing
from importlib import import_module

import numpy as np
import pytest
import torch

import pcfg
import surgery
from pcfg.dense.engine import dense_inside_outside
from pcfg.errors import OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.inference.masked_words import masked_log_prob, masked_posteriors, tag_posteriors, word_posteriors
from pcfg.inference.parsing import parse, read_spans, write_parses, write_spans
from pcfg.learning.excess_loss import MaskedSet
from pcfg.learning.expectation_maximization import expected_counts, fit
from pcfg.learning.pruning_by_use import prune
from pcfg.learning.resumable_fit import fit_file
from surgery.unlearning import Bottleneck, unlearn

GRAMMAR = Grammar.random(3, 3, 4, seed=0)
SENTENCES = [["w0", "w1", "w2"], ["w3", "w0"]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_dtypes_come_in_both_forms(dtype, engine, tmp_path):
    both = dtype, getattr(torch, dtype)
    charts = [inside_outside(GRAMMAR, SENTENCES, dtype=given, engine=engine) for given in both]
    assert charts[0].dtype == charts[1].dtype == dtype
    assert torch.equal(charts[0].span_marginals, charts[1].span_marginals)
    for number, given in enumerate(both):
        write_spans(GRAMMAR, SENTENCES, tmp_path / str(number), dtype=given)
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()
    assert read_spans(tmp_path / "1")[0].dtype == np.dtype(dtype)
    dense = [dense_inside_outside(*charts[0]._scores, dtype=given) for given in both]
    assert dense[1].dtype == both[1] and torch.equal(dense[0].span_marginals, dense[1].span_marginals)


@pytest.mark.parametrize("dtype", ["float16", torch.float16, "double precision", torch.int64])
def test_other_dtypes_are_refused(dtype, tmp_path):
    with pytest.raises(OptionError, match="isn't float32 or float64"):
        inside_outside(GRAMMAR, SENTENCES, dtype=dtype)
    with pytest.raises(OptionError, match="isn't float32 or float64"):
        write_spans(GRAMMAR, SENTENCES, tmp_path / "a", dtype=dtype)
    with pytest.raises(OptionError, match="float32 or float64"):
        dense_inside_outside(*inside_outside(GRAMMAR, SENTENCES)._scores, dtype=dtype)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_devices_come_in_both_forms(device, tmp_path):
    chart = inside_outside(GRAMMAR, SENTENCES, device=device)
    assert chart.log_z.device.type == "cpu" and len(chart.best_trees()) == len(chart.mbr_trees()) == 2
    word_posteriors(GRAMMAR, SENTENCES, device=device)
    tag_posteriors(GRAMMAR, SENTENCES, device=device)
    masked_log_prob(GRAMMAR, SENTENCES, device=device)
    masked_posteriors(GRAMMAR, SENTENCES[0], [1], device=device)
    MaskedSet.draw(GRAMMAR, SENTENCES, seed=0, device=device)
    fit(GRAMMAR, SENTENCES, 1, device=device)
    expected_counts(GRAMMAR, SENTENCES, device=device)
    prune(GRAMMAR, 2, SENTENCES, device=device)
    assert parse(GRAMMAR, SENTENCES, device=device) == parse(GRAMMAR, SENTENCES)
    write_parses(GRAMMAR, SENTENCES, tmp_path / "parses", device=device)
    write_spans(GRAMMAR, SENTENCES, tmp_path / "spans", device=device)
    fit_file(GRAMMAR, SENTENCES, 1, tmp_path / "fitted.json", device=device)


@pytest.mark.parametrize("device", ["nonsense", "meta:x", "xla:9"])
def test_other_devices_are_refused(device):
    with pytest.raises(OptionError, match="can't be used here"):
        inside_outside(GRAMMAR, SENTENCES, device=device)


def test_every_public_function_says_that_it_takes_both():
    seen = 0
    for module in pkgutil.walk_packages(pcfg.__path__, "pcfg."):
        if module.name.startswith("pcfg.dense.") and module.name != "pcfg.dense.engine":  # not public; one needs Triton
            continue
        for name, function in inspect.getmembers(import_module(module.name), inspect.isfunction):
            if name.startswith("_") or function.__module__ != module.name:
                continue
            for option, form in (("device", "Device"), ("dtype", "Dtype")):
                parameter = inspect.signature(function).parameters.get(option)
                if parameter is None or parameter.default is inspect.Parameter.empty:
                    continue
                seen += 1
                kinds = str(parameter.annotation)
                assert form in kinds or {str, torch.device if option == "device" else torch.dtype} <= set(
                    typing.get_args(parameter.annotation)
                ), f"{module.name}.{name}({option})"
    assert seen > 12


def test_so_does_every_public_function_and_method_of_surgery():
    """As their annotations say, which the tests hold every call to."""
    seen = set()
    for module in pkgutil.walk_packages(surgery.__path__, "surgery."):
        if module.name.endswith(("__main__", "triton_kernels")):  # which needs Triton
            continue
        for name, found in inspect.getmembers(import_module(module.name)):
            if name.startswith("_") or getattr(found, "__module__", "") != module.name:
                continue
            own = [found] if inspect.isfunction(found) else []
            if inspect.isclass(found):
                methods = [m for n, m in inspect.getmembers(found) if n[0] != "_"]
                own = [m for m in methods if inspect.isfunction(m) or inspect.ismethod(m)]
            for function in own:
                for option, kind in (("device", torch.device), ("dtype", torch.dtype)):
                    given = inspect.signature(function).parameters.get(option)
                    kinds = set(typing.get_args(given.annotation)) if given else set()
                    if str in kinds:
                        seen.add(function.__qualname__)
                        internal = "mixed_precision", "tune_need"  # names only, of what `tune` has checked
                        assert kind in kinds or name in internal, f"{module.name}.{function.__qualname__}({option})"
    assert {"tune", "score", "graft", "unlearn", "verify", "Bottleneck.fit", "Encoder.open", "TinT.build"} <= seen


def test_unlearning_takes_devices_in_both_forms():
    random = np.random.default_rng(0)
    rows, labels = random.normal(size=(60, 8)), random.integers(0, 3, 60)
    found = []
    for device in ("cpu", torch.device("cpu")):
        made = Bottleneck.fit_features(rows, labels, codebooks=4, keys=8, key_dim=3, device=device)
        edited = unlearn(made, 1, device=device).apply(made)
        found.append(edited.answer(rows, device=device).logits)
    assert np.array_equal(*found)
