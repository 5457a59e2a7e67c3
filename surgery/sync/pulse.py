"""Signs of life over the launcher's store: who is at work, who is gone, and whether the others have asked for a new group."""

import json
import os
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

SILENCE = 3.0  # seconds without a beat after which a process elsewhere is gone
_BEAT = 0.2


class Pulse:
    """A thread that beats in the store, and what it sees there.

    Attributes:
        wanted: the latest generation that some worker asked for.
    """

    def __init__(self, store: Any, me: int) -> None:
        self.me, self.wanted = me, 0
        # A client of its own: one that waits keeps others out.
        self._store, self._done = store.clone(), threading.Event()
        store.set(f"who/{me}", json.dumps(_self()))
        self._store.set_timeout(timedelta(seconds=30))
        self._beat()
        self._thread = threading.Thread(target=self._run, name="surgery-sync-pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop beating: to the others this worker is gone."""
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(_BEAT):
            try:
                self._beat()
            except RuntimeError:  # the launcher is gone, and the group with it
                return

    def _beat(self) -> None:
        self._store.add(f"beat/{self.me}", 1)
        self.wanted = self._store.add("wanted", 0)


class Watch:
    """Judge of which workers are gone, from their processes where they run on this machine and else from their beats.

    Args:
        patience: seconds without a beat after which a process of this machine that is there, but stopped, is left out.
    """

    def __init__(self, store: Any, patience: float) -> None:
        self._store, self._patience = store, patience
        self._seen: dict[int, tuple[int, float]] = {}
        self._who: dict[int, dict[str, Any]] = {}

    def gone(self, worker: int) -> bool:
        """Whether a worker is to be waited for no longer."""
        if self._store.check([f"ended/{worker}"]):
            return True
        if worker not in self._who:
            if not self._store.check([f"who/{worker}"]):
                return self._silent(worker, SILENCE)
            self._who[worker] = json.loads(self._store.get(f"who/{worker}"))
        who = self._who[worker]
        if who["machine"] != machine():
            return self._silent(worker, SILENCE)
        return not _is_there(who["pid"], who["began"]) or self._silent(worker, self._patience)

    def _silent(self, worker: int, seconds: float) -> bool:
        beat, now = self._store.add(f"beat/{worker}", 0), time.monotonic()
        if self._seen.get(worker, (None, 0.0))[0] != beat:
            self._seen[worker] = beat, now
        return now - self._seen[worker][1] > seconds


def _self() -> dict[str, Any]:
    return {"machine": machine(), "pid": os.getpid(), "began": _stat(os.getpid())[1]}


def machine() -> str:
    """This machine, and the space of process numbers on it, which a container has for itself."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 (no path)
    except OSError:
        return f"{socket.gethostname()} {os.getppid()}"


def _is_there(pid: int, began: str) -> bool:
    if not Path("/proc/self/stat").exists():
        return True  # then beats alone tell
    state, since = _stat(pid)
    return state not in ("", "Z", "X") and since == began


def _stat(pid: int) -> tuple[str, str]:
    """A process's state and when it began, as Linux has them; empty for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
