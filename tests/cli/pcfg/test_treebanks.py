"""`surgery pcfg induce|trees|score` on a small treebank."""

import pytest

from pcfg.grammars.grammar import Grammar
from pcfg.treebanks.trees import read_trees
from tests.support.toy_grammar import TREES


def test_a_treebank_becomes_a_grammar_whose_parses_are_scored_against_it(work, ok):
    trees = ("trees", "--trees", work / "bank.mrg", "--text", work / "words.txt", "-o", work / "gold.txt")
    assert "3 trees of 18 words" in ok(*trees)
    assert (work / "words.txt").read_text().splitlines()[1] == "It sees the dog ."
    gold = read_trees(work / "gold.txt")
    assert str(gold[1]) == "(S (NP (PRP It)) (VP (VBZ sees) (NP (DT the) (NN dog))) (. .))"
    options = ("--min-count", 2, "--horizontal", "inf", "-v", 2)
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

    plain, lexicon = names("-v", 1, "--horizontal", 0, "--no-smooth", "--no-annotate-tags")
    assert not any("^" in name for name in plain) and lexicon is None and "VP|" in plain
    assert "NN^NP" in names("-v", 1, "--annotate-tags")[0] and "NP^S" in names("-v", 2)[0]
    assert "VP^S|VBZ" in names("-v", 2, "--horizontal", 1)[0] and names("--strength", 2)[1].k == 2
