"""Averaging by several processes: means against a plain sum, DDP, bytes, memory, BatchNorm, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from surgery.errors import OptionError
from surgery.sync import QSR, Schedule, SyncReport, plan, warmed_up
from surgery.sync.averaging import Averager
from surgery.sync.batchnorm import estimate_anew
from surgery.sync.workers import Workers
from tests.support.fleet import run_all


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))


def data(rank, steps, size=4):
    made = torch.Generator().manual_seed(100 + rank)
    return [(torch.randn(size, 6, generator=made), torch.randint(3, (size,), generator=made)) for _ in range(steps)]


def of_many_kinds(rank):
    """Tensors of several dtypes and layouts, others on each worker."""
    made = torch.Generator().manual_seed(rank)
    found = [torch.randn(5, 7, generator=made), torch.randn(3, 2, 4, 5, generator=made)]
    found[1] = found[1].to(memory_format=torch.channels_last)
    return [
        *found,
        torch.randn(9, generator=made).double(),
        torch.randn(11, generator=made).bfloat16(),
        torch.randn(()),
    ]


def average(rank, bucket):
    workers = Workers.launched()
    averager = Averager(workers, lambda done: pytest.fail("nobody died"), bucket)
    tensors = of_many_kinds(rank)
    averager.average(tensors)
    workers.gather([0.0])
    workers.leave()
    return tensors, averager.largest, workers.sent


@pytest.mark.parametrize("bucket", [64, 1 << 20])
def test_means_are_in_place_of_every_dtype_and_layout(tmp_path, bucket):
    found = run_all(tmp_path, 3, average, bucket)
    asked = [of_many_kinds(rank) for rank in range(3)]
    for number, tensor in enumerate(found[0][0][:4]):
        mean = sum(each[number].double() for each in asked) / 3
        assert torch.allclose(tensor.double(), mean, atol=2e-2 if tensor.dtype == torch.bfloat16 else 1e-6)
        assert all(torch.equal(tensor, found[rank][0][number]) for rank in range(3))
    assert all(largest <= bucket for _, largest, _ in found.values())
    assert found[0][2] == 4 * (35 + 120 + 11 + 1) + 8 * 9


def train(rank, world, steps, schedule, momentum=0.9):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum)
    sync, ends = QSR(optimizer, schedule=schedule), []
    rates = warmed_up(steps, 0.1, warmup=4)
    for step, (inputs, targets) in enumerate(data(rank, steps)):
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # after which torch's own averager has nothing to average
        if sync.step(loss):
            ends.append(step + 1)
    report = sync.finish(net)
    return [p.detach().clone() for p in net.parameters()], ends, report, sync.averager.largest


def distributed(rank, world, steps):
    """The same by torch's DDP."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    net = nn.parallel.DistributedDataParallel(model())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    rates = warmed_up(steps, 0.1, warmup=4)
    for step, (inputs, targets) in enumerate(data(rank, steps)):
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    dist.barrier()
    return [p.detach().clone() for p in net.module.parameters()]


def test_every_step_with_sgd_is_ddp(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    ours = run_all(tmp_path / "a", 2, train, 2, 12, Schedule("constant", h_base=1))
    theirs = run_all(tmp_path / "b", 2, distributed, 2, 12)
    for mine, other in zip(ours[0][0], theirs[0], strict=True):
        assert (mine - other).abs().max() < 1e-6


@pytest.mark.parametrize("steps", [None, 30])
def test_rounds_and_bytes_are_the_plans(tmp_path, steps):
    schedule = Schedule("qsr", alpha=0.2, h_base=3, warmup=4, steps=steps)
    found = run_all(tmp_path, 2, train, 2, 30, schedule)
    planned = plan(warmed_up(30, 0.1, warmup=4), schedule, weights=sum(p.numel() for p in model().parameters()))
    weights, ends, report, largest = found[0]
    assert report.lengths == list(planned.lengths)
    assert report.sent == planned.bytes
    assert largest <= 4 * planned.weights
    assert len(ends) == planned.rounds - (planned.steps != ends[-1])
    assert all(torch.equal(a, b) for a, b in zip(weights, found[1][0], strict=True))  # the last synchronisation
    assert [each.loss is not None for each in report.rounds][: len(ends)] == [True] * len(ends)
    report.save(tmp_path / "report")
    assert SyncReport.load(tmp_path / "report") == report


def alone(rank):
    """A loop over rounds written down plainly, in one process: each worker's steps, then the mean."""
    nets = [model() for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in nets]
    batches, rates = [data(worker, 30) for worker in range(2)], warmed_up(30, 0.1, warmup=4)
    ends = set(torch.tensor(plan(rates, alpha=0.2, h_base=3, warmup=4).lengths).cumsum(0).tolist())
    for step in range(30):
        for net, optimizer, own in zip(nets, optimizers, batches, strict=True):
            optimizer.param_groups[0]["lr"] = rates[step]
            optimizer.zero_grad()
            F.cross_entropy(net(own[step][0]), own[step][1]).backward()
            optimizer.step()
        if step + 1 in ends:
            with torch.no_grad():
                for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
                    a.copy_((a + b) / 2), b.copy_(a)
    return [p.detach() for p in nets[0].parameters()]


def test_a_run_is_a_plain_loops(tmp_path):
    found = run_all(tmp_path, 2, train, 2, 30, Schedule("qsr", alpha=0.2, h_base=3, warmup=4))
    for mine, plain in zip(found[0][0], alone(0), strict=True):
        assert torch.allclose(mine, plain, atol=1e-6)


def with_origins(rank):
    net = model()
    origins = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sync = QSR(optimizer, schedule=Schedule("constant", h_base=1), origins=origins)
    with torch.no_grad():
        net[0].weight[rank] += 1.0
    sync.step()
    sync.finish()
    return [p.detach() for p in net.parameters()], origins


def test_what_moved_on_no_worker_keeps_its_bits(tmp_path):
    found = run_all(tmp_path, 3, with_origins)
    weights, origins = found[0]
    moved = weights[0] != origins[0]
    assert moved[:3].all()
    assert not moved[3:].any()
    assert torch.equal(weights[2], origins[2])
    assert torch.allclose(weights[0][:3], origins[0][:3] + 1 / 3)


def moments(rank, kept):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    sync = QSR(optimizer, schedule=Schedule("constant", h_base=2), moments=kept)
    for inputs, targets in data(rank, 4):
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        sync.step()
    sync.finish()
    return optimizer.state[net[0].weight]["exp_avg"]


@pytest.mark.parametrize("kept", [True, False])
def test_moments_are_averaged_if_asked(tmp_path, kept):
    found = run_all(tmp_path, 2, moments, kept)
    assert torch.equal(found[0], found[1]) == kept


def statistics(rank, anew):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sync = QSR(optimizer, schedule=Schedule("constant", h_base=2))
    batches = [inputs for inputs, _ in data(rank, 4)]
    for inputs in batches:
        net(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        sync.step()
    net[1].momentum = 0.3
    net.eval()
    report = sync.finish(net, batches if anew else None)
    buffers = sum(buffer.nbytes for buffer in net.buffers() if buffer.is_floating_point())
    assert report.sent == 2 * 4 * report.weights + buffers
    assert net[1].momentum == 0.3 and not net.training  # as they were
    states = [net[0](inputs).detach() for inputs in batches]
    return net[1].running_mean, torch.stack([state.mean(0) for state in states]).mean(0)


def test_batchnorms_statistics_are_estimated_anew_and_averaged(tmp_path):
    found = run_all(tmp_path, 2, statistics, True)
    assert torch.allclose(found[0][0], (found[0][1] + found[1][1]) / 2, atol=1e-6)
    assert torch.equal(found[0][0], found[1][0])


def estimated(mode, given):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.BatchNorm1d(5)).train(mode)
    net[3].eval(), net[2].eval()
    estimate_anew(net, given)
    return net


def test_frozen_norms_keep_their_statistics_and_parts_their_modes():
    batches = [inputs for inputs, _ in data(0, 4)]
    trained, evaluated = estimated(True, iter(batches)), estimated(False, batches)
    assert [part.training for part in trained] == [True, True, False, False]
    assert not any(part.training for part in evaluated.modules())
    assert torch.equal(trained[3].running_mean, torch.zeros(5))
    assert trained[1].running_mean.any() and evaluated[3].running_mean.any()


def test_statistics_of_no_batches_are_refused_and_stay():
    with pytest.raises(OptionError, match="there are no `batches` to estimate"):
        estimated(True, [])


def other_buffers(rank):
    net = nn.Sequential(model(), nn.BatchNorm1d(3))
    net[1].running_mean += rank
    return QSR(torch.optim.SGD(net.parameters(), lr=0.1), alpha=1.0, model=net)


def with_buffers(rank):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    sync = QSR(torch.optim.SGD(net.parameters(), lr=0.1), schedule=Schedule("constant", h_base=1), model=net)
    net(data(rank, 1)[0][0])
    before = net[1].running_mean.clone()
    sync.optimizer.step()
    sync.step(torch.tensor(float(rank)))
    return before, net[1].running_mean.clone(), sync.rounds[0].loss


def test_a_models_buffers_and_a_rounds_loss_are_means_of_all(tmp_path):
    found = run_all(tmp_path, 2, with_buffers)
    assert not torch.equal(found[0][0], found[1][0])
    for rank in range(2):
        assert torch.allclose(found[rank][1], (found[0][0] + found[1][0]) / 2, atol=1e-7)
        assert found[rank][2] == 0.5


def other_weights(rank):
    net = model(seed=rank)
    return QSR(torch.optim.SGD(net.parameters(), lr=0.1), alpha=1.0)


def unequal(rank):
    return train(rank, 2, 10 + rank, Schedule("constant", h_base=4))


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (other_weights, r"parameter 0 of shape \(10, 6\) differs between workers at the start"),
        (other_buffers, r"buffer 0 of shape \(3,\) differs between workers at the start"),
        (unequal, r"worker 1 (goes on|ended) after 1\d steps and worker 0 ended after 10 steps"),
    ],
)
def test_workers_that_differ_are_all_told(tmp_path, work, said):
    for error in run_all(tmp_path, 2, work).values():
        assert isinstance(error, OptionError)
        with pytest.raises(OptionError, match=said):
            raise error


def test_without_a_launcher(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(OptionError, match=r"can't meet without a launcher \(RANK isn't set\): start it with torchrun"):
        QSR(torch.optim.SGD(model().parameters(), lr=0.1), alpha=1.0)


def test_shards_are_refused():
    class Shard(nn.Parameter):
        def to_local(self):
            return self

    shard = Shard(torch.zeros(3))
    with pytest.raises(OptionError, match="a parameter is a shard"):
        QSR(torch.optim.SGD([shard], lr=0.1), alpha=1.0)


def within(rank, library):
    """The run of `train`, its model and optimizer in another library's hands."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    if library == "accelerate":
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # A process that is forked after a test of a Trainer would take that one's state for its own: of one process.
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=True)
        wrapped, stepping = accelerator.prepare(net, optimizer)
        backward = accelerator.backward
    else:
        torch.distributed.init_process_group("gloo")
        wrapped, stepping, backward = nn.parallel.DistributedDataParallel(net), optimizer, torch.Tensor.backward
    sync, rates = QSR(optimizer, schedule=Schedule("qsr", alpha=0.2, h_base=3, warmup=4)), warmed_up(30, 0.1, warmup=4)
    for step, (inputs, targets) in enumerate(data(rank, 30)):
        optimizer.param_groups[0]["lr"] = rates[step]
        with wrapped.no_sync():
            backward(F.cross_entropy(wrapped(inputs), targets))
        stepping.step()
        stepping.zero_grad()
        sync.step()
    sync.finish(net)
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("library", ["ddp", "accelerate"])
def test_ddp_and_accelerate_leave_averaging_to_rounds(tmp_path, library):
    found = run_all(tmp_path, 2, within, library)
    for mine, plain in zip(found[0], alone(0), strict=True):
        assert torch.allclose(mine, plain, atol=1e-6)
