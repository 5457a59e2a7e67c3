"""Features and samples made by several processes: the bytes of one."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from pcfg import Grammar
from pcfg.learning.pretraining import PretrainRecipe, pretrain
from pcfg.sampling.corpus import write_corpus
from probes import experiment, measure_competence, probe_spans
from probes.emergence import divergences
from surgery.errors import OptionError
from surgery.selecting import Features, Warmup
from surgery.sync import ranks
from surgery.sync.workers import Workers
from surgery.unlearning import Bottleneck, Encoder
from tests.support.fleet import run_all

RULES = "S -> A B [0.6] | B A [0.4]\nA -> 'a' [0.5] | 'b' [0.3] | 'c' [0.2]\nB -> 'd' [0.7] | A A [0.3]"
TEXTS = [
    f"the {noun} was {word}{' indeed' * k}" for k in range(4) for noun in ("film", "book") for word in ("fun", "bad")
]


def test_shared_rows_are_those_made(tmp_path):
    def work(rank):
        made = np.full((5, 2), np.nan, np.float32)
        with ranks.by_rank(Workers.launched()):
            mine = list(range(5))[ranks.my_part()]
            made[mine] = np.array([[-0.0, number + 0.1] for number in mine], np.float32)
            ranks.share(made, mine)
        return made.tobytes()

    found = run_all(tmp_path, 2, work)
    asked = np.array([[-0.0, number + 0.1] for number in range(5)], np.float32)
    assert found[0] == found[1] == asked.tobytes()


def fitted(rank, model, cache):
    import os

    os.environ["SURGERY_CACHE"] = str(cache)
    rows = [{"text": text, "label": "good" if "fun" in text else "bad"} for text in TEXTS]
    opening = {"batch_size": 3}
    made = None
    with ranks.by_rank(None if rank is None else Workers.launched()):
        made = Bottleneck.fit(model, rows, opening=opening, codebooks=4, keys=4, key_dim=4, device="cpu")
    return made and made.fingerprint


def test_a_bottleneck_by_two_is_that_by_one(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "one"))
    alone = fitted(None, tiny("bert"), tmp_path / "one")
    found = run_all(tmp_path, 2, fitted, tiny("bert"), tmp_path / "two")
    assert found == {0: alone, 1: None}  # the second only made its part
    inside = [sorted((tmp_path / name / "features").iterdir()) for name in ("one", "two")]
    assert [file.read_bytes() for file in inside[0]] == [file.read_bytes() for file in inside[1]]


def test_encoding_without_a_launcher_is_as_before(tiny):
    encoder = Encoder.open(tiny("bert"), device="cpu", batch_size=3)
    assert encoder.encode(TEXTS).shape == (len(TEXTS), encoder.width)


def collected(rank, model, folder):
    rows = [{"text": text, "label": "good" if "fun" in text else "bad"} for text in TEXTS]
    warmup, made = Warmup(share=0.5, epochs=2, rank=2, batch_size=4), None
    with ranks.by_rank(None if rank is None else Workers.launched()):
        made = Features.collect(model, rows, warmup=warmup, folder=folder, sketch=64, shard_rows=3, device="cpu")
    return made and len(made)


def test_features_to_select_by_are_those_of_one(tiny, tmp_path):
    assert collected(None, tiny("gpt2"), tmp_path / "one") == len(TEXTS)
    assert run_all(tmp_path, 2, collected, tiny("gpt2"), tmp_path / "two") == {0: len(TEXTS), 1: None}
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors"))
    assert len(names) > 6
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert run_all(tmp_path, 2, collected, tiny("gpt2"), tmp_path / "two") == {0: len(TEXTS), 1: None}  # opened
    assert not list(tmp_path.glob("*.partial"))


@pytest.fixture(scope="module")
def mlm(tmp_path_factory):
    recipe = PretrainRecipe(layers=1, heads=2, width=16, sentences=320, max_length=8, batch_size=32, evaluation=20)
    made = pretrain(Grammar.from_text(RULES), recipe, keep=1, device="cpu")
    return made.save(tmp_path_factory.mktemp("ranks") / "mlm")


def reported(rank, what, model, state):
    """A report, and how many of its parts this process made."""
    made, options, parts = None, {"device": "cpu", "resume": state}, []
    place, name = (divergences, "_measured") if what == "emergence" else (experiment, "measure_all")
    work = getattr(place, name)
    setattr(place, name, lambda *given: parts.append(1) or work(*given))
    with ranks.by_rank(None if rank is None else Workers.launched()):
        if what == "emergence":
            made = measure_competence(model, Grammar.from_text(RULES), 220, least=5, **options)
        else:
            made = probe_spans(model, Grammar.from_text(RULES), 60, seeds=1, **options)
    setattr(place, name, work)
    told = made and str({**asdict(made), "provenance": None, "seconds": None})  # numbers to the last digit
    return told, len(parts)


@pytest.mark.parametrize("what", ["emergence", "probes"])
def test_a_report_by_two_is_that_by_one(what, mlm, tmp_path):
    alone = reported(None, what, mlm, tmp_path / "one")
    found = run_all(tmp_path, 2, reported, what, mlm, tmp_path / "two")
    assert found[0][0] == alone[0] and found[1][0] is None
    assert found[0][1] + found[1][1] == alone[1] and found[1][1] >= alone[1] // 3  # nothing is made twice
    with pytest.raises(OptionError, match="give `resume`"):
        raise run_all(tmp_path, 2, reported, what, mlm, None)[0]


def corpus(rank, folder):
    with ranks.by_rank(None if rank is None else Workers.launched()):
        write_corpus(Grammar.from_text(RULES), folder, 70, seed=1, held_out=0.2, shard_size=20)


def test_a_corpus_by_two_is_that_by_one(tmp_path):
    corpus(None, tmp_path / "one")
    run_all(tmp_path, 2, corpus, tmp_path / "two")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert json.loads((tmp_path / "two" / "report.json").read_text())["corpus"]["parts"]["train"] > 0
    assert not list(tmp_path.glob("*.partial"))
