"""Selection end to end: a model tuned on what each way chooses from a pool, scored on the target's test rows.

python -m tests.benchmarks.selected_and_tuned MODEL --data FOLDER -o rows.jsonl      # about 40 minutes of a core a draw for SmolLM2
python -m tests.benchmarks.selected_and_tuned MODEL --selector SMALLER ...            # rows that another model's gradients choose too
"""

import argparse
import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.selecting import SKILLS, SOURCES, rows_of, thinned

WAYS = ("less", "tfidf", "hidden", "random")


def ends(given):
    """Select by each way, tune for equally many steps on what it chose (and on the whole pool), and score on test rows of the target.

    The pool has 5% of the target's skill; the target's rows, which decide after which steps to stop, are of its training split.
    """
    from surgery.selecting import Features, Warmup

    output = Path(given.output)
    done = (
        {(row["draw"], row["way"]) for row in map(json.loads, output.read_text().splitlines())}
        if output.exists()
        else set()
    )
    ways = ("base", *WAYS, *(["less by selector"] if given.selector else []), "whole pool")
    for draw in range(given.draws):
        if {(draw, way) for way in ways} <= done:
            continue
        everything = [row for source in SOURCES for row in rows_of(given.data, source, "train", given.rows, draw)]
        kept, _ = thinned(everything, SKILLS[given.skill], given.share, random.Random(draw))
        pool = [everything[number] for number in kept]
        target = rows_of(given.data, given.skill, "train", given.rows + given.targets, draw)[given.rows :]
        test = rows_of(given.data, given.skill, "test", given.tests, draw)
        asked = {"max_length": given.tokens, "device": "cpu", "seed": draw, "folder": f"{given.output}.{draw}"}
        begun = Warmup(share=given.warmup_share, epochs=given.epochs, rate=given.rate, seed=draw)
        store = Features.collect(given.model, pool, warmup=begun, **asked)
        if given.selector:
            other = Features.collect(
                given.selector, pool, warmup=begun, **asked | {"folder": f"{given.output}.{draw}.selector"}
            )
        for way in ways:
            if (draw, way) in done:
                continue
            began, folder, chosen = time.process_time(), Path(f"{given.output}.tuned"), pool
            if way not in ("base", "whole pool"):
                by, features = (way, store) if way in WAYS else ("less", other)
                numbers = features.select(
                    target, share=given.share, by=by, baselines=False, device="cpu", seed=draw
                ).numbers
                chosen = [pool[number] for number in numbers]
            shutil.rmtree(folder, ignore_errors=True)
            if way != "base":
                tuned_on(given, chosen, target, draw).save(folder)
            found = accuracy(given.model if way == "base" else folder, test, given.tokens)
            own = 0 if way == "base" else sum(row["source"] in SKILLS[given.skill] for row in chosen)
            row = {"draw": draw, "way": way, "rows": 0 if way == "base" else len(chosen), "of the skill": own, **found}
            with output.open("a") as file:
                file.write(json.dumps({**row, "cpu seconds": round(time.process_time() - began)}) + "\n")
            print(json.dumps(row), flush=True)
    ends_table(output)


def tuned_on(given, rows, target, seed):
    """A model tuned on rows by AdamW, the step chosen by the target's rows."""
    from surgery.tasks.texts import Texts
    from surgery.tuning import Recipe, tune

    recipe = Recipe("adamw", given.tune_rate, steps=given.steps, batch_size=8, evaluations=4)
    return tune(given.model, Texts.load(rows, target, max_length=given.tokens), recipe, seed=seed, device="cpu")


def accuracy(folder, rows, tokens):
    """The share of rows whose own label is the likeliest of all that the rows have, and the mean loss of their own."""
    from surgery.checkpoints.checkpoint import Checkpoint
    from surgery.checkpoints.models import load_model
    from surgery.tasks.objectives import pick_objective
    from surgery.tasks.rows import read_row

    model, labels = load_model(Checkpoint(folder), device="cpu"), sorted({row["label"] for row in rows})
    objective = pick_objective(model, "answer", tokens, tuple(labels))
    asked = [objective.encode(read_row({**row, "label": label}, "test")) for row in rows for label in labels]
    with torch.no_grad():
        losses = torch.cat([objective.losses(model, asked[at : at + 24]) for at in range(0, len(asked), 24)])
    losses = losses.view(len(rows), len(labels))
    own = torch.tensor([labels.index(row["label"]) for row in rows])
    right = (losses.argmin(1) == own).float().mean()
    return {"accuracy": round(float(right), 4), "loss": round(float(losses[torch.arange(len(rows)), own].mean()), 4)}


def ends_table(output):
    """Mean accuracy and loss by way, with Student's 95% interval of the difference from random rows."""
    from scipy.stats import t as student

    rows = [json.loads(line) for line in output.read_text().splitlines()]
    ways = dict.fromkeys(row["way"] for row in rows)
    by = {way: {row["draw"]: row for row in rows if row["way"] == way} for way in ways}
    for way, own in by.items():
        shared = sorted(own.keys() & by["random"].keys())
        cells = []
        for what in ("accuracy", "loss"):
            less = np.array([own[draw][what] - by["random"][draw][what] for draw in shared])
            half = student.ppf(0.975, len(less) - 1) * less.std(ddof=1) / len(less) ** 0.5 if len(less) > 1 else np.nan
            cells.append(
                f"{what} {np.mean([own[draw][what] for draw in shared]):.3f}, less random {less.mean():+.3f} +- {half:.3f}"
            )
        print(
            way,
            len(shared),
            f"of the skill {np.mean([row['of the skill'] for row in own.values()]):.1f};",
            "; ".join(cells),
        )


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--selector", help="a smaller model whose gradients choose rows for the same tuning")
    parser.add_argument("--data", required=True, help="folder with trec/train.jsonl and so on")
    parser.add_argument("--skill", default="trec", choices=[*SKILLS][:3])
    numbers = {"rows": 100, "tokens": 320, "draws": 3, "targets": 32, "epochs": 2, "steps": 40, "tests": 200}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("share", 0.05), ("warmup-share", 0.2), ("rate", 1e-3), ("tune-rate", 5e-5)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("-o", "--output", default="ends.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ends(given)


if __name__ == "__main__":
    main()
