"""Competence on rules: against plain loops, the optimum as a model, a planted rule, reports, resuming, bad input."""

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pytest
import torch
from scipy.sparse import csc_array
from scipy.stats import spearmanr

from pcfg import Grammar, compile_transformer, sample
from pcfg.compiled.compiling import save
from pcfg.inference.masked_words import masked_posteriors
from pcfg.learning.excess_loss import masked_log_probs, word_ids
from pcfg.learning.pretraining import HELD_OUT, Pretrained, PretrainRecipe, pretrain
from pcfg.sentences import fingerprint
from probes import CompetenceReport, measure_competence
from probes.emergence import independent_skills, tangled_skills, theorem_bound, without_rule
from probes.emergence.combining import Combinations, compare, tuple_means
from probes.emergence.divergences import mask_divergences
from probes.emergence.graph import SkillGraph
from probes.emergence.rules import RuleUses, common_tuples, rule_names
from probes.emergence.scores import TextFailures, score
from probes.errors import ProbeError, ProbeGrammarError, ProbeModelError, ProbeOptionError
from probes.example import example_grammar
from surgery.errors import OptionError
from tests.support.exact_model import exact_model

SETTINGS = {"rules": ["P -> *"], "least": 5, "device": "cpu"}


@pytest.fixture(scope="module")
def grammar():
    return independent_skills(8, 3, words=6, zipf=0.5)


@pytest.fixture(scope="module")
def trained(grammar):
    recipe = PretrainRecipe(layers=1, heads=2, width=16, sentences=640, max_length=6, batch_size=32, evaluation=20)
    return pretrain(grammar, recipe, keep=3, device="cpu")


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    return trained.save(tmp_path_factory.mktemp("emergence") / "mlm")


@pytest.fixture(scope="module")
def report(folder, grammar):
    return measure_competence(folder, grammar, 80, **SETTINGS)


def test_every_mask_against_a_plain_loop(trained, grammar):
    drawn = sample(grammar, 6, seed=3)
    found = mask_divergences(grammar, drawn, [trained])
    ids, number = word_ids(grammar, trained.tokenizer), 0
    for text, words in enumerate(drawn):
        for place in range(len(words)):
            p = masked_posteriors(grammar, words, [place]).words[0]
            logs = masked_log_probs(trained.module, trained.tokenizer, [words], [[place]], grammar, ids)[0]
            q, beside = np.exp(logs), 1 - np.exp(logs).sum()
            kl = sum(a * (np.log(a) - b) for a, b in zip(p, logs, strict=True) if a > 0)
            assert (found.sentence[number], found.position[number]) == (text, place)
            assert found.kl[0, number] == pytest.approx(kl, abs=1e-5)
            assert found.variation[0, number] == pytest.approx((abs(p - q).sum() + beside) / 2, abs=1e-6)
            assert found.entropy[number] == pytest.approx(-(p[p > 0] * np.log(p[p > 0])).sum(), abs=1e-9)
            number += 1
    assert number == len(found.sentence)
    assert (found.variation <= np.sqrt(found.kl / 2) + 1e-12).all()  # Pinsker
    some = mask_divergences(grammar, drawn, [trained], masks=4, seed=1)
    assert np.bincount(some.sentence).tolist() == [4] * 6
    assert len(set(zip(some.sentence.tolist(), some.position.tolist(), strict=True))) == 24
    where = [
        np.flatnonzero((found.sentence == s) & (found.position == p))[0]
        for s, p in zip(some.sentence, some.position, strict=True)
    ]
    assert some.kl[0] == pytest.approx(found.kl[0, where], abs=1e-5)


def test_a_rule_that_the_model_never_saw_is_at_the_bottom(grammar):
    missing = "P -> U5 V5"
    model = exact_model(without_rule(grammar, missing), uniform=1e-3)
    assert sorted(without_rule(grammar, missing).words) == sorted(grammar.words)
    report = measure_competence(model, grammar, 40, **{**SETTINGS, "least": 3})
    assert report.rules[0].rules == (missing,)
    assert report.rules[0].excess.value == max(rule.excess.value for rule in report.rules)
    assert report.last.explanations[1].coefficients[0][0] == missing
    assert all(missing in pair.rules for pair in report.pairs[:2])
    assert report.pinsker_violations == 0


def test_the_optimum_knows_every_rule_alike_and_keeps_to_pinsker(tmp_path):
    """In a model's float32 too."""
    grammar = example_grammar()
    save(compile_transformer(grammar, max_length=8), grammar, tmp_path / "built")
    report = measure_competence(tmp_path / "built", grammar, 60, least=5, device="cpu")
    assert report.pinsker_violations == 0
    assert report.last.excess.value == pytest.approx(0, abs=1e-6)
    assert "rules fail most and alike (0)" in report.summary[1]
    assert report.last.halves is None  # nothing is ranked


def test_rules_are_those_of_the_trees(grammar):
    drawn = sample(grammar, 40, seed=1)
    names = rule_names(grammar)

    def used(tree):
        kids = tree.children
        if isinstance(kids[0], str):
            return [f"{tree.label} -> '{kids[0]}'"]
        return [f"{tree.label} -> {kids[0].label} {kids[1].label}", *used(kids[0]), *used(kids[1])]

    wanted = [Counter(used(drawn.tree(i))) for i in range(len(drawn))]
    uses = RuleUses.of(drawn)
    assert set(uses.everywhere) == {"T3 -> P T2", "T2 -> P P"}
    for text, row in enumerate(uses.uses.toarray()):
        assert {n: c for n, c in zip(uses.names, row, strict=True) if c} == {
            n: c for n, c in wanted[text].items() if n not in uses.everywhere
        }
    phrases = RuleUses.of(drawn, ["P -> *"])
    assert set(phrases.names) <= {name for name in names if name.startswith("P -> ")}
    assert phrases.presence.max() == 1


def test_tuples_are_those_that_stand_together():
    random = np.random.default_rng(0)
    held = random.random((60, 9)) < np.linspace(0.2, 0.9, 9)
    for size in (2, 3):
        wanted = {
            members: held[:, list(members)].all(1)
            for members in combinations(range(9), size)
            if held[:, list(members)].all(1).sum() >= 8
        }
        members, columns, cut = common_tuples(csc_array(held * 1.0), size, 8)
        assert not cut and {tuple(row) for row in members.tolist()} == set(wanted)
        for row, column in zip(members.tolist(), columns.toarray().T, strict=True):
            assert (column == wanted[tuple(row)]).all()
    members, columns, cut = common_tuples(csc_array(held * 1.0), 2, 8, most=3)
    assert cut and len(members) == 3 and np.diff(columns.indptr).min() >= 30


def failures_of(values, masks=6):
    hard = np.round(values * masks) / masks
    return TextFailures(hard, values, values * 2, np.full(len(values), masks))


def test_scores_are_means_over_the_texts_with_the_rule():
    random = np.random.default_rng(1)
    held, failed = random.random((300, 4)) < 0.4, failures_of(random.random(300))
    found = score([(str(i),) for i in range(4)], csc_array(held * 1.0), np.arange(4), failed, 0)
    for i, one in enumerate(found):
        own = held[:, i]
        assert (one.texts, one.uses) == (own.sum(), i)
        for rate, values in ((one.failure, failed.hard), (one.soft, failed.soft), (one.excess, failed.excess)):
            assert rate.value == pytest.approx(values[own].mean())
            error = values[own].std() / np.sqrt(own.sum())
            assert rate.low == pytest.approx(rate.value - 1.96 * error, abs=0.4 * error)
            assert rate.high == pytest.approx(rate.value + 1.96 * error, abs=0.4 * error)


def test_pairs_against_single_rules_by_plain_counting():
    random = np.random.default_rng(2)
    held = random.random((200, 6)) < 0.5
    held[:, 0] |= ~held.any(1)
    difficulty = held @ np.linspace(0.05, 0.3, 6)
    found = [failures_of(np.clip(scale * difficulty, 0, 1)) for scale in (1.0, 0.6, 0.4)]
    graph = SkillGraph(csc_array(held * 1.0).tocsr())
    _, pairs, _ = common_tuples(csc_array(held * 1.0), 2, 1)
    combined = Combinations(graph, SkillGraph(pairs.tocsr()), np.arange(200) % 2 == 0, 0.2)
    rows = {(c.kind, c.failure): c for c in compare(["a", "b", "c"], found, combined, 0) if c.name == "c"}
    row = rows["mean", "soft"]
    per_rule = [[f.soft[text] for text in range(200) for _ in range(held[text].sum())] for f in found]
    per_pair = [found[2].soft[text] for text in range(200) for _ in range(comb(int(held[text].sum()), 2))]
    excess = [f.excess.mean() for f in found]
    before = np.interp(np.log(2 * excess[2]), np.log(excess[::-1]), [np.mean(x) for x in per_rule][::-1])
    assert row.before.value == pytest.approx(before) and row.pairs.value == pytest.approx(np.mean(per_pair))
    assert row.difference.value == pytest.approx(np.mean(per_pair) - before)
    assert row.difference.low < row.difference.value < row.difference.high
    assert row.verdict == "better"
    apart = rows["apart", "soft"]
    assert apart.pairs.value == pytest.approx(1 - (1 - np.mean(per_rule[2])) ** 2)
    assert rows["worst", "soft"].pairs.value > row.pairs.value
    assert next(c.name for c in compare(["a", "b", "c"], found[::-1], combined, 0) if c.kind == "mean") == "a"
    means = tuple_means(graph.drawn, found[0].soft, 0)
    assert means[1].value == pytest.approx(
        np.mean([found[0].soft[t] for t in range(200) for _ in range(comb(int(held[t].sum()), 2))])
    )


def test_the_worst_set_is_chosen_on_the_other_half():
    """Failures that are noise have no worst rules: chosen on the texts they are measured on, they would seem to."""
    random = np.random.default_rng(3)
    held = random.random((400, 60)) < 0.05
    held[np.arange(400), random.integers(60, size=400)] = True
    graph, noise = SkillGraph(csc_array(held * 1.0).tocsr()), random.random(400)
    combined = Combinations(graph, None, np.arange(400) % 2 == 0, 0.2)
    weights = combined.weights(noise)["worst singles"]
    assert (weights * noise).sum() / weights.sum() == pytest.approx(noise.mean(), abs=0.05)
    assert graph.beta(noise, 0.2) * noise.mean() > noise.mean() + 0.05


def test_sentences_are_drawn_where_training_draws_none(report, grammar):
    limit = {"seed": 0, "max_length": 6}
    held_out, training = (sample(grammar, 80, first=first, **limit) for first in (HELD_OUT, 0))
    assert report.provenance["inputs"]["sentences"] == fingerprint(held_out) != fingerprint(training)


def test_the_report_holds_what_was_measured(report, folder, trained):
    assert [m.step for m in report.measured] == [*trained.kept, None]
    assert report.settings["sentences"] == 80 and report.masks == 480
    assert report.last.excess.value < report.measured[0].excess.value
    assert {len(pair.rules) for pair in report.tuples} == {2}
    assert [r.failure.value for r in report.rules] == sorted((r.failure.value for r in report.rules), reverse=True)
    assert all(texts < 5 for _, texts in report.rare)
    assert all(rule.texts >= 5 for rule in report.rules)
    assert report.pinsker_violations == 0
    assert report.theory.theta == report.last.failure.value
    for point in report.theory.points:
        assert point.model <= point.worst + 1e-9 <= point.worst_bound + 2e-9
        assert point.theorem == theorem_bound(report.theory.k, report.theory.theta, point.alpha)
    again = measure_competence(trained, independent_skills(8, 3, words=6, zipf=0.5), 80, **SETTINGS)
    for one, other in zip(again.measured, report.measured, strict=True):
        assert one.excess.value == pytest.approx(other.excess.value, abs=1e-5)
    assert {rule.rules: rule.texts for rule in again.rules} == {rule.rules: rule.texts for rule in report.rules}


def test_halves_rank_rules_apart(trained, grammar):
    """Spearman's correlation between two halves of the texts, by plain counting."""
    drawn = sample(grammar, 80, seed=0, max_length=6, first=HELD_OUT)
    found = mask_divergences(grammar, drawn, [trained])
    threshold = float(np.median(found.variation))
    hard = TextFailures.of(found, 0, threshold).hard
    held = RuleUses.of(drawn, ["P -> *"]).presence.toarray() > 0
    first, halves = np.random.default_rng(0).permutation(80) % 2 == 0, []
    for half in (first, ~first):
        halves.append(
            [hard[own & half].mean() if (own & half).sum() >= 10 else np.nan for own in held.T if own.sum() >= 5]
        )
    both = np.isfinite(halves).all(0)
    wanted = spearmanr(np.array(halves[0])[both], np.array(halves[1])[both]).statistic
    report = measure_competence(trained, grammar, drawn, training=False, threshold=threshold, **SETTINGS)
    assert both.sum() > 4 and wanted < 0.999 and report.last.halves == pytest.approx(wanted, abs=1e-6)


def test_options_of_the_command_reach_the_measurement(folder, ok, tmp_path):
    given = {"masks": 2, "threshold": 0.2, "alpha": 0.3, "least": 4, "tuples": 3}
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    there = ["--sentences", "40", "--seed", "3", "--max-length", "6", "--no-training"]
    there += ["--rules", "P -> *", "-o", tmp_path / "r"]
    ok("emergence", "measure", folder, *options, *there)
    report = CompetenceReport.load(tmp_path / "r")
    call = report.provenance["call"]["measure_competence"]
    assert {**call, **given, "sentences": 40, "rules": ["P -> *"]} == call and report.provenance["seed"] == 3
    assert report.masks == 80 and len(report.last.tuple_failures) == 3  # of single rules, pairs and triples


def test_the_report_is_saved_and_loaded(report, tmp_path):
    report.save(tmp_path / "report")
    assert CompetenceReport.load(tmp_path / "report") == report
    names = {file.name for file in (tmp_path / "report").iterdir()}
    assert {"report.json", "README.md", "index.html", "rules.png"} <= names
    page = (tmp_path / "report" / "README.md").read_text()
    assert report.rules[0].rules[0] in page and "Over training" in page
    assert report.to_pandas().shape[0] == len(report.rules)
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    wrong = json.loads(json.dumps(content["measured"]))
    wrong[-1]["rules"][0]["failure"]["value"] = 7.0
    damages = (
        {"settings": {}},
        {"measured": []},
        {"theory": None},
        {"tuples": [{"rules": ["x"]}]},
        {"measured": wrong},
    )
    for damage in damages:
        (tmp_path / "report" / "report.json").write_text(json.dumps({**content, **damage}))
        with pytest.raises(ProbeError, match=r"report\.json is damaged"):
            CompetenceReport.load(tmp_path / "report")


class KilledError(Exception):
    pass


def test_a_stopped_run_goes_on_to_the_same_report(report, folder, grammar, tmp_path, monkeypatch):
    monkeypatch.setattr("probes.emergence.divergences._SENTENCES", 30)
    calls = []

    def stop(done, total, line):
        calls.append(line)
        if len(calls) == 3:
            raise KilledError

    with pytest.raises(KilledError):
        measure_competence(folder, grammar, 80, **SETTINGS, resume=tmp_path / "state", progress=stop)
    assert len(list((tmp_path / "state").glob("masks-*.json"))) == 2
    again = measure_competence(folder, grammar, 80, **SETTINGS, resume=tmp_path / "state")
    assert [m.excess.value for m in again.measured] == pytest.approx(
        [m.excess.value for m in report.measured], abs=1e-6
    )
    with pytest.raises(OptionError, match="state of another run"):
        measure_competence(folder, grammar, 80, **SETTINGS, seed=1, resume=tmp_path / "state")


def test_a_model_of_another_grammar_of_the_same_words_is_said(folder, grammar):
    other = without_rule(grammar, "P -> U5 V5")
    found = measure_competence(folder, other, 40, training=False, **SETTINGS)
    assert len(found.measured) == 1
    assert any("another grammar of the same words" in note for note in found.notes)


def test_several_models_are_a_training(folder, trained, grammar, ok, tmp_path):
    steps = sorted((folder / "checkpoints").iterdir())
    found = ok(
        *("emergence", "measure", *steps, folder, "--grammar", folder / "grammar.pcfg.json", "--sentences", "40"),
        *("--rules", "P -> *", "--least", "3", "-o", tmp_path / "report", "--json"),
    )
    assert len(CompetenceReport.load(tmp_path / "report").measured) == 4
    assert found["worst"][0][1] >= found["worst"][1][1]
    printed = ok("emergence", "measure", folder, "--sentences", "60", "--no-training", "-o", tmp_path / "one")
    assert "index.html" in printed
    assert not (tmp_path / "one.partial").exists()


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"threshold": 0.0}, ProbeOptionError, "`threshold` must lie between 0 and 1, not 0"),
        ({"alpha": 1.0}, ProbeOptionError, "`alpha` must lie between 0 and 1, not 1"),
        ({"masks": 0}, ProbeOptionError, "`masks` must be 1 or more, not 0"),
        ({"least": 1}, ProbeOptionError, "`least` must be 2 or more, not 1"),
        ({"tuples": 0}, ProbeOptionError, "`tuples` must be 1 or more, not 0"),
        ({"sentences": 3}, ProbeOptionError, "`sentences` is 3: give 20 or more"),
        ({"rules": ["NP -> *"]}, ProbeOptionError, "no rule of the grammar fits `rules` 'NP -> \\*'"),
        ({"rules": ["T3 -> *"]}, ProbeOptionError, "all trees use the same rules"),
        ({"least": 1000}, ProbeOptionError, "no rule is used in 1000 texts or more"),
        ({"max_length": 1}, ProbeOptionError, "`max_length` must be 2 or more"),
        ({"models": []}, ProbeOptionError, "no model to measure"),
    ],
)
def test_bad_options_are_named(options, kind, said, trained, grammar):
    given = {"models": trained, "sentences": 40, "training": False, **SETTINGS, **options}
    with pytest.raises(kind, match=said):
        measure_competence(given.pop("models"), grammar, given.pop("sentences"), **given)


def test_a_grammar_that_is_not_the_models_and_missing_checkpoints_are_refused(
    trained, folder, grammar, tmp_path, tiny, run
):
    with pytest.raises(
        ProbeGrammarError, match=r"isn't a token of the model's own.*give the grammar that the model was trained on"
    ):
        measure_competence(trained, independent_skills(9, 3, words=6), 40, **SETTINGS)
    with pytest.raises(ProbeGrammarError, match="drawn from another grammar"):
        measure_competence(trained, grammar, sample(tangled_skills(8, 3), 40, seed=0), **SETTINGS)
    bare = replace(trained, kept={}).save(tmp_path / "bare")
    with pytest.raises(ProbeOptionError, match=r"`training` asks for checkpoints on the way.*holds none"):
        measure_competence(bare, grammar, 40, training=True, **SETTINGS)
    with pytest.raises(ProbeOptionError, match="several models are named"):
        measure_competence([bare, folder], grammar, 40, training=True, **SETTINGS)
    with pytest.raises(ProbeModelError, match="predicts next words"):
        measure_competence(tiny("gpt2"), grammar, 40, **SETTINGS)
    status, _, error = run("emergence", "measure", bare, "--training", "-o", tmp_path / "out")
    assert status == 2 and "--training asks for checkpoints" in error and not (tmp_path / "out").exists()
    status, _, error = run("emergence", "measure", bare, "--alpha", "1.5", "-o", tmp_path / "out")
    assert status == 2 and "--alpha must lie between 0 and 1" in error


def test_grammars_of_skills_are_what_they_say():
    grammar = independent_skills(12, 4, zipf=1.0)
    drawn = sample(grammar, 4000, seed=0)
    uses = RuleUses.of(drawn, ["P -> *"]).uses.toarray()
    assert (uses.sum(1) == 4).all() and set(drawn.lengths) == {8}
    expected = 1 / np.arange(1, 13)
    assert uses.mean(0) / 4 == pytest.approx(expected / expected.sum(), abs=0.02)
    assert np.corrcoef(uses[:, 0] > 0, uses[:, 1] > 0)[0, 1] < 0  # as of independent draws of a fixed number
    tangled = sample(tangled_skills(12, 4, topics=3), 500, seed=0)
    names = RuleUses.of(tangled, ["P* -> *"])
    for row in names.uses.toarray():
        assert len({name.split()[0] for name, count in zip(names.names, row, strict=True) if count}) == 1
    for wrong in (
        lambda: independent_skills(1),
        lambda: tangled_skills(4, topics=9),
        lambda: independent_skills(words=2),
    ):
        with pytest.raises(OptionError, match=r"give \d"):
            wrong()
    with pytest.raises(OptionError, match="no rule 'P -> X Y'"):
        without_rule(grammar, "P -> X Y")
    with pytest.raises(OptionError, match="only rule of its symbol"):
        without_rule(grammar, "T2 -> P P")


@pytest.mark.cuda
def test_a_card_measures_what_a_cpu_does(folder, grammar, report):
    found = measure_competence(folder, grammar, 80, **{**SETTINGS, "device": "cuda"})
    for one, other in zip(found.measured, report.measured, strict=True):
        assert one.excess.value == pytest.approx(other.excess.value, abs=1e-4)
    assert all(isinstance(rule.failure.value, float) for rule in found.rules)


def test_kept_weights_are_on_the_way_to_the_same_model(trained, folder, grammar):
    call = trained.report["call"]
    recipe = PretrainRecipe(**call["pretrain"])
    plain = pretrain(grammar, recipe, device="cpu")
    for one, other in zip(plain.module.parameters(), trained.module.parameters(), strict=True):
        assert torch.equal(one, other)
    loaded = Pretrained.load(folder)
    assert list(loaded.kept) == list(trained.kept) == [1, 3, 7]
    for step in trained.kept:
        for name, weights in trained.kept[step].items():
            assert torch.equal(weights, loaded.kept[step][name])
            assert torch.equal(dict(loaded.at(step).named_parameters())[name], weights)
    with pytest.raises(OptionError, match=r"step 5 wasn't kept \(there are: 1, 3, 7\)"):
        trained.at(5)
    assert Grammar.load(folder / "checkpoints" / "step-3" / "grammar.pcfg.json").fingerprint == grammar.fingerprint


def test_a_killed_training_goes_on_with_the_weights_it_kept(trained, grammar, tmp_path, monkeypatch):
    monkeypatch.setattr("pcfg.learning.pretraining._SAVE_SECONDS", 0.0)
    recipe = PretrainRecipe(**trained.report["call"]["pretrain"])

    def stop(done, total, line):
        if line.startswith("pretraining") and done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        pretrain(grammar, recipe, keep=3, device="cpu", resume=tmp_path / "state", progress=stop)
    again = pretrain(grammar, recipe, keep=3, device="cpu", resume=tmp_path / "state")
    assert list(again.kept) == list(trained.kept)
    for step, weights in trained.kept.items():
        assert all(torch.equal(again.kept[step][name], tensor) for name, tensor in weights.items())
    with pytest.raises(OptionError, match="`keep` is 20, and training makes 20 steps: keep from 0 to 19"):
        pretrain(grammar, recipe, keep=20, device="cpu")
