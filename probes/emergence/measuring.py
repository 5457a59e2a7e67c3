"""measure_competence(): which rules, and which combinations of rules, models of a grammar's words know."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcfg.devices import Device
from pcfg.grammars.grammar import Grammar
from pcfg.learning.excess_loss import generative, word_ids
from pcfg.learning.pretraining import HELD_OUT
from pcfg.resuming import PACKAGES
from pcfg.sampling.sampler import sample
from pcfg.sampling.samples import Samples
from pcfg.sentences import fingerprint
from probes.emergence.adversary import worst_case
from probes.emergence.combining import Combinations, compare, tuple_means
from probes.emergence.competence import Measured, Theory, TheoryPoint
from probes.emergence.divergences import mask_divergences, weights_digest
from probes.emergence.explaining import explain
from probes.emergence.graph import SkillGraph
from probes.emergence.models import Loaded, Model, load_models
from probes.emergence.report import CompetenceReport
from probes.emergence.rules import RuleUses, common_tuples
from probes.emergence.scores import Score, TextFailures, mean_rate, score
from probes.emergence.theory import check_shares, exact_bound, theorem_bound
from probes.errors import ProbeGrammarError, ProbeOptionError, probe_errors
from probes.intervals import spearman
from surgery.progress import Progress, silent
from surgery.provenance import package_version, provenance
from surgery.resuming import resumable
from surgery.sync import ranks

_LONGEST = 40  # words of a sentence
_ALPHAS = (0.05, 0.1, 0.2, 0.3, 0.5)
_ROUNDING = 1e-6  # of total variation, as models predict in float32
_FEWEST = 20  # sentences, for halves, held-out texts and intervals


# Long: arguments and their documentation.
@probe_errors()
def measure_competence(
    models: Model | Sequence[Model],
    grammar: Grammar,
    sentences: Samples | int = 2000,
    *,
    masks: int | None = None,
    rules: Sequence[str] | None = None,
    threshold: float = 0.1,
    alpha: float = 0.2,
    least: int = 20,
    tuples: int = 2,
    training: bool | None = None,
    max_length: int | None = None,
    seed: int = 0,
    device: Device | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> CompetenceReport:
    """Measure, exactly, which rules of a grammar and which combinations of them a masked language model knows.

    Words are masked one at a time, and the model's prediction is held to the exact posterior. A text fails by the share of
    its masks whose total variation is above a threshold, and a rule by the mean failure of the texts whose trees use it
    (Arora & Goyal 2023, section 4, with exact excess loss in place of cloze questions).

    Args:
        models: folders, hub ids or objects with `module` and `tokenizer` (as `Pretrained`), in the order of training; the
            last one is what the report is about.
        sentences: `pcfg.sample`'s, with the trees they were drawn by; or how many to draw, none of those that `pretrain`
            draws to train on.
        masks: words of a sentence to mask, drawn at random; by default all.
        rules: take only those whose names fit one of these patterns, such as `NP -> *`; by default all, lexical ones too.
        threshold: total variation above which a mask has failed.
        alpha: share of rules (as they are used) that count as the worst.
        least: texts that must hold a rule or a tuple for it to be ranked.
        tuples: the largest tuples of rules to list.
        training: also measure the checkpoints that `pretrain(keep=)` left in the one model's folder, before it; by default
            if there are any.
        max_length: of drawn sentences; by default what the models take, 40 at most.
        resume: a folder for what is done; a later call with the same arguments goes on from there. The caller deletes it.

    Raises:
        ProbeError: and of its kinds ProbeGrammarError where a model's tokens aren't the grammar's words, ProbeModelError for
            what isn't a trained masked language model, ProbeOptionError, also for `training` without checkpoints.
    """
    began = time.monotonic()
    check_shares(threshold=threshold, alpha=alpha)
    for name, value, fewest in (
        ("masks", 1 if masks is None else masks, 1),
        ("least", least, 2),
        ("tuples", tuples, 1),
    ):
        if value < fewest:
            raise ProbeOptionError(f"`{name}` must be {fewest} or more, not {value}")
    loaded = load_models(models, training, device)
    for model in loaded:
        word_ids(grammar, model.tokenizer)  # raises now what would be raised later
    drawn = _drawn(grammar, sentences, loaded, max_length, seed)
    uses = RuleUses.of(drawn, rules)
    call = {
        "models": [model.name for model in loaded],
        "sentences": len(drawn),
        "masks": masks,
        "rules": None if rules is None else list(rules),
        "threshold": threshold,
        "alpha": alpha,
        "least": least,
        "tuples": tuples,
    }
    inputs = {model.name: weights_digest(model.module) for model in loaded}
    inputs |= {"grammar": grammar.fingerprint, "sentences": fingerprint(drawn)}
    whose = {"inputs": inputs, "masks": masks, "seed": seed}
    with ranks.first_holds(resumable(resume, whose, packages=PACKAGES), resume) as state:
        found = mask_divergences(
            grammar, drawn, loaded, masks=masks, seed=seed, device=device, state=state, progress=progress
        )
        failures = [TextFailures.of(found, number, threshold) for number in range(len(loaded))]
        settings = _Settings(alpha, least, tuples, seed, progress)
        summed_up = _sum_up(loaded, failures, uses, settings)
    origin = provenance(call={"measure_competence": call}, inputs=inputs, seed=seed)
    origin["libraries"] |= {name: package_version(name) for name in ("scikit-learn", "scipy")}
    return CompetenceReport(
        provenance=origin,
        settings={key: call[key] for key in ("sentences", "threshold", "alpha", "least")},
        masks=len(found.sentence),
        optimum=float(found.entropy.mean()),
        pinsker_violations=int((found.variation > np.sqrt(found.kl / 2) + _ROUNDING).sum()),
        notes=_notes(loaded, grammar, uses),
        seconds=round(time.monotonic() - began, 1),
        **summed_up,
    )


def _drawn(
    grammar: Grammar, sentences: Samples | int, loaded: Sequence[Loaded], max_length: int | None, seed: int
) -> Samples:
    """The sentences and their trees."""
    if isinstance(sentences, int):
        limit = min(_LONGEST if max_length is None else max_length, *(model.most_words for model in loaded))
        if limit < 2:
            raise ProbeOptionError(f"`max_length` must be 2 or more, not {max_length}")
        if sentences >= _FEWEST:
            sentences = sample(generative(grammar), sentences, seed=seed, max_length=limit, first=HELD_OUT)
    count = sentences if isinstance(sentences, int) else len(sentences)
    if isinstance(sentences, int) or count < _FEWEST:
        raise ProbeOptionError(f"`sentences` is {count}: give {_FEWEST} or more, of which rules are counted")
    if sentences.grammar.fingerprint != generative(grammar).fingerprint:
        raise ProbeGrammarError("the sentences were drawn from another grammar than the one given: give that grammar")
    return sentences


@dataclass(frozen=True)
class _Settings:
    """What decides how failures are summed up."""

    alpha: float
    least: int
    tuples: int
    seed: int
    progress: Progress


def _sum_up(
    loaded: Sequence[Loaded], failures: Sequence[TextFailures], uses: RuleUses, settings: _Settings
) -> dict[str, Any]:
    """The report's fields on rules, tuples, theory and training."""
    seed, progress, presence = settings.seed, settings.progress, uses.presence
    held = np.diff(presence.indptr)
    ranked = np.flatnonzero(held >= settings.least)
    if not len(ranked):
        raise ProbeOptionError(
            f"no rule is used in {settings.least} texts or more (`least`): take more `sentences`, or a lower `least`"
        )
    graph = SkillGraph(presence[:, ranked].tocsr())
    first = np.random.default_rng(seed).permutation(len(failures[0].hard)) % 2 == 0
    measured = []
    for number, (model, failed) in enumerate(zip(loaded, failures, strict=True)):
        progress(number, len(loaded), f"rules: {model.name}")
        measured.append(_measured(model, failed, uses, ranked, graph, first, seed))
    progress(len(loaded), len(loaded), "rules: tuples")
    listed, pairs, cut = list[Score](), None, False
    for size in range(2, settings.tuples + 1):
        members, columns, more = common_tuples(presence, size, settings.least)
        together = [tuple(uses.names[i] for i in row) for row in members]
        listed += score(together, columns, np.diff(columns.indptr).astype(np.int64), failures[-1], seed)
        cut |= more
        if size == 2 and len(members):
            pairs = SkillGraph(columns.tocsr())
    combined = Combinations(graph, pairs, first, settings.alpha)
    names = [model.name for model in loaded]
    rare = [(uses.names[i], int(held[i])) for i in np.flatnonzero(held < settings.least)]
    return {
        "measured": tuple(measured),
        "tuples": tuple(sorted(listed, key=lambda found: (len(found.rules), -found.failure.value))),
        "tuples_left_out": cut,
        "rare": tuple(sorted(rare, key=lambda found: -found[1])),
        "theory": _theory(graph, failures[-1], seed, progress),
        "comparisons": compare(names, failures, combined, seed),
    }


def _measured(
    model: Loaded,
    failed: TextFailures,
    uses: RuleUses,
    ranked: np.ndarray,
    graph: SkillGraph,
    first: np.ndarray,
    seed: int,
) -> Measured:
    """One model."""
    counts = uses.uses[:, ranked]
    names = [uses.names[i] for i in ranked]
    total = np.asarray(counts.sum(0)).ravel().astype(np.int64)
    scores = score([(name,) for name in names], graph.edges.tocsc(), total, failed, seed)
    halves = [_shares(graph, failed.hard, half) for half in (first, ~first)]
    both = np.isfinite(halves[0]) & np.isfinite(halves[1])
    drawn = np.asarray(uses.uses.sum(1)).ravel().astype(np.int64)
    return Measured(
        name=model.name,
        step=model.step,
        failure=mean_rate(failed.hard, seed),
        soft=mean_rate(failed.soft, seed),
        excess=mean_rate(failed.excess, seed, failed.masks.astype(np.float64)),
        tuple_failures=tuple_means(graph.drawn, failed.hard, seed),
        tuple_softs=tuple_means(graph.drawn, failed.soft, seed),
        rules=tuple(sorted(scores, key=lambda found: (-found.failure.value, -found.soft.value))),
        halves=_agreement(halves[0][both], halves[1][both]),
        explanations=explain(tuple(names), counts, drawn, failed, seed=seed),
    )


def _agreement(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's correlation; None for two or fewer, and where all of a half fail alike and nothing is ranked."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return spearman(one, other)


def _shares(graph: SkillGraph, failures: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Failures of rules in half of the texts; NaN for a rule with fewer than 10 there."""
    own = graph.edges.T @ half.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(own >= _FEWEST // 2, (graph.edges.T @ (failures * half)) / own, np.nan)


def _theory(graph: SkillGraph, failed: TextFailures, seed: int, progress: Progress) -> Theory:
    """The model's failures on the measured graph beside the worst there could be, and the theory's two bounds."""
    theta, points = float(failed.hard.mean()), []
    if 0 < theta < 1:
        for alpha in _ALPHAS:
            worst = worst_case(graph, theta, alpha, seed=seed, progress=progress)
            points.append(
                TheoryPoint(
                    alpha=alpha,
                    model=graph.beta(failed.hard, alpha),
                    worst=worst.low,
                    worst_bound=worst.high,
                    bound_by=worst.bound,
                    independent=exact_bound(graph.drawn, theta, alpha),
                    theorem=theorem_bound(graph.k, theta, alpha),
                )
            )
    return Theory(theta, graph.k, graph.texts, graph.skills, tuple(points))


def _notes(loaded: Sequence[Loaded], grammar: Grammar, uses: RuleUses) -> tuple[str, ...]:
    own = generative(grammar).fingerprint
    others = [model.name for model in loaded if model.grammar not in (None, own, grammar.fingerprint)]
    notes = []
    if others:
        notes.append(
            f"another grammar of the same words lies beside {', '.join(others)}: the model is held to the one given, which it wasn't trained on"
        )
    if uses.everywhere:
        some = ", ".join(uses.everywhere[:3]) + (" ..." if len(uses.everywhere) > 3 else "")
        notes.append(f"left out, as every tree uses them: {len(uses.everywhere)} rules ({some})")
    return tuple(notes)
