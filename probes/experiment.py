"""probe_spans() and probe_trees(): every probe, every layer, every control, in one report."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pcfg.devices import Device
from pcfg.grammars.grammar import Grammar
from pcfg.learning.excess_loss import MaskedSet, word_ids
from pcfg.learning.pretraining import HELD_OUT
from pcfg.resuming import PACKAGES
from pcfg.sampling.sampler import sample
from pcfg.sampling.samples import Samples
from pcfg.sentences import fingerprint
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.trees import Tree
from probes import controls
from probes.activations import Activations
from probes.calibration import calibrate
from probes.catalog import measure_all
from probes.causal import Removal, remove_directions, score_heads
from probes.dataset import Dataset, check_pairs
from probes.decoding import minimum_risk
from probes.errors import ProbeOptionError, probe_errors
from probes.intervals import Measure
from probes.linear import PairRegression
from probes.masked_words import MaskedWords
from probes.probe import Features
from probes.probed_model import ProbedModel
from probes.report import ProbeReport
from probes.scorer import Scorer, Settings
from probes.sentence import Example
from probes.spans import fit_spans, predict_spans
from probes.word_posteriors import own_prediction
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.files import replace_json
from surgery.progress import Progress, silent
from surgery.provenance import package_version, provenance
from surgery.resuming import read_state, resumable
from surgery.sync import ranks

_SHOWN, _LONGEST_SHOWN = 3, 14
_NAMED = 5  # unknown words
_CAUSAL = 200  # sentences
_LONGEST = 40  # words of a sentence


@probe_errors()
def probe_spans(
    model: str | Path | Checkpoint,
    grammar: Grammar,
    sentences: Samples | Sequence[Sequence[str]] | int = 2000,
    *,
    layers: str | Sequence[int] = "all",
    seeds: int = 5,
    seed: int = 0,
    max_length: int | None = None,
    device: Device | None = None,
    cache: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> ProbeReport:
    """Probe a masked language model of a grammar's words against the grammar's exact posteriors (Zhao et al. 2023, section 5).

    Args:
        sentences: word lists or `pcfg.sample`'s; or how many to draw, none of those that `pretrain` draws
            to train on (the same words may come again by chance). A quarter of the different ones is held out.
        layers: `all`, or numbers; 0, what goes into the first block, is always among them.
        seeds: number of times that each probe is trained; `seed` decides every other random choice.
        max_length: of drawn sentences; by default what the model takes, 40 at most.
        cache: a folder for states, where those of the same model and sentences are found again; by default a temporary one.
        resume: a folder for the numbers of each layer that is done; a later call with the same arguments goes on from
            there to the same report, one with others is refused. The caller deletes it.

    Raises:
        ProbeError: sentences that can't be aligned, parsed or split; and of its kinds ProbeGrammarError where the model's
            tokens aren't the grammar's words, ProbeModelError and ProbeOptionError.
    """
    settings = _settings(seeds, seed, device, cache, resume, progress)
    _check_length(max_length)
    probed = ProbedModel.load(model, device=device)
    chosen = probed.check_layers(layers)
    word_ids(grammar, probed.tokenizer)  # raises now what would be raised later
    if isinstance(sentences, int):
        limit = min(_LONGEST if max_length is None else max_length, probed.most_tokens - 2)
        sentences = sample(grammar, sentences, seed=seed, max_length=limit, first=HELD_OUT)
    dataset = Dataset.of_grammar(grammar, sentences, seed=seed, device=device, progress=progress)
    inputs = {"model": probed.fingerprint, "grammar": grammar.fingerprint}
    return _probe(model, probed, dataset, chosen, settings, "probe_spans", inputs)


@probe_errors()
def probe_trees(
    model: str | Path | Checkpoint,
    trees: Sequence[Tree],
    sentences: Sequence[Sequence[str]] | None = None,
    *,
    layers: str | Sequence[int] = "all",
    seeds: int = 5,
    seed: int = 0,
    max_length: int = _LONGEST,
    device: Device | None = None,
    cache: str | Path | None = None,
    resume: str | Path | None = None,
    progress: Progress = silent,
) -> ProbeReport:
    """Probe a natural-language model against a treebank: each span of a tree counts 1, any other 0.

    Args:
        trees: as read; they are cleaned (`pcfg.treebanks.cleaning.clean_trees`).
        sentences: words of the cleaned trees, where the two come from different places; they must agree.
        max_length: trees of more words are left out.

    The other arguments, and the errors, are those of `probe_spans`.
    """
    settings = _settings(seeds, seed, device, cache, resume, progress)
    _check_length(max_length)
    trees = clean_trees(trees)
    if sentences is not None:
        check_pairs(trees, sentences)
    kept = [tree for tree in trees if len(tree.words()) <= max_length]
    probed = ProbedModel.load(model, device=device)
    chosen = probed.check_layers(layers)
    dataset = Dataset.of_trees(kept, seed=seed)
    return _probe(model, probed, dataset, chosen, settings, "probe_trees", {"model": probed.fingerprint})


def _check_length(max_length: int | None) -> None:
    if max_length is not None and max_length < 3:
        raise ProbeOptionError(
            f"`max_length` must be 3 or more, not {max_length}: shorter sentences have no span to find"
        )


def _settings(
    seeds: int,
    seed: int,
    device: Device | None,
    cache: str | Path | None,
    resume: str | Path | None,
    progress: Progress,
) -> Settings:
    place = None if device is None else str(device)
    return Settings(seeds, seed, place, Path(cache) if cache else None, progress, Path(resume) if resume else None)


def _probe(
    source: str | Path | Checkpoint,
    model: ProbedModel,
    dataset: Dataset,
    layers: Sequence[int],
    settings: Settings,
    call: str,
    inputs: dict[str, str],
) -> ProbeReport:
    began = time.monotonic()
    layers = tuple(sorted({0, *layers}))
    about = {"layers": list(layers), "seeds": settings.seeds, "model": model.name}
    inputs["sentences"] = fingerprint(dataset.sentences)
    inputs["trees"] = fingerprint([[str(tree)] for tree in dataset.trees])
    scorer = Scorer(dataset, settings)
    measures = scorer.without_model()
    masked = None
    if dataset.grammar is not None and not model.causal:
        masked = MaskedWords.draw(dataset, seed=settings.seed, device=settings.device, progress=settings.progress)
    untrained = ProbedModel.load(source, device=settings.device, untrained=settings.seed)
    whose = {**about, "inputs": inputs, "seed": settings.seed, "device": settings.device}
    with (
        ranks.first_holds(resumable(settings.resume, whose, packages=PACKAGES), settings.resume) as state,
        _states_folder(settings.cache, state) as folder,
    ):
        states, found = _measure(scorer, model, untrained, layers, masked, folder, state)
        measures += found
        best = best_layer(measures)
        examples = _examples(dataset, states.layer(best), best)
        loss, removals = _loss(model, dataset, states, layers, settings)
        calibration = calibrate(model, dataset, states, layers, progress=settings.progress)
    some = [dataset.trees[i] for i in dataset.test[:_CAUSAL]] if model.bridge is not None else []
    return ProbeReport(
        provenance=_origin(call, about, inputs, settings.seed),
        model={"name": model.name, "layers": model.layers, "heads": model.heads, "width": model.width},
        counts=_counts(dataset),
        exact=dataset.exact,
        layers=layers,
        best_layer=best,
        measures=tuple(measures),
        loss=loss,
        removals=removals,
        heads=score_heads(model, some, seed=settings.seed, progress=settings.progress) if some else (),
        examples=examples,
        notes=_notes(model, dataset),
        seconds=round(time.monotonic() - began, 1),
        calibration=calibration,
    )


@contextmanager
def _states_folder(cache: Path | None, state: Path | None) -> Iterator[Path]:
    if cache is not None:
        yield cache
        return
    if ranks.several():
        assert state is not None
        yield state / "states"  # which all see
        return
    with tempfile.TemporaryDirectory(prefix="surgery-probe-") as folder:
        yield Path(folder)


def _measure(
    scorer: Scorer,
    model: ProbedModel,
    untrained: ProbedModel,
    layers: Sequence[int],
    masked: MaskedWords | None,
    folder: Path,
    state: Path | None,
) -> tuple[Activations, list[Measure]]:
    """Collect states, and run every probe on layers of the model, of one with random weights, and on the controls."""
    dataset, progress, jobs = scorer.dataset, scorer.settings.progress, list[Features]()
    few = tuple(sorted({layers[0], layers[len(layers) // 2], layers[-1]}))  # random layers hardly differ
    kept: list[Activations] = []
    for name, probed, chosen in (("model", model, layers), ("untrained", untrained, few)):
        if not ranks.is_first():
            ranks.meet()
        states = Activations.collect(probed, dataset.sentences, folder, chosen, progress=progress)
        if ranks.is_first():
            ranks.meet()  # the others find the states there
        kept.append(states)
        masks = masked.states(probed, chosen, progress) if masked else {}
        jobs += [Features(name, layer, states.layer(layer), masks.get(layer), masked) for layer in chosen]
    controls = _control_features(dataset, masked)
    jobs += [seen for seen in controls if seen.words is not None]

    def measured(number: int) -> list[Measure]:
        seen = jobs[number]
        progress(number, len(jobs), f"probes: {seen.source}" + ("" if seen.layer is None else f", layer {seen.layer}"))
        return _resumed(scorer, seen, state)

    measures = [measure for each in ranks.shared_out(len(jobs), measured) for measure in each]
    for seen in controls:
        if seen.words is None:  # masked words alone take a moment
            measures += measure_all(scorer, seen)
    if masked and model.head:
        measures.append(own_prediction(scorer, masked, model))
    return kept[0], measures


def _control_features(dataset: Dataset, masked: MaskedWords | None) -> list[Features]:
    """Features that see no model: each word's identity and place, then each mask's neighbours and place."""
    places = controls.positions(dataset)
    features = [
        Features("word identity", None, controls.word_identity(dataset)),
        Features("position", None, places),
    ]
    if masked:
        rows = dataset.bounds[masked.sentence] + masked.position
        neighbours = controls.neighbour_identity(dataset)[rows]
        features += [
            Features("word identity", None, masks=neighbours, masked=masked),
            Features("position", None, masks=places[rows], masked=masked),
        ]
    return features


def _resumed(scorer: Scorer, seen: Features, state: Path | None) -> list[Measure]:
    """Measure with every probe, or read the numbers of a stopped run from its state."""
    if state is None:
        return measure_all(scorer, seen)
    file = state / f"{seen.source}-{'all' if seen.layer is None else seen.layer}.json"
    if file.exists():
        return read_state(file, list[Measure])
    measures = measure_all(scorer, seen)
    replace_json(file, [asdict(measure) for measure in measures])
    return measures


def _notes(model: ProbedModel, dataset: Dataset) -> tuple[str, ...]:
    notes = [model.note] if model.note else []
    if unknown := model.unknown_words(dataset.sentences):
        different = list(dict.fromkeys(unknown))
        named = ", ".join(map(repr, different[:_NAMED])) + (" ..." if len(different) > _NAMED else "")
        notes.append(
            f"{100 * len(unknown) / int(dataset.bounds[-1]):.1f}% of the words ({len(unknown):,} of {int(dataset.bounds[-1]):,}, "
            f"{len(different):,} different: {named}) are unknown to the model, which reads all of them as {model.tokenizer.unk_token}"
        )
    if dataset.grammar is None:
        notes.append("there is no grammar, so masked words have no exact posterior and nothing is said of them")
    elif not model.head:
        notes.append("the model has no trained head for words, so its loss and the causal check are left out")
    return tuple(notes)


def _origin(call: str, about: dict[str, Any], inputs: dict[str, str], seed: int) -> dict[str, Any]:
    origin = provenance(call={call: about}, inputs=inputs, seed=seed)
    origin["libraries"] |= {name: package_version(name) for name in ("transformer-lens", "scikit-learn", "scipy")}
    return origin


def best_layer(measures: Sequence[Measure]) -> int:
    """Return the layer whose states describe the training sentences' marginals in the fewest bits; test sentences don't count."""
    bits = {m.layer: m.value for m in measures if m.source == "model" and m.metric == "bits" and m.layer is not None}
    return min(bits, key=lambda layer: (bits[layer], layer))


def _examples(dataset: Dataset, features: np.ndarray, layer: int) -> tuple[Example, ...]:
    """A few test sentences with exact and predicted marginals and the trees of both."""
    probe = fit_spans("two-layer", features, dataset, dataset.train, dataset.targets, 0)
    fitting = [i for i in dataset.test if 6 <= dataset.lengths[i] <= _LONGEST_SHOWN]
    chosen = np.array(
        sorted(fitting, key=lambda i: -dataset.lengths[i])[:: max(1, len(fitting) // _SHOWN)][:_SHOWN], np.int64
    )
    if not len(chosen):
        return ()
    tables = dataset.full(chosen, predict_spans(probe, features, dataset, chosen)[:, 0])
    exact = dataset.full(chosen, dataset.targets[dataset.span_rows(chosen), 0])
    examples = []
    for i, wanted, predicted in zip(chosen, exact, tables, strict=True):
        trees = [tuple(map(tuple, minimum_risk([table])[0].tolist())) for table in (wanted, predicted)]
        rounded = [tuple(tuple(round(x, 4) for x in row) for row in table.tolist()) for table in (wanted, predicted)]
        examples.append(Example(dataset.sentences[i], layer, rounded[0], rounded[1], trees[0], trees[1]))
    return tuple(examples)


def _loss(
    model: ProbedModel, dataset: Dataset, states: Activations, layers: Sequence[int], settings: Settings
) -> tuple[dict[str, Any] | None, tuple[Removal, ...]]:
    """The model's excess loss on the test sentences, and what it loses without the probed directions of each layer."""
    if dataset.grammar is None or model.causal or not model.head:
        return None, ()
    sentences = [dataset.sentences[i] for i in dataset.test]
    masked = MaskedSet.draw(dataset.grammar, sentences, seed=settings.seed, device=settings.device)
    loss = masked.measure(model.module, model.tokenizer).to_json(settings.seed)
    if model.bridge is None:
        return loss, ()
    few = MaskedSet.draw(dataset.grammar, sentences[:_CAUSAL], seed=settings.seed, device=settings.device)
    left, right = dataset.ends(dataset.train)
    targets, removals = dataset.targets[dataset.span_rows(dataset.train)], []
    for number, layer in enumerate(layers):
        settings.progress(number, len(layers), "causal check")
        probe = PairRegression.fit(states.layer(layer), left, right, targets, seed=settings.seed)
        removals.append(remove_directions(model, few, layer, probe, states.layer(layer), seed=settings.seed))
    return loss, tuple(removals)


def _counts(dataset: Dataset) -> dict[str, int]:
    return {
        "train": len(dataset.train),
        "test": len(dataset.test),
        "words": int(dataset.bounds[-1]),
        "spans": len(dataset.targets),
    }
