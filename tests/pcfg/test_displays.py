"""What charts and parses look like at a prompt and in a notebook."""

import re

import pytest

from pcfg import Grammar, inside_outside
from pcfg.inference.masked_words import masked_posteriors
from pcfg.inference.parsing import write_parses, write_spans
from pcfg.sparse import engine as sparse


@pytest.fixture
def grammar():
    return Grammar.from_text("S -> A B [1.0]\nA -> 'a' [0.75] | '<b>' [0.25]\nB -> 'c' [0.5] | 'd' [0.5]")


def rows(shown):
    """Cells of a table in HTML, row by row."""
    body = shown.partition("<tbody>")[2]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)]


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_chart_says_its_size_and_shows_best_trees(grammar, engine):
    chart = inside_outside(grammar, [["a", "c"], ["c", "a"], ["<b>", "d"]], engine=engine, device="cpu")
    assert repr(chart).startswith(f"<Chart: 3 sentences of 2 words, by the {engine} engine under Grammar(")
    found = rows(chart._repr_html_())
    assert [row[0] for row in found] == ["a c", "c a", "&lt;b&gt; d"]
    assert [row[3] for row in found] == ["(S (A a) (B c))", "", "(S (A &lt;b&gt;) (B d))"]
    assert [float(row[1].replace("−", "-")) for row in found[::2]] == pytest.approx([-0.9808, -2.079], abs=1e-3)
    assert "of 2 words, 1 without a parse, by" in repr(chart)
    assert chart.to_pandas()["best tree"][0] == "(S (A a) (B c))"
    engines = chart._dense if engine == "dense" else chart._charts[0]
    assert len(repr(engines)) <= 200 and rows(engines._repr_html_())


@pytest.mark.parametrize("engine", ["dense", "sparse"])
def test_a_notebook_shows_twenty_sentences_of_many_and_parses_no_others(grammar, engine):
    chart = inside_outside(grammar, [["a", "c"]] * 3000, engine=engine, device="cpu")
    assert len(rows(chart._repr_html_())) == 20
    assert not {"log_z", "_dense", "_charts"} & chart.__dict__.keys()
    assert len(repr(chart)) <= 200


def test_masked_words_are_shown_by_the_likeliest(grammar):
    found = masked_posteriors(grammar, ["a", "c"], [0, 1], device="cpu")
    assert repr(found) == "<MaskedWords: log Z 0; likeliest a (0.75) at 0, c (0.5) at 1.>"
    assert found.table()[1] == [[0, "a", 0.75], [0, "<b>", 0.25], [1, "c", 0.5], [1, "d", 0.5]]
    assert "is nothing" in repr(masked_posteriors(grammar, ["a", "c", "d"], [0], device="cpu"))


def test_what_was_written_is_told_in_a_line(grammar, tmp_path):
    sentences = [["a", "c"], *[["c"]] * 2000]
    for written in (write_parses(grammar, sentences, tmp_path / "p"), write_spans(grammar, sentences, tmp_path / "s")):
        assert repr(written).endswith("2,001 sentences, 2,000 of them without a parse.>")
        assert written.table()[1][:2] == [[2], [3]]
    assert written.entries == 2 * 3 + 2000 * 2


def test_trees_and_rules_of_the_sparse_engine_are_told_by_their_sizes(grammar):
    rules, emissions = grammar.compiled, grammar.emissions(["a", "c"])
    assert repr(sparse.viterbi(rules, grammar.start, emissions)[1]) == "<TreeNodes: 3 nodes over 2 words>"
    assert repr(rules) == "SparseRules(nonterminals=1, preterminals=2)"
