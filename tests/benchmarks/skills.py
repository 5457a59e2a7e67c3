"""Two skills in one model: what is left of each task's gain once the skills of trec and subj are merged, by rule and sparsity.

    python -m tests.benchmarks.skills --shared ../shared/data --work WORK -o skills.jsonl      # MiniLM, 64 a class, three seeds

One JSON object a run on the output. Tuned checkpoints and skills are kept in WORK, and what is there or in the output
isn't made again, so a stopped benchmark goes on.
"""

import argparse
import json
import tempfile
from itertools import product
from pathlib import Path

from surgery import Checkpoint, Skill, Task, graft, score, tune
from surgery.grafting.algebra import overlap
from surgery.grafting.example import minilm
from surgery.grafting.merging import merge_skills

TASKS, SHOTS = ("trec", "subj"), 64
RULES = ("mean", "sum", "first", "last")


def load_task(name: str, seed: int, data: Path) -> Task:
    """A task with its few training examples and all of its test examples."""
    files = {split: data / name / f"{split}.jsonl" for split in ("train", "test")}
    return Task.load(name, **files, shots=SHOTS, seed=seed)


def located(base: Checkpoint, task: Task, seed: int, sparsity: str, work: Path) -> Skill:
    """The skill of a task, tuned and located where it isn't kept yet."""
    tuned, folder = work / "tuned" / f"{task.name}-{seed}", work / "skills" / f"{task.name}-{seed}-{sparsity}"
    if not tuned.exists():
        tune(base, task, seed=seed).save(tuned)
    if not folder.exists():
        graft(base, tuned, task, sparsity=float(sparsity), seed=seed).save(folder)
    return Skill.load(folder)


def run(base: Checkpoint, seed: int, sparsity: str, rule: str, data: Path, work: Path) -> dict:
    """Merge, apply and score: for each task the gain of its own skill and of the merged one, as shares of tuning's."""
    tasks = {name: load_task(name, seed, data) for name in TASKS}
    skills = {name: located(base, task, seed, sparsity, work) for name, task in tasks.items()}
    merged, shared = merge_skills(skills, rule), overlap(*(skill.delta for skill in skills.values()))
    found = {"seed": seed, "sparsity": sparsity, "rule": rule, "weights": merged.delta.weights, "tasks": {}}
    found |= {"shared": shared.shared, "sign_agreement": shared.sign_agreement, "alignment": shared.alignment}
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        folder = merged.apply(base, Path(scratch) / "merged")
        for name, task in tasks.items():
            report = skills[name].report
            low, high = report["base"]["accuracy"], report["tuned"]["accuracy"]
            accuracy = score(folder, task).accuracy
            found["tasks"][name] = {
                "weights": report["weights"],
                "base": low,
                "tuned": high,
                "alone": report["graft"]["accuracy"],
                "merged": accuracy,
                "gain_alone": report["graft"]["gain_recovered"],
                "gain_merged": (accuracy - low) / (high - low),
            }
    return found


def main() -> None:
    """Append one line a run; what the output holds already isn't run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint; default MiniLM from its package")
    parser.add_argument("--shared", type=Path, required=True, help="folder with trec/train.jsonl and so on")
    parser.add_argument("--work", type=Path, required=True, help="folder for tuned checkpoints and skills")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sparsities", default="1e-4,1e-3")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    base = Checkpoint(arguments.model) if arguments.model else minilm()
    held = [json.loads(line) for line in arguments.output.read_text().splitlines()] if arguments.output.exists() else []
    done = {(found["seed"], found["sparsity"], found["rule"]) for found in held}
    seeds = map(int, arguments.seeds.split(","))
    for seed, sparsity, rule in product(seeds, arguments.sparsities.split(","), RULES):
        if (seed, sparsity, rule) in done:
            continue
        found = run(base, seed, sparsity, rule, arguments.shared, arguments.work)
        with arguments.output.open("a") as file:
            file.write(json.dumps(found) + "\n")
        gains = {name: (round(t["gain_alone"], 3), round(t["gain_merged"], 3)) for name, t in found["tasks"].items()}
        print(seed, sparsity, rule, f"{found['shared']} shared; gain alone, merged:", gains, flush=True)


if __name__ == "__main__":
    main()
