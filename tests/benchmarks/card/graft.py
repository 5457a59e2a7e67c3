"""Grafting a LLaMA of 1.07 billion weights in bfloat16 on a card: seconds, memory, and applying its skill against a copy."""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from surgery import Task, graft
from surgery.tasks.examples import Example
from tests.benchmarks.card.measure import Line, faster, within
from tests.support.tiny import WORDS, _tokenizer

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
BEFORE = 40.0  # seconds, on an H200


def checkpoints(folder: Path, sizes: dict[str, int] = SIZES) -> tuple[Path, Path]:
    """A random LLaMA in bfloat16 on the card, and the same with 1% of each block tensor moved."""
    tokenizer = _tokenizer({"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"})
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).bfloat16()
    for name in ("base", "tuned"):
        if name == "tuned":
            with torch.no_grad():
                for part, parameter in model.named_parameters():
                    if ".layers." in part:
                        moved = torch.rand(parameter.shape, device="cuda") < 0.01
                        parameter[moved] += 0.02 * torch.randn(int(moved.sum()), device="cuda").bfloat16()
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "base", folder / "tuned"


def task() -> Task:
    """128 training and 200 test texts of 5 to 30 words."""
    draw = random.Random(0)
    rows = [
        Example(" ".join(draw.choices(WORDS, k=draw.randint(5, 30))), "", draw.choice(("negative", "positive")))
        for _ in range(328)
    ]
    return Task.load("sst2", train=rows[:128], test=rows[128:])


def lines() -> Iterator[Line]:
    """What a user waits for, everything read from disk once it has been written."""
    with tempfile.TemporaryDirectory() as scratch:
        base, tuned = checkpoints(Path(scratch))
        weights = (base / "model.safetensors").stat().st_size
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        began = time.perf_counter()
        skill = graft(base, tuned, task(), sparsity=1e-4, device="cuda", dtype="bfloat16")
        took = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() - before
        located = skill.report["points"][0]["seconds"]
        note = f"locating {located:.1f} s; {BEFORE:.0f} s before"
        yield within("graft LLaMA 1.1B bfloat16, 128 + 200 examples", took, 12.0, lambda x: f"{x:.1f} s", note)
        yield within("graft: peak, in models", peak / weights, 1.3)
        began = time.perf_counter()
        skill.apply(base, Path(scratch) / "grafted")
        ours = time.perf_counter() - began
        began = time.perf_counter()
        shutil.copytree(base, Path(scratch) / "copy")
        for path in (Path(scratch) / "copy").iterdir():
            with path.open("rb") as file:
                os.fsync(file)
        yield faster("apply 2 GB; a synced copy", ours, time.perf_counter() - began, 0.7)
