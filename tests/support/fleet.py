"""Several processes as torchrun starts them: forked, with the launcher's store in this one."""

import multiprocessing
import os
import pickle
import signal
import time
import traceback
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # which optimizers import at their first step, in each process
from torch.distributed import TCPStore

_FORK = multiprocessing.get_context("fork")


def _keep_store(pipe):
    """Keep the store, in a process of its own: one that has threads can't be forked safely."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    pipe.send(store.port)
    pipe.recv()


class Fleet:
    """Processes that run one function, `work(rank, *given)`, and what each of them returned."""

    def __init__(self, folder, port, world):
        self.folder, self.port, self.world = folder, port, world
        self.processes = {}

    def start(self, rank, work, *given):
        """Start one more."""
        process = _FORK.Process(target=self._run, args=(rank, work, given), daemon=True)
        process.start()
        self.processes[rank] = process

    def _run(self, rank, work, given):
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        try:
            found = work(rank, *given)
        except Exception as error:
            traceback.print_exc()  # pytest shows it if the test fails
            found = error
        file = self.folder / f"{rank}.pickle"
        file.with_suffix(".new").write_bytes(pickle.dumps(found))
        file.with_suffix(".new").rename(file)
        os._exit(0)

    def signal(self, rank, number=signal.SIGKILL):
        """Send a process a signal."""
        os.kill(self.processes[rank].pid, number)

    def wait_for(self, name, seconds=60.0):
        """Wait until some process has written a file of this name."""
        until = time.monotonic() + seconds
        while not (self.folder / name).exists():
            assert time.monotonic() < until, f"no {name}"
            time.sleep(0.01)

    def results(self, *ranks, seconds=90.0):
        """What these processes returned, or raised, by rank."""
        found = {}
        until = time.monotonic() + seconds
        for rank in ranks or range(self.world):
            self.processes[rank].join(max(0.0, until - time.monotonic()))
            file = self.folder / f"{rank}.pickle"
            assert file.exists(), f"process {rank} returned nothing"
            found[rank] = pickle.loads(file.read_bytes())
        return found


@contextmanager
def fleet(folder, world):
    """Yield a fleet that is gone when the block ends."""
    ours, theirs = _FORK.Pipe()
    keeper = _FORK.Process(target=_keep_store, args=(theirs,), daemon=True)
    keeper.start()
    made = Fleet(Path(folder), ours.recv(), world)
    try:
        yield made
    finally:
        for process in made.processes.values():
            if process.is_alive():
                process.kill()
            process.join()
        keeper.kill()
        keeper.join()


def run_all(folder, world, work, *given, seconds=90.0):
    """What `work(rank, *given)` returns in each of several processes."""
    with fleet(folder, world) as made:
        for rank in range(world):
            made.start(rank, work, *given)
        return made.results(seconds=seconds)
