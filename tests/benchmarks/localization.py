"""Fill the tables of `surgery/grafting/README.md`: tuned and grafted accuracy on real text, by task, seed, method and sparsity.

    python -m tests.benchmarks.localization few  --shared ../shared/data -o few.jsonl      # MiniLM, 64 a class, three seeds
    python -m tests.benchmarks.localization full --shared ../shared/data -o full.jsonl     # MiniLM, whole training sets
    python -m tests.benchmarks.localization causal --model SMOLLM2 --shared ../shared/data -o causal.jsonl
    python -m tests.benchmarks.localization adamw --shared ../shared/data -o adamw.jsonl   # the contrast: AdamW, no pull

One JSON object a run and method, none run again when a stopped benchmark goes on; `python -m tests.benchmarks.tables FILE...` prints them as Markdown.
"""

import argparse
import json
import tempfile
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


def sparsities(kind: str, method: str) -> list[float]:
    """The shares to locate at. The published gates, whose rate and epochs are chosen anew at each, get one: it takes half an hour of a core."""
    if kind == "full":
        return [1e-5, 1e-4, 1e-3, 1e-2]
    return [1e-4] if method == "sigmoid" else [1e-5, 1e-4]


def run(base: Checkpoint, kind: str, name: str, seed: int, data: Path, method: str, tuned_at: Path) -> dict:
    """Locate in one tuned checkpoint, made where it isn't there, by one method; with it the baselines, where it is the first."""
    shots = None if kind == "full" else 64
    files = {split: data / name / f"{split}.jsonl" for split in ("train", "test")}
    task = Task.load(name, **files, shots=shots, seed=seed)
    if not tuned_at.exists():
        tune(base, task, Recipe("adamw" if kind == "adamw" else "sgd-l1"), seed=seed).save(tuned_at)
    tuned = json.loads((tuned_at / "report.json").read_text())
    report = graft(
        base,
        tuned_at,
        task,
        sparsity=1e-4,
        sweep=sparsities(kind, method),
        method=method,
        baselines=method == "dual-averaging" and (kind == "few" or (seed == 0 and kind != "causal")),
        seed=seed,
    ).report
    found = {"kind": kind, "task": name, "seed": seed, "method": method, "moved": tuned["moved"]}
    found |= {"recipe": tuned["recipe"], "tune_seconds": tuned["seconds"], "points": report["points"]}
    keys = ("accuracy", "ece", "ece_scaled", "accuracy_bias_fitted")
    return found | {
        who: {key: report[who][key] for key in keys if key in report[who]} for who in ("base", "tuned", "graft")
    }


def main() -> None:
    """Append one line a run and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SETS)
    parser.add_argument("--model", help="checkpoint; default MiniLM from its package")
    parser.add_argument("--shared", type=Path, required=True, help="folder with trec/train.jsonl and so on")
    parser.add_argument("--methods", default="dual-averaging,sigmoid")
    parser.add_argument("--only", help="tasks, with commas")
    parser.add_argument("--seeds", help="seeds of the data, with commas")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    base = Checkpoint(arguments.model) if arguments.model else minilm()
    held = [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    done = {(found["task"], found["seed"], found["method"]) for found in held if found["kind"] == arguments.kind}
    wanted = [
        (task, seed)
        for task, seed in SETS[arguments.kind]
        if (arguments.only is None or task in arguments.only.split(","))
        and (arguments.seeds is None or str(seed) in arguments.seeds.split(","))
    ]
    for name, seed in wanted:
        with tempfile.TemporaryDirectory() as scratch:
            for method in arguments.methods.split(","):
                if (name, seed, method) in done:
                    continue
                folder = Path(scratch) / "tuned"
                found = run(base, arguments.kind, name, seed, arguments.shared, method, folder)
                with arguments.output.open("a") as file:
                    file.write(json.dumps(found) + "\n")
                accuracies = [found[who]["accuracy"] for who in ("base", "tuned", "graft")]
                print(name, seed, method, *accuracies, flush=True)


if __name__ == "__main__":
    main()
