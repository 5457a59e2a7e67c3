"""The resident memory that work adds at its fullest, measured by the system in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def resident_peak(warm, work):
    """Bytes that the code `work` adds to a process's largest resident size, after the code `warm`, which loads the libraries."""
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
