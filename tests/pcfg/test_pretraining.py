"""Pretraining: the optimum against the library's own posteriors, steps against plain AdamW, resuming, bad input."""

import json
import math
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pcfg import Grammar, sample
from pcfg.errors import OptionError, PcfgError
from pcfg.grammars.grammar import GRAMMAR_FILE
from pcfg.inference.masked_words import masked_posteriors
from pcfg.learning.excess_loss import MaskedLoss, MaskedSet, generative, masked_log_probs, word_ids
from pcfg.learning.masked_lm import Batches, Trainer
from pcfg.learning.pretraining import _held_out, _seen_share, pretrain
from pcfg.learning.pretraining_recipe import PretrainRecipe, read_config
from pcfg.sampling.tokenizer import tokenizer
from pcfg.treebanks.induction import induce
from pcfg.treebanks.trees import Tree
from probes.example import example_grammar

PAIRS = {("S", "A", "A"): 0.5, ("S", "A", "S"): 0.5}
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


def test_masks_follow_the_share_and_the_seed():
    sentences = [["w0"] * 12] * 60

    def masks(**options):
        return MaskedSet.draw(Grammar({"S": 1.0}, PAIRS, {("A", "w0"): 1.0}), sentences, **options).masks

    for share in (0.3, 0.6):
        assert abs(sum(map(len, masks(seed=0, share=share))) / 720 - share) < 0.08
    assert masks(seed=0) == masks(seed=0) != masks(seed=1)
    assert all(len(found) == 5 for found in masks(seed=0, count=5))


def test_every_batch_has_masks_of_its_own_which_the_seed_decides():
    grammar = Grammar({"S": 1.0}, {("S", "A", "A"): 1.0}, {("A", "a"): 1.0})  # all sentences are the same
    words, drawn = tokenizer(grammar), sample(grammar, 64, seed=0)

    def masks(seed, share=0.3):
        ids, device = word_ids(grammar, words), torch.device("cpu")
        made = Batches.of(drawn, ids, words, batch_size=32, share=share, seed=seed, device=device)
        return [made[number].labels != -100 for number in range(len(made))]

    (one, other), (again, _), (elsewhere, _) = masks(0), masks(0), masks(1)
    assert torch.equal(one, again) and not torch.equal(one, other) and not torch.equal(one, elsewhere)
    assert sum(int(batch.sum()) for batch in masks(0, 0.8)) / 128 > 0.65


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


def test_intervals_are_over_sentences_whose_masks_go_together():
    of_sentence = np.random.default_rng(0).normal(1.0, 0.3, 40)
    sentence, zeros = np.repeat(np.arange(40), 9), np.zeros(360)  # nine masks a sentence, all with the same excess
    loss = MaskedLoss(sentence, np.tile(np.arange(9), 40), np.full(360, 9), zeros, zeros, of_sentence[sentence])
    found = loss.to_json()["excess"]
    width = 2 * 1.96 * of_sentence.std() / math.sqrt(40)
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.2)
    assert found["low"] < of_sentence.mean() < found["high"]


def test_held_out_sentences_are_drawn_apart_from_those_of_training():
    grammar = Grammar.random(3, 4, words=500, seed=1)
    held_out = _held_out(grammar, TINY, 5)
    trained = sample(grammar, TINY.sentences, seed=5, max_length=TINY.max_length)
    assert len(held_out) == TINY.evaluation and max(map(len, held_out)) <= TINY.max_length
    long = {tuple(sentence) for sentence in held_out if len(sentence) > 2}
    assert len(long) > 10 and not long & {tuple(sentence) for sentence in trained}
    assert held_out == _held_out(grammar, TINY, 5) != _held_out(grammar, TINY, 6)


def test_batches_hold_every_sentence_once_masked_at_words_alone(grammar):
    words, drawn = tokenizer(grammar), sample(grammar, 70, seed=0, max_length=8)
    batches = Batches.of(
        drawn, word_ids(grammar, words), words, batch_size=16, share=0.3, seed=0, device=torch.device("cpu")
    )
    seen, masked, count = [], 0, 0
    for batch in batches:
        chosen = batch.labels != -100
        assert (batch.input_ids[chosen] == words.mask_token_id).all()
        whole = torch.where(chosen, batch.labels, batch.input_ids)
        assert not (whole == words.mask_token_id).any()
        lengths = (whole != words.pad_token_id).sum(1)
        if batch.attention_mask is None:
            assert (lengths == whole.shape[1]).all()
        else:
            assert torch.equal(batch.attention_mask[:, 0, 0] == 0, torch.arange(whole.shape[1]) < lengths[:, None])
        assert int(lengths.max()) == whole.shape[1]  # no wider than its longest
        assert not torch.isin(batch.labels[chosen], torch.tensor(words.all_special_ids)).any()
        masked, count = masked + int(chosen.sum()), count + int(lengths.sum() - 2 * len(lengths))
        seen += [words.convert_ids_to_tokens(row[:n].tolist()) for row, n in zip(whole, lengths, strict=True)]
    assert sorted(seen) == sorted(["<s>", *sentence, "</s>"] for sentence in drawn)
    assert len(batches) == 5 and abs(masked / count - 0.3) < 0.08
    assert torch.equal(batches[2].labels, batches[2].labels) and not torch.equal(batches[2].labels, batches[1].labels)


def test_a_step_is_transformers_own_loss_and_plain_adamw(grammar):
    """Against the library's labels and torch's plain loop of AdamW, its schedule and clipping written out."""
    from transformers import RobertaConfig, RobertaForMaskedLM, get_linear_schedule_with_warmup

    words, drawn = tokenizer(grammar), sample(grammar, 64, seed=0, max_length=8)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    torch.manual_seed(0)
    config = RobertaConfig(vocab_size=len(words), hidden_dropout_prob=0, attention_probs_dropout_prob=0, **size)
    module = RobertaForMaskedLM(config)
    plain = RobertaForMaskedLM(config).train()
    plain.load_state_dict(module.state_dict())
    device = torch.device("cpu")
    batches = Batches.of(drawn, word_ids(grammar, words), words, batch_size=16, share=0.4, seed=0, device=device)
    trainer = Trainer(module, batches, rate=0.1, warmup=0.5)
    kept = [p for n, p in plain.named_parameters() if "LayerNorm" in n or "layer_norm" in n or n.endswith("bias")]
    decayed = [p for p in plain.parameters() if all(p is not other for other in kept)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.98), fused=False, foreach=False)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, 4)
    with trainer.training():
        for batch in batches:
            trainer.advance()
            padding = batch.input_ids == words.pad_token_id
            loss = plain(input_ids=batch.input_ids, attention_mask=~padding, labels=batch.labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    assert trainer.step == trainer.steps == 4 and trainer.pace > 0 and not module.training
    for (name, ours), theirs in zip(module.named_parameters(), plain.parameters(), strict=True):
        if not name.endswith("key.bias"):  # its gradient is rounding alone, which AdamW makes large
            assert float((ours - theirs).detach().abs().max()) < 1e-5, name


def test_a_batch_without_a_mask_teaches_nothing_and_breaks_nothing(grammar):
    tiny = replace(TINY, sentences=8, batch_size=1, mask=0.01, evaluation=10)
    found = pretrain(grammar, tiny, seed=0, device="cpu")
    assert all(bool(torch.isfinite(p).all()) for p in found.module.parameters())


def test_how_many_held_out_sentences_training_had(grammar, monkeypatch):
    monkeypatch.setattr("pcfg.learning.pretraining._HASHED", 7)
    drawn = sample(grammar, 40, seed=0, max_length=8)
    held_out = [list(s) for s in sample(grammar, 30, seed=1, max_length=8)]
    had = {tuple(sentence) for sentence in drawn}
    wanted = sum(tuple(sentence) in had for sentence in held_out) / 30
    assert 0 < wanted < 1 and _seen_share(held_out, drawn) == wanted
    assert _seen_share([drawn[3], ["w0"] * 9], drawn) == 0.5


def test_dropout_is_drawn_anew_by_a_run_that_goes_on(grammar, tmp_path, monkeypatch):
    monkeypatch.setattr("pcfg.learning.pretraining._SAVE_SECONDS", 0.0)
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    recipe = replace(TINY, sentences=128)
    whole = pretrain(grammar, recipe, config=config, device="cpu")

    def kill(done, total, line):
        if line.startswith("pretraining") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(grammar, recipe, config=config, device="cpu", resume=tmp_path, progress=kill)
    again = pretrain(grammar, recipe, config=config, device="cpu", resume=tmp_path)
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name]), name


def test_a_damaged_state_is_refused(grammar, tmp_path, monkeypatch):
    monkeypatch.setattr("pcfg.learning.pretraining._SAVE_SECONDS", 0.0)
    pretrain(grammar, TINY, device="cpu", resume=tmp_path)
    (tmp_path / "state.safetensors").write_bytes(b"\x08")
    with pytest.raises(OptionError, match=r"state.safetensors can't be read .* delete .* to begin anew"):
        pretrain(grammar, TINY, device="cpu", resume=tmp_path)


@pytest.mark.cuda
def test_on_a_card_steps_are_captured_and_give_the_same_weights_again(grammar, tmp_path, monkeypatch):
    whole = pretrain(grammar, TINY, seed=0, device="cuda")
    assert whole.report["not_captured"] is None
    again = pretrain(grammar, TINY, seed=0, device="cuda")
    monkeypatch.setattr("pcfg.learning.pretraining._SAVE_SECONDS", 0.0)

    def kill(done, total, line):
        if line.startswith("pretraining") and done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(grammar, TINY, seed=0, device="cuda", resume=tmp_path, progress=kill)
    resumed = pretrain(grammar, TINY, seed=0, device="cuda", resume=tmp_path)
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name]), name
        assert torch.equal(weight, resumed.module.state_dict()[name]), name


@pytest.mark.cuda
def test_captured_steps_are_the_steps(grammar):
    """On a card, graphs against the same batches one kernel after another."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    words, drawn = tokenizer(grammar), sample(grammar, 320, seed=0, max_length=8)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(words), hidden_dropout_prob=0, attention_probs_dropout_prob=0, **size)
    device, trained = torch.device("cuda"), []
    for captured in (True, False):
        torch.manual_seed(0)
        module = RobertaForMaskedLM(config).to(device)
        batches = Batches.of(drawn, word_ids(grammar, words), words, batch_size=16, share=0.3, seed=0, device=device)
        trainer = Trainer(module, batches, rate=0.01, warmup=0.2)
        trainer.reason = None if captured else "for comparison"
        with trainer.training():
            while trainer.step < trainer.steps:
                trainer.advance()
        assert bool(trainer._graphs) == captured
        trained.append(module)
    for ours, theirs in zip(*(module.parameters() for module in trained), strict=True):
        assert float((ours - theirs).detach().abs().max()) < 1e-5


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
    monkeypatch.setattr("pcfg.learning.pretraining._SAVE_SECONDS", 0.0)

    class KilledError(Exception):
        pass

    def kill(done, total, line):
        if line.startswith("pretraining") and done == 11:
            raise KilledError

    with pytest.raises(KilledError):
        pretrain(grammar, TINY, seed=0, device="cpu", resume=tmp_path, progress=kill)
    (tmp_path / ".state.safetensors.99").write_bytes(b"half")  # as if killed while it was being written
    seen = []
    again = pretrain(
        grammar, TINY, seed=0, device="cpu", resume=tmp_path,
        progress=lambda done, total, line: seen.append(done) if line.startswith("pretraining") else None,
    )  # fmt: skip
    assert min(seen) == 12  # the state after 11 steps was kept
    for name, weight in trained.module.state_dict().items():
        assert torch.equal(weight, again.module.state_dict()[name]), name
    assert again.report["excess"] == trained.report["excess"]


def test_the_state_of_another_run_is_left_alone(grammar, tmp_path, monkeypatch):
    monkeypatch.setattr("pcfg.learning.pretraining._SAVE_SECONDS", 0.0)
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
    (note,) = (path for path in (tmp_path / "state").glob("*.json"))
    note.write_text(note.read_text().replace('"cpu"', '"cuda"'))  # as a run on a card, which draws other masks, notes
    with pytest.raises(OptionError, match="state of another run"):
        pretrain(grammar, TINY, device="cpu", resume=tmp_path / "state")
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
        ({"width": 10, "heads": 3}, "`width` 10 isn't a multiple of `heads` 3"),
        ({"mask": 1.0}, "`mask` must lie between 0 and 1"),
        ({"layers": 0}, "`layers` must be above 0"),
        ({"rate": math.nan}, "`rate` must be above 0"),
    ],
)
def test_recipes_out_of_range(values, message):
    with pytest.raises(OptionError, match=message):
        PretrainRecipe(**values)


def test_a_training_that_diverges_says_so_and_leaves_nothing(grammar, tmp_path):
    recipe = PretrainRecipe(layers=1, heads=2, width=16, sentences=320, max_length=6, rate=1e30, evaluation=20)
    with pytest.raises(OptionError, match=r"the loss became nan by step [12] of 5: lower `rate`"):
        pretrain(grammar, recipe, device="cpu", resume=tmp_path / "state")
    assert not (tmp_path / "state").exists()


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
