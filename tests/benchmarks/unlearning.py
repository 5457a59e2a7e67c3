"""Fill the unlearning tables of `surgery/unlearning/README.md`: every class forgotten, each figure beside the refitted bottleneck's.

    python -m tests.benchmarks.unlearning digits -o digits.jsonl
    python -m tests.benchmarks.unlearning fashion-pixels fashion-features trec --models MODELS --shared ../shared/data -o big.jsonl
    python -m tests.benchmarks.unlearning --show digits.jsonl big.jsonl

One JSON object a line; what is in the output file already isn't run again.
"""

import argparse
import json
import os
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from surgery.progress import silent
from surgery.unlearning import Bottleneck, Encoder, Rows, unlearn
from surgery.unlearning.evaluation.baselines import BASELINES
from surgery.unlearning.evaluation.comparison import run_baseline
from surgery.unlearning.evaluation.evaluator import Evaluator
from surgery.unlearning.evaluation.likelihood_ratio import likelihood_ratios
from surgery.unlearning.evaluation.roc_area import RocArea
from surgery.unlearning.evaluation.suspects import confidences, share_masked
from surgery.unlearning.example import digits
from surgery.unlearning.features.rows import read_rows
from surgery.unlearning.forget_set import ForgetSet

CPU = torch.device("cpu")
SIZES = {
    "digits": {"codebooks": 64, "keys": 256},
    "fashion-pixels": {"codebooks": 256, "keys": 256},
    "fashion-features": {"codebooks": 256, "keys": 64},
    "trec": {"codebooks": 512, "keys": 64},
}
SEEDS = {"digits": (0, 1, 2), "fashion-pixels": (0, 1), "fashion-features": (0, 1), "trec": (0, 1)}
TURNS = (1, 2, 4, 8)


def load(name, seed, models, shared):
    """Training and test rows."""
    if name == "digits":
        train, test = digits(seed)
        return Rows.of(*train), Rows.of(*test)
    if name == "trec":
        encoder = Encoder.open(models / "minilm", device="cpu")
        return tuple(read_rows(shared / "trec" / f"{split}.jsonl", encoder=encoder) for split in ("train", "test"))
    tensor = name.removeprefix("fashion-")
    return tuple(read_rows(models / "fashion" / f"{split}.safetensors", features=tensor) for split in ("train", "test"))


def probe_accuracy(train, test):
    """A linear probe on the features, its penalty chosen on a fifth of the training rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(rows, labels, penalty):
        return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=300)).fit(rows, labels)

    labels = np.array(train.labels)
    parts = train_test_split(train.features, labels, test_size=0.2, stratify=labels, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of not having converged, which doesn't hurt a probe
        penalties = (0.001, 0.003, 0.01, 0.03, 0.1)
        best = max(penalties, key=lambda penalty: fitted(parts[0], parts[2], penalty).score(parts[1], parts[3]))
        return float(fitted(train.features, labels, best).score(test.features, np.array(test.labels)))


def one_class(bottleneck, test, number, seed, thorough):
    """Every method's accuracy and membership for one class; yields one record a method."""
    name = bottleneck.classes[number]
    training = bottleneck.training
    positions = np.flatnonzero(training.targets == number)
    stay = np.flatnonzero(training.targets != number)
    evaluator = Evaluator(bottleneck, test, [number], training.take(positions), CPU)
    suspects = evaluator.suspects()
    members = len(suspects.members)
    area = RocArea(members, len(suspects.others), seed)
    models, seconds = {"before": bottleneck}, {}

    def timed(method, make):
        began = time.perf_counter()
        models[method] = make()
        seconds[method] = time.perf_counter() - began

    timed("refitted", lambda: bottleneck.refitted(stay, device=CPU))
    erasers = {}
    for method, options in {
        "influence": {},
        "count": {"rank": "count"},
        "purity": {"rank": "purity"},
        "examples": {"method": "examples"},
        "influence, drop": {"answer": "drop"},
    }.items():
        if method == "influence" or thorough:
            timed(method, lambda options=options, method=method: _apply(bottleneck, name, erasers, method, options))
    if thorough:
        everything = unlearn(bottleneck, name, keys=erasers["influence"].edit["active"], seed=seed)
        models["every active key"] = everything.apply(bottleneck)
        forgotten = ForgetSet(bottleneck, positions, np.array([number]), CPU, silent)
        scores = forgotten.scores("influence")
        voting = forgotten.best(scores, int((scores > 0).sum()))
        models["every key that speaks for it"] = bottleneck.masked(voting, "next")
        for baseline in BASELINES:
            given = (baseline, bottleneck, positions, np.array([number]), seed, CPU)
            timed(baseline.name, lambda given=given: run_baseline(*given))
    pool = suspects.both
    seen = {method: confidences(model, pool, CPU) for method, model in models.items()}
    ratios = {}
    if thorough:
        edit = erasers["influence"].edit
        how = {
            "via": "activations",
            "rank": edit["rank"],
            "answer": edit["answer"],
            "share": edit["masked"] / edit["active"],
        }
        targets = {"before": seen["before"], "influence": seen["influence"], "refitted": seen["refitted"]}
        ratios = likelihood_ratios(
            bottleneck,
            training.take(stay),
            suspects,
            how,
            targets,
            shadows=8,
            seed=seed,
            device=CPU,
            progress=silent,
        )
    for method, model in models.items():
        point = evaluator.point(model)
        record = {key: point[key] for key in ("forget_accuracy", "retain_accuracy", "abstained")}
        record |= {"class": str(name), "method": method, "seconds": seconds.get(method)}
        record["loss"] = area.of(seen[method][:members], seen[method][members:])["auc"]
        if method in ratios:
            record["shadows"] = area.of(ratios[method][:members], ratios[method][members:])["auc"]
        if method in erasers:
            record |= {"masked": erasers[method].edit["masked"], "active": erasers[method].edit["active"]}
            share = share_masked(model, pool.ids)
            record["masked_share"] = area.of(share[:members], share[members:])["auc"]
        yield record


def _apply(bottleneck, name, erasers, method, options):
    erasers[method] = unlearn(bottleneck, name, **options)
    return erasers[method].apply(bottleneck)


def in_turn(bottleneck, counted, test, seed):
    """Classes forgotten one after another, by masks, by refitting and by counts; yields one record a method and number."""
    order = np.random.default_rng([seed, 7]).permutation(len(bottleneck.classes)).tolist()
    for method, start in (("activations", bottleneck), ("refit", bottleneck), ("counts", counted)):
        state, began = start, time.perf_counter()
        for number, target in enumerate(order[:-2], 1):
            state = unlearn(state, state.classes[target], method=method).apply(state)
            if number not in TURNS:
                continue
            evaluator = Evaluator(state, test, order[:number], None, CPU)
            point = evaluator.point(state)
            reference = evaluator.point(state.refitted(np.arange(len(state.training)), device=CPU))
            yield {
                "method": f"{method} in turn",
                "class": str(number),
                "forget_accuracy": point["forget_accuracy"],
                "retain_accuracy": point["retain_accuracy"],
                "refitted": reference["retain_accuracy"],
                "seconds": time.perf_counter() - began,
            }


def exactness(seed):
    """Counted values and 60 deleted rows, keys placed by others or by the very rows; yields one record each.

    `identical`: of 100 single rows and of every class, how many deletions give the bits that fitting without them gives.
    """
    train, test = load("digits", seed, None, None)
    order = np.random.default_rng([seed, 8]).permutation(len(train))
    half = len(order) // 2
    ours, others = train.take(order[:half]), train.take(order[half:])
    for method, placing in (("keys from other rows", others), ("keys from these rows", ours)):

        def fit(rows, placing=placing):
            return Bottleneck.fit_rows(
                rows, **SIZES["digits"], values="counts", keys_from=placing, seed=seed, device="cpu"
            )

        bottleneck = fit(ours)
        deletions = [{"rows": [row]} for row in range(100)] + [{"forget": name} for name in bottleneck.classes]
        same = 0
        for deletion in deletions:
            eraser = unlearn(bottleneck, method="counts", **deletion)
            left = fit(ours.take(np.delete(np.arange(half), eraser.positions)))
            after = eraser.apply(bottleneck)
            # A class that is gone is unknown to the new fit: its column is compared as absent counts.
            known = [bottleneck.classes.index(name) for name in left.classes]
            same += (
                bool(np.array_equal(after.entries[:, :, known], left.entries))
                and not np.delete(after.entries, known, 2).any()
            )
        deleted = np.arange(60)
        after = unlearn(bottleneck, rows=deleted, method="counts").apply(bottleneck)
        evaluator = Evaluator(after, test, [], bottleneck.training.take(deleted), CPU)
        suspects = evaluator.suspects()
        area = RocArea(len(deleted), len(suspects.others), seed)
        found = area.of(confidences(after, suspects.members, CPU), confidences(after, suspects.others, CPU))
        yield {"method": method, "class": "60 rows", "identical": same, "deletions": len(deletions), **found}


def run(name, seed, models, shared, done, write):
    """All records of one data set and seed."""
    train, test = load(name, seed, models, shared)
    began = time.perf_counter()
    bottleneck = Bottleneck.fit_rows(train, **SIZES[name], seed=seed, device="cpu")
    seconds = time.perf_counter() - began
    if "bottleneck" not in done:
        accuracy = float((bottleneck.predict(test) == np.array(test.labels)).mean())
        write({"method": "bottleneck", "class": "", "accuracy": accuracy, "seconds": seconds})
        write({"method": "linear probe", "class": "", "accuracy": probe_accuracy(train, test)})
    for number, label in enumerate(bottleneck.classes):
        if str(label) not in done:
            for record in one_class(bottleneck, test, number, seed, thorough=seed == 0):
                write(record)
    if name == "digits" and "60 rows" not in done:
        for record in exactness(seed):
            write(record)
    counted = Bottleneck.fit_rows(train, **SIZES[name], seed=seed, values="counts", device="cpu")
    if "in turn" not in done:
        for record in in_turn(bottleneck, counted, test, seed):
            write(record)


def show(files):
    """Means over classes and seeds, and the worst, as Markdown."""
    records = [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    groups = defaultdict(list)
    for record in records:
        groups[record["data"], record["method"]].append(record)
    references = {(r["data"], r["seed"], r["class"]): r for r in records if r["method"] == "refitted"}
    print(
        "| data | method | forgotten, worst | retained less refitted, mean (worst) | membership (loss) less refitted, mean, worst | by shadows less refitted | by masked share | ms |"
    )
    print("|" + "---|" * 8)
    for (data, method), found in groups.items():
        if "accuracy" in found[0]:
            print(f"| {data} | {method} | | {100 * np.mean([r['accuracy'] for r in found]):.1f}% right | | | | |")
            continue
        if "identical" in found[0]:
            same, total = (sum(r[key] for r in found) for key in ("identical", "deletions"))
            print(
                f"| {data} | counts, {method} | | {same} of {total} deletions bit for bit | {np.mean([r['auc'] for r in found]):.2f} | | | |"
            )
            continue
        if method.endswith("in turn"):
            for number in dict.fromkeys(r["class"] for r in found):
                some = [r for r in found if r["class"] == number]
                kept, refitted = (np.mean([r[key] for r in some]) for key in ("retain_accuracy", "refitted"))
                print(
                    f"| {data} | {method}, {number} | {100 * max(r['forget_accuracy'] for r in some):.1f} | {100 * kept:.1f} of {100 * refitted:.1f} | | | | |"
                )
            continue
        other = [references[r["data"], r["seed"], r["class"]] for r in found]
        kept = [100 * (r["retain_accuracy"] - o["retain_accuracy"]) for r, o in zip(found, other, strict=True)]
        loss = [r["loss"] - o["loss"] for r, o in zip(found, other, strict=True)]
        shadows = [r["shadows"] - o["shadows"] for r, o in zip(found, other, strict=True) if "shadows" in r]
        share = [r["masked_share"] for r in found if "masked_share" in r]
        ms = [1e3 * r["seconds"] for r in found if r["seconds"] is not None]
        print(
            f"| {data} | {method} | {100 * max(r['forget_accuracy'] for r in found):.1f} | {np.mean(kept):+.2f} ({min(kept):+.2f}) "
            f"| {np.mean(loss):+.3f}, {max(loss, key=abs):+.3f} | {f'{np.mean(shadows):+.3f}' if shadows else ''} | {f'{np.mean(share):.2f}' if share else ''} | {f'{np.mean(ms):.0f}' if ms else ''} |"
        )


def main():
    """Read the options; run or show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help=f"of {', '.join(SIZES)}; with --show, files")
    parser.add_argument(
        "--models", type=Path, default=Path(os.environ.get("MODELS_DIR", "~/.cache/surgery-models")).expanduser()
    )
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--show", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    if given.show:
        show(given.data)
        return
    before = [json.loads(line) for line in given.output.read_text().splitlines()] if given.output.exists() else []
    with given.output.open("a") as out:
        for name in given.data:
            for seed in SEEDS[name]:
                done = {r["class"] or r["method"] for r in before if (r["data"], r["seed"]) == (name, seed)}
                done |= {
                    "in turn" for r in before if (r["data"], r["seed"]) == (name, seed) and "in turn" in r["method"]
                }

                def write(record, name=name, seed=seed):
                    out.write(json.dumps({"data": name, "seed": seed, **record}) + "\n")
                    out.flush()
                    print(name, seed, record["method"], record["class"], flush=True)

                run(name, seed, given.models, given.shared, done, write)


if __name__ == "__main__":
    main()
