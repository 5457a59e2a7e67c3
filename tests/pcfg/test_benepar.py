"""Raw text parsed by benepar: a tiny model of its own making, and parsers that misbehave."""

import sys
import warnings

import nltk
import pytest
import torch

from cli.main import main
from pcfg.errors import MissingPackageError, PcfgError
from pcfg.treebanks.benepar import benepar_parser, benepar_trees
from pcfg.treebanks.trees import Tree, read_trees

SENTENCES = [["the", "dog", "saw", "a", "man", "(", "here", ")"], [], ["stars"], ["a", "dog", "{x}"]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A parser of random weights in benepar's own format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from benepar.char_lstm import RetokenizerForCharLSTM
        from benepar.nkutil import HParams
        from benepar.parse_chart import ChartParser
    sizes = dict.fromkeys(("d_model", "d_label_hidden", "d_tag_hidden", "d_char_emb", "d_kv", "d_ff"), 16)
    flags = {"use_chars_lstm": True, "use_pretrained": False, "use_encoder": True, "predict_tags": True}
    rest = {
        "num_heads": 2,
        "num_layers": 1,
        "encoder_max_len": 64,
        "tag_loss_scale": 5.0,
        "force_root_constituent": True,
    }
    dropouts = ("char_lstm_input", "morpho_emb", "relu", "residual", "attention")
    hparams = HParams(**sizes, **flags, **rest, **{f"{name}_dropout": 0.0 for name in dropouts})
    tags, labels = (
        {name: i for i, name in enumerate(names)} for names in (("UNK", "DT", "NN"), ("", "S", "NP", "VP::NP"))
    )
    torch.manual_seed(0)
    parser = ChartParser(tags, labels, RetokenizerForCharLSTM.build_vocab(SENTENCES[:1]), hparams)
    path = tmp_path_factory.mktemp("benepar") / "tiny.pt"
    torch.save({"config": parser.config, "state_dict": parser.state_dict()}, path)
    return path


def test_benepars_trees_are_cleaned_and_keep_their_words(model):
    told = []
    trees = benepar_trees(SENTENCES, benepar_parser(str(model)), batch_size=2, progress=lambda *a: told.append(a[:2]))
    assert trees[1] is None and told == [(0, 3), (2, 3), (3, 3)]
    assert trees[0].words() == ["the", "dog", "saw", "a", "man", "-LRB-", "here", "-RRB-"]
    assert trees[2].words() == ["stars"] and trees[3].words()[2] == "-LCB-x-RCB-"
    for tree in (trees[0], trees[2], trees[3]):
        assert tree.label in ("S", "NP", "VP") and Tree.parse(str(tree)) == tree
        assert {node.label for node in tree.nodes()} <= {"S", "NP", "VP", "UNK", "DT", "NN"}


def test_a_model_that_isnt_there():
    with pytest.raises(PcfgError, match=r"the parser no_such_model can't be loaded .*benepar.download"):
        benepar_parser("no_such_model")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "benepar", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'surgery\[benepar\]'"):
        benepar_trees(SENTENCES)


def test_a_parser_that_changes_words_is_found_out():
    class Changing:
        def parse_sents(self, sents):
            return [nltk.Tree("S", [nltk.Tree("NN", [word.lower()]) for word in words]) for words in sents]

    assert str(benepar_trees([["a", "b"]], Changing())[0]) == "(S (NN a) (NN b))"
    with pytest.raises(PcfgError, match="other words for sentence 2"):
        benepar_trees([["a"], ["B"]], Changing())


def test_raw_text_from_the_shell(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "raw.txt").write_text("the dog saw a man\n\na dog\n")
    words = ["surgery", "pcfg", "trees", "--raw", str(tmp_path / "raw.txt"), "--model", str(model)]
    monkeypatch.setattr("sys.argv", [*words, "-o", str(tmp_path / "trees.mrg")])
    with pytest.raises(SystemExit, match=r"^0$"):
        main()
    assert "2 trees of 7 words" in capsys.readouterr().out
    assert [" ".join(tree.words()) for tree in read_trees(tmp_path / "trees.mrg")] == ["the dog saw a man", "a dog"]
