"""Forward passes at moved weights: what explicitly moved weights give, without any being written."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_model
from surgery.errors import CheckpointError, OptionError
from surgery.mezo import forward, weights
from surgery.mezo.forward import ShiftedModel
from surgery.mezo.noise import Noise, Place
from surgery.mezo.weights import RegionTensor, RoundedTensor, Shift, TunedTensor, join, split

NOISE, STEP, DIRECTION, EPS = Noise("rademacher", 9), 5, 1, 0.01


def tuned(model, how):
    """All of a model's tensors, each once, tuned in a way; each second region is few weights, each other one half."""
    names = model.checkpoint.structure._once(sorted(model.checkpoint.structure.parameters))
    made = []
    for number, name in enumerate(names):
        parameter = model.parameters[name]
        if how == "region":
            count = max(1, parameter.numel() // (20 if number % 2 else 2))
            order = torch.randperm(parameter.numel(), generator=torch.Generator().manual_seed(number))
            made.append(RegionTensor(name, number, parameter, NOISE, order[:count].sort().values))
        else:
            made.append((RoundedTensor if how == "rounded" else TunedTensor)(name, number, parameter, NOISE))
    return made


def read(module, **batch):
    output = module(**batch)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def explicit(model, tensors, scale, **batch):
    """What a copy of the model gives whose weights are set to W + scale z, one by one in torch."""
    moved = copy.deepcopy(model.module)
    theirs = {id(own): other for own, other in zip(model.module.parameters(), moved.parameters(), strict=True)}
    with torch.no_grad():
        for tensor in tensors:
            own = theirs[id(tensor.parameter)]
            own.copy_(moved_by(tensor, scale, own))
    return read(moved, **batch)


def moved_by(tensor, scale, parameter):
    """W + scale z, a number at a time."""
    flat = parameter.detach().clone().view(-1)
    index = getattr(tensor, "indices", torch.arange(len(flat)))
    noise = NOISE.at(index, Place(tensor.number, STEP, DIRECTION))
    flat[index] = (tensor.values + noise * torch.tensor(scale)).to(flat.dtype)
    return flat.view(parameter.shape)


def all_of(tensor):
    """What both halves read of a tensor, all of its rows."""
    return tensor.pieces(Shift((EPS, -EPS), STEP, DIRECTION, 6), 0, slice(0, tensor.parameter.shape[0]))


@pytest.mark.parametrize(("how", "dtype"), [
    ("whole", torch.float32), ("region", torch.float32), ("rounded", torch.bfloat16), ("region", torch.bfloat16),
])  # fmt: skip
def test_both_halves_are_those_of_moved_weights(how, dtype, tiny, kind):
    model = load_model(Checkpoint(tiny(kind)), device="cpu", dtype=dtype)
    before = [parameter.clone() for parameter in model.module.parameters()]
    ids = torch.randint(5, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    one = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    both = {key: torch.cat([value, value]) for key, value in one.items()}
    tensors = tuned(model, how)
    with torch.inference_mode():
        wanted = torch.cat([explicit(model, tensors, scale, **one) for scale in (EPS, -EPS)])
        shifted = ShiftedModel(model.module, tensors)
        with shifted.at((EPS, -EPS), 6, STEP, DIRECTION):
            found = read(model.module, **both)
        assert not shifted.unused
        with shifted.at((-EPS,), 3, STEP, DIRECTION):
            single = read(model.module, **one)
        shifted.close()
    for tensor in tensors:
        for scale, one in zip((EPS, -EPS), all_of(tensor), strict=True):
            assert torch.equal(one, moved_by(tensor, scale, tensor.parameter))
    # A region's product is one of the whole matrix and one of the rows it touches: another order of sums on some CPUs.
    error = 1e-5 if dtype == torch.float32 else 2e-2
    same = torch.equal if how != "region" else partial(torch.allclose, rtol=0, atol=error)
    assert same(found, wanted)
    assert same(single, wanted[3:])
    assert not same(found[:3], found[3:])
    for parameter, kept in zip(model.module.parameters(), before, strict=True):
        assert torch.equal(parameter, kept)


def test_closed_it_is_the_model_that_it_was(tiny):
    model = load_model(Checkpoint(tiny("gpt2")), device="cpu")
    ids = torch.tensor([[7, 8, 9]])
    with torch.inference_mode():
        before = read(model.module, input_ids=ids)
        ShiftedModel(model.module, tuned(model, "whole")).close()
        assert torch.equal(read(model.module, input_ids=ids), before)
    assert not any("forward" in vars(part) for part in model.module.modules())


@pytest.mark.parametrize("how", ["whole", "region"])
@pytest.mark.parametrize("name", ["gpt2", "llama-tied"])
def test_matrices_in_pieces_give_the_same_to_rounding(name, how, tiny, monkeypatch):
    monkeypatch.setattr(forward, "SCRATCH", 1)
    monkeypatch.setattr(forward, "_TILE", 5)
    model = load_model(Checkpoint(tiny(name)), device="cpu", dtype="float64" if how == "region" else "float32")
    ids = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    tensors = tuned(model, how)
    with torch.inference_mode():
        wanted = torch.cat([explicit(model, tensors, scale, input_ids=ids) for scale in (EPS, -EPS)])
        with ShiftedModel(model.module, tensors).at((EPS, -EPS), 4, STEP, DIRECTION):
            found = read(model.module, input_ids=torch.cat([ids, ids]))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_tied_tensors_move_together_and_vocabularies_by_row(tiny, monkeypatch):
    """Of an embedding, only the rows of a batch are made."""
    model = load_model(Checkpoint(tiny("llama")), device="cpu")
    name = next(name for name in model.parameters if "embed" in name)
    tensor = TunedTensor(name, 0, model.parameters[name], NOISE)
    asked = []
    spread = Noise.spread
    monkeypatch.setattr(
        Noise, "spread", lambda noise, values, *more: asked.append(len(values)) or spread(noise, values, *more)
    )
    ids = torch.tensor([[7, 8, 7]])
    with torch.inference_mode(), ShiftedModel(model.module, [tensor]).at((EPS, -EPS), 2, STEP):
        read(model.module, input_ids=torch.cat([ids, ids]))
    assert asked == [2]


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x * self.scale)


def test_modules_that_cannot_be_moved_are_named():
    part = nn.Sequential(Mixing())
    with pytest.raises(CheckpointError, match="module 0, a Mixing, holds weights of its own"):
        ShiftedModel(part.eval(), [TunedTensor("a", 0, part[0].scale, NOISE)])
    product = nn.Linear(3, 2)
    shifted = ShiftedModel(nn.Sequential(product), [TunedTensor("a", 0, product.weight, NOISE)])
    with (
        pytest.raises(CheckpointError, match=r"module 0 is given \[3, 3\] of a batch of 4"),
        shifted.at((EPS, -EPS), 4),
    ):
        product(torch.ones(3, 3))


def test_dropout_that_is_on_is_refused():
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    with pytest.raises(OptionError, match=r"dropout is on \(1\)"):
        ShiftedModel(module, [TunedTensor("a", 0, module[0].weight, NOISE)])


def test_24_bits_are_the_nearest_bfloat16_and_a_rest():
    values = (torch.randn(10_000, generator=torch.Generator().manual_seed(0)).view(torch.int32) & ~0xFF).view(
        torch.float32
    )
    high, low = split(values)
    assert torch.equal(join(high, low), values)
    off, nearest = (values - high.float()).abs(), (values - values.bfloat16().float()).abs()
    assert torch.equal(off, nearest)  # halves may go either way
    start = values.bfloat16()
    assert torch.equal(join(start, torch.zeros(len(start), dtype=torch.int8)), start.float())


@pytest.mark.parametrize("count", [1, 5000])
def test_rounded_tensors_walk_in_pieces(count, monkeypatch):
    from tests.mezo.test_noise import terms

    start = torch.randn(3, count, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = []
    for size in (4 << 20, 4 * 4096):
        monkeypatch.setattr(weights, "SCRATCH", size)
        tensor = RoundedTensor("a", 2, start.clone(), NOISE)
        tensor.walk(terms(3))
        found.append(tensor.values)
    wanted = start.float().reshape(-1)
    NOISE.walk_rounded(wanted, 2, terms(3))
    assert torch.equal(found[0], wanted)
    assert torch.equal(found[1], wanted)
