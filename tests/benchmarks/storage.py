"""Applying a skill to a 500 MB checkpoint against copying its files, in time and memory.

python -m tests.benchmarks.storage
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.grafting.skill import Skill
from surgery.tasks.task import Task

LAYERS, WIDTH, WEIGHTS, RUNS = 30, 2048, 10_000, 7


def make(folder: Path) -> None:
    """A checkpoint of 503 MB in two shards' worth of plain square matrices."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaModel"]}')
    tensors = {f"layers.{i}.weight": torch.randn(WIDTH, WIDTH, generator=generator) for i in range(LAYERS)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def make_skill(base: Checkpoint) -> Skill:
    """A skill of 10,000 weights scattered over all tensors."""
    generator = torch.Generator().manual_seed(1)
    share = -(-WEIGHTS // LAYERS)
    parts = {}
    for name, entry in base.entries.items():
        index = torch.randperm(entry.size, generator=generator)[:share]
        parts[name] = (index, torch.randn(share, generator=generator))
    delta = SparseDelta.from_parts(base, parts, movable=LAYERS * WIDTH * WIDTH)
    task = Task.load("none", words={"no": "no", "yes": "yes"})
    return Skill(delta, task, {})


def peak_of_apply(work: Path) -> None:
    """In a process of its own: how far applying raises the peak above an interpreter with torch."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Skill.load(work / "skill").apply(work / "base", work / "child")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print((after - before) / 1000)


def main() -> None:
    """Print medians and ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        make(work / "base")
        base = Checkpoint(work / "base")
        skill = make_skill(base)
        content = skill.delta.to_bytes()
        (work / "skill").mkdir()
        skill = Skill(replace(skill.delta, metadata={"task": json.dumps(skill.task.spec())}), skill.task, {})
        (work / "skill" / "skill.safetensors").write_bytes(skill.delta.to_bytes())
        times: dict[str, list[float]] = {"copy": [], "copy and sync": [], "apply": [], "in place": []}
        for _ in range(RUNS):
            for name, sync in (("copy", False), ("copy and sync", True)):
                began = time.perf_counter()
                shutil.copytree(work / "base", work / "copied")
                if sync:
                    with (work / "copied" / "model.safetensors").open("rb") as file:
                        os.fsync(file.fileno())
                times[name].append(time.perf_counter() - began)
                shutil.rmtree(work / "copied")
            began = time.perf_counter()
            skill.apply(work / "base", work / "grafted")
            times["apply"].append(time.perf_counter() - began)
            began = time.perf_counter()
            skill.revert(work / "grafted", in_place=True)
            times["in place"].append(time.perf_counter() - began)
            assert (work / "grafted" / "model.safetensors").read_bytes() == (
                work / "base" / "model.safetensors"
            ).read_bytes()
            shutil.rmtree(work / "grafted")
        for name, seconds in times.items():
            print(f"{name}: median {median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f}")
        for name in ("copy", "copy and sync"):
            ratios = [a / b for a, b in zip(times["apply"], times[name], strict=True)]
            print(f"apply / {name}: median {median(ratios):.2f}")
        print(
            f"skill of {skill.delta.weights:,} weights: {len(content):,} bytes; allowed {12 * skill.delta.weights + 32_000:,}"
        )
        child = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.storage", str(work)], capture_output=True, text=True, check=True
        )
        print(f"memory that apply adds to an interpreter with torch loaded: {float(child.stdout):.0f} MB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        peak_of_apply(Path(sys.argv[1]))
    else:
        main()
