"""Files that begin with a byte order mark, as editors on Windows write them, hold what they hold without one."""

import codecs
import json

import numpy as np
import pytest

from cli.grammars import load_grammar
from pcfg.grammars.grammar import Grammar
from pcfg.learning.pretraining_recipe import read_config
from pcfg.sentences import read_sentences
from pcfg.treebanks.nltk_sample import nltk_treebank
from pcfg.treebanks.trees import read_trees
from surgery.tasks.examples import read_examples
from surgery.tint.evaluation.texts import read_text
from surgery.unlearning.features.rows import read_rows

RULES = "S -> NP VP [1.0]\nNP -> 'The' [0.5] | 'dog' [0.5]\nVP -> 'barked' [1.0]\n"


def _grammar(path):
    return load_grammar(path).roots


def _words(path):
    return [tree.words() for tree in read_trees(path)]


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("text.txt", "The dog barked .\nThe dog\n", read_sentences),
        ("text.jsonl", '{"tokens": ["The", "dog"]}\n', read_sentences),
        ("TEXT.JSONL", '{"tokens": ["The", "dog"]}\n', read_sentences),
        ("trees.mrg", "(S (NP The) (VP barked))\n", _words),
        ("rules.txt", RULES, _grammar),
        ("config.json", '{"model_type": "roberta"}', read_config),
        ("examples.jsonl", '{"text": "good", "label": "a"}\n', read_examples),
        ("examples.csv", "text,label\ngood,a\n", read_examples),
        ("examples.tsv", "text\tlabel\ngood\ta\n", read_examples),
    ],
)
def test_a_mark_is_no_part_of_the_text(tmp_path, name, content, read):
    (tmp_path / name).write_text(content)
    wanted = read(tmp_path / name)
    (tmp_path / name).write_bytes(codecs.BOM_UTF8 + content.encode())
    assert read(tmp_path / name) == wanted
    assert "\\ufeff" not in json.dumps(wanted)


def test_grammars_as_json_too(tmp_path):
    Grammar.from_text(RULES).save(tmp_path / "g.JSON")
    (tmp_path / "g.JSON").write_bytes(codecs.BOM_UTF8 + (tmp_path / "g.JSON").read_bytes())
    assert load_grammar(tmp_path / "g.JSON").roots == {"S": 1.0}


def test_treebanks_class_names_and_texts_for_tint_too(tmp_path, monkeypatch):
    folder = tmp_path / "corpora" / "treebank" / "combined"
    folder.mkdir(parents=True)
    (folder / "wsj_0001.mrg").write_bytes(codecs.BOM_UTF8 + b"( (S (NP The) (VP barked)) )")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    assert [tree.words() for tree in nltk_treebank()] == [["The", "barked"]]

    np.savez(tmp_path / "x.npz", features=np.eye(2, dtype=np.float32), label=np.array([0, 1]))
    (tmp_path / "classes.json").write_bytes(codecs.BOM_UTF8 + b'["cat", "dog"]')
    assert read_rows(tmp_path / "x.npz").labels == ("cat", "dog")

    (tmp_path / "t.txt").write_bytes(codecs.BOM_UTF8 + b"good film")
    assert read_text(tmp_path / "t.txt") == "good film"
