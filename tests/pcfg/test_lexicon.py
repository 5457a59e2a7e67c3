"""Unknown words: signatures, and the smoothed lexicon against scores worked by hand."""

import json
import math

import numpy as np
import pytest

from pcfg.errors import GrammarError, TreebankError
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.treebanks.lexicon import UNKNOWN, SmoothedLexicon, frequent_signatures, known_form, signatures
from pcfg.treebanks.trees import Tree


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


def test_signatures_stand_for_themselves_from_so_many_rare_words_on():
    rare = [("eating", 1), ("sitting", 2), ("1984", 1), ("!", 0)]
    assert frequent_signatures(rare, 2) == {"<unk:lower-ing>", "<unk:lower>", UNKNOWN}
    assert frequent_signatures(rare, 3) == frequent_signatures(rare[:1], 3) == {UNKNOWN}
    assert frequent_signatures([], 1) == set()


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
