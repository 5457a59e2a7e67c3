"""Pretraining: the optimum against the library's own posteriors, the trainer's habits, resuming, bad input."""

import json
import math
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pcfg import Grammar, sample
from pcfg.corpus import tokenizer
from pcfg.errors import OptionError, PcfgError
from pcfg.excess import MaskedLoss, MaskedSet, generative, masked_log_probs, word_ids
from pcfg.masked import masked_posteriors
from pcfg.pretrain import GRAMMAR_FILE, PretrainRecipe, _trainer, pretrain, read_config
from pcfg.treebank import induce
from pcfg.trees import Tree
from probes.example import example_grammar

TINY = PretrainRecipe(layers=1, heads=2, width=16, sentences=640, max_length=8, batch_size=32, evaluation=30)


@pytest.fixture(scope="module")
def grammar():
    return Grammar.random(3, 4, words=6, seed=1, temperature=2.0)


@pytest.fixture(scope="module")
def trained(grammar, tmp_path_factory):
    with chdir(tmp_path_factory.mktemp("elsewhere")):
        found = pretrain(grammar, TINY, seed=0, device="cpu")
        assert not list(Path().iterdir())  # nothing asked for a folder
    return found


def test_the_optimum_is_the_exact_posterior(grammar):
    sentences = [list(s) for s in sample(grammar, 12, seed=5, max_length=7)]
    masked, first = MaskedSet.draw(grammar, sentences, seed=0, share=0.4), 0
    for sentence, places in zip(masked.sentences, masked.masks, strict=True):
        exact = masked_posteriors(grammar, sentence, places).words
        for row, place in zip(exact, places, strict=True):
            number = grammar.word_numbers[sentence[place]]
            assert masked.optimum[first] == pytest.approx(-math.log(row[number]), abs=1e-9)
            assert masked.entropies[first] == pytest.approx(-(row * np.log(row)).sum(), abs=1e-9)
            first += 1
    assert first == len(masked.optimum)


class Oracle(torch.nn.Module):
    """A model that answers with the exact posterior, or another distribution."""

    def __init__(self, masked, words, blend=0.0):
        super().__init__()
        self.masked, self.words, self.blend = masked, words, blend
        self.device = torch.device("cpu")

    def forward(self, input_ids, attention_mask):
        grammar, words = self.masked.grammar, self.words
        ids = word_ids(grammar, words)
        logits = torch.full((*input_ids.shape, len(words)), -1e9, dtype=torch.float64)
        for row, tokens in enumerate(input_ids.tolist()):
            tokens = tokens[1 : tokens.index(words.eos_token_id)]
            places = [i for i, token in enumerate(tokens) if token == words.mask_token_id]
            sentence = [
                grammar.words[0] if i in places else words.convert_ids_to_tokens(t) for i, t in enumerate(tokens)
            ]
            exact = masked_posteriors(grammar, sentence, places).words
            exact = (1 - self.blend) * exact + self.blend / exact.shape[1]
            for place, posterior in zip(places, exact, strict=True):
                logits[row, place + 1, ids] = torch.from_numpy(np.log(posterior))
        return type("Output", (), {"logits": logits})


def test_a_perfect_model_has_no_excess_and_another_has_its_divergence(grammar):
    words = tokenizer(grammar)
    masked = MaskedSet.draw(grammar, [list(s) for s in sample(grammar, 12, seed=5, max_length=7)], seed=0, share=0.3)
    found = masked.measure(Oracle(masked, words), words)
    assert np.abs(found.excess).max() < 1e-9
    assert found.loss == pytest.approx(masked.optimum)
    blended = masked.measure(Oracle(masked, words, 0.5), words)
    assert (blended.excess > 0).all()
    # On average over what the posterior draws, loss less optimum is the excess: here as a sum over all words.
    exact = np.concatenate(
        [masked_posteriors(grammar, s, p).words for s, p in zip(masked.sentences, masked.masks, strict=True)]
    )
    other = 0.5 * exact + 0.5 / exact.shape[1]
    assert blended.excess == pytest.approx((exact * (np.log(exact) - np.log(other))).sum(1))


def test_means_by_position_and_masks_are_those_of_a_loop():
    loss = MaskedLoss(
        np.array([0, 0, 1, 2, 2, 2]),
        np.array([0, 3, 0, 1, 2, 4]),
        np.array([2, 2, 1, 3, 3, 3]),
        np.arange(6.0) + 1,
        np.arange(6.0),
        np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0]),
    )
    found = loss.to_json()
    assert found["excess"]["value"] == pytest.approx(4.0)
    assert {e["position"]: e["value"] for e in found["by_position"]} == {1: 2.0, 2: 4.0, 3: 5.0, 4: 2.0, 5: 9.0}
    assert {e["masks"]: e["value"] for e in found["by_masks"]} == {1: 3.0, 2: 1.5, 3: 6.0}
    assert found["excess"]["low"] < 4.0 < found["excess"]["high"]


def test_masks_are_all_masks_and_never_special_tokens(grammar, tmp_path):
    words = tokenizer(grammar)
    drawn = sample(grammar, 64, seed=0, max_length=8)
    from transformers import RobertaConfig, RobertaForMaskedLM

    module = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    )
    trainer = _trainer(module, words, drawn, TINY, 0, "cpu", str(tmp_path))
    torch.manual_seed(0)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(64)])
    chosen = batch["labels"] != -100
    assert chosen.any()
    assert (batch["input_ids"][chosen] == words.mask_token_id).all()
    special = torch.tensor([words.pad_token_id, words.bos_token_id, words.eos_token_id])
    assert not torch.isin(batch["labels"][chosen], special).any()
    share = float(chosen.sum()) / len(drawn.words)
    assert abs(share - TINY.mask) < 0.08


def test_a_model_learns_and_says_how_far_it_is(trained):
    report = trained.report
    assert report["steps"] == 20
    assert [entry["step"] for entry in report["history"]] == list(range(2, 21, 2))
    assert report["history"][-1]["excess"] < report["history"][0]["excess"]
    assert report["excess"]["value"] > 0
    assert report["loss"] == pytest.approx(report["optimum"] + report["excess"]["value"], abs=0.3)
    assert not trained.module.training


def test_what_is_saved_loads_and_predicts_the_same(grammar, trained, tmp_path):
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    trained.save(tmp_path / "mlm")
    module = AutoModelForMaskedLM.from_pretrained(tmp_path / "mlm").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "mlm")
    sentence, ids = sample(grammar, 1, seed=9, max_length=8)[0], word_ids(grammar, words)
    logs = [
        masked_log_probs(m, w, [sentence], [[0]], grammar, ids)
        for m, w in ((module, words), (trained.module, trained.tokenizer))
    ]
    assert logs[0] == pytest.approx(logs[1], abs=1e-6)
    assert Grammar.load(tmp_path / "mlm" / GRAMMAR_FILE).binary == grammar.binary
    assert json.loads((tmp_path / "mlm" / "report.json").read_text())["steps"] == 20
    with pytest.raises(PcfgError, match="exists already"):
        trained.save(tmp_path / "mlm")
    trained.save(tmp_path / "mlm", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlm"]


def test_a_killed_run_goes_on_to_the_same_weights(grammar, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("pcfg.pretrain._SAVE_SECONDS", 0.0)

    class KilledError(Exception):
        pass

    def kill(done, total, line):
        if line.startswith("pretraining") and done == 11:
            raise KilledError

    with pytest.raises(KilledError):
        pretrain(grammar, TINY, seed=0, device="cpu", resume=tmp_path, progress=kill)
    (tmp_path / "checkpoint-99").mkdir()  # as if killed while it was being written: no trainer_state.json
    seen = []
    again = pretrain(
        grammar, TINY, seed=0, device="cpu", resume=tmp_path,
        progress=lambda done, total, line: seen.append(done) if line.startswith("pretraining") else None,
    )  # fmt: skip
    assert min(seen) == 11
    for name, weight in trained.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name]), name
    assert again.report["excess"] == trained.report["excess"]


def test_the_state_of_another_run_is_left_alone(grammar, tmp_path, monkeypatch):
    monkeypatch.setattr("pcfg.pretrain._SAVE_SECONDS", 0.0)
    pretrain(grammar, TINY, device="cpu", resume=tmp_path / "state")
    kept = sorted(path.name for path in (tmp_path / "state").iterdir())
    others = (
        (grammar, replace(TINY, rate=1e-4), 0),
        (grammar, TINY, 1),
        (Grammar.random(3, 4, words=6, seed=2), TINY, 0),
    )
    for other, recipe, seed in others:
        with pytest.raises(OptionError, match=r"state of another run .* delete it to begin anew"):
            pretrain(other, recipe, seed=seed, device="cpu", resume=tmp_path / "state")
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == kept
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(OptionError, match="in the way, and no interrupted run made it"):
        pretrain(grammar, TINY, device="cpu", resume=tmp_path / "mine")


def test_a_config_of_ones_own(grammar, tmp_path):
    given = {
        "model_type": "roberta",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "vocab_size": 50265,
    }
    (tmp_path / "config.json").write_text(json.dumps(given))
    found = pretrain(
        grammar, PretrainRecipe(sentences=64, max_length=6, evaluation=10), config=read_config(tmp_path), device="cpu"
    )
    assert found.module.config.num_hidden_layers == 2
    assert found.module.config.vocab_size == len(found.tokenizer)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 10, "heads": 3}, "--width 10 isn't a multiple of --heads 3"),
        ({"mask": 1.0}, "--mask must lie between 0 and 1"),
        ({"layers": 0}, "--layers must be above 0"),
        ({"rate": math.nan}, "--rate must be above 0"),
    ],
)
def test_recipes_out_of_range(values, message):
    with pytest.raises(OptionError, match=message):
        PretrainRecipe(**values)


def test_bad_configs_and_vocabularies(grammar, tmp_path):
    with pytest.raises(OptionError, match="for bert: give one for a RoBERTa"):
        pretrain(grammar, TINY, config={"model_type": "bert"})
    with pytest.raises(OptionError, match="can't be read"):
        read_config(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text("[1")
    with pytest.raises(OptionError, match="isn't JSON"):
        read_config(tmp_path / "bad.json")
    example = example_grammar()
    with pytest.raises(PcfgError, match=f"'{example.words[0]}' of the grammar isn't a token of the model's own"):
        word_ids(example, tokenizer(grammar))


def test_a_smoothed_lexicon_draws_no_words():
    trees = [Tree.parse("(S (NP (DT the) (NN dog)) (VP (VBZ runs)))")] * 6
    smooth = Grammar.of_arrays(**induce(trees, v=1, h=0, min_count=2).arrays())
    plain = generative(smooth)
    assert smooth.lexicon is not None
    assert plain.lexicon is None
    assert plain.lexical == smooth.lexical
    assert plain.transformed  # so that what it parses can be undone
