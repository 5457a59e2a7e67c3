"""How much memory is free, also where a container or a batch system grants less than the machine has."""

import contextlib
from pathlib import Path

import torch

_SOME_BYTES = 8 << 30  # where nothing says what there is

# Limit, use, statistics and what the statistics call file pages that can be dropped: control groups, second and first version.
_GROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def room(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes of memory that are free; `root` is where /proc and /sys are."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    found = []
    with contextlib.suppress(OSError, KeyError):
        found.append(_table(root / "proc/meminfo")["MemAvailable:"] << 10)
    for limit, used, table, droppable in _GROUPS:
        with contextlib.suppress(OSError, KeyError, ValueError):  # "max": no limit
            granted = int((root / limit).read_text())
            taken = int((root / used).read_text()) - _table(root / table)[droppable]
            found.append(max(0, granted - taken))
    return min(found, default=_SOME_BYTES)


def _table(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in file.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
