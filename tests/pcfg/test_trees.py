"""Reading and writing brackets, and walking trees; expectations written by hand."""

import copy
import pickle

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import TreebankError
from pcfg.treebanks.cleaning import clean
from pcfg.treebanks.evalb import score_labelled, score_unlabelled
from pcfg.treebanks.induction import induce
from pcfg.treebanks.transforms import transform, undo
from pcfg.treebanks.trees import Tree, format_tree, format_trees, parse_trees, read_parses, read_trees

TEXT = "(S (NP (DT The) (NN dog)) (VP (VBZ barks)) (. .))"
DOG = Tree(
    "S",
    (
        Tree("NP", (Tree("DT", ("The",)), Tree("NN", ("dog",)))),
        Tree("VP", (Tree("VBZ", ("barks",)),)),
        Tree(".", (".",)),
    ),
)

names = st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters="()"), min_size=1, max_size=4)
any_tree = st.recursive(
    st.builds(lambda tag, word: Tree(tag, (word,)), names, names),
    lambda inner: st.builds(
        lambda label, children: Tree(label, tuple(children)), names, st.lists(inner, min_size=1, max_size=4)
    ),
    max_leaves=12,
)


def test_what_brackets_say():
    tree = Tree.parse(TEXT)
    assert tree == DOG
    assert tree.words() == ["The", "dog", "barks", "."]
    assert tree.tags() == ["DT", "NN", "VBZ", "."]
    assert tree.spans() == [("S", 0, 4), ("NP", 0, 2), ("VP", 2, 3)]
    assert str(tree) == TEXT
    assert eval(repr(tree)) == tree


def test_several_trees_a_file_in_any_layout_with_and_without_outer_brackets(tmp_path):
    file = tmp_path / "bank.mrg"
    file.write_text(f"\n( (S\n    (NP (DT The) (NN dog) )\n  (VP (VBZ barks)) (. .)) )\n{TEXT} ({TEXT})\n((A b) (C d))")
    assert read_trees(file) == [DOG, DOG, DOG, Tree("TOP", (Tree("A", ("b",)), Tree("C", ("d",))))]


@pytest.mark.parametrize(
    "text, line, says",
    [
        ("(S (A b)\n(C d)\n", 1, "never closed"),
        ("(S (A b))\n(C d))\n", 2, "closes nothing"),
        ("(S (A b))\n\n((C d) ((E f)))", 3, "no label"),
        ("(S (A b)\n(NP))", 2, "holds nothing"),
        ("(S (A b)\n())", 2, "no label"),
        ("(() (A b)\n)", 2, "holds nothing"),
        ("(S (A b))\nloose (C d)", 2, "'loose' stands outside"),
        ("(S (A b)\nloose)", 2, "'loose' needs a bracket"),
        ("(S loose\n(A b))", 2, "'loose' needs a bracket"),
        ("(A b\nc)", 2, "'c' needs a bracket"),
        ("()", 1, "holds nothing"),
    ],
)
def test_what_is_wrong_and_on_which_line(tmp_path, text, line, says):
    file = tmp_path / "bank.mrg"
    file.write_text(text)
    with pytest.raises(TreebankError, match=says) as caught:
        read_trees(file)
    assert f"{file}, line {line}: " in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(TreebankError, match="can't be read: No such file"):
        read_trees(tmp_path / "none.mrg")
    (tmp_path / "latin.mrg").write_bytes(b"(A caf\xe9)")
    with pytest.raises(TreebankError, match=r"isn't UTF-8 text .byte 6"):
        read_trees(tmp_path / "latin.mrg")


def test_a_folder_of_trees(tmp_path):
    for name, content in {
        "00/wsj_0002.mrg": "(S (B b))",
        "00/wsj_0001.MRG": "( (S\n (A a)) )(S (A c))",
        "more.txt": "(S (C d))",
        "README": "no tree",
        ".hidden/copy.mrg": "no tree",
        "00/._wsj_0001.mrg": "no tree",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert [tree.words() for tree in read_trees(tmp_path)] == [["a"], ["c"], ["b"], ["d"]]
    (tmp_path / "notes.txt").write_text("no tree")
    with pytest.raises(TreebankError, match=f"{tmp_path / 'notes.txt'}, line 1: 'no' stands outside"):
        read_trees(tmp_path)
    with pytest.raises(TreebankError, match=r"holds no \.mrg or \.txt files"):
        (tmp_path / "empty").mkdir()
        read_trees(tmp_path / "empty")


def test_sentences_without_a_parse(tmp_path):
    file = tmp_path / "parses.txt"
    file.write_text(format_trees([DOG, None, DOG]))
    assert file.read_text() == f"{TEXT}\n(())\n{TEXT}\n"
    assert read_parses(file) == [DOG, None, DOG]
    file.write_text(f"{TEXT}\n\n{TEXT}\n \n")
    assert read_parses(file) == [DOG, None, DOG, None]
    assert read_trees(file) == [DOG, DOG]
    file.write_text(f"(A b) (C d)\n{TEXT}")
    assert read_parses(file) == [Tree.parse("((A b) (C d))"), DOG]
    file.write_text(f"(S\n\n(A b))\n\n{TEXT}\n(())")  # trees that go on from line to line: empty lines mean nothing
    assert read_parses(file) == [Tree.parse("(S (A b))"), DOG, None]
    file.write_text(f"{TEXT}\n\nloose\n")
    with pytest.raises(TreebankError, match="line 3: 'loose' stands outside"):
        read_parses(file)
    file.write_text(f"{TEXT}\n(())\n{TEXT}\n")
    with pytest.raises(TreebankError, match="tree 2 is"):
        read_trees(file)


def test_names_that_would_not_be_read_back():
    assert format_tree(Tree("-LRB-", ("(",))) == "(-LRB- -LRB-)"
    for tree in (Tree("A B", ("c",)), Tree("", ("c",)), Tree("A", ("c d",)), Tree("A(", ("c",))):
        with pytest.raises(TreebankError, match="can't be written"):
            format_tree(tree)


def test_one_tree_where_one_is_wanted():
    for text in ("", "(A b) (C d)"):
        with pytest.raises(TreebankError, match="one bracketed tree was expected"):
            Tree.parse(text)


@given(st.lists(any_tree, max_size=4))
def test_written_and_read_back(trees):
    assert parse_trees(format_trees(trees)) == trees


@given(any_tree)
def test_nltk_sees_the_same_tree(tree):
    theirs = tree.to_nltk()
    assert theirs.leaves() == tree.words()
    assert [tag for _, tag in theirs.pos()] == tree.tags()
    assert Tree.from_nltk(theirs) == tree
    assert Tree.from_nltk(nltk.Tree.fromstring(str(tree))) == tree


@pytest.mark.parametrize(
    "children, says",
    [
        ([nltk.Tree("DT", ["the"]), "dog"], "'dog' under NP isn't a node: a word is a text alone under its tag"),
        (["the", "dog"], "'the' under NP isn't a node"),
        ([("dog", "NN")], r"\('dog', 'NN'\) under NP isn't a node"),  # a chunker's
        ([nltk.Tree("NN", [3])], "3 under NN isn't a node"),
        ([None], "None under NP isn't a node"),
        ([], "the node NP holds nothing"),
        ([nltk.Tree("NN", [])], "the node NN holds nothing"),
    ],
)
def test_what_is_no_tree_of_nltks(children, says):
    with pytest.raises(TreebankError, match=says):
        Tree.from_nltk(nltk.Tree("S", [nltk.Tree("NP", children), nltk.Tree("VB", ["go"])]))


def test_words_beside_nodes_and_nodes_over_nothing():
    for children, says in (
        ((Tree("DT", ("the",)), "dog"), "the word 'dog' under NP needs a node and a tag of its own"),
        (("the", "dog"), "the word 'the' under NP"),
        ((), "the node NP holds nothing"),
    ):
        with pytest.raises(TreebankError, match=says):
            Tree("NP", children)
    with pytest.raises(TreebankError, match="'dog' isn't a node"):
        Tree.from_nltk("dog")


@given(any_tree)
def test_spans_against_positions_of_the_words(tree):
    def plain(node, start):
        if node.is_preterminal:
            return [], start + 1
        found, position = [], start
        for child in node.children:
            inner, position = plain(child, position)
            found += inner
        return [(node.label, start, position), *found], position

    assert tree.spans() == plain(tree, 0)[0]


@given(any_tree, any_tree)
def test_equal_when_written_alike(one, other):
    assert (one == other) == (str(one) == str(other))
    assert one == parse_trees(str(one))[0] and hash(one) == hash(parse_trees(str(one))[0])
    assert one != str(one)


def test_a_very_deep_tree_is_no_trouble():
    depth = 5_000
    text = "(A (B c) " * depth + "(B c)" + ")" * depth
    tree = Tree.parse(text)
    assert str(tree).replace(" ", "") == text.replace(" ", "")
    assert len(tree.words()) == depth + 1 and tree.spans()[-1] == ("A", depth - 1, depth + 1)
    assert tree == Tree.parse(text)
    assert tree.fold(lambda node, children: 0 if node.is_preterminal else 1 + max(children)) == depth


def test_nothing_done_with_a_deep_tree_is_recursive():
    depth = 3_000
    tree = Tree.parse("(A (B c) " * depth + "(B c)" + ")" * depth)
    assert Tree.from_nltk(tree.to_nltk()) == tree
    assert copy.deepcopy(tree) == tree and pickle.loads(pickle.dumps(tree)) == tree
    assert clean(tree) == tree and undo(transform(tree)) == tree
    assert len(induce([tree], min_count=1).rules) == 3  # the root's, its descendants' and the last one's
    assert score_labelled([tree], [tree]).matched == depth and score_unlabelled([tree], [tree]).f1 == 1.0


def test_a_long_chain_is_no_trouble():
    depth = 3_000
    tree = Tree.parse("".join(f"(A{i} " for i in range(depth)) + "(B c)" + ")" * depth)
    assert Tree.from_nltk(tree.to_nltk()) == tree and undo(transform(tree)) == tree == clean(tree)


def test_brackets_within_words_are_written_as_the_treebank_does():
    tree = Tree("S", (Tree("NN", ("f(x)",)), Tree("NN", ("(",))))
    assert str(tree) == "(S (NN f-LRB-x-RRB-) (NN -LRB-))"
