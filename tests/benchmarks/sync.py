"""Many workers, few synchronisations: the paper's plan, quality by paired seeds, kills, the overhead of one process, two processes.

python -m tests.benchmarks.sync plan
python -m tests.benchmarks.sync quality --task fashion --data FOLDER --seeds 10 -o rows.jsonl     # or --task grammar
python -m tests.benchmarks.sync table rows.jsonl
python -m tests.benchmarks.sync kills --runs 100      # as a step ends or a bucket begins; `within`: in the middle of a collective
python -m tests.benchmarks.sync stops --runs 100      # the same by SIGSTOP, with a time-out of 2 s
python -m tests.benchmarks.sync overhead
python -m tests.benchmarks.sync speed MODEL
python -m tests.benchmarks.sync split MODEL       # memory of a process, whole and split over two

`quality` trains the four workers of every schedule in one process, side by side as one batch of models, from the same weights and
on the same examples: tests hold a real run to such a loop.
"""

import argparse
import json
import math
import os
import random
import signal
import sys
import tempfile
import threading
import time
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import t as student
from torch.func import functional_call, grad_and_value, vmap

from surgery.sync import QSR, Schedule, plan, warmed_up
from surgery.sync.errors import LeftOutError

# From how many bytes on the C library gives memory back at once; what it keeps by itself hides what is in use.
_MAPS = "MALLOC_MMAP_THRESHOLD_"
WORKERS, STEPS, WARMUP, BUDGET = 4, 600, 30, 0.15
PEAK = {"fashion": 2e-3, "grammar": 4e-3}
BATCH = {"fashion": 16, "grammar": 16}  # of one worker


def schedules(rates):
    """Every way to average: its name and the steps after which it does; data parallel has None."""
    found = {"data parallel": None}
    for name, options in {
        "constant H = 4": {"kind": "constant", "h_base": 4},
        "constant, equal bytes": {"kind": "constant", "budget": BUDGET},
        "post-local": {"kind": "post-local", "h_base": 8},
        "cubic": {"kind": "cubic", "budget": BUDGET, "warmup": WARMUP},
        "qsr": {"kind": "qsr", "budget": BUDGET, "warmup": WARMUP},
    }.items():
        found[name] = plan(rates, **options)
    return found


class Mlp(torch.nn.Module):
    """Classifier of pixels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(784, 64), torch.nn.Linear(64, 10)

    def forward(self, pixels, targets):
        """Mean loss, and whether each is right."""
        scores = self.second(torch.relu(self.first(pixels)))
        return F.cross_entropy(scores, targets), (scores.argmax(-1) == targets).float().mean()


class Masked(torch.nn.Module):
    """Masked language model: one layer of attention and one of ReLU."""

    def __init__(self, words, length, width=32):
        super().__init__()
        self.words, self.places = torch.nn.Embedding(words, width), torch.nn.Embedding(length, width)
        self.query, self.key, self.value = (torch.nn.Linear(width, width) for _ in range(3))
        self.inner, self.outer = torch.nn.Linear(width, 2 * width), torch.nn.Linear(2 * width, width)
        self.scores = torch.nn.Linear(width, words)

    def forward(self, ids, labels):
        """Mean loss of masked words, and the share that is right."""
        states = self.words(ids) + self.places.weight
        weights = self.query(states) @ self.key(states).transpose(-1, -2) / states.shape[-1] ** 0.5
        hidden = (ids == 0)[:, None, :] * -1e4  # padding
        states = states + torch.softmax(weights + hidden, -1) @ self.value(states)
        states = states + self.outer(torch.relu(self.inner(states)))
        scores, there = self.scores(states), (labels >= 0).float()
        losses = -torch.log_softmax(scores, -1).gather(-1, labels.clamp_min(0)[..., None])[..., 0]
        right = (scores.argmax(-1) == labels).float()
        return (losses * there).sum() / there.sum().clamp_min(1), (right * there).sum() / there.sum().clamp_min(1)


def fashion(folder, seed):
    """A model, training and test examples of Fashion-MNIST."""
    from safetensors.torch import load_file

    parts = [load_file(Path(folder).expanduser() / f"{name}.safetensors") for name in ("train", "test")]
    pixels = [part["pixels"].float() / 255 for part in parts]
    labels = [part["label"].long() for part in parts]
    torch.manual_seed(seed)
    return Mlp(), (pixels[0], labels[0]), (pixels[1], labels[1])


def grammar(folder, seed):
    """A model, and masked sentences of the probes' example grammar."""
    from pcfg import sample
    from probes.example import example_grammar

    made, length = example_grammar(), 16
    drawn = sample(made, 22_000, seed=seed, max_length=length)
    ids = np.zeros((len(drawn), length), np.int64)
    for row in range(len(drawn)):
        words = drawn.words[drawn.offsets[row] : drawn.offsets[row + 1]]
        ids[row, : len(words)] = words + 2  # 0 is padding, 1 is the mask
    chance = np.random.default_rng(seed).random(ids.shape)
    masked = (ids > 0) & (chance < 0.2)
    inputs, labels = torch.from_numpy(np.where(masked, 1, ids)), torch.from_numpy(np.where(masked, ids, -1))
    torch.manual_seed(seed)
    return Masked(len(made.words) + 2, length), (inputs[:20_000], labels[:20_000]), (inputs[20_000:], labels[20_000:])


def quality(task, folder, seed):
    """Every schedule's last loss and accuracy on test examples."""
    model, train, test = {"fashion": fashion, "grammar": grammar}[task](folder, seed)
    rates = warmed_up(STEPS, PEAK[task], warmup=WARMUP)
    planned = schedules(rates)
    ends = [None if each is None else set(accumulate(each.lengths)) for each in planned.values()]
    copies = len(planned) * WORKERS
    weights = {k: v.detach().expand(copies, *v.shape).clone() for k, v in model.named_parameters()}
    moments = {k: (torch.zeros_like(v), torch.zeros_like(v)) for k, v in weights.items()}
    made, size = torch.Generator().manual_seed(seed), BATCH[task]
    find = vmap(grad_and_value(lambda w, x, y: functional_call(model, w, (x, y))[0]))
    for step, rate in enumerate(rates):
        rows = torch.randint(len(train[0]), (WORKERS, size), generator=made)
        x, y = (part[rows].repeat(len(planned), *(1,) * part.dim()) for part in train)
        slopes, _ = find(weights, x, y)
        for name, weight in weights.items():
            slope = slopes[name].view(len(planned), WORKERS, *weight.shape[1:])
            slope[0] = slope[0].mean(0)  # data parallel
            adamw(weight, slope.view_as(weight), moments[name], rate, step)
            shared = weight.view(len(planned), WORKERS, *weight.shape[1:])
            for number, last in enumerate(ends):
                if last is not None and step + 1 in last:
                    shared[number] = shared[number].mean(0)
    score = vmap(lambda w: functional_call(model, w, test))
    losses, right = (each.view(len(planned), WORKERS)[:, 0].tolist() for each in score(weights))
    return [
        {
            "task": task, "seed": seed, "schedule": name, "share": 1.0 if each is None else each.share,
            "longest": 1 if each is None else max(each.lengths), "loss": losses[k], "accuracy": right[k],
        }
        for k, (name, each) in enumerate(planned.items())
    ]  # fmt: skip


def adamw(weight, slope, moments, rate, step, first=0.9, second=0.999, decay=0.01):
    """One step, in place."""
    mean, square = moments
    mean.lerp_(slope, 1 - first)
    square.lerp_(slope * slope, 1 - second)
    weight.mul_(1 - rate * decay)
    weight.sub_(rate * (mean / (1 - first ** (step + 1))) / ((square / (1 - second ** (step + 1))).sqrt() + 1e-8))


def table(file):
    """Each schedule's figures, and paired differences of qsr from it."""
    rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
    for task in sorted({row["task"] for row in rows}):
        for what in ("loss", "accuracy"):
            by = {}
            for row in rows:
                if row["task"] == task:
                    by.setdefault(row["schedule"], {})[row["seed"]] = row
            print(
                f"\n{task}: {what}, {len(by['qsr'])} seeds\n\n| schedule | of data parallel | longest | {what} | qsr less it |"
            )
            print("|---|---|---|---|---|")
            for name, found in by.items():
                values = np.array([row[what] for row in found.values()])
                gaps = np.array([by["qsr"][seed][what] - row[what] for seed, row in found.items()])
                about = next(iter(found.values()))
                half = student.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / math.sqrt(len(gaps))
                gap = (
                    ""
                    if name == "qsr"
                    else f"{gaps.mean():+.4f} [{gaps.mean() - half:+.4f}, {gaps.mean() + half:+.4f}]"
                )
                print(f"| {name} | {about['share']:.3f} | {about['longest']} | {values.mean():.4f} | {gap} |")


def kills(runs, seed, number=signal.SIGKILL, timeout=20.0):
    """Kill, or stop, one or two of four workers at random places; the others agree to the bit and lose nothing, who wakes is refused."""
    from tests.support.fleet import fleet
    from tests.sync.test_membership import STEPS as LAST
    from tests.sync.test_membership import Dies, H, same, train

    draw, worst, wrong = random.Random(seed), 0.0, 0
    for run in range(runs):
        places = [("step", draw.randrange(1, LAST + 1)), ("bucket", draw.randrange(1, LAST // H * 15 + 1))]
        plans = {rank: draw.choice(places) for rank in draw.sample(range(4), draw.choice((1, 1, 2)))}
        with tempfile.TemporaryDirectory() as folder, fleet(folder, 4) as made:
            for rank in range(4):
                made.start(rank, train, Path(folder), Dies(Path(folder), plans, number), timeout)
            try:
                found = made.results(*(rank for rank in range(4) if rank not in plans))
                good = same(found) and all(
                    sorted(report.lost) == sorted(plans) and report.lengths == [H] * (LAST // H)
                    for _, report, _ in found.values()
                )
                gap = max(gap for _, _, gap in found.values())
                if number == signal.SIGSTOP:
                    for rank in plans:
                        made.signal(rank, signal.SIGCONT)
                    good &= all(isinstance(woken, LeftOutError) for woken in made.results(*plans).values())
            except (AssertionError, TypeError) as error:
                good, gap = False, math.nan
                print(f"run {run}, {plans}: {error}")
        wrong += not good
        worst = max(worst, gap)
        print(f"run {run + 1}: {plans}: {'right' if good else 'WRONG'}, longest step {gap:.2f} s", flush=True)
    print(f"{runs - wrong} of {runs} right; the longest that a survivor's step took {worst:.2f} s")


def within(runs, seed):
    """Kill one of four workers of 6 million weights at a random moment of the only bucket of its fourth round."""
    from tests.support.fleet import fleet
    from tests.sync.test_membership import same

    def train(rank, folder, share):
        weight = torch.nn.Parameter(torch.zeros(6_000_000))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        sync = QSR(optimizer, schedule=Schedule("constant", h_base=1, steps=6), timeout=3.0)
        took = 0.0
        for step in range(6):
            weight.grad = torch.full_like(weight, float(rank + step))
            optimizer.step()
            if rank == 3 and step == 3:
                threading.Timer(share * took, os.kill, (os.getpid(), signal.SIGKILL)).start()
            began = time.monotonic()
            sync.step()
            took = time.monotonic() - began
        return weight.detach(), sync.finish(), 0.0

    draw, right = random.Random(seed), 0
    for run in range(runs):
        share = draw.uniform(0.5, 1.1)
        with tempfile.TemporaryDirectory() as folder, fleet(folder, 4) as made:
            for rank in range(4):
                made.start(rank, train, Path(folder), share)
            try:
                found = made.results(0, 1, 2, seconds=30)
                good = same(found) and all(report.lost in ((3,), ()) for _, report, _ in found.values())
            except AssertionError as error:
                good = False
                print(f"run {run + 1}, after {share:.2f} of a round: {error}", flush=True)
        right += good
    print(f"{right} of {runs} right: survivors go on and agree to the bit")


def overhead():
    """CPU seconds of one worker's loop with QSR, of those without it: medians of pairs, in turn."""
    from tests.support.fleet import run_all

    def loop(sync, steps=400):
        net = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        made = QSR(optimizer, schedule=Schedule("qsr", alpha=2e-3, h_base=4)) if sync else None
        x, y = torch.randn(64, 256), torch.randint(10, (64,))
        began = time.process_time()
        for _ in range(steps):
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            if made:
                made.step()
        spent = time.process_time() - began
        if made:
            made.finish(net)
        return spent

    def both(rank):
        loop(False, 20)
        return [(loop(True), loop(False)) for _ in range(9)]

    with tempfile.TemporaryDirectory() as folder:
        pairs = run_all(folder, 1, both, seconds=1e4)[0]
    ratios = sorted(a / b for a, b in pairs)
    print(
        f"with QSR, of without: median {ratios[len(ratios) // 2]:.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f} in 9 pairs"
    )


def speed(model):
    """One process's CPU seconds, of those of the busier of two: what two free cores would save."""
    from pcfg import Grammar
    from pcfg.sampling.corpus import write_corpus
    from surgery.sync import Workers, ranks
    from surgery.unlearning import Encoder
    from tests.support.fleet import run_all

    texts = [f"{'the film was good ' * (1 + k % 20)}{k}" for k in range(768)]
    given = Grammar.random(20, 45, 1000, seed=0)

    def features(rank, folder, count):
        encoder = Encoder.open(model, device="cpu")
        with ranks.by_rank(Workers.launched() if count > 1 else None):
            began = time.process_time()
            encoder.encode(texts)
            return time.process_time() - began

    def corpus(rank, folder, count):
        spent = 0.0
        with ranks.by_rank(Workers.launched() if count > 1 else None):
            began = time.process_time()
            try:
                write_corpus(given, Path(folder) / f"made-{count}", 80_000, seed=0, max_length=40, shard_size=10_000)
            finally:
                spent = time.process_time() - began
        return spent

    write_corpus(given, Path(tempfile.mkdtemp()) / "warm", 10, seed=0, max_length=40)  # compiles
    for name, work in (("features", features), ("sampling", corpus)):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "1").mkdir(), (Path(folder) / "2").mkdir()
            one = run_all(Path(folder) / "1", 1, work, folder, 1, seconds=1e4)[0]
            two = run_all(Path(folder) / "2", 2, work, folder, 2, seconds=1e4)
        print(f"{name}: one {one:.2f} CPU s, two {two[0]:.2f} and {two[1]:.2f}: {one / max(two.values()):.2f} times")


def split(model):
    """Resident memory of a process while AdamW tunes a language model: with a whole model in each of two, and split over them."""
    from surgery.sync import Workers
    from surgery.sync.together import SyncRecipe
    from surgery.tasks.texts import Texts
    from surgery.tuning import Recipe, tune
    from tests.support.fleet import run_all

    rows = [{"prompt": f"the film was number {number} and it was", "completion": " good"} for number in range(16)]

    def status(name):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20

    def train(rank, sync):
        seen = []

        def progress(done, total, line):
            seen.append((status("VmHWM"), time.process_time()))
            Path("/proc/self/clear_refs").write_text("5")  # the largest size from here on

        began, recipe = status("VmRSS"), Recipe("adamw", 1e-5, steps=4, batch_size=4)
        tune(model, Texts.load(rows), recipe, device="cpu", workers=Workers.launched(), sync=sync, progress=progress)
        return max(size for size, _ in seen[1:]) - began, (seen[-1][1] - seen[0][1]) / 3

    for name, sync in (("whole", None), ("split", SyncRecipe("sharded"))):
        with tempfile.TemporaryDirectory() as folder:
            found = run_all(Path(folder), 2, train, sync, seconds=1e4)
        print(name, ", ".join(f"{size:.2f} GiB, {seconds:.2f} CPU s a step" for size, seconds in found.values()))


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=["plan", "quality", "table", "kills", "stops", "within", "overhead", "speed", "split"]
    )
    parser.add_argument("file", nargs="?")
    parser.add_argument("--task", default="grammar", choices=["fashion", "grammar"])
    parser.add_argument("--data", default="~/.cache/surgery-models/fashion")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "plan":
        found = plan(warmed_up(93_600, 0.008, warmup=10_000), alpha=0.0175, h_base=4)
        print("\n".join(found.summary), f"\npaper: .104 of data parallel, last round 8,142; here {found.lengths[-1]:,}")
    elif given.what == "quality":
        known = given.output.read_text().splitlines() if given.output.exists() else []
        done = {(row["task"], row["seed"]) for row in map(json.loads, known)}
        for seed in range(given.seeds):
            if (given.task, seed) not in done:
                began = time.monotonic()
                rows = quality(given.task, given.data, seed)
                with given.output.open("a") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in rows))
                print(f"{given.task} {seed}: {time.monotonic() - began:.0f} s", flush=True)
    elif given.what == "table":
        table(given.file)
    elif given.what == "kills":
        kills(given.runs, given.seed)
    elif given.what == "stops":
        kills(given.runs, given.seed, signal.SIGSTOP, 2.0)
    elif given.what == "within":
        within(given.runs, given.seed)
    elif given.what == "overhead":
        overhead()
    elif given.what == "split":
        if _MAPS not in os.environ:  # read as a process begins
            os.execve(
                sys.executable,
                [sys.executable, "-m", "tests.benchmarks.sync", *sys.argv[1:]],
                os.environ | {_MAPS: "200000"},
            )
        split(given.file)
    else:
        speed(given.file)


if __name__ == "__main__":
    main()
