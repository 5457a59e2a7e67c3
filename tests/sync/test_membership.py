"""Workers that die, stop, wake and join: who is left goes on with the same weights, bit for bit."""

import os
import signal
import time

import pytest
import torch

from surgery.sync import QSR, LeftOutError, Schedule, Workers
from surgery.sync import averaging as module
from surgery.sync.workers import WorkerLostError, launcher_store
from tests.support.fleet import fleet

STEPS, H, SIZE = 24, 3, 60_000
BUCKET = 1 << 14  # 15 of them


def gradient(rank, step):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(1000 * rank + step))


def train(rank, folder, die=None, timeout=20.0, workers=None):
    """Train; `die(rank, place)` is asked at every place of every step, and acts on this process."""
    weight = torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    schedule = Schedule("constant", h_base=H, steps=STEPS)
    sync = QSR(optimizer, schedule=schedule, bucket=BUCKET, timeout=timeout, workers=workers)
    gaps = [0.0]
    if die:
        send = module.Averager._average

        def average(self, pieces, count):
            die(rank, sync.clock.step, "bucket")
            send(self, pieces, count)

        module.Averager._average = average
    while sync.clock.step < STEPS:
        weight.grad = gradient(rank, sync.clock.step)
        optimizer.step()
        if die:
            die(rank, sync.clock.step, "step")
        began = time.monotonic()
        sync.step()
        gaps.append(time.monotonic() - began)
    report = sync.finish()
    return weight.detach().clone(), report, max(gaps)


class Dies:
    """Sends this process a signal at the n-th bucket, or step, of some workers; tells of it by a file."""

    def __init__(self, folder, plans, number=signal.SIGKILL):
        self.folder, self.plans, self.number, self.seen = folder, plans, number, {}

    def __call__(self, rank, step, place):
        count = self.seen[rank, place] = self.seen.get((rank, place), 0) + 1
        if self.plans.get(rank) == (place, count):
            (self.folder / f"struck{rank}").write_text("")
            os.kill(os.getpid(), self.number)


def same(found):
    first = next(iter(found.values()))[0]
    return all(torch.equal(first, weight) for weight, _, _ in found.values())


@pytest.mark.parametrize(
    "plans",
    [
        {0: ("step", 7)},  # before a round's end, worker 0, which the others hear first
        {2: ("bucket", 20)},  # in the middle of an averaging
        {0: ("bucket", 16)},  # at its first bucket
        {3: ("bucket", 30)},  # at its last
        {1: ("bucket", 17), 2: ("bucket", 25)},  # two in one averaging
        {0: ("step", 8), 3: ("bucket", 50)},
    ],
)
def test_killed_workers_are_left_out_and_the_others_agree(tmp_path, plans):
    with fleet(tmp_path, 4) as made:
        for rank in range(4):
            made.start(rank, train, tmp_path, Dies(tmp_path, plans))
        alive = [rank for rank in range(4) if rank not in plans]
        found = made.results(*alive)
    assert same(found)
    for _, report, gap in found.values():
        assert sorted(report.lost) == sorted(plans)
        assert report.lengths == [H] * (STEPS // H)
        assert report.rounds[-1].workers == len(alive)
        assert gap < 5.0


def torn(rank, number):
    """Three workers; the last dies as a bucket of the second round is whole, on one survivor and not on the other."""
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    sync = QSR(optimizer, schedule=Schedule("constant", h_base=3, steps=12), bucket=1 << 11, timeout=4.0)  # two buckets
    send, seen = module.Averager._average, []

    def average(self, pieces, count):
        seen.append(1)
        if len(seen) == 2 + number and rank == 1:
            self.workers.all_reduce(self._read(pieces))
            raise WorkerLostError("its connection to the dead worker broke first")
        send(self, pieces, count)
        if len(seen) == 2 + number and rank == 2:
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGKILL)

    module.Averager._average = average
    while sync.clock.step < 12:
        weight.grad = gradient(rank, sync.clock.step)[:1000]
        optimizer.step()
        sync.step()
    return weight.detach().clone(), sync.finish(), 0.0


@pytest.mark.parametrize("number", [1, 2])
def test_a_bucket_that_only_some_have_is_sent_to_the_others(number, tmp_path):
    """The round's last bucket too, after which those who have it are a phase ahead."""
    with fleet(tmp_path, 3) as made:
        for rank in range(3):
            made.start(rank, torn, number)
        found = made.results(0, 1, seconds=30)
    assert same(found) and found[0][1].lost == (2,)
    assert found[0][1].lengths == [3] * 4


def test_what_the_survivors_have_is_their_mean_and_of_the_dead_workers_what_was_whole(tmp_path):
    with fleet(tmp_path, 3) as made:
        for rank in range(3):
            made.start(rank, train, tmp_path, Dies(tmp_path, {2: ("bucket", 1)}))
        found = made.results(0, 1)
    weights = [torch.zeros(SIZE) for _ in range(2)]
    speed = [torch.zeros(SIZE) for _ in range(2)]
    for step in range(STEPS):
        for rank in range(2):
            speed[rank] = 0.9 * speed[rank] + gradient(rank, step)
            weights[rank] = weights[rank] - 0.1 * speed[rank]
        if (step + 1) % H == 0:
            weights = [(weights[0] + weights[1]) / 2] * 2
    assert torch.allclose(found[0][0], weights[0], atol=1e-5)


def test_a_worker_that_stops_is_left_out_at_the_timeout_and_refused_when_it_wakes(tmp_path):
    with fleet(tmp_path, 3) as made:
        for rank in range(3):
            made.start(rank, train, tmp_path, Dies(tmp_path, {1: ("step", 8)}, signal.SIGSTOP), 2.0)
        found = made.results(0, 2)
        assert same(found)
        assert found[0][1].lost == (1,)
        made.signal(1, signal.SIGCONT)
        woken = made.results(1)[1]
    assert isinstance(woken, LeftOutError)
    assert "worker 1 stopped for too long and was left out" in str(woken)


def slowly(rank, folder):
    """Train, and wait at step 6 until a newcomer has asked to join."""
    store = launcher_store()

    def wait(rank, step, place):
        if place == "step" and step == 6:
            (folder / "waiting").write_text("")
            until = time.monotonic() + 20
            while not store.add("latecomers", 0) and time.monotonic() < until:
                time.sleep(0.01)

    return train(rank, folder, wait)


def late(rank, folder):
    take_over = QSR._take_over

    def noted(self):
        take_over(self)
        momentum = self.optimizer.state[self.parameters[0]]["momentum_buffer"]
        (folder / "momentum").write_text(str(float(momentum.norm())))

    QSR._take_over = noted
    return train(rank, folder, workers=Workers.latecomer())


def test_a_new_worker_joins_at_the_end_of_a_round(tmp_path):
    with fleet(tmp_path, 2) as made:
        for rank in range(2):
            made.start(rank, slowly, tmp_path)
        made.wait_for("waiting")
        made.start(2, late, tmp_path)
        found = made.results(0, 1, 2)
    assert same(found)
    assert [each.workers for each in found[0][1].rounds][:3] == [2, 2, 2]
    assert found[0][1].rounds[-1].workers == 3
    assert found[2][1].rounds == found[0][1].rounds
    assert float((tmp_path / "momentum").read_text()) > 100  # that of the worker that let it in
