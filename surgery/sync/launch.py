"""Under torchrun: one process of each worker that outlives it, and one sentence for all of them.

torchrun ends every worker of a machine when one of them dies. So what it starts is a process that only starts the worker
itself and waits: if the worker is killed while others go on, that process stays until they have ended.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

LEFT_OUT = 77  # exit status of a worker that the others go on without
_INSIDE = "SURGERY_WORKER"
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
_LOOK = 0.2


def workers_here() -> int:
    """Number of workers that a launcher started, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def under_launcher() -> bool:
    """Whether a launcher such as torchrun started this process."""
    return "RANK" in os.environ and "MASTER_ADDR" in os.environ


def is_outer() -> bool:
    """Whether this process was started by a launcher of several workers and is to start the worker itself."""
    return under_launcher() and workers_here() > 1 and _INSIDE not in os.environ


def outlive(arguments: Sequence[str]) -> int:
    """Run the command in a process of its own; its exit status, or 0 once the others have ended without it."""
    child = subprocess.Popen([sys.executable, "-m", "surgery", *arguments], env={**os.environ, _INSIDE: "1"})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: child.send_signal(received))
    status = child.wait()
    if -status in (signal.SIGTERM, signal.SIGINT):
        return 128 - status
    if status >= 0 and status != LEFT_OUT:
        return status
    return 0 if _others_ended() else 1


def die_with_parent() -> None:
    """Have the worker killed when the process that started it dies, where the system can."""
    if _INSIDE in os.environ:
        end_with_parent()


def end_with_parent() -> None:
    """Have this process killed when the one that started it dies, where the system can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _others_ended() -> bool:
    """Wait for the others of a run that goes on without its dead; False where it can't, or nobody is left."""
    from surgery.sync.workers import launcher_store

    try:
        store = launcher_store()
        if not store.check(["together"]):
            return False
        dead = store.add("dead", 1)
        while not store.check(["over"]):
            if store.check(["failed"]) or dead == workers_here() or store.add("dead", 0) == workers_here():
                return False
            time.sleep(_LOOK)
    except RuntimeError:
        return False
    return True


def tell_failure() -> bool:
    """Tell the other workers that this one ends by a mistake of the user's; whether it is the one to say so."""
    if workers_here() == 1:
        return True
    from surgery.sync.workers import launcher_store

    try:
        store: Any = launcher_store()
        mine = str(os.environ["RANK"])
        return bytes(store.compare_set("failed", "", mine)).decode() == mine
    except RuntimeError:
        return True
