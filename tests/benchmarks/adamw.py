"""What can be had of checkpoints as a Trainer leaves them, tuned by AdamW without a pull: every product beside its rivals.

    python -m tests.benchmarks.adamw --shared ../shared/data --work WORK -o adamw.jsonl                # MiniLM: A, B and C
    python -m tests.benchmarks.adamw --model SMOLLM2 --kinds S --shared ../shared/data --work WORK -o adamw.jsonl
    python -m tests.benchmarks.adamw --table adamw.jsonl                                               # as Markdown

1,000 training and 500 test examples, drawn by seed; three passes of AdamW in batches of 16, no warm-up, no weight decay,
clipped at 1. One JSON object a product and number of weights; checkpoints are kept in WORK, and what is there or in the output isn't
made again, so a stopped benchmark goes on.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from surgery import Checkpoint, Recipe, Task, tune
from surgery.checkpoints.models import load_model
from surgery.grafting.budget import candidate_limit
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.grafting.displacement import Displacement
from surgery.grafting.evaluation import Evaluator
from surgery.grafting.example import minilm
from surgery.grafting.growing import grown, nearest
from surgery.grafting.low_rank import low_rank, put_factors
from surgery.grafting.methods import Evidence, batches, locate
from surgery.grafting.prospects import SHARES, ceiling
from surgery.grafting.rescaling import fisher, refitted, rescaled
from surgery.grafting.task_model import steps_of
from surgery.progress import silent
from surgery.tasks.calibration import softmax
from surgery.tasks.readout import pick_readout
from surgery.tasks.scoring import predict

KINDS = {"A": ("trec", 1e-4), "B": ("trec", 5e-5), "C": ("subj", 1e-4), "S": ("sst2", 1e-4)}
TRAIN, TEST = 1000, 500
# Product and share of the block weights, in the order of a run: those that say most first.
ROWS = [
    *(("rescaled", share) for share in (1e-3, 1e-2)),
    ("refitted", 1e-3),
    *(("low-rank", share) for share in (1e-2, 3e-3)),
    *(("tuned", share) for share in (1e-2, 5e-2)),
    *(("control", share) for share in (1e-4, 1e-3, 1e-2)),
    *(("DARE", share) for share in (1e-3, 1e-2)),
    *(("movement", share) for share in (1e-3, 1e-2, 5e-2)),
    ("Localize-and-Stitch", 1e-2),
]


def load_task(name: str, seed: int, data: Path) -> Task:
    """A task with some of its examples, drawn by seed."""
    whole = Task.load(name, train=data / name / "train.jsonl", test=data / name / "test.jsonl")
    random = np.random.default_rng

    def drawn(rows: Any, count: int) -> list:
        return [rows[i] for i in random(seed).permutation(len(rows))[:count]]

    return Task.load(name, train=drawn(whole.train, TRAIN), test=drawn(whole.test, TEST))


def tuned_by(base: Checkpoint, task: Task, seed: int, folder: Path, recipe: Recipe) -> Checkpoint:
    """A tuned checkpoint, made where it isn't kept yet."""
    if not folder.exists():
        tune(base, task, recipe, seed=seed).save(folder)
    return Checkpoint(folder)


class Pair:
    """A base and a tuned checkpoint, and the ways to make a model in between, each of which leaves it in `moved.model`."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint, retuned: Callable[[], Checkpoint], task: Task, seed: int):
        self.base, self.tuned, self.retuned, self.task, self.seed = base, tuned, retuned, task, seed
        model = load_model(base)
        readout = pick_readout(model, task)
        self.moved = Displacement(model, readout, base, tuned, base.block_weights())
        self.scored = Evaluator(model, readout, task, 32, silent)
        self.scored.base = self.scored.score("base")
        model.load_weights(tuned)
        self.scored.tuned = self.scored.score("tuned")
        rows, labels = readout.encode(task.train), torch.tensor(task.targets(task.train))
        soft = torch.from_numpy(softmax(predict(model, readout, rows, 32))).float()
        self.evidence = Evidence(rows, labels, soft)
        model.load_weights(base)
        self.information: torch.Tensor | None = None

    def make(self, product: str, k: int) -> int:
        """Put a product into the model; returns how many numbers it is made of."""
        if product == "low-rank":
            factors = low_rank(self.moved, self.evidence, k, seed=self.seed)
            put_factors(self.moved, factors)
            return sum(own.numbers for own in factors.values())
        support = getattr(self, f"_{product.replace('-', '_').lower()}")(k)
        self.moved.put_support(support)
        return len(support)

    def _tuned(self, k: int) -> Candidates:
        found = self._located(self.tuned, k)
        grows = self.moved.support(grown(self.moved, self.evidence, k, seed=self.seed))
        return nearest(self.moved, self.evidence, [found, grows], self.seed)

    def _control(self, k: int) -> Candidates:
        """Never sees the tuned checkpoint: located by its own predictions, which stand in for those of `tuned`."""
        self.moved.work += 150 * 48  # its tuning
        return self._located(self.retuned(), k, own=True)

    def _located(self, tuned: Checkpoint, k: int, own: bool = False) -> Candidates:
        model, evidence = self.moved.model, self.evidence
        if own:
            model.load_weights(tuned)
            soft = softmax(predict(model, self.moved.readout, evidence.rows, 32))
            evidence = evidence._replace(soft=torch.from_numpy(soft).float())
        model.load_weights(self.base)
        candidates = Candidates.between(self.base, tuned, self.base.block_weights(), candidate_limit([k]))
        if k >= candidates.moved:
            return candidates
        graft = GraftedModel(model, self.moved.readout, candidates)
        chosen = locate("dual-averaging", graft, evidence, k, seed=self.seed)
        self.moved.work += graft.work
        return candidates.subset(chosen)

    def _rescaled(self, k: int) -> Candidates:
        return rescaled(self.moved, self.evidence, k, information=self._fisher(), seed=self.seed)

    def _refitted(self, k: int) -> Candidates:
        return refitted(self.moved, self.evidence, k, information=self._fisher(), seed=self.seed)

    def _fisher(self) -> torch.Tensor:
        if self.information is None:
            self.information = fisher(self.moved, self.evidence, self.seed)
        else:
            self.moved.work += 8 * 4 * 16 * 4
        return self.information

    def _dare(self, k: int) -> Candidates:
        """Dropped at random, the rest rescaled (Yu et al. 2024)."""
        moved = self.moved
        random = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(moved), generator=random)[:k]
        return moved.support(chosen, moved.base[chosen] + moved.delta[chosen] * (len(moved) / k))

    def _movement(self, k: int) -> Candidates:
        return self.moved.support(self.moved.delta.abs().topk(k).indices)

    def _localize_and_stitch(self, k: int) -> Candidates:
        """Gates from +-5 by movement, ten steps at the published rate of 1e7, the k largest (He et al. 2024)."""
        moved, order = self.moved, batches(len(self.evidence.rows), 256, self.seed)
        gate = torch.full_like(moved.base, -5.0)
        gate[moved.delta.abs().topk(k).indices] = 5.0
        for _ in range(10):
            opening = torch.sigmoid(gate)
            moved.put(torch.lerp(moved.base, moved.tuned, opening))
            batch = next(order)
            gradient = moved.gradient([self.evidence.rows[i] for i in batch], self.evidence.labels[batch])
            gate -= 1e7 * gradient * moved.delta * opening * (1 - opening)
        return moved.support(gate.topk(k).indices)


def runs(pair: Pair, done: set, about: dict[str, Any], rows: list[tuple[str, float]]) -> Iterator[dict]:
    """One line a product that isn't done."""
    movable = len(pair.moved)
    if ("ceiling", 0.0) not in done:
        counts = [int(share * movable) for share in SHARES]
        found = ceiling(pair.moved, pair.evidence, counts, pair.seed)
        figures = {"base": pair.scored.base.accuracy, "tuned": pair.scored.tuned.accuracy}
        moved = int((pair.moved.delta != 0).sum())
        yield {**about, "product": "ceiling", "share": 0.0, "moved": moved, "shares": list(found.values()), **figures}
    for product, share in rows:
        if (product, share) in done:
            continue
        pair.moved.work, began = 0, time.monotonic()
        numbers = pair.make(product, int(share * movable))
        steps, seconds = steps_of(pair.moved.work), round(time.monotonic() - began, 1)
        score = pair.scored.score(product)
        figures = pair.scored.point(product, numbers, movable, score)
        yield {**about, "product": product, "share": share, **figures, "steps": steps, "seconds": seconds}
        pair.moved.put(pair.moved.base)


def print_table(file: Path) -> None:
    """A row a product and share, a column a checkpoint: gain [interval] or mean over seeds, agreement, steps."""
    held = [json.loads(line) for line in file.read_text().splitlines()]
    by: dict[tuple[str, float], dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for found in held:
        by[found["product"], found["share"]][found["kind"]].append(found)
    kinds = sorted({found["kind"] for found in held})
    print(f"| product | share | {' | '.join(f'{kind}: gain, agreement' for kind in kinds)} | tuning steps |")
    print("|---" * (3 + len(kinds)) + "|")
    for product, share in ROWS:
        cells = [_cell(by[product, share][kind]) for kind in kinds]
        steps = [found["steps"] for rows in by[product, share].values() for found in rows]
        if steps:
            print(f"| {product} | {share:g} | {' | '.join(cells)} | {mean(steps):.0f} |")
    for found in by["ceiling", 0.0].values():
        for own in found:
            shares = ", ".join(f"{share:.2f}" for share in own["shares"])
            print(
                own["kind"], own["seed"], f"{own['base']:.3f} -> {own['tuned']:.3f}, moved {own['moved']:,}: {shares}"
            )


def _cell(rows: list[dict]) -> str:
    if not rows:
        return ""
    gains, agreement = [row["gain_recovered"] for row in rows], mean(row["agreement"] for row in rows)
    interval = rows[0]["gain_interval"] if len(rows) == 1 else (min(gains), max(gains))
    return f"{mean(gains):.2f} [{interval[0]:.2f}, {interval[1]:.2f}], {agreement:.3f}"


def main() -> None:
    """Append one line a product; what the output holds already isn't run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="print what a file holds, and do nothing else")
    parser.add_argument("--model", help="checkpoint; default MiniLM from its package")
    parser.add_argument("--shared", type=Path, help="folder with trec/train.jsonl and so on")
    parser.add_argument("--work", type=Path, help="folder for tuned checkpoints")
    parser.add_argument("--kinds", default="A,C,B")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--products", help="these alone, with commas")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.table:
        print_table(arguments.table)
        return
    base = Checkpoint(arguments.model) if arguments.model else minilm()
    wanted = arguments.products.split(",") if arguments.products else [product for product, _ in ROWS]
    for seed in map(int, arguments.seeds.split(",")):
        for kind in arguments.kinds.split(","):
            output, about = arguments.output, {"kind": kind, "seed": seed}
            held = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
            done = {(row["product"], row["share"]) for row in held if about.items() <= row.items()}
            rows = [row for row in ROWS if row[0] in wanted and row not in done]
            if not rows:
                continue
            name, rate = KINDS[kind]
            task = load_task(name, seed, arguments.shared)
            recipe = Recipe("adamw", rate=rate, warmup=0.0, clip=1.0, steps=3 * TRAIN // 16)
            tuned = tuned_by(base, task, seed, arguments.work / "tuned" / f"{kind}-{seed}", recipe)
            sgd = arguments.work / "sgd" / f"{name}-{seed}"
            pair = Pair(base, tuned, lambda: tuned_by(base, task, seed, sgd, Recipe()), task, seed)  # noqa: B023
            for found in runs(pair, done, about, rows):
                with output.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                print({key: found[key] for key in found if key not in ("ece", "f1", "sparsity")}, flush=True)


if __name__ == "__main__":
    main()
