"""Cleaning, transforms and their undoing, signatures, the smoothed lexicon, and the grammar of a treebank."""

import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import GrammarError, TreebankError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.sampling.sampler import sample
from pcfg.treebanks.cleaning import clean, clean_trees, strip_function
from pcfg.treebanks.induction import induce
from pcfg.treebanks.lexicon import SmoothedLexicon, known_form, signatures
from pcfg.treebanks.nltk_sample import nltk_treebank
from pcfg.treebanks.transforms import chain, is_made, transform, undo
from pcfg.treebanks.trees import Tree

SHARED = Path(__file__).resolve().parents[3] / "shared" / "nltk_data"
ORDERS = [(v, h) for v in (1, 2) for h in (0, 1, 2, math.inf)]


@pytest.fixture(scope="module")
def home():
    """The folder of NLTK's data."""
    found = os.environ.get("NLTK_DATA") or str(SHARED)
    if not Path(found).is_dir():
        pytest.skip(f"no NLTK data at {found}")
    return found


@pytest.fixture
def untyped(home):
    """`untyped(code)`: its output in a process of its own; checking the types of millions of small calls takes minutes."""

    def run(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NLTK_DATA": home})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


# -- reading and cleaning --------------------------------------------------------------------------------------------


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


# -- transforms ------------------------------------------------------------------------------------------------------

FLAT = Tree.parse("(S (NP (NNP Ann)) (VP (VBZ sings) (NP (DT the) (JJ old) (JJ red) (NN song))) (. .))")


@pytest.mark.parametrize(
    "v, h, tags, expected",
    [
        (
            *(1, 0, False),
            "(S (NP+NNP Ann) (S| (VP (VBZ sings) (NP (DT the) (NP| (JJ old) (NP| (JJ red) (NN song))))) (. .)))",
        ),
        (
            *(2, 1, False),
            "(S (NP+NNP Ann) (S|NP+NNP (VP^S (VBZ sings) (NP^VP (DT the) (NP^VP|DT (JJ old) (NP^VP|JJ (JJ red) (NN song))))) (. .)))",
        ),
        (
            *(1, math.inf, True),
            "(S (NP+NNP^S Ann) (S|NP+NNP (VP (VBZ^VP sings) (NP (DT^NP the) (NP|DT (JJ^NP old) (NP|DT|JJ (JJ^NP red) (NN^NP song))))) (.^S .)))",
        ),
    ],
)
def test_transforms_by_hand(v, h, tags, expected):
    assert str(transform(FLAT, v=v, h=h, annotate_tags=tags)) == expected
    assert undo(Tree.parse(expected)) == FLAT


def test_what_stands_under_a_chain_says_its_lowest_node():
    tree = Tree.parse("(S (VP (VB go) (NP (NN home))))")
    assert str(transform(tree)) == "(S+VP (VB^VP go) (NP+NN^VP home))"


def test_orders_that_make_no_sense():
    for v, h, says in ((0, 1, "v is 0"), (3, 1, "v is 3"), (1, -1, "h is -1"), (1, 0.5, "h is 0.5")):
        with pytest.raises(TreebankError, match=says):
            transform(FLAT, v=v, h=h)
    with pytest.raises(TreebankError, match="isn't a whole parse"):
        undo(Tree.parse("(S|NP (A b) (C d))"))


labels = st.text(st.sampled_from("AB+^|\\-"), min_size=1, max_size=4)
odd_trees = st.recursive(
    st.builds(lambda tag, word: Tree(tag, (word,)), labels, st.sampled_from(["a", "b", "+", "c|d"])),
    lambda inner: st.builds(
        lambda label, children: Tree(label, tuple(children)), labels, st.lists(inner, min_size=1, max_size=5)
    ),
    max_leaves=15,
)


@given(odd_trees, st.sampled_from(ORDERS), st.booleans())
def test_undone_whatever_signs_the_labels_hold(tree, orders, tags):
    v, h = orders
    made = transform(tree, v=v, h=h, annotate_tags=tags)
    assert undo(made) == tree
    assert all(node.is_preterminal or len(node.children) == 2 for node in made.nodes())
    assert made.words() == tree.words()


def test_what_a_label_stands_for():
    assert chain("S+VP^S") == ("S", "VP") and chain(r"A\+B^C") == ("A+B",) and chain("NN") == ("NN",)
    assert chain("NP^VP|DT") == () and is_made("NP^VP|DT")
    assert chain(r"ADVP\|PRT") == ("ADVP|PRT",) and not is_made(r"ADVP\|PRT")


@pytest.mark.real
def test_undone_on_every_tree_of_the_sample(untyped):
    code = """
import math
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.nltk_sample import nltk_treebank
from pcfg.treebanks.transforms import transform, undo

trees = clean_trees(nltk_treebank())
for v, h in [(1, 0), (2, 1), (2, 2), (1, math.inf)]:
    for tree in trees:
        made = transform(tree, v=v, h=h, annotate_tags=v == 2)
        assert undo(made) == tree, (v, h, str(tree))
        assert all(node.is_preterminal or len(node.children) == 2 for node in made.nodes()), (v, h, str(tree))
print(len(trees))
"""
    assert untyped(code) == "3914\n"


# -- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, position, expected",
    [
        ("running", 3, ("<unk:lower-ing>", "<unk:lower>", "<unk>")),
        ("Vinken", 0, ("<unk:first>", "<unk>")),
        ("Vinken", 1, ("<unk:capital>", "<unk>")),
        ("IBM", 0, ("<unk:upper>", "<unk>")),
        ("McDonalds", 1, ("<unk:capital-s>", "<unk:capital>", "<unk>")),
        ("iPhone", 1, ("<unk:mixed>", "<unk>")),
        ("well-known", 2, ("<unk:lower-hyphen>", "<unk:lower>", "<unk>")),
        ("so-called", 2, ("<unk:lower-hyphen-ed>", "<unk:lower-hyphen>", "<unk:lower>", "<unk>")),
        ("1,250.5", 2, ("<unk:number>", "<unk>")),
        ("1989", 2, ("<unk:year>", "<unk>")),
        ("3-for-1", 2, ("<unk:number-letter-hyphen>", "<unk:number-letter>", "<unk>")),
        ("red", 2, ("<unk:lower>", "<unk>")),
        ("--", 2, ("<unk:sign>", "<unk>")),
    ],
)
def test_signatures(word, position, expected):
    assert signatures(word, position) == expected


def test_known_forms():
    vocabulary = {"run", "<unk>", "<unk:lower>"}
    assert known_form("run", 0, vocabulary) == "run"
    assert known_form("running", 0, vocabulary) == "<unk:lower>"
    assert known_form("Running", 0, vocabulary) == "<unk>"
    with pytest.raises(TreebankError, match=r"'running' .number 3 of its sentence. is unknown"):
        known_form("running", 2, {"run"})


def lexicon(k=1.0):
    # "saw" 3 times tag 0, once tag 1; "ran" once tag 1; the signature of lower-case words: tags 0, 1, 1 (and 2 for <unk>).
    return SmoothedLexicon.count(
        {("saw", 0): 3, ("saw", 1): 1, ("ran", 1): 1, ("X", 2): 5},
        {("<unk:lower>", 0): 1, ("<unk:lower>", 1): 2, ("<unk>", 2): 4},
        3,
        k,
    )


def test_smoothed_scores_by_hand():
    tag_probs = np.array([3, 2, 5]) / 10
    expected = np.array(
        [
            [(3 + 1 / 3) / 5, (1 + 2 / 3) / 5, 0],  # saw: 4 sightings and one of its signature
            [(0 + 1 / 3) / 2, (1 + 2 / 3) / 2, 0],  # ran: one and one
            [1 / 3, 2 / 3, 0],  # never seen
            [0, 0, 1],  # a sign, of which only <unk> knows
        ]
    )
    found = lexicon().scores(["saw", "ran", "hid", "--"])
    np.testing.assert_allclose(found, expected / tag_probs, rtol=1e-14)


def test_k_is_the_weight_of_a_signature():
    twice, none = lexicon(2.0).scores(["saw", "hid"]), lexicon(0.0).scores(["saw", "hid"])
    tag_probs = np.array([3, 2, 5]) / 10
    np.testing.assert_allclose(twice[0] * tag_probs, [(3 + 2 / 3) / 6, (1 + 4 / 3) / 6, 0], rtol=1e-14)
    np.testing.assert_allclose(none * tag_probs, [[3 / 4, 1 / 4, 0], [1 / 3, 2 / 3, 0]], rtol=1e-14)


def test_an_unknown_word_without_a_signature():
    bare = SmoothedLexicon.count({("saw", 0): 3}, {}, 1)
    np.testing.assert_array_equal(bare.scores(["saw"]), [[1.0]])
    with pytest.raises(TreebankError, match=r"'hid' .number 2 of its sentence. is unknown"):
        bare.scores(["saw", "hid"])


def test_a_word_spelled_like_a_signature():
    odd = SmoothedLexicon.count({("<unk>", 0): 2, ("saw", 1): 2}, {("<unk:lower>", 1): 1}, 2)
    assert odd.scores(["<unk>"])[0, 0] > 0
    with pytest.raises(TreebankError, match="'--'"):
        odd.scores(["--"])


BRACKETS = [
    "(S (PRN (-LRB- -LRB-) (NN dog) (-RRB- -RRB-)) (VP (VB is) (-LCB- -LCB-)))",
    "(S (PRN (-LRB- -LRB-) (NN cat) (-RRB- -RRB-)) (VP (VB is) (-LCB- -LCB-)))",
]


@pytest.mark.parametrize("smooth", [True, False])
def test_brackets_of_raw_text_are_those_of_the_treebank(smooth):
    grammar = Grammar.from_trees(map(Tree.parse, BRACKETS), min_count=2, smooth_lexicon=smooth)
    raw, escaped = ["(", "dog", ")", "is", "{"], ["-LRB-", "dog", "-RRB-", "is", "-LCB-"]
    np.testing.assert_array_equal(grammar.emissions(raw), grammar.emissions(escaped))
    assert inside_outside(grammar, [raw]).log_z == inside_outside(grammar, [escaped]).log_z > -math.inf
    if not smooth:
        assert [grammar.number_of(w, i) for i, w in enumerate(raw)] == [
            grammar.number_of(w, i) for i, w in enumerate(escaped)
        ]


def test_brackets_that_a_grammar_knows_or_does_not():
    own = Grammar.from_text("0.5 S -> '('\n0.5 S -> '-LRB-'\n")
    assert own.number_of("(", 0) != own.number_of("-LRB-", 0)
    with pytest.raises(GrammarError, match=r"'\[' .number 1 of its sentence. is unknown"):
        own.emissions(["["])


def test_a_lexicon_goes_through_json_unchanged():
    content = json.loads(json.dumps(lexicon(0.3).to_json()))
    words = ["saw", "ran", "hid", "--"]
    np.testing.assert_array_equal(SmoothedLexicon.from_json(content).scores(words), lexicon(0.3).scores(words))
    for damage in (
        {"tags": [7] * len(content["tags"])},
        {"counts": [-1.0] * len(content["counts"])},
        {"forms": content["forms"][:-1]},
        {"words": [*content["words"], "more"]},
        {"k": "much"},
        {"tag_probs": None},
    ):
        with pytest.raises(TreebankError, match="damaged"):
            SmoothedLexicon.from_json({**content, **damage})


# -- the grammar of a treebank ---------------------------------------------------------------------------------------

BANK = [
    Tree.parse(text)
    for text in (
        "(S (NP (DT the) (NN dog)) (VP (VBD saw) (NP (DT the) (NN cat))))",
        "(S (NP (DT the) (NN cat)) (VP (VBD slept)))",
        "(S (NP (NP (DT a) (NN dog)) (PP (IN of) (NP (NN fame)))) (VP (VBD slept)))",
        "(FRAG (NN dog))",
    )
]


def named(induced):
    """Rules and lexical rules by name, with their probabilities."""
    arrays = induced.arrays()
    symbols = induced.nonterminals + induced.preterminals
    rules = {
        (symbols[a], symbols[b], symbols[c]): p
        for a, b, c, p in zip(*(arrays[key] for key in ("parents", "left", "right", "rule_probs")), strict=True)
    }
    words = {
        (induced.preterminals[t], induced.words[w]): p
        for t, w, p in zip(arrays["tags"], arrays["tokens"], arrays["word_probs"], strict=True)
    }
    return rules, words, dict(zip(symbols, arrays["start"], strict=True))


def test_relative_frequencies_by_hand():
    induced = induce(BANK, v=1, h=1, min_count=1, smooth_lexicon=False, annotate_tags=False)
    rules, words, start = named(induced)
    assert rules == {
        ("S", "NP", "VP"): 1 / 3,
        ("S", "NP", "VP+VBD"): 2 / 3,
        ("VP", "VBD", "NP"): 1.0,
        ("NP", "DT", "NN"): 4 / 5,
        ("NP", "NP", "PP"): 1 / 5,
        ("PP", "IN", "NP+NN"): 1.0,
    }
    assert words["NN", "dog"] == 1 / 2 and words["NN", "cat"] == 1 / 2 and words["FRAG+NN", "dog"] == 1.0
    assert words["DT", "the"] == 3 / 4
    assert {name: p for name, p in start.items() if p} == {"S": 3 / 4, "FRAG+NN": 1 / 4}
    assert induced.lexicon is None and (induced.trees, induced.tokens) == (4, 14)


def test_from_trees_takes_ours_and_nltks_as_they_stand():
    text = "( (S (NP-SBJ (DT The) (NN dog)) (VP (VBZ sees) (NP (-NONE- *))) (. .)) )"
    options = {"h": 2, "v": 1, "min_count": 1, "smooth_lexicon": False}
    expected = Grammar.of_arrays(**induce(clean_trees([Tree.parse(text)]), **options).arrays())
    for tree in (Tree.parse(text), Tree.parse(text).to_nltk()):
        grammar = Grammar.from_trees([tree], **options)
        assert (grammar.binary, grammar.lexical, grammar.roots) == (expected.binary, expected.lexical, expected.roots)
        assert grammar.transformed and grammar.pruned().transformed and not Grammar.from_text("1 S -> 'a'").transformed
    with pytest.raises(TreebankError, match="no trees"):
        Grammar.from_trees([])


def test_rare_words_become_signatures_that_are_not_rare():
    _, words, _ = named(induce(BANK, v=1, min_count=2, smooth_lexicon=False, annotate_tags=False))
    # a, saw, of, fame come once each: four lower-case words, so <unk:lower> fits four.
    assert {word for _, word in words} == {"the", "dog", "cat", "slept", "<unk:lower>"}
    assert words["DT", "<unk:lower>"] == 1 / 4 and words["IN", "<unk:lower>"] == 1.0


def test_a_label_over_words_here_and_over_nodes_there():
    bank = [Tree.parse("(S (NP rain) (NP (NN snow) (NN ball)))"), Tree.parse("(S (A b) (S (A b) (C d)))")]
    induced = induce(bank, v=1, min_count=1, annotate_tags=False)
    assert not set(induced.nonterminals) & set(induced.preterminals)
    assert ("NP^", "rain") in named(induced)[1] and chain("NP^") == ("NP",)


def test_no_trees_no_grammar():
    with pytest.raises(TreebankError, match="no trees"):
        induce([])


def expected_length(arrays):
    """By the linear system e = 1 for tags, e_A = sum of p (e_B + e_C); also the spectral radius of its matrix."""
    size, inner = len(arrays["start"]), len(arrays["nonterminals"])
    matrix = np.zeros((size, size))
    np.add.at(matrix, (arrays["parents"], arrays["left"]), arrays["rule_probs"])
    np.add.at(matrix, (arrays["parents"], arrays["right"]), arrays["rule_probs"])
    ones = np.where(np.arange(size) < inner, 0.0, 1.0)
    return arrays["start"] @ np.linalg.solve(np.eye(size) - matrix, ones), matrix[:inner, :inner]


@given(st.lists(odd_trees, min_size=1, max_size=6), st.sampled_from(ORDERS), st.booleans())
def test_probabilities_sum_to_1_and_lengths_have_the_mean_of_the_trees(trees, orders, tags):
    v, h = orders
    arrays = induce(trees, v=v, h=h, min_count=2, annotate_tags=tags).arrays()
    assert arrays["start"].sum() == pytest.approx(1)
    for heads, probs in (("parents", "rule_probs"), ("tags", "word_probs")):
        sums = np.bincount(arrays[heads], arrays[probs])
        np.testing.assert_allclose(sums, 1, rtol=1e-12)
    for columns in (("parents", "left", "right"), ("tags", "tokens")):
        rows = list(zip(*(arrays[column].tolist() for column in columns), strict=True))
        assert rows == sorted(set(rows))
    mean = np.mean([len(tree.words()) for tree in trees])
    assert expected_length(arrays)[0] == pytest.approx(mean, rel=1e-9)


@given(st.lists(odd_trees, min_size=1, max_size=6))
def test_without_smoothing_the_lexicon_is_the_grammar_turned_round(trees):
    # P(t|w) / P(t) = P(w|t) / P(w): with k = 0 and all words kept, the scores times P(w) are the lexical rules.
    induced = induce(trees, min_count=1, k=0.0)
    counts = Counter(word for tree in trees for word in tree.words())
    for word, count in counts.items():
        column = {tag: p for (tag, form), p in named(induced)[1].items() if form == word}
        expected = [column.get(tag, 0.0) for tag in induced.preterminals]
        found = induced.lexicon.scores([word])[0] * count / induced.tokens
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.real
def test_the_sample_is_counted_as_evalb_and_kim_et_al_count_it(untyped):
    # On the test trees of 40 words or fewer. EVALB itself, compiled, finds 8,270 brackets in the trees without functions.
    code = """
from pcfg.treebanks.evalb import right_branching, score_labelled, score_unlabelled
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.nltk_sample import nltk_treebank

for gold in (nltk_treebank(), clean_trees(nltk_treebank(), collapse=False)):
    gold = [tree for tree in gold[3414:] if len(clean_trees([tree])[0].words()) <= 40]
    parses = [right_branching(clean_trees([tree])[0].words()) for tree in gold]
    f1s = [score_unlabelled(gold, parses, kim=kim).f1 for kim in (False, True)]
    print(score_labelled(gold, parses).gold, *(f"{100 * f1:.2f}" for f1 in f1s))
"""
    assert untyped(code) == "8270 40.12 40.60\n" * 2


@pytest.mark.real
def test_the_grammar_of_the_sample(untyped, tmp_path):
    code = """
import pickle, sys
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.induction import induce
from pcfg.treebanks.nltk_sample import nltk_treebank

train = clean_trees(nltk_treebank())[:3414]
found = [induce(train, v=v, h=1, smooth_lexicon=False, annotate_tags=False).arrays() for v in (1, 2)]
with open(sys.argv[1], "wb") as file:
    pickle.dump((sum(len(tree.words()) for tree in train) / len(train), found), file)
"""
    untyped(code, tmp_path / "made.pickle")
    mean, found = pickle.loads((tmp_path / "made.pickle").read_bytes())
    assert mean == pytest.approx(24.100, abs=5e-4)
    for arrays in found:
        length, matrix = expected_length(arrays)
        assert length == pytest.approx(mean, rel=1e-9)
        if len(matrix) < 600:  # larger ones take seconds
            assert 0.9 < np.abs(np.linalg.eigvals(matrix)).max() < 0.97
