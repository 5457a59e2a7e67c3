"""Grammars as text, JSON and NLTK's: read as written, every bit back, everything else refused by name."""

import json

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import GrammarError
from pcfg.grammars.grammar import Grammar
from pcfg.grammars.rules import Rule, Word
from pcfg.grammars.text_format import read_rules
from pcfg.inference.parsing import parse
from pcfg.sampling.corpus import write_corpus
from pcfg.sampling.formats import write_text
from pcfg.sampling.sampler import sample
from pcfg.sampling.tokenizer import tokenizer
from pcfg.sentences import read_sentences
from pcfg.treebanks.trees import Tree
from surgery.files import new_folder, replace_json
from tests.support.sentences_of_rules import BINARY, JOHN, LEXICAL, ROOTS, assert_same_sentences, same


def test_nltk_grammars_come_and_go():
    theirs = nltk.PCFG.fromstring(JOHN)
    grammar = Grammar.from_nltk(theirs)
    assert same(grammar, Grammar.from_text(JOHN))
    assert same(grammar, Grammar.from_nltk(grammar.to_nltk()))
    rules = [
        Rule(str(p.lhs()), tuple(Word(c) if isinstance(c, str) else str(c) for c in p.rhs()), p.prob())
        for p in theirs.productions()
    ]
    assert_same_sentences(grammar, rules, "S", longest=4)


def test_nltk_finds_the_probability_of_the_best_tree():
    grammar = Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL)
    (tree,) = nltk.ViterbiParser(grammar.to_nltk()).parse(["cats", "see", "dogs"])
    assert tree.prob() == pytest.approx(0.75 * 0.5 * 0.75 * 0.25)


def test_text_form():
    text = """
    # a comment, and an empty line

    0.5 S -> S "isn't" S   # another
    .5 S -> 'a"b' 'c\\'d' '\\\\' 'e#f'
    """
    grammar = Grammar.from_text(text)
    assert set(grammar.words) == {"isn't", 'a"b', "c'd", "\\", "e#f"}
    assert same(Grammar.from_text("%start B\n1 A -> 'a'\n1.0 B -> A A"), Grammar.from_text("1 B -> A A\n1 A -> 'a'"))


NLTK_TEXTS = [
    "S -> NP VP [1.0]\nNP -> 'I'[0.5]|'you'[0.5]\nVP -> 'go'[.25]|'go' NP[.75]",
    "% start S\nVP -> 'see' City [1.0]\nCity -> 'New York' [0.5] | \"L' Aquila\"[0.5]\nS -> City VP[1]",
    "%start B\nA -> 'a' [0.5] | \\\n   'b' [0.25] |\\\n 'c'[0.25]\nB -> \\\n A A [1.0]",
    "# rounded\nS -> A A [1.0]\nA -> 'a' [0.333333] | 'b' [0.333333] | 'c' [0.333333]",
    "S -> '5\u00a0000' 'a b  c'[0.5] | '|'[0.25] | '['[0.25]",
    "S -> A[0.4]|A A[0.6]\nA -> 'x'[0.991]",
]


@pytest.mark.parametrize("text", NLTK_TEXTS)
@pytest.mark.filterwarnings("ignore:the probabilities of the rules of A sum to 0.99")
def test_texts_are_read_as_nltk_reads_them(text):
    theirs = nltk.PCFG.fromstring(text)
    rules, start = read_rules(text)
    assert start == str(theirs.start())
    assert rules == [
        Rule(str(p.lhs()), tuple(Word(c) if isinstance(c, str) else str(c) for c in p.rhs()), p.prob())
        for p in theirs.productions()
    ]
    mine = Grammar.from_text(text)
    assert same(mine, Grammar.from_nltk(theirs)) and same(mine, Grammar.from_text(mine.to_text()))


def test_rounded_probabilities_are_divided_by_their_sum_and_that_is_said():
    text = "S -> A A [1.0]\nA -> 'a' [0.33] | 'b' [0.33] | 'c' [0.335]\nB -> 'b' [0.999]"
    said = "the rules of A sum to 0.995, those of 1 more not to 1 either: each was divided by its sum"
    with pytest.warns(UserWarning, match=said):
        grammar = Grammar.from_text(text)
    assert grammar.lexical["A", "c"] == pytest.approx(0.335 / 0.995)
    with pytest.warns(UserWarning, match="rules of A sum to 0.995"):
        assert same(Grammar.from_nltk(nltk.PCFG.fromstring(text)), grammar)
    Grammar.from_text("S -> 'a' [0.3333333] | 'b' [0.3333333] | 'c' [0.3333333]")  # nothing to say


def test_a_backslash_goes_on_only_where_it_stands_for_itself():
    assert (
        read_rules("0.5 S -> 'a' \\\n'b'\n# a comment \\\n0.5 S -> 'c'")[0]
        == read_rules("0.5 S -> 'a' 'b'\n0.5 S -> 'c'")[0]
    )
    grammar = Grammar({"S": 1.0}, {("S", "A", "B\\"): 1.0}, {("A", "a"): 1.0, ("B\\", "b\\"): 1.0})
    assert same(Grammar.from_text(grammar.to_text()), grammar)
    for name in ("\\", "'"):
        odd = Grammar({"S": 1.0}, {("S", name, name): 1.0}, {(name, "b'"): 1.0})
        with pytest.raises(GrammarError, match="can't be told from others"):
            odd.to_text()


def test_words_with_spaces_stay_out_of_texts_and_brackets(tmp_path):
    grammar = Grammar.from_text("S -> 'I' City [1.0]\nCity -> 'New York' [1.0]")
    tree = parse(grammar, [["I", "New York"]])[0]
    assert tree.words() == ["I", "New York"] == list(sample(grammar, 1, seed=0)[0])
    assert sample(grammar, 1, seed=0).tree(0, plain=True) == tree
    for write in (
        lambda: sample(grammar, 1, seed=0).bracketed(0),
        lambda: write_corpus(grammar, tmp_path / "out", 3, seed=0),
        lambda: write_text(sample(grammar, 1, seed=0), tmp_path / "a.txt"),
        lambda: tokenizer(grammar),
    ):
        with pytest.raises(GrammarError, match="the word 'New York' holds a space"):
            write()
    assert not list(tmp_path.iterdir())


def test_words_with_hard_spaces_pass_through_files(tmp_path):
    grammar = Grammar.from_text("S -> Num 'euros' [1.0]\nNum -> '5\u00a0000' [0.5] | '7' [0.5]")
    (tmp_path / "a.txt").write_text("5\u00a0000 euros\n7 \t euros \n", "utf-8")
    sentences = read_sentences(tmp_path / "a.txt")
    assert sentences == [["5\u00a0000", "euros"], ["7", "euros"]]
    trees = parse(grammar, sentences)
    assert [Tree.parse(str(tree)) for tree in trees] == trees and trees[0].words() == sentences[0]
    write_corpus(grammar, tmp_path / "out", 20, seed=0)
    drawn = read_sentences(tmp_path / "out" / "train.txt")
    assert ["5\u00a0000", "euros"] in drawn and drawn == read_sentences(tmp_path / "out" / "train.jsonl")
    with pytest.raises(GrammarError, match="splits at spaces"):
        tokenizer(grammar)


def test_the_tags_of_the_penn_treebank_pass_through_text():
    tags = ["#", "''", "``", "$", ",", ":", ".", "-LRB-", "''^S", "|", "[x]"]
    grammar = Grammar(
        roots={"S": 1.0},
        binary={("S", tag, "S"): 1 / 16 for tag in tags} | {("S", "#", "#"): 5 / 16},
        lexical={(tag, tag): 1.0 for tag in tags},
    )
    assert same(Grammar.from_text(grammar.to_text()), grammar)
    with pytest.raises(GrammarError, match="the symbol 'x' can't be told from other things"):
        Grammar(roots={"'x'": 1.0}, binary={}, lexical={("'x'", "x"): 1.0}).to_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text holds no rules"),
        ("# only this", "the text holds no rules"),
        ("1.0 S -> 'a'\nS NP VP", "the text, line 2: a rule looks like 0.5 S -> NP VP"),
        ("S -> 'a'", "the text, line 1: a right-hand side has no probability"),
        ("S -> 'a' [0.5] | 'b'", "line 1: a right-hand side has no probability"),
        ("S -> 'a' [x]", "line 1: x isn't a probability"),
        ("half S -> 'a'", "line 1: half isn't a probability"),
        ("1.0 S -> ", r"the rule S -> \(nothing\) derives no word"),
        ("S -> [1.0]", r"the rule S -> \(nothing\) derives no word"),
        ("0.5 S -> 'a'\n0.4 S -> 'b' S", "the rules of S sum to 0.9"),
        ("nan S -> 'a'", "the rule S -> 'a' has the probability nan"),
        ("1.5 S -> 'a'\n-0.5 S -> 'b'", "the rule S -> 'b' has the probability -0.5"),
        ("1.0 S -> A A", "the rule S -> A A uses A, which has no rules"),
        ("%start X\n1.0 S -> 'a'", "the start symbol X has no rules"),
        ("1.0 S -> A B\n1.0 A -> B\n1.0 B -> A", "round in a circle with probability 1"),
        ("1.0 S -> S", "round in a circle with probability 1"),
        ("1.0 S -> S S", "the grammar has no words"),
        (
            "S -> 'a'[0.5]|''[0.5]",
            r"the rule S -> '' derives no word, and every leaf of a tree is one: leave it out, and write each .* S -> A S \[0.7\] \| A \[0.3\]",
        ),
        (
            "1.0 S -> A ''\n1.0 A -> 'a'",
            "the rule S -> A '' has an empty word, which no sentence holds: leave the quotes out",
        ),
        ("0.5 S -> \"\"\n0.5 S -> 'a'", "the rule S -> '' derives no word"),
        ("S -> A A [1.0]\nA -> 'a' [0.98]", "the rules of A sum to 0.98"),
        ("S -> 'a' \\\n [0.5] | 'b'\nA -> 'a' [1]", "line 1: a right-hand side has no probability"),
    ],
)
def test_texts_that_are_no_grammars_are_refused(text, message):
    with pytest.raises(GrammarError, match=message):
        Grammar.from_text(text)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 999), st.sampled_from([0.0, 1.0, 10.0]))
def test_every_bit_survives_every_round_trip(tmp_path_factory, n, t, words, seed, temperature):
    grammar = Grammar.random(n, t, words, seed, temperature)
    path = tmp_path_factory.mktemp("grammar") / "a.pcfg.json"
    grammar.save(path)
    loaded = Grammar.load(path)
    for name in ("nonterminals", "preterminals", "words"):
        assert getattr(loaded, name) == getattr(grammar, name)
    for name in ("start", "parents", "left", "right", "rule_probs", "tags", "tokens", "word_probs"):
        assert getattr(loaded, name).tobytes() == getattr(grammar, name).tobytes()
    assert same(Grammar.from_text(grammar.to_text()), grammar)
    assert same(Grammar.from_nltk(grammar.to_nltk()), grammar)
    assert same(Grammar(grammar.roots, grammar.binary, grammar.lexical), grammar)


def test_files_that_hold_no_grammar_are_refused(tmp_path):
    path = tmp_path / "a.pcfg.json"
    with pytest.raises(GrammarError, match=r"a\.pcfg\.json can't be read: No such file"):
        Grammar.load(path)
    for text, message in (
        ("{", ": the file isn't JSON"),
        ("[]", ": the file isn't a grammar of schema 1"),
        ('{"schema": 2}', ": the file isn't a grammar of schema 1"),
        ('{"schema": 1}', " is damaged"),
    ):
        path.write_text(text)
        with pytest.raises(GrammarError, match=rf"a\.pcfg\.json{message}"):
            Grammar.load(path)
    Grammar(roots=ROOTS, binary=BINARY, lexical=LEXICAL).save(path)
    content = json.loads(path.read_text())
    assert content["binary"][0] == ["S", "S", "VP", 0.5]
    content["binary"][0][3] = 0.25
    replace_json(path, content)
    with pytest.raises(GrammarError, match=r"a\.pcfg\.json: the probabilities of the rules of S sum to 0\.75"):
        Grammar.load(path)
    content["binary"][0][0] = "Q"
    replace_json(path, content)
    with pytest.raises(GrammarError, match=r"is damaged \(KeyError 'Q'\)"):
        Grammar.load(path)


def test_a_smoothed_lexicon_is_saved_with_its_grammar(tmp_path):
    from pcfg.treebanks.lexicon import SmoothedLexicon

    lexicon = SmoothedLexicon.count({("dogs", 0): 3.0, ("see", 1): 2.0}, {("<unk>", 0): 1.0, ("<unk>", 1): 2.0}, 2)
    grammar = Grammar(ROOTS, BINARY, LEXICAL, lexicon)
    grammar.save(tmp_path / "a.pcfg.json")
    loaded = Grammar.load(tmp_path / "a.pcfg.json")
    words = ["dogs", "see", "birds"]
    assert loaded.emissions(words).tobytes() == lexicon.scores(words).tobytes()
    content = json.loads((tmp_path / "a.pcfg.json").read_text())
    del content["lexicon"]["counts"]
    replace_json(tmp_path / "a.pcfg.json", content)
    with pytest.raises(GrammarError, match=r"a\.pcfg\.json is damaged .*counts.*at `\$\.lexicon`"):
        Grammar.load(tmp_path / "a.pcfg.json")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="stop"), new_folder(tmp_path / "out") as staged:
        (staged / "file").write_text("x")
        raise ValueError("stop")
    assert list(tmp_path.iterdir()) == []
    with new_folder(tmp_path / "out") as staged:
        (staged / "file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
