"""`surgery pcfg`: every command end to end on grammars worked by hand, runs that are stopped and go on, every bad input."""

import functools
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer

import pcfg.inference.parsing
import pcfg.learning.resumable_fit
import pcfg.sampling.corpus
from pcfg.grammars.grammar import Grammar
from pcfg.grammars.rules import Word
from pcfg.grammars.text_format import read_rules
from pcfg.inference.parsing import read_spans
from pcfg.treebanks.trees import NO_PARSE, Tree, read_trees
from tests.support.tiny import hashes

RULES = """
S -> NP VP [1.0]
NP -> Det N [0.6] | NP PP [0.2] | 'her' [0.1] | 'stars' [0.1]
VP -> V NP [0.7] | VP PP [0.3]
PP -> P NP [1.0]
Det -> 'the' [0.7] | 'a' [0.3]
N -> 'man' [0.5] | 'dog' [0.3] | 'telescope' [0.2]
V -> 'saw' [1.0]
P -> 'with' [1.0]
"""
# With which attachment: VP -> VP PP and VP -> V NP either way, and one of .3 (the verb's) or .2 (the noun's) on top.
SENTENCE = "her saw the dog with stars"
VERB = "(S (NP her) (VP (VP (V saw) (NP (Det the) (N dog))) (PP (P with) (NP stars))))"
WEIGHT = 0.1 * 0.7 * (0.6 * 0.7 * 0.3) * 0.1  # her, VP -> V NP, the dog, stars
TEXT = f"{SENTENCE}\nsaw her\n\nher saw stars\nher\n"

TREES = """
( (S (NP-SBJ (DT The) (NN dog)) (VP (VBZ sees) (NP (PRP it)) (ADVP (RB now))) (. .)) )
( (S (NP-SBJ (PRP It)) (VP (VBZ sees) (NP (DT the) (NN dog))
     (NP (-NONE- *T*-1))) (. .)) )
( (S (NP (NP (DT The) (NN dog)) (PP (IN of) (NP (DT the) (NN man)))) (VP (VBZ barks)) (. .)) )
"""


@pytest.fixture
def run(run):
    """`run(*arguments)`: of `surgery pcfg`: exit status, stdout, stderr."""
    return functools.partial(run, "pcfg")


@pytest.fixture
def ok(run):
    """`ok(*arguments)`: stdout of a run that must end well; parsed with --json."""

    def call(*arguments):
        status, out, err = run(*arguments)
        assert status == 0, err
        return json.loads(out) if "--json" in arguments else out

    return call


@pytest.fixture
def work(tmp_path):
    (tmp_path / "toy.txt").write_text(RULES)
    (tmp_path / "sents.txt").write_text(TEXT)
    (tmp_path / "bank.mrg").write_text(TREES)
    return tmp_path


def sample(work, out, *more):
    return ("sample", work / "toy.txt", "-n", 500, "--max-length", 12, "--seed", 3, "-o", work / out, *more)


def lines(folder, part, kind):
    return [line for file in sorted(folder.glob(f"{part}*.{kind}")) for line in file.read_text().splitlines()]


def test_a_folder_that_cant_be_written_to_is_refused_before_any_work(work, run, monkeypatch):
    monkeypatch.setattr("cli.grammars.os.access", lambda path, mode: path != work)
    monkeypatch.setattr("pcfg.inference.parsing.parse", lambda *_, **__: pytest.fail("work was spent"))
    status, out, error = run("parse", work / "toy.txt", "--text", work / "sents.txt", "-o", work / "new")
    assert status == 2 and not out and error.count("\n") == 1
    assert f"{work} can't be written to: name an output elsewhere" in error


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


def test_a_treebank_becomes_a_grammar_whose_parses_are_scored_against_it(work, ok):
    trees = ("trees", "--trees", work / "bank.mrg", "--text", work / "words.txt", "-o", work / "gold.txt")
    assert "3 trees of 18 words" in ok(*trees)
    assert (work / "words.txt").read_text().splitlines()[1] == "It sees the dog ."
    gold = read_trees(work / "gold.txt")
    assert str(gold[1]) == "(S (NP (PRP It)) (VP (VBZ sees) (NP (DT the) (NN dog))) (. .))"
    options = ("--min-count", 2, "-h", "inf", "-v", 2)
    found = ok("induce", "--trees", work / "bank.mrg", *options, "-o", work / "e.pcfg.json", "--json")
    assert (found["trees"], found["tokens"], found["smoothed_lexicon"]) == (3, 18, True)
    ok("parse", work / "e.pcfg.json", "--text", work / "words.txt", "-o", work / "parses.txt")
    assert read_trees(work / "parses.txt") == gold  # three trees with no rule in common that could mislead
    out = ok("fit", work / "e.pcfg.json", "--text", work / "words.txt", "--em", 1, "-o", work / "f.pcfg.json")
    assert "after   1 rounds: log-likelihood beyond that of single words" in out
    out = ok("score", work / "gold.txt", work / "parses.txt")
    assert out.startswith("100.00 labelled F1, EVALB") and "complete match 100.00" in out
    out = ok("score", work / "gold.txt", work / "parses.txt", "--unlabelled")
    assert out.startswith("100.00 unlabelled F1, unsupervised")
    (work / "flat.txt").write_text(
        "(S (NP (DT The) (NN dog)) (VBZ sees) (PRP it) (RB now) (. .))\n(())\n"
        "(S (NP (DT The) (NN dog) (IN of) (DT the) (NN man)) (VBZ barks) (. .))\n"
    )
    scored = ok("score", work / "gold.txt", work / "flat.txt", "--json")
    # gold has S NP VP NP ADVP, S NP VP NP and S NP NP PP NP VP: 15 brackets; 2 of 2, 0 of 0 and 2 of 2 are found
    assert (scored["matched"], scored["predicted"], scored["gold"], scored["unparsed"]) == (4, 4, 15, 1)
    assert scored["f1"] == pytest.approx(8 / 19) and scored["convention"].startswith("labelled F1, EVALB")
    assert ok("induce", "--trees", work / "bank.mrg", "--only", "2-2", "-o", work / "b.json", "--json")["trees"] == 1


def test_a_folder_of_trees_is_read_like_its_files(work, ok):
    (work / "bank" / "00").mkdir(parents=True)
    text = TREES.strip()
    cut = text.index("( (S (NP (NP")
    (work / "bank" / "00" / "a.mrg").write_text(text[:cut])
    (work / "bank" / "b.txt").write_text(text[cut:])
    for source in ("bank", "bank.mrg"):
        ok("trees", "--trees", work / source, "-o", work / f"{source}.gold")
        ok("induce", "--trees", work / source, "-o", work / f"{source}.json")
    assert (work / "bank.gold").read_text() == (work / "bank.mrg.gold").read_text()
    assert (work / "bank.json").read_text() == (work / "bank.mrg.json").read_text()


def test_gold_trees_keep_what_evalb_counts(work, ok):
    (work / "bank.mrg").write_text("( (S (NP-SBJ (NP (NN rain)) (SBAR (-NONE- *))) (VP (VBZ falls))) )")
    ok("trees", "--trees", work / "bank.mrg", "-o", work / "gold.txt")
    assert (work / "gold.txt").read_text() == "(S (NP (NP (NN rain))) (VP (VBZ falls)))\n"
    (work / "parses.txt").write_text("(S (NP (NN rain)) (VP (VBZ falls)))\n")
    scored = ok("score", work / "gold.txt", work / "parses.txt", "--json")
    assert (scored["matched"], scored["predicted"], scored["gold"]) == (3, 3, 4)
    ok("induce", "--trees", work / "gold.txt", "-o", work / "g.json", "--min-count", 1)
    assert set(Grammar.load(work / "g.json").symbols) == {"S", "NP+NN^S", "VP+VBZ^S"}  # trained without NP over NP


def test_labels_with_hyphens_stay_whole_unless_they_hold_functions(work, ok):
    (work / "bank.mrg").write_text("(NT-1 (T-1 a) (NT-2 (T-1 b) (T-2 c)))\n")
    options = ("-v", 1, "--no-annotate-tags", "--min-count", 1, "-o", work / "g.json", "--overwrite")

    def symbols(*more):
        said = ok("induce", "--trees", work / "bank.mrg", *options, *more)
        return set(Grammar.load(work / "g.json").symbols), "Labels such as NT-1 are left whole" in said

    assert symbols() == ({"NT-1", "NT-2", "T-1", "T-2"}, True)
    assert symbols("--keep-labels") == ({"NT-1", "NT-2", "T-1", "T-2"}, False)
    assert symbols("--cut-labels") == ({"NT", "T"}, False)
    for more, label in (((), "NT-1"), (("--cut-labels",), "NT")):
        ok("trees", "--trees", work / "bank.mrg", *more, "-o", work / "gold.txt", "--overwrite")
        assert (work / "gold.txt").read_text().startswith(f"({label} ")
    (work / "other.txt").write_text("(NT-3 (T-1 a) (NT-4 (T-1 b) (T-2 c)))\n")
    said = ok("score", work / "bank.mrg", work / "other.txt")
    assert said.startswith("100.00") and "Labels such as NT-1 were cut at - and =, as EVALB does: --keep-labels" in said
    said = ok("score", work / "bank.mrg", work / "other.txt", "--keep-labels")
    assert said.startswith("0.00") and said.count("\n") == 1


def test_whose_scores_they_are(work, ok):
    (work / "gold.txt").write_text("(S (A a) (NP ($ $) (B b)))\n(S (A a) (NP (B b) (C c)))\n")
    (work / "parses.txt").write_text("(S (A a) (NP ($ $) (B b)))\n\n")
    pair = (work / "gold.txt", work / "parses.txt")
    plain, kim = (ok("score", *pair, *more, "--json") for more in (("--unlabelled",), ("--kim",)))
    assert (plain["f1"], plain["sentences"], plain["unparsed"]) == (0.5, 2, 1)
    assert "this project's" in plain["convention"] and "Kim et al. 2019's" in kim["convention"]
    assert kim["f1"] == 0.5 and ok("score", *pair, "--unlabelled", "--kim", "--json") == kim
    full = ok("score", *pair, "--json")
    assert (full["f1"], full["valid"]["f1"], full["valid"]["sentences"]) == (2 * 2 / (2 + 4), 1.0, 1)
    assert "EVALB itself leaves 1 out, without a parse, or as" in ok("score", *pair)


def test_brackets_of_raw_text(work, ok):
    (work / "bank.mrg").write_text("(S (PRN (-LRB- -LRB-) (NN dog) (-RRB- -RRB-)) (VP (VB is) (JJ so)))\n")
    ok("induce", "--trees", work / "bank.mrg", "--min-count", 1, "-o", work / "g.json")
    (work / "raw.txt").write_text("( dog ) is so\n")
    ok("parse", work / "g.json", "--text", work / "raw.txt", "-o", work / "parses.txt")
    assert (work / "parses.txt").read_text() == (work / "bank.mrg").read_text()
    ok("score", work / "bank.mrg", work / "parses.txt")


def test_switches_of_induction_change_what_they_say(work, ok):
    def names(*options):
        ok("induce", "--trees", work / "bank.mrg", "--min-count", 1, "-o", work / "g.json", "--overwrite", *options)
        grammar = Grammar.load(work / "g.json")
        return set(grammar.symbols), grammar.lexicon

    plain, lexicon = names("-v", 1, "-h", 0, "--no-smooth", "--no-annotate-tags")
    assert not any("^" in name for name in plain) and lexicon is None and "VP|" in plain
    assert "NN^NP" in names("-v", 1, "--annotate-tags")[0] and "NP^S" in names("-v", 2)[0]
    assert "VP^S|VBZ" in names("-v", 2, "-h", 1)[0] and names("--strength", 2)[1].k == 2


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


def interrupted(monkeypatch, module, name, calls):
    """Ctrl-C at the given call of a function, counted over all runs; returns the list of calls."""
    real, made = getattr(module, name), []

    def stop(*arguments, **options):
        made.append(arguments)
        if len(made) == calls:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, stop)
    return made


@pytest.mark.parametrize("command", ["sample", "parse", "spans"])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(work, ok, run, monkeypatch, command):
    (work / "long.txt").write_text("".join(f"{SENTENCE}\n{'her saw stars with ' * k}stars\n" for k in range(1, 9)))
    arguments = {
        "sample": lambda out: sample(work, out, "--shard-size", 100, "--held-out", 0.2),
        "parse": lambda out: ("parse", work / "toy.txt", "--text", work / "long.txt", "-o", work / out),
        "spans": lambda out: ("spans", work / "toy.txt", "--text", work / "long.txt", "-o", work / out),
    }[command]
    for name in ("write_parses", "write_spans"):
        monkeypatch.setattr(
            pcfg.inference.parsing, name, functools.partial(getattr(pcfg.inference.parsing, name), shard_size=4)
        )

    def content(out):
        return hashes(work / out) if (work / out).is_dir() else (work / out).read_bytes()

    ok(*arguments("whole"))
    module, name = {"sample": (pcfg.sampling.corpus, "write_jsonl"), "parse": (pcfg.inference.parsing, "parse")}.get(
        command, (pcfg.inference.parsing, "_marginals")
    )
    made = interrupted(monkeypatch, module, name, 3)
    assert run(*arguments("out"))[0] == 130
    assert not (work / "out").exists() and (work / "out.partial").exists()
    ok(*arguments("out"))
    assert content("out") == content("whole") and not (work / "out.partial").exists()
    # Shards of two parts each; four shards, after a call that only checks options; four shards. One of them twice.
    assert len(made) == {"sample": 2 + 1 + 4 * 2, "parse": 1 + 2 + 1 + 3, "spans": 3 + 2}[command]


def test_a_stopped_fit_goes_on_after_its_last_round(work, ok, run, monkeypatch):
    command = ("fit", work / "toy.txt", "--text", work / "sents.txt", "--em", 4, "--json", "-o")
    whole = ok(*command, work / "whole.pcfg.json")
    made = interrupted(monkeypatch, pcfg.learning.resumable_fit, "replace_json", 3)
    status, _, err = run(*command, work / "out.pcfg.json")
    assert (status, len(made)) == (130, 3)
    assert f"run the same command again to go on ({work / 'out.pcfg.json.partial'} holds the state)" in err
    assert not (work / "out.pcfg.json").exists()
    found = ok(*command, work / "out.pcfg.json")
    assert len(made) == 5  # rounds 3 and 4, and none twice
    assert found["log_likelihoods"] == whole["log_likelihoods"]
    assert (work / "out.pcfg.json").read_bytes() == (work / "whole.pcfg.json").read_bytes()
    interrupted(monkeypatch, pcfg.learning.resumable_fit.Grammar, "save", 5)  # four rounds, then the output itself
    assert run(*command, work / "late.pcfg.json")[0] == 130
    assert ok(*command, work / "late.pcfg.json")["log_likelihoods"] == pytest.approx(
        whole["log_likelihoods"], abs=1e-12
    )


def test_what_a_stopped_run_left_is_not_taken_for_another_call(work, ok, run, monkeypatch):
    real = pcfg.sampling.corpus.write_jsonl
    interrupted(monkeypatch, pcfg.sampling.corpus, "write_jsonl", 2)
    assert run(*sample(work, "out", "--shard-size", 100))[0] == 130
    monkeypatch.setattr(pcfg.sampling.corpus, "write_jsonl", real)
    other = (work / "toy.txt", "-n", 500, "--max-length", 12, "--seed", 4, "--shard-size", 100, "-o")
    ok("sample", *other, work / "out")
    ok("sample", *other, work / "clean")
    assert hashes(work / "out") == hashes(work / "clean")


def test_outputs_are_replaced_only_when_asked(work, ok, run):
    ok(*sample(work, "corpus"))
    ok("parse", work / "toy.txt", "--text", work / "sents.txt", "-o", work / "parses.txt")
    before = hashes(work)
    for command in (
        sample(work, "corpus"),
        ("parse", work / "toy.txt", "--text", work / "sents.txt", "-o", work / "parses.txt"),
    ):
        status, out, err = run(*command)
        assert (status, out) == (2, "") and "add --overwrite" in err and hashes(work) == before
        ok(*command, "--overwrite")
    assert not list(work.glob("*.partial")) and not list(work.glob(".*"))


def test_bad_input_is_one_sentence_status_2_and_nothing_written(work, run, monkeypatch):
    for name, content in {
        "sum": "0.5 S -> 'a'\n",
        "negative": "-0.5 S -> 'a'\n1.5 S -> 'b'\n",
        "nan": "nan S -> 'a'\n",
        "empty": "",
        "undefined": "1.0 S -> NP\n",
        "wild": "0.6 S -> S S\n0.4 S -> 'a'\n",
        "endless": "1.0 S -> S T\n1.0 T -> 'a'\n",
        "odd": "hello\n",
        "unknown": f"{SENTENCE}\nher saw kangaroos\n",
        "open": "(S (NP (DT a)\n(NN b))\n",
        "bare": "(S (NP (DT a) (NN b)))\nword\n",
        "fewer": "(S (NP (DT a) (NN b)))\n",
        "gold": "(S (NP (DT a) (NN b)))\n(S (NP (DT c) (NN d)))\n",
        "other": "(S (NP (DT a) (NN b)))\n(S (NP (DT c) (NN e)))\n",
        "long": "her saw stars " * 40_000,
        "special": "0.5 S -> '<mask>'\n0.5 S -> 'a'\n",
    }.items():
        (work / f"{name}.txt").write_text(content)
    (work / "bytes.txt").write_bytes(b"\xff\xfe")
    (work / "damaged.json").write_text('{"schema": 1}')
    (work / "list.json").write_text("[]")
    (work / "rows.jsonl").write_text('{"tokens": ["her"]}\n{"text": "her"}\n')
    (work / "kept.partial").mkdir()
    (work / "kept.partial" / "mine.txt").write_text("mine")
    (work / "folder").mkdir()
    monkeypatch.setenv("NLTK_DATA", str(work))
    monkeypatch.setattr("pcfg.treebanks.nltk_sample._HOMES", ())
    new, text = ("-o", work / "new"), ("--text", work / "sents.txt")

    def parse(grammar="toy.txt", *more, text="sents.txt"):
        return ("parse", work / grammar, "--text", work / text, *more, *new)

    def induce(*more):
        return ("induce", *more, *new)

    bank = ("--trees", work / "bank.mrg")
    cases = {
        "the rules of S sum to 0.5": parse("sum.txt"),
        "has the probability -0.5": parse("negative.txt"),
        "has the probability nan": parse("nan.txt"),
        "holds no rules": parse("empty.txt"),
        "uses NP, which has no rules": parse("undefined.txt"),
        "every tree goes on for ever": parse("endless.txt"),
        "odd.txt, line 1: a rule looks like": parse("odd.txt"),
        "none.txt can't be read: No such file": parse("none.txt"),
        "bytes.txt isn't UTF-8": parse("bytes.txt"),
        "damaged.json is damaged": parse("damaged.json"),
        "list.json: the file isn't a grammar": parse("list.json"),
        "expected length of a sentence is infinite": ("sample", work / "wild.txt", "-n", 5, *new),
        "no sentence of 2 words": ("sample", work / "toy.txt", "--max-length", 2, *new),
        "held-out share is 1.5": (*sample(work, "new"), "--held-out", 1.5),
        "holds the special token <mask>": ("sample", work / "special.txt", "--tokenizer", *new),
        "unknown.txt, line 2: the word 'kangaroos' (number 3": parse(text="unknown.txt"),
        "empty.txt holds no sentences": parse(text="empty.txt"),
        "missing.txt can't be read": parse(text="missing.txt"),
        "rows.jsonl, line 2 isn't a JSON object with tokens": parse(text="rows.jsonl"),
        "words would take": parse(text="long.txt"),
        "GB": ("spans", work / "toy.txt", "--text", work / "long.txt", *new),
        "--rule nonsense isn't one of": parse("toy.txt", "--rule", "nonsense"),
        "--cost is for --rule mbr": parse("toy.txt", "--cost", 0.5),
        "--binary is for --rule viterbi": parse("toy.txt", "--rule", "mbr", "--binary"),
        "cost of a label is 1.5": parse("toy.txt", "--rule", "mbr", "--cost", 1.5),
        "--text is missing": ("parse", work / "toy.txt", *new),
        "-o is missing": ("parse", work / "toy.txt", *text),
        "no interrupted run made it": (*parse()[:-1], work / "kept"),
        "is a folder, not a file": (*parse()[:-1], work / "folder"),
        "is not a folder: make it first": (*parse()[:-1], work / "nowhere" / "parses.txt"),
        "are the same or lie one inside the other": (*parse()[:-1], work / "sents.txt", "--overwrite"),
        "dtype 'float16'": ("spans", work / "toy.txt", *text, "--dtype", "float16", *new),
        "device quantum": parse("toy.txt", "--device", "quantum"),
        "device nonsense": ("spans", work / "toy.txt", *text, "--device", "nonsense", *new),
        "no sentence has a parse": ("fit", work / "toy.txt", "--text", work / "verbs.txt", *new),
        "one of them": induce(),
        "open.txt, line 1: a '(' is never closed": induce("--trees", work / "open.txt"),
        "bare.txt, line 2: 'word' stands outside": induce("--trees", work / "bare.txt"),
        "empty.txt holds no trees": induce("--trees", work / "empty.txt"),
        "NLTK's treebank sample isn't in NLTK_DATA": induce("--nltk-treebank"),
        "-h -1 must be": induce(*bank, "-h", "-1"),
        "vertical order v is 3": induce(*bank, "-v", 3),
        "folder holds no .mrg or .txt files": induce("--trees", work / "folder"),
        "--keep-labels is for labelled scores": (
            "score",
            work / "gold.txt",
            work / "gold.txt",
            "--kim",
            "--keep-labels",
        ),
        "--only 2-9 must be": induce(*bank, "--only", "2-9"),
        "--strength is for --smooth": induce(*bank, "--no-smooth", "--strength", 2),
        "there are 2 gold trees and 1 parses": ("score", work / "gold.txt", work / "fewer.txt"),
        "sentence 2 isn't the same in both": ("score", work / "gold.txt", work / "other.txt"),
        "no tree has 2 words or fewer": ("trees", *bank, "--max-length", 2, *new),
        "are for treebanks, not for --raw": ("trees", "--raw", work / "sents.txt", "--keep-labels", *new),
        "--model is for --raw": ("trees", *bank, "--model", "benepar_en3", *new),
        "--raw FILE: one of them": ("trees", *bank, "--raw", work / "sents.txt", *new),
        "the parser nowhere can't be loaded": ("trees", "--raw", work / "sents.txt", "--model", "nowhere", *new),
        "has no symbol XP": ("show", work / "toy.txt", "--symbol", "XP"),
    }
    (work / "verbs.txt").write_text("saw\nsaw saw\n")
    before = hashes(work)
    for message, arguments in cases.items():
        status, out, err = run(*arguments)
        assert status == 2, (message, out, err)
        assert message in err, (message, err)
        assert out == "" and err.startswith("surgery: ") and err.count("\n") == 1, err
        assert hashes(work) == before and not (work / "new.partial").exists(), message
    status, out, err = run(*parse("sum.txt"), "--json")
    assert (status, out) == (2, "") and "sum to 0.5" in err


def test_every_command_has_help(run):
    for command in ("induce", "trees", "sample", "parse", "spans", "score", "fit", "show"):
        assert run(command, "--help")[0] == 0


def test_the_example_script(tmp_path):
    script = Path(__file__).resolve().parents[2] / "examples" / "grammar.py"
    command = [sys.executable, script, tmp_path / "fitted.pcfg.json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout
    assert (
        f"log Z {math.log(WEIGHT * 0.5):.4f}, entropy of the trees {-0.6 * math.log(0.6) - 0.4 * math.log(0.4):.4f}"
        in said
    )
    assert f"likeliest: {VERB}" in said and "'saw the dog' is a constituent: 0.600" in said
    assert "{'man': 0.5, 'dog': 0.3, 'telescope': 0.2}" in said
    assert Grammar.load(tmp_path / "fitted.pcfg.json").expected_length < math.inf


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
