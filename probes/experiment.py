"""probe_spans() and probe_trees(): every probe, every layer, every control, in one report."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcfg.devices import Device
from probes import controls
from probes.activations import Activations
from probes.causal import Head, remove_directions, score_heads
from probes.dataset import Dataset, check_pairs
from probes.decoding import minimum_risk
from probes.errors import ProbeError
from probes.intervals import Measure, ratio
from probes.linear import PairRegression
from probes.masked_words import MaskedWords
from probes.probed_model import ProbedModel
from probes.report import Example, ProbeReport
from probes.scorer import Scorer, Settings
from probes.spans import fit_spans, predict_spans
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.files import replace_json
from surgery.jsonfile import JsonError, load_json
from surgery.progress import Progress, silent
from surgery.provenance import package_version, provenance
from surgery.resuming import resumable

if TYPE_CHECKING:
    from pcfg.grammars.grammar import Grammar
    from pcfg.sampling.samples import Samples
    from pcfg.treebanks.trees import Tree

_SHOWN, _LONGEST_SHOWN = 3, 14
_CAUSAL = 200  # sentences


def probe_spans(
    model: "str | Path | Checkpoint",
    grammar: "Grammar",
    sentences: "Samples | Sequence[Sequence[str]] | int" = 2000,
    *,
    layers: "str | Sequence[int]" = "all",
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
        seeds: of the probes; `seed` is of everything else.
        max_length: of drawn sentences; by default what the model takes, 40 at most.
        cache: a folder for states, where those of the same model and sentences are found again; by default a temporary one.
        resume: a folder for the numbers of each layer that is done; a later call with the same arguments goes on from
            there to the same report, one with others is refused. The caller deletes it.

    Raises:
        GrammarError: the model's tokens aren't the grammar's words.
        ProbeError: sentences that can't be aligned, parsed or split.
    """
    from pcfg.learning.excess_loss import word_ids
    from pcfg.learning.pretraining import HELD_OUT
    from pcfg.sampling.sampler import sample

    settings = _settings(seeds, seed, device, cache, resume, progress)
    probed = ProbedModel.load(model, device=device)
    chosen = probed.check_layers(layers)
    word_ids(grammar, probed.tokenizer)  # raises now what would be raised later
    if isinstance(sentences, int):
        limit = min(max_length or 40, probed.most_tokens - 2)
        sentences = sample(grammar, sentences, seed=seed, max_length=limit, first=HELD_OUT)
    dataset = Dataset.of_grammar(grammar, sentences, seed=seed, device=device, progress=progress)
    inputs = {"model": probed.fingerprint, "grammar": grammar.fingerprint}
    return _probe(model, probed, dataset, chosen, settings, "probe_spans", inputs)


def probe_trees(
    model: "str | Path | Checkpoint",
    trees: "Sequence[Tree]",
    sentences: Sequence[Sequence[str]] | None = None,
    *,
    layers: "str | Sequence[int]" = "all",
    seeds: int = 5,
    seed: int = 0,
    max_length: int = 40,
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

    Other arguments, and what is raised, as `probe_spans`.
    """
    from pcfg.treebanks.cleaning import clean_trees

    settings = _settings(seeds, seed, device, cache, resume, progress)
    trees = clean_trees(trees)
    if sentences is not None:
        check_pairs(trees, sentences)
    kept = [tree for tree in trees if len(tree.words()) <= max_length]
    probed = ProbedModel.load(model, device=device)
    chosen = probed.check_layers(layers)
    dataset = Dataset.of_trees(kept, seed=seed)
    return _probe(model, probed, dataset, chosen, settings, "probe_trees", {"model": probed.fingerprint})


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
    source: "str | Path | Checkpoint",
    model: ProbedModel,
    dataset: Dataset,
    layers: Sequence[int],
    settings: Settings,
    call: str,
    inputs: dict[str, str],
) -> ProbeReport:
    from pcfg.resuming import PACKAGES
    from pcfg.sentences import fingerprint

    began, progress = time.monotonic(), settings.progress
    chosen = tuple(sorted({0, *layers}))
    about = {"layers": list(chosen), "seeds": settings.seeds, "model": model.name}
    inputs["sentences"] = fingerprint(dataset.sentences)
    inputs["trees"] = fingerprint([[str(tree)] for tree in dataset.trees])
    scorer, notes = Scorer(dataset, settings), [model.note] if model.note else []
    measures = scorer.without_model()
    words = None
    if dataset.grammar is not None and not model.causal:
        words = MaskedWords.draw(dataset, seed=settings.seed, device=settings.device, progress=progress)
    elif dataset.grammar is None:
        notes.append("there is no grammar, so masked words have no exact posterior and nothing is said of them")
    untrained = ProbedModel.load(source, device=settings.device, untrained=settings.seed)
    few = tuple(sorted({chosen[0], chosen[len(chosen) // 2], chosen[-1]}))  # random layers hardly differ
    total, done = len(chosen) + len(few) + 2, 0

    def step(line: str) -> None:
        nonlocal done
        progress(done, total, f"probes: {line}")
        done += 1

    with ExitStack() as stack:
        state = {**about, "inputs": inputs, "seed": settings.seed, "device": settings.device}
        stack.enter_context(resumable(settings.resume, state, packages=PACKAGES))
        folder = settings.cache or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="surgery-probe-")))
        own = None
        for name, some, these in (("model", model, chosen), ("untrained", untrained, few)):
            states = Activations.collect(some, dataset.sentences, folder, these, progress=progress)
            own = own or states
            masked = words.states(some, these, progress) if words else {}
            for layer in these:
                step(f"{name}, layer {layer}")
                measures += _measures(scorer, name, layer, states.layer(layer), masked.get(layer), words)
        for name, features in (
            ("word identity", controls.word_identity(dataset)),
            ("position", controls.positions(dataset)),
        ):
            step(name)
            measures += _measures(scorer, name, None, features)
        if words:
            measures += _word_controls(scorer, words, model)
        assert own is not None
        best = best_layer(measures)
        examples = _examples(dataset, own.layer(best), best)
        loss, removals = _loss(model, dataset, own, chosen, settings)
    if not model.head and dataset.grammar is not None:
        notes.append("the model has no trained head for words, so its loss and the causal check are left out")
    heads: tuple[Head, ...] = ()
    if model.bridge is not None:
        heads = score_heads(
            model, [dataset.trees[i] for i in dataset.test[:_CAUSAL]], seed=settings.seed, progress=progress
        )
    origin = provenance(call={call: about}, inputs=inputs, seed=settings.seed)
    origin["libraries"] |= {name: package_version(name) for name in ("transformer-lens", "scikit-learn", "scipy")}
    return ProbeReport(
        provenance=origin,
        model={"name": model.name, "layers": model.layers, "heads": model.heads, "width": model.width},
        counts=_counts(dataset),
        exact=dataset.exact,
        layers=chosen,
        best_layer=best,
        measures=tuple(measures),
        loss=loss,
        removals=removals,
        heads=heads,
        examples=examples,
        notes=tuple(notes),
        seconds=round(time.monotonic() - began, 1),
    )


def _measures(
    scorer: Scorer,
    source: str,
    layer: int | None,
    features: np.ndarray,
    masked: np.ndarray | None = None,
    words: MaskedWords | None = None,
) -> list[Measure]:
    """All probes of one layer's states or of one control's features; kept in the folder to resume from."""
    kept = scorer.settings.resume and scorer.settings.resume / f"{source}-{'all' if layer is None else layer}.json"
    if kept and kept.exists():
        return _kept(kept)
    found = scorer.spans(source, layer, features) + scorer.trees(source, layer, features)
    if words and masked is not None:
        found += scorer.words(source, layer, masked, words)
    if kept:
        _keep(kept, found)
    return found


def _keep(file: Path, measures: Sequence[Measure]) -> None:
    replace_json(file, [asdict(measure) for measure in measures])


def _kept(file: Path) -> list[Measure]:
    try:
        return load_json(file, list[Measure])
    except (OSError, JsonError) as error:
        raise ProbeError(f"{file} can't be read ({error}): delete {file.parent} to begin anew") from None


def best_layer(measures: Sequence[Measure]) -> int:
    """The layer whose states describe the training sentences' marginals in the fewest bits: the test has no say in it."""
    bits = {m.layer: m.value for m in measures if m.source == "model" and m.metric == "bits" and m.layer is not None}
    return min(bits, key=lambda layer: (bits[layer], layer))


def _word_controls(scorer: Scorer, words: MaskedWords, model: ProbedModel) -> list[Measure]:
    """What neighbours and positions say of a masked word, and what the model's own head predicts."""
    dataset, found = scorer.dataset, list[Measure]()
    rows = dataset.bounds[words.sentence] + words.position
    for name, features in (
        ("word identity", controls.neighbour_identity(dataset)),
        ("position", controls.positions(dataset)),
    ):
        found += scorer.words(name, None, features[rows], words)
    if model.head:
        test = words.rows(dataset.test)
        stats = scorer.per_sentence(words.sentence[test], words.model_kl(model, test))
        found.append(scorer.measure("none", "model", None, "kl", stats[None], ratio))
    return found


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
    found = []
    for i, wanted, predicted in zip(chosen, exact, tables, strict=True):
        trees = [tuple(map(tuple, minimum_risk([table])[0].tolist())) for table in (wanted, predicted)]
        rounded = [tuple(tuple(round(x, 4) for x in row) for row in table.tolist()) for table in (wanted, predicted)]
        found.append(Example(dataset.sentences[i], layer, rounded[0], rounded[1], trees[0], trees[1]))
    return tuple(found)


def _loss(
    model: ProbedModel, dataset: Dataset, states: Activations, layers: Sequence[int], settings: Settings
) -> tuple[dict[str, Any] | None, tuple[Any, ...]]:
    """The model's excess loss on the test sentences, and what it loses without the probed directions of each layer."""
    if dataset.grammar is None or model.causal or not model.head:
        return None, ()
    from pcfg.learning.excess_loss import MaskedSet

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
