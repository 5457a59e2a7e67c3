"""Evaluations on a real checkpoint: likelihoods, generations, what noise does to them, and the time of writing beside transformers' own.

python -m tests.benchmarks.evaluating likelihood --model MODEL     # also: generation, noise, speed
"""

import argparse
import time

import torch

from surgery.evaluating.calls import Call
from surgery.evaluating.formal.items import prompt
from surgery.evaluating.formal.run import evaluate_formal
from surgery.evaluating.formal.skills import skill_ids
from surgery.evaluating.formal.writer import TOPICS
from surgery.evaluating.local import LocalModel
from surgery.evaluating.runner import Runner


def measure(what, model, k, items, log, noise):
    """One reading, or likelihoods before and after noise on the weights."""
    reading = "generation" if what == "generation" else "likelihood"
    options = {"k": tuple(k), "items": items, "readings": [reading], "log": log, "progress": report}
    if what == "noise":
        options |= {"against": model, "floor": (noise,)}
    found = evaluate_formal(model, **options)
    for line in found.table()[1]:
        print(*line)
    for name in found.floor:
        for metric in found.metrics:
            print(name, metric.name, found.floor_difference(name, metric.name))
    for name, part in found.by("skill").items():
        print(name, len(part), found.score(found.metrics[0].name, part))


def report(done, total, line):
    if done % 50 == 0:
        print(done, total, line, flush=True)


def speed(source, count, tokens):
    """Seconds of `count` answers in our batches, and in transformers' own `generate` on the same prompts in their order."""
    model = LocalModel(source)
    names = skill_ids()
    texts = [prompt(TOPICS[n % len(TOPICS)], [names[n % len(names)]]) for n in range(count)]
    ours = lambda: Runner().ask(model, [Call.of(text, max_tokens=tokens) for text in texts])  # noqa: E731
    model.tokenizer.padding_side = "left"

    def theirs():
        prompts = [model.prompt(Call.of(text).messages) for text in texts]
        for start in range(0, count, model.batch_size):
            batch = model.tokenizer(
                prompts[start : start + model.batch_size], return_tensors="pt", padding=True, add_special_tokens=False
            )
            with torch.no_grad():
                model.model.module.generate(
                    **batch.to(model.model.device),
                    max_new_tokens=tokens,
                    do_sample=False,
                    eos_token_id=model._ends,
                    pad_token_id=model.model.pad_id,
                )

    seconds = {}
    for turn in range(3):
        for name, run in (("ours", ours), ("theirs", theirs)):
            began = time.perf_counter()
            run()
            if turn:
                seconds.setdefault(name, []).append(time.perf_counter() - began)
    print({name: min(each) for name, each in seconds.items()}, "ratio", min(seconds["ours"]) / min(seconds["theirs"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["likelihood", "generation", "noise", "speed"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("-k", type=int, action="append")
    parser.add_argument("--noise", type=float, default=0.1)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--log")
    given = parser.parse_args()
    if given.what == "speed":
        speed(given.model, min(given.items, 32), given.tokens)
    else:
        measure(given.what, given.model, given.k or [1], given.items, given.log, given.noise)
