"""Print what `localization` measured as Markdown: python -m tests.benchmarks.tables FILE..."""

import json
import sys
from pathlib import Path
from statistics import mean


def rows(files: list[str]) -> list[dict]:
    """All runs of all files, those that differ in the method alone as one; the figures of the graft are the first method's."""
    runs: dict[tuple, dict] = {}
    for line in (line for file in files for line in Path(file).read_text().splitlines()):
        found = json.loads(line)
        run = runs.setdefault((found["kind"], found["task"], found["seed"]), found)
        if run is not found:
            run["points"] += found["points"]
    return list(runs.values())


def point(run: dict, method: str, sparsity: float) -> dict | None:
    """The point of a run by method and the sparsity asked for."""
    return next((p for p in run["points"] if p["method"] == method and 0.9 < p["sparsity"] / sparsity < 1.1), None)


def cell(found: dict | None) -> str:
    """Gain and agreement."""
    return f"{found['gain_recovered']:.2f} / {found['agreement']:.3f}" if found else ""


def main() -> None:
    """A row a run, then means; then a table of sparsities for runs on whole training sets."""
    runs = rows(sys.argv[1:])
    print(
        "| task, seed | moved | base | tuned | 1e-4: gain / agreement | sigmoid 1e-4 | movement 1e-4 | 1e-5 | sigmoid 1e-5 | movement 1e-5 | random 1e-4 | ECE tuned, graft | temperature scaled | seconds: graft, sigmoid |"
    )
    print("|" + "---|" * 14)
    for run in runs:
        at = {
            (m, s): point(run, m, s) for m in ("dual-averaging", "sigmoid", "movement", "random") for s in (1e-4, 1e-5)
        }
        random = at["random", 1e-4]
        seconds = [
            f"{at[m, 1e-4]['seconds']:.0f}"
            for m in ("dual-averaging", "sigmoid")
            if at[m, 1e-4] and at[m, 1e-4].get("seconds")
        ]
        print(
            f"| {run['task']} {run['seed']} | {run['moved']:,} | {run['base']['accuracy']:.3f} | {run['tuned']['accuracy']:.3f} | "
            + " | ".join(cell(at[m, s]) for s in (1e-4, 1e-5) for m in ("dual-averaging", "sigmoid", "movement"))
            + f" | {'' if random is None else format(random['gain_recovered'], '.2f')} | {run['tuned']['ece']:.3f}, {run['graft']['ece']:.3f}"
            + f" | {run['tuned']['ece_scaled']:.3f}, {run['graft']['ece_scaled']:.3f} | {', '.join(seconds)} |"
        )
    for method in ("dual-averaging", "sigmoid", "movement"):
        for sparsity in (1e-4, 1e-5):
            found = [p for run in runs if (p := point(run, method, sparsity))]
            if found:
                gains = [p["gain_recovered"] for p in found]
                agreement = [p["agreement"] for p in found]
                print(
                    f"{method} {sparsity:g}: gain mean {mean(gains):.3f}, worst {min(gains):.3f}; agreement mean {mean(agreement):.3f}, worst {min(agreement):.3f}"
                )
    print(
        f"ECE: tuned {mean(run['tuned']['ece'] for run in runs):.3f}, graft {mean(run['graft']['ece'] for run in runs):.3f}"
    )
    for run in runs:
        if run["kind"] == "full":
            # Every method's points stand in the order of the sparsities asked for; it may have fewer weights to give.
            methods = list(dict.fromkeys(p["method"] for p in run["points"]))
            print(f"\n| {run['task']}: accuracy (weights) at | 1e-5 | 1e-4 | 1e-3 | 1e-2 |\n|---|---|---|---|---|")
            for method in methods:
                cells = [f"{p['accuracy']:.3f} ({p['weights']:,})" for p in run["points"] if p["method"] == method]
                print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
