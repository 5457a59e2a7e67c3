"""A trained model beside the compiled transformer of the same grammar: which of the built model's slots can be read off its layers.

python -m tests.benchmarks.trained_and_compiled FOLDER [FIGURE]

The two have states of different widths, so a probe of one can't be put on the other. What can be shared is the target: the slots
of the built model, as what each pass knows of a span's label. Of the inside slots, inside(A, i, j) / sum over A: what the words in the span say.
Of the outside slots, outside(A, i, j) / sum over A: what the words around it say. And their product over Z, the marginal. One
two-layer probe for each target and layer reads the states of words i and j, of the trained model, of random weights and of word identity.

The model (4 layers, 4 heads, width 64; 100,000 sentences of 12 words or fewer) trains in minutes and is kept in FOLDER.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from pcfg import Grammar, compile_transformer, sample
from pcfg.learning.pretraining import HELD_OUT, PretrainRecipe, pretrain
from pcfg.sampling.tokenizer import tokenizer
from probes import controls
from probes.activations import Activations
from probes.dataset import Dataset
from probes.intervals import bootstrap, r_squared, squares
from probes.probed_model import ProbedModel
from probes.spans import fit_spans, predict_spans
from surgery.reporting.figures import COLOURS, MARKERS, figure

LENGTH, SENTENCES, SEEDS = 12, 600, 2
RULES = """
    S -> NP VP [1.0]
    NP -> Det N [0.6] | NP PP [0.2] | 'fish' [0.2]
    VP -> V NP [0.7] | VP PP [0.3]
    PP -> P NP [1.0]
    Det -> 'the' [0.7] | 'that' [0.3]
    N -> 'fish' [0.4] | 'light' [0.4] | 'watch' [0.2]
    V -> 'light' [0.5] | 'watch' [0.5]
    P -> 'like' [0.5] | 'with' [0.5]
"""
TARGETS = ("inside", "outside", "marginal")


def trained(grammar, folder):
    """The trained model's folder."""
    if not (folder / "report.json").exists():
        recipe = PretrainRecipe(4, 4, 64, 100_000, LENGTH, evaluation=500)
        pretrain(grammar, recipe, device="cpu", resume=folder.with_suffix(".partial")).save(folder)
    return folder


def slots(grammar, dataset):
    """What the built model's last layer holds of each span of the dataset: a row a span, a column a label, for each of the targets."""
    model, encode = compile_transformer(grammar, max_length=LENGTH), tokenizer(grammar)
    found = {name: [] for name in TARGETS}
    for number, sentence in enumerate(dataset.sentences):
        out = model(encode(" ".join(sentence), return_tensors="pt")["input_ids"], output_hidden_states=True)
        state, ends = out.hidden_states[-1][0, 1:-1], dataset.ends(np.array([number]))
        first, last = (side - dataset.bounds[number] for side in ends)
        spans = [
            state[:, model.slots.spans(s)].unflatten(1, (-1, LENGTH))[last, :, first] for s in ("inside", "outside")
        ]
        for name, scores in zip(("inside", "outside"), spans, strict=True):
            found[name].append((scores / scores.sum(1, keepdim=True).clamp(min=1e-300)).numpy())
        found["marginal"].append(out.label_marginals[0, first, last + 1].numpy())
    return {name: np.concatenate(rows).astype(np.float32) for name, rows in found.items()}


def explained(dataset, features, wanted):
    """Share of the variance over spans and labels that a two-layer probe explains on test sentences: mean over seeds, interval."""
    test, owners = wanted[dataset.span_rows(dataset.test)], dataset.owners(dataset.test)
    stats = []
    for seed in range(SEEDS):
        probe = fit_spans("two-layer", features, dataset, dataset.train, wanted, seed)
        predicted = predict_spans(probe, features, dataset, dataset.test)
        stats.append(sum(squares(predicted[:, k], test[:, k], owners, len(dataset.test)) for k in range(test.shape[1])))
    value, low, high, _ = bootstrap(np.stack(stats), r_squared, 0)
    return [value, low, high]


def measure(grammar, folder):
    """R squared by source, target and layer."""
    torch.manual_seed(0)
    dataset = Dataset.of_grammar(grammar, sample(grammar, SENTENCES, seed=0, max_length=LENGTH, first=HELD_OUT), seed=0)
    targets, rows = slots(grammar, dataset), []
    with TemporaryDirectory() as work:
        for source, seed in (("trained", None), ("random weights", 0)):
            model = ProbedModel.load(trained(grammar, folder / "mlm"), untrained=seed, device="cpu")
            states = Activations.collect(model, dataset.sentences, Path(work) / source, range(model.layers + 1))
            for layer in range(model.layers + 1):
                for name, wanted in targets.items():
                    rows.append([source, name, layer, *explained(dataset, states.layer(layer), wanted)])
                    print(rows[-1], flush=True)
    for name, wanted in targets.items():
        rows.append(["word identity", name, None, *explained(dataset, controls.word_identity(dataset), wanted)])
        print(rows[-1], flush=True)
    return rows


def draw(file, rows):
    """A panel a target: R squared by layer, beside random weights and word identity."""
    with figure(file, 10.5, 3.6, 3) as panels:
        for axes, name in zip(panels, TARGETS, strict=True):
            for number, source in enumerate(("trained", "random weights")):
                some = [row for row in rows if row[:2] == [source, name]]
                values, low, high = np.array([row[3:] for row in some]).T
                axes.plot([row[2] for row in some], values, color=COLOURS[number], marker=MARKERS[number], label=source)
                axes.fill_between([row[2] for row in some], low, high, color=COLOURS[number], alpha=0.15, linewidth=0)
            words = next(row[3] for row in rows if row[:2] == ["word identity", name])
            axes.axhline(words, color="#555555", linestyle="--", linewidth=1.3, label="word identity only")
            axes.set_title(
                {"inside": "inside slots", "outside": "outside slots", "marginal": "their product: marginals"}[name],
                fontsize=10,
            )
            axes.set_xlabel("layer of the trained model")
            axes.set_ylim(0, 1.02)
        panels[0].set_ylabel("$R^2$ of the built model's slots")
        panels[0].legend(fontsize=8, loc="lower right")


def main():
    """Numbers, kept in the folder, and the figure."""
    folder, grammar = Path(sys.argv[1]), Grammar.from_text(RULES)
    file = folder / "beside.json"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(measure(grammar, folder)))
    if len(sys.argv) > 2:
        draw(Path(sys.argv[2]), json.loads(file.read_text()))


if __name__ == "__main__":
    main()
