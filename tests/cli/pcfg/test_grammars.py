"""`surgery pcfg sample|parse|spans|fit|show` on a grammar worked by hand."""

import itertools
import json
import math

import datasets
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from pcfg.grammars.grammar import Grammar
from pcfg.grammars.rules import Word
from pcfg.grammars.text_format import read_rules
from pcfg.inference.parsing import read_spans
from pcfg.treebanks.trees import NO_PARSE, Tree
from tests.support.toy_grammar import RULES, SENTENCE, VERB, WEIGHT, lines, sample


def test_a_corpus_has_text_trees_a_dataset_a_tokenizer_and_parts_without_overlap(work, ok):
    extras = ("--held-out", 0.25, "--dataset", "--tokenizer", "--shard-size", 200)
    found = ok(*sample(work, "corpus", *extras, "--json"))
    assert sum(found["parts"].values()) == 500 and found["method"] == "rejection"
    corpus = work / "corpus"
    assert (corpus / "train-00002-of-00003.txt").exists() and not (work / "corpus.partial").exists()
    texts = {part: lines(corpus, part, "txt") for part in ("train", "test")}
    assert {part: len(text) for part, text in texts.items()} == found["parts"]
    assert not set(texts["train"]) & set(texts["test"])
    known = {(rule.parent, rule.children) for rule in read_rules(RULES)[0]}
    stored = datasets.load_from_disk(str(corpus / "dataset"))
    for part, text in texts.items():
        rows = [json.loads(line) for line in lines(corpus, part, "jsonl")]
        assert [" ".join(row["tokens"]) for row in rows] == text and stored[part].to_list() == rows
        assert all(len(row["tokens"]) <= 12 for row in rows)
        for row in rows:
            tree = Tree.parse(row["tree"])
            assert tree.words() == row["tokens"] and tree.label == "S"
            for node in tree.nodes():
                below = tuple(Word(child) if isinstance(child, str) else child.label for child in node.children)
                assert (node.label, below) in known
    words = AutoTokenizer.from_pretrained(corpus / "tokenizer")
    assert words.decode(words(texts["train"][0])["input_ids"][1:-1]) == texts["train"][0]
    report = json.loads((corpus / "report.json").read_text())
    assert report["call"]["seed"] == 3 and report["corpus"]["parts"] == found["parts"]


def test_shards_hold_what_one_file_would(work, ok):
    ok(*sample(work, "one"))
    ok(*sample(work, "many", "--shard-size", 77))
    assert (work / "one" / "train.txt").exists() and len(list((work / "many").glob("*.txt"))) == 7
    for kind in ("txt", "jsonl"):
        assert lines(work / "one", "train", kind) == lines(work / "many", "train", kind)


def test_the_best_trees_are_those_worked_by_hand_and_what_has_none_is_told(work, ok):
    command = ("parse", work / "toy.txt", "--text", work / "sents.txt", "-o")
    out = ok(*command, work / "parses.txt")
    assert "2 of 5 sentences parsed" in out and "Without a parse: 3 (lines 2, 3, 5)" in out
    wanted = [VERB, NO_PARSE, NO_PARSE, "(S (NP her) (VP (V saw) (NP stars)))", NO_PARSE]
    assert (work / "parses.txt").read_text().splitlines() == wanted
    found = ok(*command, work / "again.txt", "--workers", 2, "--json")
    assert found["unparsed"] == [2, 3, 5] and (work / "again.txt").read_text() == (work / "parses.txt").read_text()


def test_minimum_risk_leaves_out_a_label_that_does_not_pay(work, ok):
    command = ("parse", work / "toy.txt", "--text", work / "sents.txt", "--rule", "mbr", "-o")
    for cost, inner in ((0.5, True), (0.7, False)):  # the verb's attachment has a posterior of 0.6
        ok(*command, work / f"{cost}.txt", "--cost", cost)
        first, second, *_ = (work / f"{cost}.txt").read_text().splitlines()
        tree = Tree.parse(first)
        assert ((1, 4) in {(start, end) for _, start, end in tree.spans()}) is inner
        assert tree.words() == SENTENCE.split() and second == NO_PARSE


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_span_marginals_are_those_worked_by_hand(work, ok, dtype):
    file = work / "spans.safetensors"
    found = ok("spans", work / "toy.txt", "--text", work / "sents.txt", "--dtype", dtype, "-o", file, "--json")
    assert found["unparsed"] == [2, 3, 5] and found["entries"] == 6 * 7 + 2 * 3 + 3 * 4 + 1 * 2
    tensors, spans = load_file(file), read_spans(file)
    assert tensors["lengths"].tolist() == [6, 2, 0, 3, 1] and tensors["marginals"].dtype == dtype
    want = np.zeros((6, 7))
    want[0, 6] = want[1, 6] = want[2, 4] = want[4, 6] = 1
    want[1, 4], want[2, 6] = 0.6, 0.4
    exact = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(spans[0], want, atol=exact)
    assert not any(spans[k].any() for k in (1, 2, 4)) and spans[3].shape == (3, 4)
    np.testing.assert_allclose(tensors["log_z"][0], math.log(WEIGHT * (0.3 + 0.2)), atol=exact)
    assert np.isneginf(tensors["log_z"][[1, 2, 4]]).all()


def test_em_does_what_it_does_by_hand_and_never_lowers_the_likelihood(work, ok):
    (work / "one.txt").write_text(f"{SENTENCE}\n")
    ok("fit", work / "toy.txt", "--text", work / "one.txt", "--em", 1, "-o", work / "once.pcfg.json")
    once = {str(rule): rule.probability for rule in Grammar.load(work / "once.pcfg.json").origin.rules}
    assert once["VP -> VP PP"] == pytest.approx(0.6 / 1.6)
    for rule, uses in {"Det N": 1, "NP PP": 0.4, "'her'": 1, "'stars'": 1}.items():  # of 3.4 noun phrases
        assert once[f"NP -> {rule}"] == pytest.approx(uses / 3.4)
    command = ("fit", work / "toy.txt", "--text", work / "sents.txt", "--em", 4, "-o", work / "fitted.pcfg.json")
    out = ok(*command)
    assert all(f"after   {done} rounds: log-likelihood" in out for done in range(5))
    found = ok(*command, "--overwrite", "--json")
    likelihoods = found["log_likelihoods"]
    short = math.log(0.1 * 0.7 * 0.1)
    assert likelihoods[0] == pytest.approx(math.log(WEIGHT * 0.5) + short) and found["unparsed"] == [2, 3, 5]
    assert all(later > earlier for earlier, later in itertools.pairwise(likelihoods))


def test_show_tells_sizes_lengths_and_rules(work, ok):
    out = ok("show", work / "toy.txt", "--symbol", "VP")
    assert "4 nonterminals, 5 preterminals, 9 words" in out and "VP PP" in out and "0.3000" in out
    found = ok("show", work / "toy.txt", "--symbol", "Det", "--json")
    assert found["roots"] == {"S": 1.0} and found["rules_of_symbol"] == {"'the'": 0.7, "'a'": 0.3}
    # NP = .6 * 2 + .2 * (NP + PP) + .2, PP = 1 + NP, VP = .7 * (1 + NP) + .3 * (VP + PP)
    noun = (0.6 * 2 + 0.2 + 0.2) / 0.6
    assert found["expected_length"] == pytest.approx(noun + (0.7 * (1 + noun) + 0.3 * (1 + noun)) / 0.7)
    (work / "wild.txt").write_text("0.6 S -> S S\n0.4 S -> 'a'\n")
    assert "expected length of a sentence is infinite" in ok("show", work / "wild.txt")


def test_the_likeliest_tree_where_chains_compete_and_probabilities_that_were_rounded(tmp_path, run):
    rules = """S -> A B [0.5] | C D [0.5]
        A -> X [0.1] | Y [0.1] | Z [0.1] | 'q' [0.7]
        X -> 'a' [1.0]
        Y -> 'a' [1.0]
        Z -> 'a' [1.0]
        B -> 'b' [1.0]
        C -> 'a' [0.2]|'r'[0.795]
        D -> 'b' [1.0]"""
    (tmp_path / "rules.txt").write_text(rules)
    (tmp_path / "sents.txt").write_text("a b\n")
    status, _, said = run("parse", tmp_path / "rules.txt", "--text", tmp_path / "sents.txt", "-o", tmp_path / "out.txt")
    assert status == 0 and (tmp_path / "out.txt").read_text() == "(S (C a) (D b))\n"
    assert (
        said
        == f"surgery: {tmp_path}/rules.txt: the probabilities of the rules of C sum to 0.995: each was divided by its sum\n"
    )
    fitted = tmp_path / "fitted.json"
    status, _, _ = run("fit", tmp_path / "rules.txt", "--text", tmp_path / "sents.txt", "--em", 3, "-o", fitted)
    again = Grammar.load(fitted)
    assert status == 0 and {str(rule) for rule in again.origin.rules} >= {"A -> X", "S -> A B", "C -> 'a'"}
