"""Fill the tables of `surgery/grafting/README.md`: tuned and grafted accuracy on real text, by task, seed, method and sparsity.

    python -m tests.benchmarks.localization few  --shared ../shared/data -o few.jsonl      # MiniLM, 64 a class, three seeds
    python -m tests.benchmarks.localization full --shared ../shared/data -o full.jsonl     # MiniLM, whole training sets
    python -m tests.benchmarks.localization causal --model SMOLLM2 --shared ../shared/data -o causal.jsonl
    python -m tests.benchmarks.localization adamw --shared ../shared/data -o adamw.jsonl   # the contrast: AdamW, no pull

One JSON object a run; `python -m tests.benchmarks.tables FILE...` prints them as Markdown.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from surgery import Checkpoint, Recipe, Task, graft, tune
from surgery.grafting.example import minilm

FEW = [(task, seed) for task in ("trec", "subj", "cr") for seed in (0, 1, 2)]
SETS = {
    "few": FEW,
    "full": [(task, 0) for task in ("trec", "sst2", "mr")],
    "causal": [("sst2", 0), ("trec", 0)],
    "adamw": [(task, 0) for task in ("trec", "subj", "cr")],
}


def run(base: Checkpoint, kind: str, name: str, seed: int, data: Path, methods: list[str]) -> dict:
    """Tune once; locate at each sparsity by each method; baselines on the first seed alone, for they cost the most time."""
    shots = None if kind == "full" else 64
    files = {split: data / name / f"{split}.jsonl" for split in ("train", "test")}
    task = Task.load(name, **files, shots=shots, seed=seed)
    began = time.monotonic()
    tuned = tune(base, task, Recipe("adamw" if kind == "adamw" else "sgd-l1"), seed=seed)
    found = {"kind": kind, "task": name, "seed": seed, "moved": tuned.report["moved"], "recipe": tuned.report["recipe"]}
    found["tune_seconds"] = round(time.monotonic() - began, 1)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = tuned.save(Path(scratch) / "tuned")
        sweep = [1e-5, 1e-3, 1e-2] if kind == "full" else [1e-5]
        found["points"] = []
        for method in methods:
            first = method == methods[0]
            report = graft(
                base,
                checkpoint,
                task,
                sparsity=1e-4,
                sweep=sweep,
                method=method,
                baselines=first and (kind == "few" or (seed == 0 and kind != "causal")),
                seed=seed,
            ).report
            found["points"] += report["points"]
            if first:
                keys = ("accuracy", "ece", "ece_scaled", "accuracy_bias_fitted")
                found |= {
                    who: {key: report[who][key] for key in keys if key in report[who]}
                    for who in ("base", "tuned", "graft")
                }
    return found


def main() -> None:
    """Append one line a run; what the output holds already isn't run again, so a stopped benchmark goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SETS)
    parser.add_argument("--model", help="checkpoint; default MiniLM from its package")
    parser.add_argument("--shared", type=Path, required=True, help="folder with trec/train.jsonl and so on")
    parser.add_argument("--methods", default="dual-averaging,sigmoid")
    parser.add_argument("--only", help="one task")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    base = Checkpoint(arguments.model) if arguments.model else minilm()
    held = [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    done = {(found["task"], found["seed"]) for found in held if found["kind"] == arguments.kind}
    for name, seed in SETS[arguments.kind]:
        if arguments.only in (None, name) and (name, seed) not in done:
            found = run(base, arguments.kind, name, seed, arguments.shared, arguments.methods.split(","))
            with arguments.output.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(name, seed, found["base"]["accuracy"], found["tuned"]["accuracy"], found["graft"], flush=True)


if __name__ == "__main__":
    main()
