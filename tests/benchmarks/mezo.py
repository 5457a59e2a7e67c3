"""MeZO: what a step costs beside two forward passes and the published scheme, in time and memory; and what tuning gives.

python -m tests.benchmarks.mezo step   MODEL [--tokens 128 --rows 2]       # CPU seconds, so that a busy machine counts little
python -m tests.benchmarks.mezo memory MODEL [--tokens 128 --rows 2]
python -m tests.benchmarks.mezo tasks  MODEL --data FOLDER --task trec --region gradient:1e-4 --seed 0 -o rows.jsonl
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

EPS, RATE = 1e-3, 1e-6


class Prepared:
    """A causal or masked model, a batch of random tokens and ways to step on them."""

    def __init__(self, folder, tokens, rows, how="all"):
        from surgery.checkpoints.checkpoint import Checkpoint
        from surgery.checkpoints.models import load_model
        from surgery.mezo.forward import ShiftedModel
        from surgery.mezo.noise import Noise
        from surgery.mezo.weights import RegionTensor, RoundedTensor, TunedTensor

        checkpoint = Checkpoint(folder)
        dtype = "bfloat16" if how == "residual" else "float32"
        self.model = load_model(checkpoint, device="cpu", dtype=dtype, tokenized=False)
        names = checkpoint.block_weights(["*"] if how == "embeddings" else ())
        noise = Noise("rademacher", 1)
        self.tensors = []
        for number, name in enumerate(names):
            parameter = self.model.parameters[name]
            if how == "region":
                count = max(1, parameter.numel() // 10_000)
                places = torch.randint(parameter.numel(), (count,), generator=torch.Generator().manual_seed(0)).unique()
                self.tensors.append(RegionTensor(name, number, parameter, noise, places))
            else:
                kind = RoundedTensor if how == "residual" else TunedTensor
                self.tensors.append(kind(name, number, parameter, noise))
        self.weights = sum(tensor.count for tensor in self.tensors)
        draw = torch.Generator().manual_seed(0)
        self.batch = torch.randint(10, 5000, (rows, tokens), generator=draw)
        self.shifted = None if how == "published" else ShiftedModel(self.model.module, self.tensors)
        self.rows, self.count = rows, 0

    def loss(self, ids):
        """The loss of the last token of each row: its logits alone are made."""
        output = self.model.module(input_ids=ids, **({"logits_to_keep": 1} if self.model.kind == "causal" else {}))
        return (
            output.logits[:, -1].float().logsumexp(-1)
            if hasattr(output, "logits")
            else output.last_hidden_state.float().sum((1, 2))
        )

    def forwards(self):
        """Two forward passes, each over one half."""
        with torch.inference_mode():
            self.loss(self.batch), self.loss(self.batch)

    def evaluate(self):
        """Both halves in one pass."""
        with torch.no_grad(), self.shifted.at((EPS, -EPS), 2 * self.rows, self.count):
            values = self.loss(torch.cat([self.batch, self.batch]))
        return float(values[: self.rows].mean() - values[self.rows :].mean()) / (2 * EPS)

    def step(self):
        """A step of ours."""
        from surgery.mezo.noise import Terms

        scale = np.array([-RATE * self.evaluate()], np.float32)
        with torch.no_grad():
            for tensor in self.tensors:
                tensor.walk(Terms(np.array([self.count], np.uint32), np.zeros(1, np.uint32), scale))
        self.count += 1

    def published(self):
        """Algorithm 1 of the paper, as it is described: three times the noise to move weights in place, once more to step."""

        def move(scale):
            torch.manual_seed(self.count)
            for tensor in self.tensors:
                parameter = tensor.parameter
                parameter.data = parameter.data + scale * torch.normal(0.0, 1.0, parameter.shape) * EPS

        with torch.inference_mode():
            move(1)
            above = float(self.loss(self.batch).mean())
            move(-2)
            below = float(self.loss(self.batch).mean())
            move(1)
            move(-RATE * (above - below) / (2 * EPS) / EPS)
        self.count += 1

    def replay(self, steps=20):
        """Seconds that a step's share of a fused replay takes."""
        from surgery.mezo.noise import Terms

        walked = Terms(np.arange(steps, dtype=np.uint32), np.zeros(steps, np.uint32), np.full(steps, 1e-6, np.float32))
        spent = time.process_time()
        for tensor in self.tensors:
            tensor.walk(walked)
        return (time.process_time() - spent) / steps


def shortest(work, times):
    """The shortest of several runs in seconds of CPU, after one to warm up."""
    spent = []
    for _ in range(times + 1):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return min(spent[1:])


def step(given):
    """Times of a step, and ratios to two forward passes measured beside it."""
    for how in given.ways:
        made = Prepared(given.model, given.tokens, given.rows, how)
        if how == "published":
            own, forwards, replay = shortest(made.published, given.times), shortest(made.forwards, given.times), 0.0
        else:
            own, replay = shortest(made.step, given.times), made.replay()
            made.shifted.close()
            forwards = shortest(made.forwards, given.times)
        row = {"way": how, "weights": made.weights, "tokens": given.tokens, "rows": given.rows, "step": round(own, 3)}
        row |= {"two forwards": round(forwards, 3), "ratio": round(own / forwards, 2), "replay": round(replay / own, 4)}
        print(json.dumps({**row, "replay ns a weight": round(1e9 * replay / made.weights, 3)}), flush=True)


def memory(given):
    """The largest resident size of forward passes over both halves and of steps, less that of the libraries; one way a process."""
    if len(given.ways) > 1:
        shared = [given.model, "--tokens", str(given.tokens), "--rows", str(given.rows)]
        for how in given.ways:
            subprocess.run(
                [sys.executable, "-m", "tests.benchmarks.mezo", "memory", *shared, "--ways", how], check=True
            )
        return
    import surgery.mezo.run  # noqa: F401 (libraries count for neither)
    from surgery.mezo.forward import ShiftedModel
    from surgery.mezo.noise import Noise, Place

    Noise().spread(torch.zeros(1, 4096), torch.zeros(1, dtype=torch.int64), (1.0, -1.0), Place(0, 0))
    libraries, (how,) = largest(), given.ways
    made = Prepared(given.model, given.tokens, given.rows, how)
    if made.shifted:
        made.shifted.close()
    Path("/proc/self/clear_refs").write_text("5")  # the largest size counts from here on
    half, made.batch = made.batch, torch.cat([made.batch] * 2)
    with torch.inference_mode():
        made.loss(made.batch)
    plain, made.batch = largest() - libraries, half
    Path("/proc/self/clear_refs").write_text("5")
    work = made.published if how == "published" else made.step
    if how != "published":
        made.shifted = ShiftedModel(made.model.module, made.tensors)
    work(), work()
    own = largest() - libraries
    print(
        json.dumps({"way": how, "step MB": own >> 10, "inference MB": plain >> 10, "ratio": round(own / plain, 3)}),
        flush=True,
    )


def largest():
    """The largest resident size so far, in kB."""
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )


def tasks(given):
    """Tune on 64 examples a class and score; a row a call, of base and tuned, with what was probed."""
    from surgery import Checkpoint, Task, mezo, score

    folder = Path(given.data) / given.task
    task = Task.load(given.task, train=folder / "train.jsonl", test=folder / "test.jsonl", shots=64, seed=given.seed)
    task = replace(task, test=task.test[: given.tests])
    ways = {"all": {}, "lora": {"lora": 8}}
    how = ways.get(given.region, {"where": given.region} if ":" in given.region else {"only": given.region})
    work = Path(f"{given.output}.{given.task}.{Path(given.region).name.replace(':', '_')}.{given.seed}")
    recipe = mezo.MezoRecipe(steps=given.steps)
    objective = {"objective": given.objective}
    tuned = mezo.tune(
        given.model, task, recipe, seed=given.seed, resume=work.with_name(f"{work.name}.state"), **how, **objective
    )
    tuned.save(work, overwrite=True)
    row = {"task": given.task, "region": given.region, "seed": given.seed, "steps": given.steps, **objective}
    row |= {"base": score(Checkpoint(given.model), task).accuracy, "tuned": score(work, task).accuracy}
    row |= {
        "probed": tuned.report["probed"],
        "losses": [float(np.mean(part)) for part in np.array_split(tuned.report["losses"], 10)],
    }
    with Path(given.output).open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))


def main():
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for work in (step, memory, tasks):
        command = commands.add_parser(work.__name__)
        command.set_defaults(work=work)
        command.add_argument("model")
        if work is tasks:
            for name, default in (("data", None), ("task", "trec"), ("region", "gradient:1e-4"), ("objective", "loss")):
                command.add_argument(f"--{name}", default=default)
            for name, default in (("seed", 0), ("steps", 1000), ("tests", 500)):
                command.add_argument(f"--{name}", type=int, default=default)
            command.add_argument("-o", "--output", default="mezo.jsonl")
            continue
        for name, default in (("tokens", 128), ("rows", 2), ("times", 2)):
            command.add_argument(f"--{name}", type=int, default=default)
        command.add_argument("--ways", nargs="+", default=["all", "embeddings", "region", "residual", "published"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.work(given)


if __name__ == "__main__":
    main()
