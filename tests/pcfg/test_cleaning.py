"""NLTK's sample of the Penn Treebank, found and cleaned."""

import os
import zipfile

import pytest

from pcfg.errors import TreebankError
from pcfg.grammars.grammar import Grammar
from pcfg.sampling.sampler import sample
from pcfg.treebanks.cleaning import clean, clean_trees, strip_function
from pcfg.treebanks.nltk_sample import nltk_treebank
from pcfg.treebanks.trees import Tree


def test_the_sample_in_a_folder_and_in_a_zip_file(tmp_path, monkeypatch):
    folder = tmp_path / "one" / "corpora" / "treebank" / "combined"
    folder.mkdir(parents=True)
    (folder / "wsj_0002.mrg").write_text("( (S (B b)) )")
    (folder / "wsj_0001.mrg").write_text("( (S (A a)) )( (S (A c)) )")
    (folder / "README").write_text("no tree")
    zipped = tmp_path / "two" / "corpora"
    zipped.mkdir(parents=True)
    with zipfile.ZipFile(zipped / "treebank.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"treebank/combined/{file.name}")
    for home in ("one", "two"):
        monkeypatch.setenv("NLTK_DATA", f"{tmp_path / 'none'}{os.pathsep}{tmp_path / home}")
        assert [tree.words() for tree in nltk_treebank()] == [["a"], ["c"], ["b"]]
    (zipped / "treebank.zip").write_bytes(b"not a zip file")
    with pytest.raises(TreebankError, match="damaged"):
        nltk_treebank()


def test_no_sample_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("pcfg.treebanks.nltk_sample._HOMES", ())
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    with pytest.raises(TreebankError, match=f"isn't in NLTK_DATA .{tmp_path}.: set NLTK_DATA"):
        nltk_treebank()
    monkeypatch.delenv("NLTK_DATA")
    with pytest.raises(TreebankError, match="NLTK_DATA isn't set"):
        nltk_treebank()


@pytest.mark.parametrize(
    "label, kept",
    [
        *(("NP-SBJ-1", "NP"), ("NP=2", "NP"), ("NP-SBJ=1-3", "NP"), ("-LRB-", "-LRB-"), ("-NONE-", "-NONE-")),
        *(("ADVP|PRT", "ADVP|PRT"), ("ADVP|PRT-CLR", "ADVP|PRT"), ("PRP$", "PRP$"), ("''", "''"), ("=", "=")),
    ],
)
def test_functions_go(label, kept):
    assert strip_function(label) == kept


def test_cleaning():
    raw = "(TOP (S (NP-SBJ-1 (-NONE- *)) (VP (VBD said) (SBAR (-NONE- 0) (S (NP (NP (PRP it)))))) (-LRB- -LRB-)))"
    # The empty subject goes whole; SBAR keeps its S; NP over NP is one; S over VP and -LRB- stays.
    assert str(clean(Tree.parse(raw))) == "(S (VP (VBD said) (SBAR (S (NP (PRP it))))) (-LRB- -LRB-))"
    assert clean(Tree.parse("(S (NP (-NONE- *)))")) is None
    assert clean_trees([Tree.parse("(S (-NONE- *))"), Tree.parse("(S-1 (A b))")]) == [Tree.parse("(S (A b))")]
    # A node that has only become unary because its sister was empty.
    assert str(clean(Tree.parse("(S (S-TPC (A b) (C d)) (NP (-NONE- *)))"))) == "(S (A b) (C d))"
    assert str(clean(Tree.parse("(TOP (A b) (C d))"))) == "(TOP (A b) (C d))"
    assert str(clean(Tree("", (Tree.parse("(S (A b))"),)))) == "(S (A b))"  # as nltk.Tree reads Penn's outer bracket
    # For scoring, X over X stays.
    assert str(clean(Tree.parse("(NP-SBJ (NP (NN it)) (-NONE- *))"), collapse=False)) == "(NP (NP (NN it)))"


@pytest.mark.parametrize(
    "bank, wanted",
    [
        (["(NT-1 (T-1 a) (NT-2 (T-1 b) (T-2 c)))"], None),  # as compound PCFGs write their trees
        (["(X-BAR (A=B a))", "(S (NP (NN b)))"], None),
        (["(NP-SB (NN-HD a))"], None),  # another treebank's functions: they need cut_labels
        (["(S (NP-SBJ (A b)))", "(NP-1 (A c))"], ["(S (NP (A b)))", "(NP (A c))"]),
        (["(S (A b) (NP (-NONE- *-1)))", "(NP-1 (A c))"], ["(S (A b))", "(NP (A c))"]),
        (["(S (NP=2 (A b)))", "(WHNP-1 (A c))"], ["(S (NP (A b)))", "(WHNP (A c))"]),
        (["(S (SBJ-1 (A b)) (TMP (A c)))"], None),  # no functions, as nothing is before them
    ],
)
def test_labels_are_cut_where_some_hold_functions(bank, wanted):
    trees = [Tree.parse(text) for text in bank]
    assert list(map(str, clean_trees(trees))) == (bank if wanted is None else wanted)
    assert clean_trees(trees, cut_labels=False)[-1].label == trees[-1].label
    cut = [strip_function(node.label) for node in trees[-1].nodes()]
    assert [node.label for node in clean_trees(trees, collapse=False, cut_labels=True)[-1].nodes()] == cut


def test_sampled_trees_give_their_grammar_again():
    text = "0.5 NT-1 -> T-1 NT-2\n0.5 NT-1 -> T-1 T-2\n1.0 NT-2 -> T-2 NT-1\n1.0 T-1 -> 'a'\n1.0 T-2 -> 'b'\n"
    drawn = sample(Grammar.from_text(text), 200, seed=0)
    trees = [drawn.tree(number) for number in range(len(drawn))]
    options = {"v": 1, "annotate_tags": False, "smooth_lexicon": False, "min_count": 1}
    found = Grammar.from_trees(trees, **options)
    assert set(found.symbols) == {"NT-1", "NT-2", "T-1", "T-2"} and len(found.binary) == 3
    assert set(Grammar.from_trees(trees, cut_labels=True, **options).symbols) == {"NT", "T"}
