"""Free memory where a control group grants less than the machine has."""

import pytest
import torch

from surgery.memory import free_memory

CPU = torch.device("cpu")


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal:  8000 kB\nMemAvailable:  5000 kB\nHugePages_Total:  0\n"}
SECOND, FIRST = "sys/fs/cgroup/memory.", "sys/fs/cgroup/memory/memory."


@pytest.mark.parametrize(
    "files, free",
    [
        ({}, 8 << 30),
        (MACHINE, 5000 << 10),
        (MACHINE | {f"{SECOND}max": "max\n"}, 5000 << 10),
        (
            MACHINE
            | {f"{SECOND}max": "3000\n", f"{SECOND}current": "2500\n", f"{SECOND}stat": "anon 1\ninactive_file 400\n"},
            900,
        ),
        (
            MACHINE
            | {
                f"{FIRST}limit_in_bytes": "3000\n",
                f"{FIRST}usage_in_bytes": "3500\n",
                f"{FIRST}stat": "total_inactive_file 100\n",
            },
            0,
        ),
        (MACHINE | {f"{SECOND}max": f"{1 << 60}\n", f"{SECOND}current": "1\n", f"{SECOND}stat": "inactive_file 0\n"}, 5000 << 10),
    ],
)  # fmt: skip
def test_the_least_of_what_is_granted(tmp_path, files, free):
    assert free_memory(CPU, write(tmp_path, files)) == free


def test_this_machine_has_some():
    assert free_memory(CPU) > 1 << 20
