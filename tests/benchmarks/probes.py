"""Seven small models trained on one treebank grammar: excess loss, F1 over the ceiling and R^2 of span marginals by model.

NLTK_DATA=... python -m tests.benchmarks.probes FOLDER [FIGURE]

Models take minutes each (250,000 sentences of 20 words or fewer). Both models and numbers are kept in FOLDER: a second
run goes on where the first was stopped, and only draws when everything is there.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pcfg import Grammar, sample
from pcfg.learning.pretraining import HELD_OUT, PretrainRecipe, pretrain
from pcfg.learning.pruning_by_use import prune
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.induction import induce
from pcfg.treebanks.nltk_sample import nltk_treebank
from probes import controls
from probes.activations import Activations
from probes.dataset import Dataset
from probes.decoding import minimum_risk
from probes.intervals import Measure, r_squared, squares
from probes.probed_model import ProbedModel
from probes.scorer import Scorer, Settings
from probes.spans import KINDS, description_length, fit_spans, predict_spans
from surgery.progress import silent
from surgery.reporting.figures import COLOURS, MARKERS, figure

SIZES = ((1, 6), (2, 6), (4, 6), (6, 6), (4, 1), (4, 3), (4, 12))  # layers, heads
SENTENCES, LENGTH, WIDTH, PROBED, SEEDS = 250_000, 20, 96, 600, 5


def english(file):
    """20 nonterminals and 130 preterminals off the first 3,414 trees; words seen fewer than 50 times are signatures."""
    if not file.exists():
        bank = clean_trees(nltk_treebank())[:3414]
        induced = induce(bank, v=1, h=0, min_count=50, smooth_lexicon=False, annotate_tags=False)
        prune(Grammar.of_arrays(**induced.arrays()), 22).save(file)
    return Grammar.load(file)


def train(grammar, folder, layers, heads):
    """The model's report; trains it unless it is there."""
    if not (folder / "report.json").exists():
        recipe = PretrainRecipe(layers, heads, WIDTH, SENTENCES, LENGTH)
        pretrain(grammar, recipe, resume=folder.with_suffix(".partial")).save(folder)
    return json.loads((folder / "report.json").read_text())


def spans(scorer, source, layer, features):
    """R^2, F1 and its share of the ceiling by both span probes, and bits a span."""
    dataset, found = scorer.dataset, []
    for kind in KINDS:
        predicted = []
        for seed in range(SEEDS):
            fitted = fit_spans(kind, features, dataset, scorer.train_for(seed), dataset.targets, seed)
            predicted.append(predict_spans(fitted, features, dataset, dataset.test))
        stats = [squares(p[:, 0], scorer.wanted[:, 0], scorer.owners, len(dataset.test)) for p in predicted]
        found.append(scorer.measure(f"span-{kind}", source, layer, "r2", np.stack(stats), r_squared))
        trees = [minimum_risk(dataset.full(dataset.test, p[:, 0])) for p in predicted]
        found += scorer.tree_measures(f"span-{kind}", source, layer, trees)
    bits = description_length(features, dataset, dataset.targets, 0)
    return [*found, Measure("span-two-layer", source, layer, "bits", "", bits, None, None, (bits,))]


def kept(file, make):
    """Measures from a file, or made and put there."""
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps([asdict(measure) for measure in make()]))
    return [Measure(**entry) for entry in json.loads(file.read_text())]


def probe(scorer, folder, layers):
    """Measures of all layers, and of random weights after the last."""
    dataset, found = scorer.dataset, []
    with TemporaryDirectory() as work:
        for source, seed, some in (("model", None, range(layers + 1)), ("untrained", 0, [layers])):
            model = ProbedModel.load(folder, untrained=seed)
            states = Activations.collect(model, dataset.sentences, Path(work) / source, some)
            for layer in some:
                found += spans(scorer, source, layer, states.layer(layer))
    return found


def pick(measures, source, metric, layer=None, probe="span-two-layer"):
    """The measure of that description."""
    key = (probe, source, metric, layer)
    return next(m for m in measures if (m.probe, m.source, m.metric, m.layer) == key)


def best(measures):
    """The layer with the fewest bits."""
    bits = {m.layer: m.value for m in measures if (m.source, m.metric) == ("model", "bits")}
    return min(bits, key=bits.get)


def main():
    folder = Path(sys.argv[1])
    grammar = english(folder / "english.pcfg.json")
    dataset = Dataset.of_grammar(grammar, sample(grammar, PROBED, seed=0, max_length=LENGTH, first=HELD_OUT), seed=0)
    scorer, numbers = Scorer(dataset, Settings(SEEDS, 0, None, None, silent)), folder / "light"
    features = (("word identity", controls.word_identity(dataset)), ("position", controls.positions(dataset)))
    without = kept(numbers / "controls.json", lambda: [m for f in features for m in spans(scorer, f[0], None, f[1])])
    rows, base = [], kept(numbers / "base.json", scorer.without_model)
    print(
        "layers heads  excess loss               last tenth  best  F1 share                R2 two-layer            R2 linear  untrained F1 share, R2"
    )
    for layers, heads in SIZES:
        name = f"l{layers}h{heads}"
        report = train(grammar, folder / name, layers, heads)
        measures = kept(numbers / f"{name}.json", lambda n=name, k=layers: probe(scorer, folder / n, k))
        layer, excess, history = best(measures), report["excess"], [e["excess"] for e in report["history"]]
        share, r2 = (pick(measures, "model", metric, layer) for metric in ("f1 share", "r2"))
        linear, untrained = (
            pick(measures, "model", "r2", layer, "span-linear"),
            [pick(measures, "untrained", metric, layers) for metric in ("f1 share", "r2")],
        )
        rows.append(
            (
                f"{layers}x{heads}",
                Measure("", "", None, "", "", excess["value"], excess["low"], excess["high"], ()),
                share,
                r2,
                untrained,
                pick(measures, "model", "f1 share", 0),
                pick(measures, "model", "r2", 0),
            )
        )
        print(
            f"{layers:6} {heads:5}  {excess['value']:.3f} [{excess['low']:.3f}, {excess['high']:.3f}]  {history[-1] - history[-2]:+10.3f}  {layer:4}  {span(share)}  {span(r2)}  {linear.value:9.3f}  {untrained[0].value:.3f}, {untrained[1].value:.3f}"
        )
    for source in ("word identity", "position"):
        print(source, span(pick(without, source, "f1 share")), span(pick(without, source, "r2")))
    for source in ("ceiling", "right", "left", "random"):
        print(source, span(next(m for m in base if (m.source, m.metric) == (source, "f1"))))
    if len(sys.argv) > 2:
        draw(Path(sys.argv[2]), rows, without)


def span(measure):
    """A value with its interval."""
    return f"{measure.value:.3f} [{measure.low:.3f}, {measure.high:.3f}]"


def draw(file, rows, without):
    """Three panels, a bar a model."""
    places, names = np.arange(len(rows)), [row[0] for row in rows]
    titles = ("excess loss, nats (lower is better)", "F1, share of the ceiling", "$R^2$ of span marginals")
    with figure(file, 11.5, 3.9, 3) as panels:
        for number, (axes, title) in enumerate(zip(panels, titles, strict=True)):
            found = [row[1 + number] for row in rows]
            values = np.array([m.value for m in found])
            edges = [values - [m.low for m in found], np.array([m.high for m in found]) - values]
            axes.bar(
                places,
                values,
                0.62,
                color=COLOURS[0],
                yerr=edges,
                capsize=3,
                ecolor="#222222",
                label="best layer, two-layer probe" if number else "model",
            )
            if number:
                axes.plot(
                    places,
                    [row[4][number - 1].value for row in rows],
                    color=COLOURS[1],
                    marker=MARKERS[1],
                    linestyle="none",
                    label="random weights",
                )
                axes.plot(
                    places,
                    [row[4 + number].value for row in rows],
                    color=COLOURS[4],
                    marker=MARKERS[2],
                    linestyle="none",
                    label="layer 0",
                )
                metric = ("f1 share", "r2")[number - 1]
                for source, style in (("word identity", "--"), ("position", ":")):
                    axes.axhline(
                        pick(without, source, metric).value,
                        color="#555555",
                        linestyle=style,
                        linewidth=1.3,
                        label=f"{source} only",
                    )
            axes.set_title(title, fontsize=10)
            axes.set_xticks(places, names)
            axes.set_xlabel("layers x heads")
            axes.set_ylim(0, 1.0 if number == 1 else None)
        panels[1].figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)


if __name__ == "__main__":
    main()
