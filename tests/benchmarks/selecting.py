"""Selecting: what features cost beside a loop and a forward pass, what a sketch and few bits lose, and whether planted skills are found.

python -m tests.benchmarks.selecting planted   MODEL --data FOLDER -o rows.jsonl      # recall by skill, all ways in one table
python -m tests.benchmarks.selecting gradients MODEL [--tokens 32 --rows 16]          # CPU seconds, so that a busy machine counts little
python -m tests.benchmarks.selecting sketch    MODEL
python -m tests.benchmarks.selecting precision MODEL --data FOLDER                     # rows chosen by sketches and few bits, beside whole gradients
python -m tests.benchmarks.selecting store     [--rows 1000000]
"""

import argparse
import json
import random
import tempfile
import time
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

SKILLS = {"trec": ("trec",), "subj": ("subj",), "rte": ("rte",), "sentiment": ("sst2", "mr", "cr")}
SOURCES = [source for sources in SKILLS.values() for source in sources]


def rows_of(data, source, split, count, seed):
    """Some rows of a source, drawn by a seed."""
    rows = [json.loads(line) for line in (Path(data) / source / f"{split}.jsonl").read_text().splitlines()]
    random.Random(f"{seed} {source} {split}").shuffle(rows)
    return [{**row, "source": source} for row in rows[:count]]


def subset(store, numbers):
    """A store of some rows of another, in memory."""
    from surgery.selecting.shards import Store

    numbers = np.asarray(numbers)

    class Part(Store):
        """Some rows."""

        def __len__(self):
            return len(numbers)

        @cached_property
        def about(self):
            """Their columns."""
            found = {name: column[:-1] if name == "offsets" else column for name, column in store.about.items()}
            return {name: column[numbers] for name, column in found.items()}

        @property
        def pool(self):
            """Their rows."""
            return self

        def rows(self, places):
            """Rows by their place in the part."""
            return store.pool.rows(numbers[list(places)])

        def chunks(self, name):
            """All at once."""
            whole = torch.cat([chunk for _, chunk in store.chunks(name)])
            yield slice(0, len(numbers)), whole[numbers]

    return Part(store.folder, store.header)


def planted(given):
    """One store a draw with as many rows of each source; then each skill thinned to a share of the pool, several times over."""
    from surgery.selecting import Features, Warmup
    from surgery.selecting.collecting import open_instrument
    from surgery.selecting.scoring import METHODS, Target, best, score_rows
    from surgery.tasks.rows import read_rows

    done = (
        {json.loads(line)["draw"] for line in Path(given.output).read_text().splitlines()}
        if Path(given.output).exists()
        else set()
    )
    for draw in [draw for draw in range(given.draws) if draw not in done]:
        pool = [row for source in SOURCES for row in rows_of(given.data, source, "train", given.rows, draw)]
        random.Random(draw).shuffle(pool)
        warmup = Warmup(share=given.warmup_share, epochs=given.epochs, rate=given.rate, seed=draw)
        began = time.process_time()
        found = Features.collect(
            given.model,
            pool,
            warmup=warmup,
            folder=f"{given.output}.{draw}",
            max_length=given.tokens,
            device="cpu",
            seed=draw,
        )
        spent = time.process_time() - began
        instrument = open_instrument(found.store.folder, given.model, found.store.header, device="cpu")
        lines = []
        for skill, sources in SKILLS.items():
            split = "train" if given.held_out else "test"
            rows = [row for source in sources[:1] for row in rows_of(given.data, source, split, 10**6, draw)]
            rows = rows[given.rows : given.rows + given.targets] if given.held_out else rows[: given.targets]
            target = Target.of(instrument, read_rows(rows), hidden=True)
            recalls = {by: [] for by in METHODS}
            for resample in range(given.resamples):
                kept, planted = thinned(pool, sources, given.share, random.Random(f"{draw} {skill} {resample}"))
                part = subset(found.store, kept)
                for by in METHODS:
                    scores = score_rows(part, target, by, seed=resample)
                    chosen = best(scores, planted, np.zeros(len(kept), bool))
                    recalls[by].append(sum(pool[kept[number]]["source"] in sources for number in chosen) / planted)
            line = {
                "draw": draw,
                "skill": skill,
                "pool": len(kept),
                "planted": planted,
                "recall": {by: float(np.mean(each)) for by, each in recalls.items()},
            }
            lines.append({**line, "cpu seconds": round(spent, 1), "losses": list(found.store.checkpoints.losses)})
            print(json.dumps(lines[-1]), flush=True)
        with Path(given.output).open("a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
    table(given)


def thinned(pool, sources, share, draw):
    """Numbers of a pool's rows with so many of some sources that they are a share of what is kept; and how many."""
    others = [number for number, row in enumerate(pool) if row["source"] not in sources]
    own = [number for number, row in enumerate(pool) if row["source"] in sources]
    planted = max(1, round(share / (1 - share) * len(others)))
    return sorted(others + draw.sample(own, planted)), planted


def table(given):
    """Mean recall by skill and way, and the worst draw."""
    lines = [json.loads(line) for line in Path(given.output).read_text().splitlines()]
    for skill in SKILLS:
        own = [line["recall"] for line in lines if line["skill"] == skill]
        cells = {
            by: f"{np.mean([each[by] for each in own]):.2f} ({min(each[by] for each in own):.2f})" for by in own[0]
        }
        print(skill, len(own), cells)


def model_and_rows(folder, tokens, rows):
    """A model with adapters that have a gradient everywhere, and rows of so many tokens."""
    from surgery.checkpoints.checkpoint import Checkpoint
    from surgery.checkpoints.models import load_model
    from surgery.selecting.lora import Adapter
    from surgery.tasks.objectives import Lesson, pick_objective

    model = load_model(Checkpoint(folder), device="cpu")
    objective = pick_objective(model, "answer", 512, ("no", "yes"))
    draw = torch.Generator().manual_seed(0)
    lessons = []
    for _ in range(rows):
        ids = torch.randint(1000, 5000, (tokens,), generator=draw).tolist()
        targets = [0] if model.kind == "encoder" else [-100] * (tokens - 2) + [ids[-1], -100]
        lessons.append(Lesson.of(ids, [0] * tokens, targets, (1, 1)))
    adapter = Adapter.beside(model, 8, 16.0)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            if name.endswith("lora_B.weight"):
                weight += 0.01 * torch.randn(weight.shape, generator=draw)
    return model, objective, adapter, lessons


def shortest(work, times):
    """The shortest of several runs in seconds of CPU, after one to warm up."""
    spent = []
    for _ in range(times + 1):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent[1:])


def gradients(given):
    """A batch's gradients beside a backward pass a row, and beside forward passes of the batch."""
    from surgery.selecting.capture import gradients as batched

    model, objective, adapter, lessons = model_and_rows(given.model, given.tokens, given.rows)
    weights = list(adapter.weights.values())

    def ours():
        for _ in batched(
            model, objective, lessons, adapter.layers, given.rows, lambda numbers: lambda name, each: None
        ):
            pass

    def loop():
        for weight in weights:
            weight.requires_grad_(True)
        for lesson in lessons:
            torch.autograd.grad(objective.losses(model, [lesson]).sum(), weights)
        for weight in weights:
            weight.requires_grad_(False)

    def usual():
        for weight in weights:
            weight.requires_grad_(True)
        for lesson in lessons:
            ids = torch.tensor([lesson.tokens.ids])
            labels = torch.tensor([[-100, *lesson.targets[:-1]]])
            torch.autograd.grad(model.module(input_ids=ids, labels=labels).loss, weights)
        for weight in weights:
            weight.requires_grad_(False)

    def forward():
        with torch.no_grad():
            objective.losses(model, lessons)

    own, each, plain = (shortest(work, given.times) / given.rows for work in (ours, loop, forward))
    row = {"tokens": given.tokens, "rows": given.rows, "weights": adapter.count, "seconds a row": round(own, 4)}
    row |= {"loop": round(each, 4), "times as fast": round(each / own, 2), "forwards": round(own / plain, 2)}
    if model.kind == "causal":  # the loop as it is usually written, with the library's loss over all places' logits
        written = shortest(usual, given.times) / given.rows
        row |= {"usual loop": round(written, 4), "times as fast as that": round(written / own, 2)}
    print(json.dumps(row))


def sketch(given):
    """The sketch's time beside the gradient's, maps included and alone."""
    from surgery.selecting.capture import gradients as batched
    from surgery.selecting.maps import GradientMap
    from surgery.selecting.sketch import CountSketch

    model, objective, adapter, lessons = model_and_rows(given.model, given.tokens, given.rows)
    sizes = {name: layer.in_features * layer.out_features for name, layer in adapter.layers.items()}
    draw = torch.Generator().manual_seed(1)
    moments = {
        name: {
            "exp_avg": 1e-3 * torch.randn(weight.shape, generator=draw),
            "exp_avg_sq": 1e-6 * torch.rand(weight.shape, generator=draw),
        }
        for name, weight in adapter.weights.items()
    }
    made, kept = CountSketch(sizes, 8192), {}

    def caught():
        for _ in batched(model, objective, lessons, adapter.layers, given.rows, lambda numbers: kept.__setitem__):
            pass

    def sketched(change):
        out = torch.zeros(given.rows, 8192)
        for name, each in kept.items():
            made.add(name, change(name, each.flatten(1)), out)

    plain, adam = GradientMap("sgd", moments), GradientMap("adam", moments)
    gradient, one, both = (
        shortest(work, given.times) / given.rows for work in (caught, lambda: sketched(plain), lambda: sketched(adam))
    )
    row = {
        "tokens": given.tokens,
        "weights": adapter.count,
        "gradient": round(gradient, 4),
        "sketch": round(one, 4),
        "Adam and sketch": round(both, 4),
    }
    print(json.dumps({**row, "share": round(one / gradient, 3), "share with Adam": round(both / gradient, 3)}))


def precision(given):
    """How many of the rows that whole gradients choose are chosen by a sketch of them in 16, 8 and 1 bit, by skill."""
    from surgery.selecting import Features, Warmup

    with tempfile.TemporaryDirectory() as name:
        for draw in range(given.draws):
            pool = [row for source in SOURCES for row in rows_of(given.data, source, "train", given.rows, draw)]
            shared = {"max_length": given.tokens, "hidden": False, "device": "cpu", "seed": draw}
            begun = Warmup(share=given.warmup_share, epochs=given.epochs, rate=given.rate, seed=draw)
            stores = {"exact": Features.collect(given.model, pool, warmup=begun, sketch=0, **shared)}
            for bits in ("float16", "int8", "bit"):
                warmup = stores["exact"].store.folder / "warmup"
                place = Path(name) / f"{bits}-{draw}"
                stores[bits] = Features.collect(
                    given.model, pool, warmup=warmup, precision=bits, folder=place, **shared
                )
            for skill, sources in SKILLS.items():
                target = rows_of(given.data, sources[0], "test", given.targets, draw)
                for by in ("less", "sgd", "centred"):
                    asked = {"share": given.share, "by": by, "baselines": False, "device": "cpu"}
                    chosen = {bits: set(each.select(target, **asked).numbers) for bits, each in stores.items()}
                    shares = {
                        bits: round(len(rows & chosen["exact"]) / len(rows), 3)
                        for bits, rows in chosen.items()
                        if bits != "exact"
                    }
                    row = {"draw": draw, "skill": skill, "by": by, "pool": len(pool), "chosen": len(chosen["exact"])}
                    print(json.dumps({**row, **shares}), flush=True)


def store(given):
    """A store of random signs: the largest memory while all rows are scored, beyond what was there before, and seconds."""
    from surgery.files import replace_json
    from surgery.selecting.scoring import Target, best, members, score_rows
    from surgery.selecting.seals import sealed
    from surgery.selecting.shards import FORMAT, Header, Store, shard_file
    from surgery.tasks.rows import read_rows

    with tempfile.TemporaryDirectory() as name:
        folder, draw = Path(name), np.random.default_rng(0)
        for number, first in enumerate(range(0, given.rows, 4096)):
            count = min(4096, given.rows - first)
            signs = torch.from_numpy(draw.integers(0, 256, (count, given.width // 8), dtype=np.uint8))
            shard_file(folder, number).write_bytes(sealed({"adam.0": signs, "adam.0.norm": torch.ones(count)}))
        (folder / "warmup").mkdir()
        asked = {
            "share": 0.05,
            "epochs": 1,
            "rate": 1e-3,
            "rank": 8,
            "alpha": 16.0,
            "batch_size": 16,
            "targets": [],
            "seed": 0,
        }
        noted = {"warmup": asked, "base": "", "rates": [1e-3], "steps": [1], "losses": [0.0]}
        replace_json(folder / "warmup" / "warmup.json", noted)
        empty = {kind: {int: 0, str: "", bool: False}.get(told, []) for kind, told in Header.__annotations__.items()}
        sizes = {"rows": given.rows, "shard_rows": 4096, "length": given.width, "maps": ["adam"], "precision": "bit"}
        made = Store(folder, {**empty, "format": FORMAT, **sizes})
        rows = read_rows([{"text": "a", "label": "b"}] * given.targets)
        wanted = torch.nn.functional.normalize(
            torch.from_numpy(draw.standard_normal((given.targets, given.width)).astype(np.float32)), dim=1
        )
        target = Target(tuple(rows), (wanted,), None, members(rows))
        Path("/proc/self/clear_refs").write_text("5")  # the largest size counts from here on
        before, began = largest(), time.process_time()
        scores = score_rows(made, target, "less")
        chosen = best(scores, given.rows // 20, np.zeros(given.rows, bool))
        more, spent = largest() - before, time.process_time() - began
        # The same in memory, of as many rows as fit it.
        some = min(given.rows, 16384)
        whole = torch.cat([chunk for place, chunk in made.chunks("adam.0") if place.stop <= some])
        again = (whole @ wanted.T).double().mean(1).numpy()
        same = set(best(scores[: len(again)], 800, np.zeros(len(again), bool))) == set(
            best(again, 800, np.zeros(len(again), bool))
        )
    row = {"rows": given.rows, "numbers a row": given.width, "MB more": more >> 10, "cpu seconds": round(spent, 1)}
    print(json.dumps({**row, "chosen": len(chosen), "same as in memory": same}))


def largest():
    """The largest resident size so far, in kB."""
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for work in WORK:
        command = commands.add_parser(work.__name__)
        command.set_defaults(work=work)
        command.add_argument("model", nargs="?")
        command.add_argument("--data", default=None)
        command.add_argument(
            "--held-out", action="store_true", help="targets from training rows that aren't in the pool"
        )
        for name, default in (
            ("rows", None),
            ("tokens", None),
            ("times", 2),
            ("draws", 4),
            ("targets", 32),
            ("resamples", 4),
            ("epochs", 2),
            ("width", 8192),
        ):
            command.add_argument(f"--{name}", type=int, default={**DEFAULTS[work.__name__]}.get(name, default))
        for name, default in (("share", 0.05), ("warmup-share", 0.2), ("rate", 1e-3)):
            command.add_argument(f"--{name}", type=float, default=default)
        command.add_argument("-o", "--output", default="selecting.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work(given)


WORK = (planted, gradients, sketch, precision, store)
DEFAULTS = {
    "planted": {"rows": 100, "tokens": 64},
    "gradients": {"rows": 16, "tokens": 32},
    "sketch": {"rows": 16, "tokens": 32},
    "precision": {"rows": 100, "tokens": 64, "draws": 3},
    "store": {"rows": 1_000_000},
}

if __name__ == "__main__":
    main()
