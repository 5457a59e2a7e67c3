"""The rule of `pcfg.devices`: where things are computed and where what a user reads is, on fake devices where there is no card."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pcfg.dense.engine import DenseResult, dense_inside_outside, dense_k_best, dense_viterbi, log_partition
from pcfg.errors import OptionError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside

READ = ("log_z", "span_marginals", "label_marginals", "tag_posteriors")


def given():
    generator = torch.Generator().manual_seed(0)
    start, binary, emissions = (torch.randn(*shape, generator=generator) for shape in ((5,), (2, 5, 5), (2, 4, 3)))
    return start, binary, emissions, torch.tensor([4, 2])


@pytest.mark.parametrize(("name", "place"), [(None, "cpu"), ("cuda:0", "cuda:0")])
def test_what_was_computed_on_a_card_is_read_on_the_cpu_unless_the_card_was_named(name, place):
    grammar = Grammar.random(2, 3, 4, 0)
    chart = inside_outside(grammar, [["w0", "w1"]], engine="dense")
    with FakeTensorMode():
        there = object.__new__(DenseResult)
        sizes = zip(READ, ((1,), (1, 2, 3), (1, 2, 3, 2), (1, 2, 3)), strict=True)
        there.__dict__.update({field: torch.ones(size, dtype=torch.float64, device="cuda:0") for field, size in sizes})
        chart.__dict__.update(_dense=there, device=name)
        for field in READ:
            assert getattr(chart, field).device == torch.device(place), field


def test_both_engines_give_results_on_the_device_that_was_named():
    grammar = Grammar.random(2, 3, 4, 0)
    for name, place in ((None, "cpu"), ("cpu", "cpu"), ("meta", "meta")):
        chart = inside_outside(grammar, [["w0", "w1"]], engine="sparse", device=name)
        assert {getattr(chart, field).device.type for field in READ} == {place}
        assert chart.rule_counts().sum() == pytest.approx(1.0) and chart.best_trees()[0] is not None


@pytest.mark.parametrize("ask", [dense_inside_outside, log_partition, dense_viterbi, lambda *x: dense_k_best(*x, 2)])
def test_scores_on_several_devices_are_refused_by_name(ask):
    start, binary, emissions, lengths = given()
    with pytest.raises(
        OptionError, match=r"log_start on cpu, log_binary on meta, log_emissions on cpu\): move them to one"
    ):
        ask(start, binary.to("meta"), emissions, lengths)


@pytest.mark.cuda
@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_charts_of_a_card_are_read_as_those_of_a_cpu(engine):
    grammar = Grammar.random(3, 4, 5, 0)
    sentences = [["w0", "w1", "w2", "w0"], ["w1"], ["w3", "w4"]]
    plain, there, here = (inside_outside(grammar, sentences, engine=engine, device=d) for d in ("cpu", "cuda", None))
    for field in READ:
        assert getattr(there, field).device.type == "cuda" and getattr(here, field).device.type == "cpu"
        for chart in (there, here):
            torch.testing.assert_close(getattr(chart, field).cpu(), getattr(plain, field), atol=1e-12, rtol=0)
    assert [str(tree) for tree in here.best_trees()] == [str(tree) for tree in plain.best_trees()]
    assert [str(tree) for tree in here.mbr_trees()] == [str(tree) for tree in plain.mbr_trees()]


@pytest.mark.cuda
def test_lengths_may_be_on_the_cpu():
    start, binary, emissions, lengths = given()
    there = [x.cuda() for x in (start, binary, emissions)]
    torch.testing.assert_close(log_partition(*there, lengths).cpu(), log_partition(start, binary, emissions, lengths))
