"""Checks and times on a card, in one table: python -m tests.benchmarks.gpu [--only NAME]...

Each part is a module of `tests.benchmarks.card` with a function `lines()`; it runs in a process of its own, so that one
that fails, hangs or fills the memory is a failed line and doesn't stop the others. A line's ratio must reach its target.
Exit status 1 if a line failed, 2 where there is no card.
"""

import argparse
import contextlib
import importlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict

from tests.benchmarks.card.measure import Line

# Seconds that each part may take, and all together: usual times are far below.
PARTS = {"pcfg": 80, "tint": 40, "pretrain": 40, "bottleneck": 50, "graft": 90, "memory": 40}

ALL = 235


def collected(name: str, seconds: float) -> list[Line]:
    """The lines of a part run in a process of its own; one that raises or takes too long is a failed line."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "tests.benchmarks.gpu", "--part", name]
        process = subprocess.Popen(command, stdout=printed, stderr=errors, text=True)
        try:
            failure = "" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            failure = f"took more than {seconds:g} s"
        printed.seek(0), errors.seek(0)
        found = []
        for text in printed:
            with contextlib.suppress(ValueError, TypeError):  # what a library prints is no line of ours
                found.append(Line(**json.loads(text)))
        if failure:
            said = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            found.append(Line(f"{name}: the whole part", failure, "", 0.0, 1.0, said[:300]))
    return found


def table(lines: list[Line]) -> str:
    """A row for each line."""
    rows = [("name", "ours", "peer or floor", "ratio", "target", "ok", "note")]
    for line in lines:
        ratio = f"{line.ratio:.3g}" if line.ratio < 1e6 else "-"
        rows.append(
            (line.name, line.ours, line.peer, ratio, f"{line.target:g}", "ok" if line.ok else "FAILED", line.note)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:6], widths, strict=True)), row[6]]).rstrip() for row in rows
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(PARTS), help="this part only; may be given again")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        for line in importlib.import_module(f"tests.benchmarks.card.{options.part}").lines():
            print(json.dumps(asdict(line)), flush=True)
        return 0
    import torch

    if not torch.cuda.is_available():
        print("There is no card here (torch.cuda.is_available() is False): nothing was measured.")
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    found: list[Line] = []
    end = time.perf_counter() + ALL
    for name in options.only or PARTS:
        began = time.perf_counter()
        found += collected(name, min(PARTS[name], max(1, end - began)))
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    print(table(found))
    return 0 if all(line.ok for line in found) else 1


if __name__ == "__main__":
    sys.exit(main())
