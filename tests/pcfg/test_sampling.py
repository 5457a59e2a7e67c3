"""Sampling against enumeration: right frequencies, right lengths, the same for the same seed."""

import json
import math
import time
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from pcfg.errors import GrammarError, OptionError, PcfgError
from pcfg.grammars.grammar import Grammar
from pcfg.sampling import sampler
from pcfg.sampling.formats import write_dataset, write_jsonl, write_text
from pcfg.sampling.sampler import inside_lengths, length_distribution, sample
from pcfg.sampling.tokenizer import SPECIAL, tokenizer
from pcfg.treebanks.trees import Tree

# Two roots, both directions of recursion, an ambiguous sentence, a rule of probability 0.
SMALL = Grammar(
    roots={"S": 0.7, "N": 0.1, "V": 0.2},
    binary={
        ("S", "N", "V"): 0.5,
        ("S", "S", "S"): 0.1,
        ("S", "N", "S"): 0.15,
        ("S", "S", "N"): 0.0,
        ("S", "X", "V"): 0.25,
        ("X", "N", "N"): 0.75,
        ("X", "X", "X"): 0.25,
    },
    lexical={("N", "a"): 0.3, ("N", "b"): 0.7, ("V", "a"): 0.9, ("V", "c"): 0.1, ("V", "d"): 0.0},
)
# Almost all sentences are long: exact conditioning pays.
LONG = Grammar({"S": 1.0}, {("S", "S", "S"): 0.499, ("S", "S", "T"): 0.49, ("S", "T", "T"): 0.011}, {("T", "t"): 1.0})


def all_trees(grammar, longest):
    """{(root, bracketed tree, number of words): probability} of all trees up to a length, by plain recursion."""
    lexical, binary, made = grammar.lexical, grammar.binary, {}

    def below(symbol, length):
        if (symbol, length) not in made:
            found = [(f"({t} {w})", p) for (t, w), p in lexical.items() if t == symbol] if length == 1 else []
            for (a, b, c), p in binary.items():
                for k in range(1, length) if a == symbol else ():
                    for left, q in below(b, k):
                        found += [(f"({a} {left} {right})", p * q * r) for right, r in below(c, length - k)]
            made[symbol, length] = found
        return made[symbol, length]

    return {
        (tree, length): start * p
        for root, start in grammar.roots.items()
        for length in range(1, longest + 1)
        for tree, p in below(root, length)
    }


def assert_frequencies(counts, expected):
    """A chi-squared test at 1e-4; rare outcomes are taken together."""
    total = sum(counts.values())
    assert sum(expected.values()) == pytest.approx(1, abs=1e-9)
    assert set(counts) <= {key for key, p in expected.items() if p > 0}
    common = [key for key, p in expected.items() if p * total >= 10]
    seen = np.array([counts[key] for key in common] + [total - sum(counts[key] for key in common)])
    hoped = np.array([expected[key] * total for key in common])
    hoped = np.append(hoped, total - hoped.sum())
    keep = hoped > 1e-6
    assert seen[~keep].sum() == 0
    assert chisquare(seen[keep], hoped[keep], sum_check=False).pvalue > 1e-4


@pytest.mark.parametrize("method", ["rejection", "exact"])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_trees_have_their_probabilities_given_the_limit(method, limit):
    trees = all_trees(SMALL, limit)
    within = sum(trees.values())
    samples = sample(SMALL, 40_000, seed=3, max_length=limit, method=method)
    assert samples.method == method and samples.acceptance == pytest.approx(within, abs=1e-14)
    counts = Counter(samples.bracketed(i) for i in range(len(samples)))
    assert_frequencies(counts, {tree: p / within for (tree, _), p in trees.items()})


def test_free_trees_have_their_probabilities():
    samples = sample(SMALL, 40_000, seed=1)
    assert samples.method == "free" and samples.acceptance == 1
    trees = all_trees(SMALL, 5)
    short = np.flatnonzero(samples.lengths <= 5)
    counts = Counter(samples.bracketed(i) for i in short.tolist()) + Counter({"longer": 40_000 - len(short)})
    assert_frequencies(counts, {tree: p for (tree, _), p in trees.items()} | {"longer": 1 - sum(trees.values())})


def test_strings_have_their_probabilities():
    strings = Counter()
    for (tree, _), p in all_trees(SMALL, 4).items():
        strings[tuple(Tree.parse(tree).words())] += p
    within = sum(strings.values())
    samples = sample(SMALL, 40_000, seed=8, max_length=4)
    assert_frequencies(Counter(map(tuple, samples)), {words: p / within for words, p in strings.items()})


def test_lengths_against_enumeration():
    expected = np.zeros(8)
    for (_, length), p in all_trees(SMALL, 7).items():
        expected[length] += p
    np.testing.assert_allclose(length_distribution(SMALL, 7), expected, atol=1e-15)
    table = inside_lengths(SMALL, 7)
    assert table.shape == (4, 8) and table[2].tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    far = length_distribution(SMALL, 400)
    assert far.sum() == pytest.approx(1, abs=1e-12)
    assert far @ np.arange(401) == pytest.approx(SMALL.expected_length, rel=1e-12)


@pytest.mark.parametrize(("grammar", "seed"), [(SMALL, 5), (Grammar.random(5, 8, 20, seed=2), 6)])
def test_the_mean_length_is_the_expected_one(grammar, seed):
    lengths = sample(grammar, 100_000, seed=seed).lengths
    assert abs(lengths.mean() - grammar.expected_length) < 4.5 * lengths.std() / math.sqrt(len(lengths))


def test_long_exact_samples_have_the_right_lengths():
    limit = 30
    expected = length_distribution(LONG, limit)
    acceptance = expected.sum()
    assert acceptance < 0.05
    samples = sample(LONG, 20_000, seed=4, max_length=limit)
    assert samples.method == "exact" and samples.acceptance == pytest.approx(acceptance)
    assert_frequencies(Counter(samples.lengths.tolist()), dict(enumerate(expected / acceptance)))
    thrown = sample(LONG, 20_000, seed=4, max_length=limit, method="rejection")
    assert_frequencies(Counter(thrown.lengths.tolist()), dict(enumerate(expected / acceptance)))


def test_auto_takes_rejection_where_a_fifth_of_the_draws_or_more_are_kept():
    assert sample(SMALL, 10, seed=0, max_length=5).method == "rejection"
    for kept, method in ((0.21, "rejection"), (0.19, "exact")):
        rules = {("S", "A", "A"): kept, ("S", "A", "B"): 1 - kept, ("B", "A", "A"): 1.0}  # two words, or three
        drawn = sample(Grammar({"S": 1.0}, rules, {("A", "a"): 1.0}), 10, seed=0, max_length=2)
        assert drawn.method == method and drawn.acceptance == pytest.approx(kept)


@pytest.mark.parametrize(
    "options", [{}, {"max_length": 12, "method": "rejection"}, {"max_length": 12, "method": "exact"}]
)
def test_shards_are_those_of_one_large_draw(options, monkeypatch):
    whole = sample(SMALL, 300, seed=9, **options)
    monkeypatch.setattr(sampler, "_BLOCK", 7)
    parts = [sample(SMALL, 100, seed=9, first=first, **options) for first in (0, 100, 200)]
    for name in ("words", "steps"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert list(whole) == [sentence for part in parts for sentence in part]
    other = sample(SMALL, 300, seed=-10, **options)
    assert not np.array_equal(whole.words, other.words)
    assert list(whole) == list(sample(SMALL, 300, seed=9, **options))


def test_one_sentence_longer_than_the_room():
    grammar = Grammar({"S": 1.0}, {("S", "S", "T"): 0.999, ("S", "T", "T"): 0.001}, {("T", "t"): 1.0})
    samples = sample(grammar, 3, seed=0)
    assert samples.lengths.max() > 500
    for i in range(3):
        assert len(samples.tree(i).words()) == samples.lengths[i]


def test_words_trees_and_brackets_agree():
    samples = sample(SMALL, 200, seed=2)
    assert len(samples) == 200 and samples.offsets[-1] == len(samples.words)
    assert len(samples.steps) == 2 * len(samples.words) - 200
    for i in range(-1, 200):
        tree = samples.tree(i)
        assert tree.words() == samples[i]
        assert str(tree) == samples.bracketed(i)
        for node in tree.nodes():
            if node.is_preterminal:
                assert SMALL.lexical[node.label, node.children[0]] > 0
            else:
                assert SMALL.binary[node.label, node.children[0].label, node.children[1].label] > 0
    with pytest.raises(IndexError):
        samples[200]
    with pytest.raises(IndexError):
        samples.bracketed(-201)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar.from_text(
            "1 S -> NP VP PP\n0.6 NP -> Det N\n0.4 NP -> 'her'\n1 VP -> 'saw' NP\n1 PP -> 'now'\n1 Det -> 'a'\n1 N -> 'b'"
        ),
        Grammar.from_trees(
            [Tree.parse("(S (NP (NN a)) (VP (VP (VB c) (NP (DT a) (JJ b) (NN b))) (ADVP (RB d))))")], h=1, v=2
        ),
    ],
    ids=["rules", "treebank"],
)
def test_trees_in_the_form_that_the_grammar_was_made_from(grammar):
    samples = sample(grammar, 100, seed=0)
    for i in range(100):
        found = grammar.undo(samples.tree(i))
        assert str(found) == samples.bracketed(i, plain=True)
        assert found.words() == samples[i]
        assert not any("/" in node.label[1:] or "|" in node.label or "^" in node.label for node in found.nodes())


def test_nothing_is_a_sample_too():
    samples = sample(SMALL, 0, seed=0)
    assert len(samples) == 0 and list(samples) == [] and len(samples.take(np.arange(0))) == 0


def test_brackets_among_words_are_spelled_out():
    grammar = Grammar({"N": 1.0}, {}, {("N", "("): 1.0})
    assert sample(grammar, 1, seed=0).bracketed(0) == "(N -LRB-)" == str(sample(grammar, 1, seed=0).tree(0))


def test_bad_options_are_refused():
    endless = Grammar({"S": 1.0}, {("S", "S", "S"): 0.6, ("S", "T", "T"): 0.4}, {("T", "t"): 1.0})
    with pytest.raises(GrammarError, match="expected length of a sentence is infinite"):
        sample(endless, 1, seed=0)
    assert sample(endless, 100, seed=0, max_length=9).lengths.max() <= 9
    with pytest.raises(GrammarError, match="no sentence of 1 words or fewer"):
        sample(endless, 1, seed=0, max_length=1)
    with pytest.raises(OptionError, match="a limit of 0 words leaves no sentence"):
        sample(SMALL, 1, seed=0, max_length=0)
    with pytest.raises(OptionError, match="-1 sentences can't be drawn"):
        sample(SMALL, -1, seed=0)
    with pytest.raises(OptionError, match="name one of auto, rejection, exact"):
        sample(SMALL, 1, seed=0, method="guess")
    with pytest.raises(OptionError, match="exact sampling needs a max_length"):
        sample(SMALL, 1, seed=0, method="exact")


def test_tables_that_would_not_fit_are_refused_first(monkeypatch):
    monkeypatch.setattr(sampler, "_MOST_BYTES", 1000)
    with pytest.raises(GrammarError, match=r"conditioning 3 rules on up to 99 words takes .* GiB: give a lower limit"):
        sample(LONG, 1, seed=0, max_length=99)


def test_splits_share_no_sentence_and_shards_agree():
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1}
    samples = sample(SMALL, 20_000, seed=7)
    parts = samples.split(shares, seed=1)
    assert list(parts) == list(shares)
    sets = {name: set(map(tuple, part)) for name, part in parts.items()}
    assert sum(len(part) for part in parts.values()) == 20_000
    assert len(set.union(*sets.values())) == sum(map(len, sets.values()))
    assert Counter(map(tuple, samples)) == sum((Counter(map(tuple, part)) for part in parts.values()), Counter())
    different = sum(map(len, sets.values()))
    for name, share in shares.items():
        assert abs(len(sets[name]) / different - share) < 5 * math.sqrt(share / different)
        part = parts[name]
        assert part.tree(3).words() == part[3]
    later = sample(SMALL, 20_000, seed=7, first=50_000).split(shares, seed=1)
    assert not sets["train"] & set(map(tuple, later["test"]))
    assert sets["train"] != set(map(tuple, samples.split(shares, seed=2)["train"]))
    for wrong in ({}, {"train": 0.5}, {"train": 1.5, "test": -0.5}):
        with pytest.raises(OptionError, match="must be above 0 and sum to 1"):
            samples.split(wrong, seed=0)


def test_text_and_jsonl(tmp_path):
    samples = sample(SMALL, 50, seed=0)
    write_text(samples, tmp_path / "a.txt")
    assert [line.split() for line in (tmp_path / "a.txt").read_text().splitlines()] == list(samples)
    write_jsonl(samples, tmp_path / "a.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in rows] == list(samples)
    assert [Tree.parse(row["tree"]) for row in rows] == [samples.tree(i) for i in range(50)]


def test_dataset_folder(tmp_path):
    from datasets import load_from_disk

    parts = sample(SMALL, 200, seed=0).split({"train": 0.5, "test": 0.5}, seed=0)
    write_dataset(parts, tmp_path / "corpus")
    loaded = load_from_disk(str(tmp_path / "corpus"))
    assert set(loaded) == {"train", "test"}
    for name, part in parts.items():
        assert loaded[name]["tokens"][:] == list(part)
        assert loaded[name]["tree"][:] == [part.bracketed(i) for i in range(len(part))]
    with pytest.raises(PcfgError, match="corpus exists already"):
        write_dataset(parts, tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    made = tokenizer(SMALL)
    assert made.convert_ids_to_tokens(list(range(len(made)))) == [*SPECIAL, *SMALL.words]
    made.save_pretrained(tmp_path)
    for own in (made, AutoTokenizer.from_pretrained(tmp_path)):
        assert own.tokenize("a c b") == ["a", "c", "b"]
        assert own.convert_ids_to_tokens(own("a z <mask>")["input_ids"]) == ["<s>", "a", "<unk>", "<mask>", "</s>"]
        batch = own(["a", "b c"], padding=True)
        assert own.convert_ids_to_tokens(batch["input_ids"][0]) == ["<s>", "a", "</s>", "<pad>"]
        assert batch["attention_mask"][0] == [1, 1, 1, 0]
        assert own.decode(own("a c b")["input_ids"], skip_special_tokens=True) == "a c b"
    with pytest.raises(GrammarError, match="'x<s>' holds the special token <s>"):
        tokenizer(Grammar({"N": 1.0}, {}, {("N", "x<s>"): 1.0}))
    shared = tokenizer(Grammar({"N": 1.0}, {}, {("N", "<unk>"): 0.5, ("N", "<unk:lower>"): 0.5}))
    assert len(shared) == 6 and shared.tokenize("<unk:lower> what") == ["<unk:lower>", "<unk>"]


def test_a_hundred_thousand_sentences_a_second():
    """Measured: 530,000 sentences of 18 words on a busy core. A busier one has room."""
    grammar = Grammar.random(20, 45, 1000, seed=3, temperature=10.0)
    assert grammar.expected_length > 15
    sample(grammar, 10, seed=0)
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        sample(grammar, 100_000, seed=0)
        times.append(time.perf_counter() - begin)
    assert min(times) < 1.0


def test_rejection_without_hope_is_refused():
    grammar = Grammar({"S": 1.0}, {("S", "S", "S"): 1 - 1e-12, ("S", "T", "T"): 1e-12}, {("T", "a"): 1.0})
    with pytest.raises(GrammarError, match=r"1e-12 of free draws .*use method='exact'"):
        sample(grammar, 2, seed=0, max_length=3, method="rejection")
    assert sample(grammar, 2, seed=0, max_length=3).method == "exact"
