"""Reading and writing brackets, and walking trees; expectations written by hand."""

import nltk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcfg.errors import TreebankError
from pcfg.trees import Tree, format_tree, format_trees, parse_trees, read_parses, read_trees

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


def test_sentences_without_a_parse(tmp_path):
    file = tmp_path / "parses.txt"
    file.write_text(format_trees([DOG, None, DOG]))
    assert file.read_text() == f"{TEXT}\n(())\n{TEXT}\n"
    assert read_parses(file) == [DOG, None, DOG]
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


def test_brackets_within_words_are_written_as_the_treebank_does():
    tree = Tree("S", (Tree("NN", ("f(x)",)), Tree("NN", ("(",))))
    assert str(tree) == "(S (NN f-LRB-x-RRB-) (NN -LRB-))"
