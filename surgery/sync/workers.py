"""Workers: the processes of a run, which go on together when one of them dies, stops or comes anew.

Each group of them is a generation: a process group over the launcher's store, made anew whenever the members change. A worker
that finds a collective broken closes its connections first, so that all others notice, and asks for the next generation; each
comes there at its next step, and the first who misses nobody that is alive writes down who belongs to it.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore
from torch.distributed.distributed_c10d import AllgatherOptions, AllreduceOptions, BroadcastOptions

from surgery.errors import OptionError
from surgery.sync.errors import EndedElsewhereError, LeftOutError, WorkerEndedError
from surgery.sync.pulse import SILENCE, Pulse, Watch

_LAUNCH = "start it with torchrun, such as torchrun --nproc-per-node 4 -m surgery tune ..."
_LOOK = 0.02  # seconds between looks at the store
_START, _CONNECT = 120.0, 10.0  # seconds in which a group meets, at the start and later


class WorkerLostError(Exception):
    """A collective failed, as a worker died or stopped: the others make a new group."""


class Workers:
    """The workers of a run and their present group.

    Attributes:
        me: this worker's number for the whole run. `members`: those of the present group, in order.
        generation: of the group, counted from 0. `timeout`: seconds that a collective waits for others.
        sent: bytes that this worker gave to collectives as payload. `lost`: numbers of workers that were left out.
        late: whether this worker joined a run under way. `notes`: what members brought to the group.
    """

    # Long: who is there, and what each needs to know of the others.
    def __init__(self, store: Any, me: int, members: Sequence[int], *, timeout: float = 60.0) -> None:
        self.store, self.me, self.members, self.timeout = store, me, tuple(members), timeout
        self.generation, self.sent = 0, 0
        self.lost: list[int] = []
        self.late = False
        self.notes: dict[int, dict[str, Any]] = {}
        self._group: Any = None
        self._fast: Any = None
        self._timed_out, self._meetings, self._stores = False, 0, 0
        self.pulse = Pulse(store, me)

    @classmethod
    def launched(cls, *, timeout: float = 60.0) -> "Workers":
        """Meet the workers that torchrun started.

        Raises OptionError without a launcher: none of its variables is in the environment.
        """
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if missing := [name for name in names if name not in os.environ]:
            raise OptionError(f"workers can't meet without a launcher ({missing[0]} isn't set): {_LAUNCH}")
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        workers = cls(launcher_store(), rank, range(world), timeout=timeout)
        workers.store.set("together", "")
        try:
            workers._connect(_START)
        except WorkerLostError:
            workers.regroup({"phase": 0, "done": 0})
        return workers

    @classmethod
    def latecomer(cls, store: Any = None, *, timeout: float = 60.0) -> "Workers":
        """Join a run under way as a new worker; returns when the others have let it in, at the end of a round."""
        store = store or launcher_store()
        me = int(os.environ["WORLD_SIZE"]) + store.add("latecomers", 1) - 1
        workers = cls(store, me, (), timeout=timeout)
        while not store.check([f"welcome/{me}"]):
            time.sleep(_LOOK)
        workers.generation = int(store.get(f"welcome/{me}")) - 1
        workers.late = True
        workers.regroup({"new": True})
        return workers

    @property
    def count(self) -> int:
        """Number of workers in the group."""
        return len(self.members)

    @property
    def rank(self) -> int:
        """This worker's place among the members."""
        return self.members.index(self.me)

    @property
    def first(self) -> bool:
        """Whether this worker is the one that writes and speaks."""
        return self.rank == 0

    def waiting(self) -> int:
        """Number of latecomers that have asked to join so far."""
        return int(self.store.add("latecomers", 0))

    def welcome(self, numbers: Sequence[int]) -> None:
        """Tell latecomers, and all members, that they belong to the next generation."""
        self.store.compare_set(f"generation/{self.generation + 1}/newcomers", "", json.dumps(list(numbers)))
        for number in numbers:
            self.store.set(f"welcome/{number}", str(self.generation + 1))

    def all_reduce(self, tensor: Tensor) -> None:
        """Add a tensor up over the workers, in place. Raises WorkerLostError."""
        self.sent += tensor.nbytes
        if self.count > 1:
            self._wait(lambda group: group.allreduce([tensor], self._options(AllreduceOptions())), tensor.device)

    def broadcast(self, tensor: Tensor, root: int) -> None:
        """Give all workers the tensor of the one whose place is `root`. Raises WorkerLostError."""
        self.sent += tensor.nbytes * (self.rank == root)
        if self.count > 1:
            options = self._options(BroadcastOptions())
            options.rootRank = root
            self._wait(lambda group: group.broadcast([tensor], options), tensor.device)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """The same number of values of every worker, by place. Raises WorkerLostError."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.count == 1:
            return [mine.tolist()]
        found = [torch.empty_like(mine) for _ in self.members]
        options = self._options(AllgatherOptions())
        self._wait(lambda group: group.allgather([found], [mine], options), mine.device)
        return [each.tolist() for each in found]

    def meet(self) -> None:
        """Wait until all workers are here, however long their work takes.

        Raises WorkerEndedError if one of them ended.
        """
        self._meetings += 1
        key, watch = f"meeting/{self._meetings}", Watch(self.store, self.timeout)
        self.store.set(f"{key}/{self.me}", "")
        while missing := [each for each in self.members if not self.store.check([f"{key}/{each}"])]:
            # One that came may have gone on and ended since.
            lost = any(watch.gone(each) and not self.store.check([f"{key}/{each}"]) for each in missing)
            if lost or self.store.check(["failed"]):
                self.refuse()
            time.sleep(_LOOK)

    def apart(self, purpose: str) -> Any:
        """A part of the launcher's store for one purpose, anew each time that all workers ask."""
        self._stores += 1
        return PrefixStore(f"{purpose}/{self._stores}", self.store)

    def add_up(self, tensor: Tensor) -> None:
        """`all_reduce` where nobody goes on without the others; raises WorkerEndedError if one of them ended."""
        try:
            self.all_reduce(tensor)
        except WorkerLostError:
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raise WorkerEndedError; or, where another worker has told a mistake, nothing but that."""
        if self.store.check(["failed"]):
            raise EndedElsewhereError("another worker ended by a mistake, which it has told")
        raise WorkerEndedError("a worker ended before its part was done: start all of them again")

    def asked_to_regroup(self) -> bool:
        """Whether another worker has found the group broken."""
        return self.pulse.wanted > self.generation

    def regroup(self, note: dict[str, Any]) -> dict[int, dict[str, Any]]:
        """Leave the group and make the next one with all that are alive; the notes that they brought, by number.

        Raises:
            LeftOutError: the others made it without this worker.
        """
        while True:
            self.close()
            self.notes = self._agree(note)
            try:
                self._connect()
            except WorkerLostError:
                continue
            return self.notes

    def close(self) -> None:
        """Close the connections of the group, which the others notice."""
        if self._fast is not None:
            self._fast.abort()
        self._group = self._fast = None

    def finish(self) -> None:
        """Tell the launcher's processes that the run has ended well."""
        self.store.set("over", "")

    def leave(self) -> None:
        """End this worker's part: nobody waits for it."""
        self.store.set(f"ended/{self.me}", "")
        self.close()
        self.pulse.stop()

    def _agree(self, note: dict[str, Any]) -> dict[int, dict[str, Any]]:
        self.generation += 1
        key = f"generation/{self.generation}"
        self.store.set(f"{key}/{self.me}", json.dumps(note))
        while (asked := self.store.add("wanted", 0)) < self.generation:
            self.store.add("wanted", self.generation - asked)
        watch = Watch(self.store, SILENCE if self._timed_out else self.timeout)
        self._timed_out = False
        newcomers = f"{key}/newcomers"
        awaited = [*self.members, *(json.loads(self.store.get(newcomers)) if self.store.check([newcomers]) else ())]
        while not self.store.check([f"{key}/members"]):
            if self.store.check(["failed"]):
                raise EndedElsewhereError("another worker ended by a mistake, which it has told")
            missing = [each for each in awaited if not self.store.check([f"{key}/{each}"]) and not watch.gone(each)]
            if note.get("new") or missing:
                time.sleep(_LOOK)
                continue
            here = [each for each in awaited if self.store.check([f"{key}/{each}"])]
            self.store.compare_set(f"{key}/members", "", json.dumps(here))
        members = json.loads(self.store.get(f"{key}/members"))
        if self.me not in members:
            raise LeftOutError(
                f"worker {self.me} stopped for too long and was left out ({len(members)} others go on without it): start it anew to join them"
            )
        gone = [each for each in self.members if each not in members]
        self.lost += [each for each in gone if not self.store.check([f"ended/{each}"])]
        self.members = tuple(members)
        return {each: json.loads(self.store.get(f"{key}/{each}")) for each in members}

    def _connect(self, seconds: float = _CONNECT) -> None:
        if self.count == 1:
            return
        store = PrefixStore(f"group/{self.generation}", self.store)
        try:
            self._group = ProcessGroupGloo(store, self.rank, self.count, timedelta(seconds=seconds))
        except RuntimeError as error:
            raise WorkerLostError(str(error)) from None
        if torch.cuda.is_available():
            self._fast = _nccl(PrefixStore("nccl", store), self.rank, self.count, self.timeout)

    def _options(self, options: Any) -> Any:
        options.timeout = timedelta(seconds=self.timeout)
        return options

    def _wait(self, call: Callable[[Any], Any], device: torch.device) -> None:
        """Make a collective and wait for its end."""
        group = self._fast if self._fast is not None and device.type == "cuda" else self._group
        began, failed = time.monotonic(), False
        try:
            call(group).wait()
        except RuntimeError:
            failed = True
        group = None  # a group that some frame still knows stays connected, and the others wait for it
        if failed:
            self._timed_out = time.monotonic() - began > 0.9 * self.timeout
            raise WorkerLostError


def launcher_store() -> Any:
    """A client of the store that torchrun keeps; without torchrun's own, worker 0 keeps one."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        host,
        port,
        is_master=not kept and os.environ["RANK"] == "0",
        timeout=timedelta(seconds=300),
        wait_for_workers=False,
    )
    return PrefixStore(f"surgery/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _nccl(store: Any, rank: int, count: int, timeout: float) -> Any:
    from torch.distributed import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=timeout)
    return ProcessGroupNCCL(store, rank, count, options)
