"""How long work takes, and the resident memory that it adds at its fullest."""

import os
import subprocess
import sys
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def best_of(run, times=5):
    """Shortest of several runs, in seconds."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        spent.append(time.perf_counter() - began)
    return min(spent)


def resident_peak(warm, work):
    """Bytes that the code `work` adds to a process's largest resident size, after the code `warm`, which loads the libraries.

    Measured by the system, in a process of its own.
    """
    lines = [
        # Not getrusage: that starts from the largest size of the process that started this one.
        "def most(): return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))",
        warm,
        "before = most()",
        work,
        "print('ADDED', most() - before)",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return 1024 * int(done.stdout.rsplit("ADDED", 1)[1])
