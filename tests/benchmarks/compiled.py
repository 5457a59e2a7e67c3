"""Compiled transformers of NLTK's treebank sample: how near small ones are to the exact parser, and that they are exact.

NLTK_DATA=... python -m tests.benchmarks.compiled sweep FOLDER [FIGURE]  # F1 and masked-word loss by nonterminals kept
NLTK_DATA=... python -m tests.benchmarks.compiled exact                  # every length up to 20, against the chart

The grammar is read off the first 3,414 trees (no parents, no sisters, words seen fewer than 5 times as signatures); sentences are
those of 25 words or fewer among the last 500. Numbers of each size are kept in FOLDER, and found there by a second run.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from pcfg import Grammar, inside_outside
from pcfg.compiled import compile_transformer
from pcfg.compiled.sizes import Sizes
from pcfg.inference.minimum_risk import PlainLabels, minimum_risk_tree
from pcfg.learning.pruning_by_use import prune
from pcfg.sampling.tokenizer import tokenizer
from pcfg.treebanks.cleaning import clean_trees
from pcfg.treebanks.evalb import right_branching, score_labelled, score_unlabelled
from pcfg.treebanks.nltk_sample import nltk_treebank
from surgery.reporting.figures import COLOURS, MARKERS, figure

TRAIN, LENGTH, COST, KEPT = 3414, 25, 0.4, (5, 10, 20, 40)
BELOW, ABOVE = (
    ((8, -4), (6, -12), (-4, 11), (-5, -14)),
    ((8, -4), (6, 6), (4, 14), (-2, 8)),
)  # where the figure's labels stand
PAPER = {
    "layers": 50,
    "heads": 15,
    "width": 1275,
    "f1": 70,
}  # "more than 70%", with 20 nonterminals and 45 preterminals


def english(keep=None):
    """The grammar of the training trees, with `keep` nonterminals or all."""
    trees = clean_trees(nltk_treebank()[:TRAIN])
    grammar = Grammar.from_trees(trees, v=1, h=0, min_count=5, smooth_lexicon=False, annotate_tags=False)
    return grammar if keep is None else prune(grammar, keep)


def held_out():
    """The test trees."""
    return [
        tree for tree in clean_trees(nltk_treebank()[TRAIN:], collapse=False) if len(tree.words()) <= LENGTH
    ]  # as read: chains of unary nodes stay


def known(grammar, words):
    """Words as the grammar has them: rare ones by their signatures."""
    return tuple(grammar.words[grammar.number_of(word, place)] for place, word in enumerate(words))


def by_transformer(grammar, gold):
    """Parses, and the log probability of each word given the others, by the compiled model; seconds of this thread."""
    model, encode = compile_transformer(grammar, max_length=LENGTH), tokenizer(grammar)
    plain = PlainLabels.of_symbols(grammar.nonterminals, grammar.preterminals, grammar.plain_labels.__getitem__)
    parses, logs, began = [None] * len(gold), [None] * len(gold), time.thread_time()
    order = np.argsort([len(tree.words()) for tree in gold], kind="stable")
    for numbers in np.array_split(order, -(-len(order) // 8)):
        sentences = [gold[i].words() for i in numbers]
        batch = encode([" ".join(known(grammar, words)) for words in sentences], return_tensors="pt", padding=True)
        out = model(batch["input_ids"], batch["attention_mask"])
        for row, (i, words) in enumerate(zip(numbers, sentences, strict=True)):
            n, ids = len(words), batch["input_ids"][row]
            logs[i] = out.logits[row, torch.arange(1, n + 1), ids[1 : n + 1]].tolist()
            if out.log_z[row].isfinite():
                labels, tags = out.label_marginals[row, :n, : n + 1].numpy(), out.tag_posteriors[row, :n].numpy()
                parses[i] = minimum_risk_tree(words, labels, tags, plain, COST)
    return parses, logs, time.thread_time() - began


def by_chart(grammar, gold):
    """The same by exact inference."""
    parses, logs, began = [], [], time.thread_time()
    for tree in gold:
        chart = inside_outside(grammar, [tree.words()])
        parses += chart.mbr_trees(COST)
        numbers = [grammar.number_of(word, place) for place, word in enumerate(tree.words())]
        with np.errstate(divide="ignore"):
            logs.append(np.log(chart.word_posteriors()[0][np.arange(len(numbers)), numbers]).tolist())
    return parses, logs, time.thread_time() - began


def measured(file, grammar, gold, run):
    """What `run` finds, from a file or put there."""
    if not file.exists():
        parses, logs, seconds = run(grammar, gold)
        labelled = score_labelled(gold, parses)
        sizes = Sizes.of(grammar, LENGTH)
        content = {
            "f1": 100 * labelled.f1,
            "unlabelled": 100 * score_unlabelled(gold, parses).f1,
            "counts": [counts(tree, parse) for tree, parse in zip(gold, parses, strict=True)],
            "unparsed": labelled.unparsed / labelled.sentences,
            "nonterminals": sizes.nonterminals,
            "preterminals": sizes.preterminals,
            "layers": sizes.layers,
            "heads": sizes.symbols,
            "width": sizes.width,
            "stored": sizes.stored,
            "logs": logs,
            "seconds": seconds,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return json.loads(file.read_text())


def counts(tree, parse):
    """Brackets that match, of the tree and of the parse."""
    score = score_labelled([tree], [parse])
    return [score.matched, score.gold, score.predicted]


def interval(found, resamples=2000):
    """95% of the corpus's F1 over resampled sentences, in points."""
    rows = np.array(found["counts"])
    matched, gold, test = rows[np.random.default_rng(0).integers(len(rows), size=(resamples, len(rows)))].sum(1).T
    return np.quantile(200 * matched / (gold + test), [0.025, 0.975])


def losses(rows):
    """Mean loss at the words that every row gives a chance, in nats; and of each row the share of words with none."""
    logs = np.array([np.concatenate([np.maximum(some, -1e9) for some in row["logs"]]) for row in rows])
    possible = (logs > -1e8).all(0)
    return -logs[:, possible].mean(1), (logs < -1e8).mean(1), possible.mean()


def sweep(folder, drawing=None):
    """Table, and figure, of F1 and masked-word loss by the nonterminals kept."""
    gold, whole = held_out(), english()
    rows = [measured(folder / f"{k}.json", prune(whole, k), gold, by_transformer) for k in KEPT]
    rows.append(measured(folder / "all.json", whole, gold, by_chart))
    (loss, impossible, common), low = losses(rows), [interval(row) for row in rows]
    print("| kept | layers | heads | width | weights | F1 | unlabelled | no parse | loss, nats | impossible words |")
    for row, nats, none, (a, b) in zip(rows, loss, impossible, low, strict=True):
        size = f"{row['layers']} | {row['nonterminals']} + {row['preterminals']} | {row['width']:,} | {row['stored']:,}"
        print(
            f"| {row['nonterminals']} | {size} | {row['f1']:.1f} [{a:.1f}, {b:.1f}] | {row['unlabelled']:.1f} "
            f"| {100 * row['unparsed']:.1f}% | {nats:.3f} | {100 * none:.1f}% | {row['seconds']:.0f} s"
        )
    right = score_unlabelled(gold, [right_branching(tree.words()) for tree in gold]).f1
    print(
        f"{len(gold)} sentences; loss at the {100 * common:.1f}% of words that all allow; right-branching {100 * right:.1f} unlabelled"
    )
    if drawing:
        draw(Path(drawing), rows, loss)


def draw(file, rows, loss):
    """F1 and loss by width, the paper's point among them."""
    whole, kept = rows[-1], rows[:-1]
    widths, text = [row["width"] for row in kept], {"fontsize": 8, "color": COLOURS[1]}
    with figure(file, 9.6, 3.9, 2) as (left, right):
        edges = np.array([[row["f1"] - interval(row)[0], interval(row)[1] - row["f1"]] for row in kept]).T
        left.errorbar(
            widths, [row["f1"] for row in kept], edges, color=COLOURS[0], marker=MARKERS[0], capsize=3, label="compiled"
        )
        left.axhline(
            whole["f1"],
            color=COLOURS[6],
            linestyle="--",
            linewidth=1.3,
            label=f"exact parser, {whole['nonterminals']} nonterminals",
        )
        left.plot(
            PAPER["width"],
            PAPER["f1"],
            color=COLOURS[1],
            marker=MARKERS[1],
            linestyle="none",
            label="the paper's construction",
        )
        left.annotate("more than 70%", (PAPER["width"], PAPER["f1"]), (8, -4), textcoords="offset points", **text)
        left.set_ylabel("labelled F1, %")
        right.plot(widths, loss[:-1], color=COLOURS[0], marker=MARKERS[0], label="compiled")
        right.axhline(loss[-1], color=COLOURS[6], linestyle="--", linewidth=1.3, label="exact posterior")
        right.set_ylabel("loss at a masked word, nats")
        for axes, values, places in ((left, [row["f1"] for row in kept], BELOW), (right, loss, ABOVE)):
            for row, value, place in zip(kept, values, places, strict=False):
                axes.annotate(
                    f"{row['nonterminals']} nonterminals",
                    (row["width"], value),
                    place,
                    textcoords="offset points",
                    fontsize=8,
                    horizontalalignment="left" if place[0] > 0 else "right",
                )
            axes.set_xlim(250, 2300)
            axes.set_xlabel("width of the state")
            axes.legend(fontsize=8, loc="lower right" if axes is left else "upper right")
        left.set_ylim(43, 77)
        right.set_ylim(4.82, 5.58)


def exact():
    """Largest differences of every posterior from the chart's, by length, for 20 nonterminals kept."""
    grammar, random = english(20), np.random.default_rng(0)
    model, worst = compile_transformer(grammar, max_length=20), 0.0
    for n in range(1, 21):
        every = [tree.words() for tree in held_out() if len(tree.words()) == n][:3]
        every += [list(random.choice(grammar.words, n))]
        sentences = [known(grammar, words) for words in every]
        worst = max(worst, difference(model, grammar, sentences))
        print(f"{n} words: {worst:.1e} at most so far", flush=True)


def difference(model, grammar, sentences):
    """The largest difference from the chart over marginals, tags and words' posteriors."""
    numbers, chart = tokenizer(grammar), inside_outside(grammar, sentences)
    batch = numbers([" ".join(words) for words in sentences], return_tensors="pt", padding=True)
    out = model(batch["input_ids"], batch["attention_mask"])
    found = [
        (out.label_marginals - chart.label_marginals).abs().max(),
        (out.tag_posteriors - chart.tag_posteriors).abs().max(),
    ]
    columns = numbers.convert_tokens_to_ids(list(grammar.words))
    for row, posterior in enumerate(chart.word_posteriors()):
        words = out.logits[row, 1 : 1 + len(posterior)].exp()[:, columns]
        found.append((words - torch.from_numpy(posterior)).abs().max())
    there = chart.log_z.isfinite()
    assert torch.equal(there, out.log_z.isfinite())
    found.append((out.log_z - chart.log_z)[there].abs().max() if there.any() else torch.zeros(()))
    return max(map(float, found))


if __name__ == "__main__":
    {"sweep": lambda *rest: sweep(*rest), "exact": exact}[sys.argv[1]](*map(Path, sys.argv[2:]))
