"""Memory: how much is free, how much a piece of work needs at its fullest, and a refusal where that is more.

What is free counts also where a container or a batch system grants less than the machine has. What work needs is found
by rehearsing it: its own code runs over tensors that have shapes and no content, and a meter adds up what is alive.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from surgery.errors import OptionError, SurgeryError

_SOME_BYTES = 8 << 30  # where nothing says what there is
_GAPS = 5  # one part in so many is what a C library's allocator leaves unused on a CPU: 6 to 29% were measured

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


def free_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes of memory that are free; `root` is where /proc and /sys are."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    amounts = []
    with contextlib.suppress(OSError, KeyError):
        amounts.append(_table(root / "proc/meminfo")["MemAvailable:"] << 10)
    for limit, used, table, droppable in _GROUPS:
        with contextlib.suppress(OSError, KeyError, ValueError):  # "max": no limit
            granted = int((root / limit).read_text())
            taken = int((root / used).read_text()) - _table(root / table)[droppable]
            amounts.append(max(0, granted - taken))
    return min(amounts, default=_SOME_BYTES)


def _table(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    rows = (line.split() for line in file.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


@dataclass(frozen=True)
class Need:
    """Memory of a device that work needs at its peak.

    Attributes:
        parts: bytes by what they are for. `lower`: what to do where they are too many.
        files: bytes that it writes to disk, by what they are.
        note: what isn't counted; empty where all is.
    """

    what: str
    device: torch.device
    parts: Mapping[str, int]
    lower: str
    files: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of_peak(
        cls,
        what: str,
        device: torch.device,
        known: Mapping[str, int],
        find: Callable[[], int],
        lower: str,
        files: Mapping[str, int],
    ) -> "Need":
        """Add up bytes that are known and take the rest of the peak that a rehearsal finds for activations.

        Code that can't run over tensors without content, as where it looks at numbers, leaves activations uncounted, and
        `note` says so.
        """
        try:
            peak, note = find(), ""
        except (SurgeryError, OSError):
            raise
        except Exception as error:  # whatever a model's code raises on tensors without content
            peak, note = 0, f"activations aren't counted: it can't be rehearsed ({type(error).__name__})"
        parts = {name: count for name, count in known.items() if count}
        parts["activations"] = max(0, peak - sum(parts.values()))
        if device.type == "cpu":
            parts["gaps between"] = sum(parts.values()) // _GAPS
        return cls(what, device, parts, lower, files, note)

    @property
    def total(self) -> int:
        """All parts together, in bytes."""
        return sum(self.parts.values())

    def check(self) -> "Need":
        """Itself; raises OptionError, with both sizes and what to lower, for more than is free."""
        if self.total > (free := free_memory(self.device)):
            raise OptionError(
                f"{self.what} needs {size(self.total)} on {self.device}, which has {size(free)} free: {self.lower}"
            )
        return self

    def content(self) -> dict[str, Any]:
        """All of it as JSON, in bytes."""
        content = {
            "device": str(self.device),
            "needed": self.total,
            "free": free_memory(self.device),
            "parts": dict(self.parts),
        }
        return {**content, "files": dict(self.files), "lower": self.lower, **({"note": self.note} if self.note else {})}


def size(number: int) -> str:
    """Bytes for people, in powers of 1,024."""
    return f"{number / 2**30:.1f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def check_before(most: int, find: Callable[[], Need], device: torch.device) -> None:
    """Refuse work that is too large before it begins; it isn't rehearsed where `most`, which it can't exceed, is free.

    Raises OptionError as `Need.check` does.
    """
    if most > free_memory(device):
        find().check()


class Meter(TorchDispatchMode):
    """Adds up the memory of tensors on a device as they come and go, whether they have content or not.

    Numbers read from tensors without content are 1, truths False, so that code that waits for a loss goes on.

    Attributes:
        live, peak: bytes now, and at most since `restart`.
    """

    def __init__(self, device: torch.device, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.device, self.live, self.peak = device, 0, 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        for tensor in held:
            self._add(tensor)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it made."""
        if function is torch.ops.aten._local_scalar_dense.default:
            return _one(args[0].dtype) if _empty(args[0]) else function(*args)
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else (output,):
            if isinstance(tensor, Tensor):
                self._add(tensor)
        return output

    def restart(self) -> None:
        """Count the peak from here on."""
        self.peak = self.live

    def _add(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device.type or (storage := tensor.untyped_storage()) in self._known:
            return
        block = 512 if self.device.type == "cuda" else 1  # what torch's allocator rounds to
        count = -(-storage.nbytes() // block) * block
        self._known.add(storage)
        weakref.finalize(storage, self._drop, count).atexit = False
        self.live += count
        self.peak = max(self.peak, self.live)

    def _drop(self, count: int) -> None:
        self.live -= count


def _empty(tensor: Tensor) -> bool:
    from torch._subclasses import FakeTensor

    return isinstance(tensor, FakeTensor)


def _one(dtype: torch.dtype) -> bool | int | float:
    return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
