"""The dense engine against torch-struct 0.5 in the same run: marginals of 20 nonterminals + 45 preterminals, batch 8.

    OMP_NUM_THREADS=2 python -m tests.benchmarks.dense

Ours is span marginals, tag posteriors and rule expectations; torch-struct's `marginals` has the labels of spans too. Times and
ratios are medians over turns in which each runs; memory is the growth of the peak in a process of its own that computes once.
"""

import subprocess
import sys
import time
import warnings

import numpy as np
import torch

from pcfg.dense.engine import dense_inside_outside, dense_sample, dense_viterbi, log_partition

NONTERMINALS, PRETERMINALS, BATCH = 20, 45, 8
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def scores(n, dtype):
    """A random grammar with softmax of normal scores for rules, and random words."""
    generator = torch.Generator().manual_seed(0)
    symbols = NONTERMINALS + PRETERMINALS
    draw = {"generator": generator, "dtype": torch.float64}
    start = torch.randn(symbols, **draw)
    start[NONTERMINALS:] = -torch.inf
    binary = torch.randn(NONTERMINALS, symbols * symbols, **draw).log_softmax(1).view(NONTERMINALS, symbols, symbols)
    emissions = torch.randn(BATCH, n, PRETERMINALS, **draw) - 5
    return start.log_softmax(0).to(dtype), binary.to(dtype), emissions.to(dtype), torch.full((BATCH,), n)


def ours(n, dtype):
    """Marginals of a batch by the dense engine."""
    given = scores(n, dtype)

    def run():
        result = dense_inside_outside(*given)
        return result.span_marginals, result.tag_posteriors, result.rule_expectations

    return run


def spans_only(n, dtype):
    """Without rule expectations."""
    given = scores(n, dtype)
    return lambda: dense_inside_outside(*given).span_marginals


def training(n, dtype):
    """Log Z and its gradient."""
    start, binary, emissions, lengths = scores(n, dtype)
    binary.requires_grad_(), emissions.requires_grad_()
    return lambda: torch.autograd.grad(log_partition(start, binary, emissions, lengths).sum(), (binary, emissions))


def theirs(n, dtype):
    """Marginals of a batch by torch-struct, which wants rules per sentence."""
    import torch_struct

    start, binary, emissions, lengths = scores(n, dtype)
    rules = binary.expand(BATCH, *binary.shape).contiguous()
    roots = start[:NONTERMINALS].expand(BATCH, NONTERMINALS).contiguous()
    warnings.filterwarnings("ignore", message=".*arg_constraints")  # of torch, about torch-struct
    return lambda: torch_struct.SentCFG((emissions, rules, roots), lengths=lengths).marginals


RUNS = {"ours": ours, "spans_only": spans_only, "training": training, "theirs": theirs}


def alternate(*runs, seconds=10.0):
    """Median time of each of some runs, in seconds, and of the first's time over theirs, over turns: five at least.

    What else the machine does meets them all. In a turn each runs twice, and the second run counts: the first clears away
    what the one before it left in caches and in the allocator.
    """
    turns, end = [], time.perf_counter() + seconds
    while len(turns) < 5 or time.perf_counter() < end:
        turns.append([])
        for run in runs:
            run()
            began = time.perf_counter()
            run()
            turns[-1].append(time.perf_counter() - began)
    found = np.array(turns)
    return np.median(found, 0), np.median(found[:, :1] / found, 0)


def growth(name, n, dtype):
    """Megabytes that computing once adds to a fresh process at its peak (Linux)."""
    # Not ru_maxrss: it starts from the parent's peak, and loading torch reaches higher than small runs do.
    code = (
        "import re; from pathlib import Path; from tests.benchmarks import dense as d; "
        f"d.ours(4, d.DTYPES[{dtype!r}])(); run = d.RUNS[{name!r}]({n}, d.DTYPES[{dtype!r}]); "
        "read = lambda key: int(re.search(key + r':\\s+(\\d+)', Path('/proc/self/status').read_text())[1]); "
        "Path('/proc/self/clear_refs').write_text('5'); before = read('VmRSS'); run(); print(read('VmHWM') - before)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(process.stdout.split()[-1]) * 1024 / 1e6


def main():
    """Print times, ratios and memory."""
    print(f"{torch.get_num_threads()} threads; milliseconds a batch of {BATCH}")
    for n in (20, 40):
        for label, dtype in DTYPES.items():
            names = ("torch-struct", "ours", "spans_only", "training")
            times, ratios = alternate(theirs(n, dtype), *(RUNS[name](n, dtype) for name in names[1:]))
            found = zip(names, times, ratios, strict=True)
            timings = ", ".join(f"{name} {1e3 * took:.1f} ({ratio:.0f}x)" for name, took, ratio in found)
            print(f"n = {n}, {label}: {timings}", flush=True)
    given = scores(40, torch.float64)
    result = dense_inside_outside(*given)
    print(f"n = 40, float64: Viterbi trees {1e3 * alternate(lambda: dense_viterbi(*given))[0][0]:.0f}")
    print(f"n = 40, float64: 100 samples a sentence {1e3 * alternate(lambda: dense_sample(result, 100))[0][0]:.0f}")
    for label in DTYPES:
        print(
            f"n = 40, {label}: memory {growth('ours', 40, label):.0f} MB, torch-struct {growth('theirs', 40, label):.0f} MB"
        )


if __name__ == "__main__":
    main()
