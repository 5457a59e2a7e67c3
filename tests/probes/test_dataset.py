"""What probes are trained on, and what they must beat, against plain loops."""

import numpy as np
import pytest

from pcfg import Grammar, inside_outside, sample
from pcfg.errors import PcfgError
from pcfg.treebanks.trees import Tree
from probes import controls
from probes.dataset import Dataset, check_pairs, spans_of
from probes.depths import control_depths, depth_classes, gap_rows
from probes.errors import ProbeError
from probes.example import example_grammar
from probes.spans import control_spans


@pytest.fixture(scope="module")
def grammar():
    return example_grammar()


@pytest.fixture(scope="module")
def dataset(grammar):
    return Dataset.of_grammar(grammar, sample(grammar, 60, seed=0, max_length=9), seed=0)


def test_targets_are_the_charts(grammar, dataset):
    for i in (0, 5, len(dataset.sentences) - 1):
        chart = inside_outside(grammar, [dataset.sentences[i]])
        rows, first = dataset.targets[dataset.span_rows(np.array([i]))], 0
        for start, last in zip(*spans_of(len(dataset.sentences[i])), strict=True):
            assert rows[first, 0] == pytest.approx(float(chart.span_marginals[0, start, last + 1]), abs=1e-6)
            for column, label in enumerate(dataset.labels, 1):
                wanted = float(chart.label_marginals[0, start, last + 1, grammar.nonterminals.index(label)])
                assert rows[first, column] == pytest.approx(wanted, abs=1e-6)
            first += 1
        assert first == len(rows)


def test_trees_are_those_that_sentences_were_drawn_with(grammar):
    drawn = sample(grammar, 40, seed=3, max_length=8)
    dataset = Dataset.of_grammar(grammar, drawn, seed=0)
    kept = [i for i in range(40) if len(drawn[i]) > 2]
    assert [str(tree) for tree in dataset.trees] == [str(drawn.tree(i)) for i in kept]


def test_sentences_alone_get_trees_of_their_words(grammar):
    dataset = Dataset.of_grammar(grammar, list(sample(grammar, 40, seed=3, max_length=8)), seed=0)
    assert all(tuple(tree.words()) == words for tree, words in zip(dataset.trees, dataset.sentences, strict=True))


def test_no_sentence_is_on_both_sides(grammar):
    words = [list(s) for s in sample(grammar, 50, seed=0, max_length=5)]
    dataset = Dataset.of_grammar(grammar, words + words, seed=0)
    train, test = ({dataset.sentences[i] for i in part} for part in (dataset.train, dataset.test))
    assert not train & test
    assert len(dataset.train) + len(dataset.test) == len(dataset.sentences)


def test_rows_and_ends_are_those_of_a_loop(dataset):
    numbers = np.array([4, 1, 7])
    rows, lefts, rights, owners = [], [], [], []
    for place, i in enumerate(numbers):
        begin = sum(len(s) for s in dataset.sentences[:i])
        first = sum(len(spans_of(len(s))[0]) for s in dataset.sentences[:i])
        for k, (a, b) in enumerate(zip(*spans_of(len(dataset.sentences[i])), strict=True)):
            rows.append(first + k)
            lefts.append(begin + a)
            rights.append(begin + b)
            owners.append(place)
    assert dataset.span_rows(numbers).tolist() == rows
    assert [ends.tolist() for ends in dataset.ends(numbers)] == [lefts, rights]
    assert dataset.owners(numbers).tolist() == owners
    full = dataset.full(numbers, dataset.targets[rows, 0])
    assert [len(table) for table in full] == dataset.lengths[numbers].tolist()
    assert all(table[0, -1] == 1.0 for table in full)


def test_a_treebanks_spans_are_yes_or_no():
    trees = [
        Tree.parse(f"(S (NP (DT the) (NN {word})) (VP (VBZ sees) (NP (DT a) (NN {other}))))")
        for word in "abcde"
        for other in "xyz"
    ]
    dataset = Dataset.of_trees(trees)
    assert dataset.labels[:3] == ("NP", "S", "VP")
    n = np.array([0])
    table = dataset.full(n, dataset.targets[dataset.span_rows(n), 0])[0]
    assert {(int(i), int(j)) for i, j in zip(*np.nonzero(table), strict=True)} == {(0, 1), (0, 4), (2, 4), (3, 4)}


def test_length_only_is_a_mean_over_training_spans(dataset):
    found, lengths = controls.length_only(dataset), dataset.span_lengths(dataset.test)
    seen = dataset.span_lengths(dataset.train)
    targets = dataset.targets[dataset.span_rows(dataset.train)]
    for n in np.unique(lengths):
        if (seen == n).any():
            assert found[lengths == n][0] == pytest.approx(targets[seen == n].mean(0), abs=1e-5)


def test_word_identity_and_positions_say_nothing_else(dataset):
    words = [word for sentence in dataset.sentences for word in sentence]
    identity = controls.word_identity(dataset)
    assert identity.sum(1).tolist() == [1] * len(words)
    columns = {}
    for word, column in zip(words, identity.argmax(1).tolist(), strict=True):
        columns.setdefault(word, set()).add(column)
    assert all(len(found) == 1 for found in columns.values())
    place = controls.positions(dataset)[dataset.bounds[3] : dataset.bounds[4]]
    assert [np.flatnonzero(row).tolist() for row in place] == [[i, 40 + len(place) - 1 - i] for i in range(len(place))]


def test_neighbours_are_told_but_not_the_word(dataset):
    own, found = controls.word_identity(dataset), controls.neighbour_identity(dataset)
    kinds, first = own.shape[1], int(dataset.bounds[2])
    assert not found[first, :kinds].any()
    assert (found[first + 1, :kinds] == own[first]).all()
    assert (found[first, kinds : 2 * kinds] == own[first + 1]).all()
    assert found[first, -2] == 1
    assert found[first + 1, -2] == 0


def test_control_tasks_depend_on_the_words_alone(dataset):
    task = control_spans(dataset, 3)
    numbers = np.arange(len(dataset.sentences))
    left, right = dataset.ends(numbers)
    words = [word for sentence in dataset.sentences for word in sentence]
    seen = {}
    for value, a, b in zip(task[:, 0].tolist(), left, right, strict=True):
        assert seen.setdefault((words[a], words[b]), value) == value
    assert len(set(seen.values())) > 1
    assert (control_spans(dataset, 4) != task).any()
    depths, rows = control_depths(dataset, numbers, 3), gap_rows(dataset, numbers)
    assert len(depths) == len(depth_classes(dataset, numbers))
    seen = {}
    for value, row in zip(depths.tolist(), rows, strict=True):
        assert seen.setdefault((words[row], words[row + 1]), value) == value


def test_bad_input_is_named(grammar):
    unknown = r"line 2: the word 'aardvark' \(number 2 .*; 2 other words are unknown too: 'zebu', 'Yak'$"
    with pytest.raises(PcfgError, match=unknown):
        Dataset.of_grammar(grammar, [["the", "dog"], ["the", "aardvark", "zebu"], ["Yak", "aardvark"]] * 9)
    with pytest.raises(ProbeError, match=r"sentence 2 \(the the the\) has no parse .*, nor have 4 others: leave"):
        Dataset.of_grammar(grammar, [["the", "dog", "see", "the", "fish"], ["the", "the", "the"]] * 5)
    with pytest.raises(
        ProbeError, match=r"sentence 1 \(the the the the\) has no parse"
    ):  # the first, whatever is longer
        Dataset.of_grammar(grammar, [["the"] * 4, ["the"] * 3, ["the"] * 9])
    with pytest.raises(ProbeError, match="1 different sentences of three words or more are too few"):
        Dataset.of_grammar(grammar, [["the", "dog", "see", "the", "fish"]])
    tree = Tree.parse("(S (A a) (B b))")
    with pytest.raises(
        ProbeError, match="tree 2 and sentence 2 disagree at word 2: 'b' in the tree, 'c' in the sentence"
    ):
        check_pairs([tree, tree], [["a", "b"], ["a", "c"]])
    with pytest.raises(ProbeError, match="word 3: nothing in the tree, 'c'"):
        check_pairs([tree], [["a", "b", "c"]])
    with pytest.raises(ProbeError, match="1 trees and 2 sentences"):
        check_pairs([tree], [["a", "b"], ["a", "b"]])


def test_every_label_has_a_column():
    grammar = Grammar.random(2, 3, words=4, seed=0)
    dataset = Dataset.of_grammar(grammar, sample(grammar, 40, seed=0, max_length=6))
    assert dataset.targets.shape[1] == 1 + len(dataset.labels) == 3
