"""The simulation against the Hugging Face model: autograd, plain gradient descent, and what masks and segments mean."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from surgery.tint import TinT
from tests.support.tint import TOKENS, TRAIN, gradients, prefix_mask, relative, summed_loss, tokens

FAMILIES = ("gpt2", "opt", "llama", "llama-tied")


def detached_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    p = scores.masked_fill(~causal, -math.inf).softmax(-1).detach()
    return (p @ value).transpose(1, 2), p


AttentionInterface.register("tests_detached", detached_attention)


@pytest.fixture(autouse=True)
def precise_norms(monkeypatch):
    """The library's RMSNorm rounds to float32 in any precision: the oracle must not."""
    monkeypatch.setattr(
        LlamaRMSNorm,
        "forward",
        lambda self, x: self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon)),
    )


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_logits_are_the_models(model, kind, dtype, limit):
    plain = model(kind, dtype)
    ids = tokens(plain, 3)
    simulation = TinT.build(plain)
    logits = simulation.hidden(ids) @ simulation.auxiliary.head.T
    with torch.no_grad():
        wanted = plain(ids).logits
    assert float((logits - wanted).abs().max()) <= limit * max(1, float(logits.abs().max()))


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_exact_updates_are_autograds(model, kind, dtype, limit):
    plain = model(kind, dtype)
    ids = tokens(plain)
    simulation = TinT.build(plain, mode="exact")
    ours = simulation.gradients(ids, prefix_mask())
    for layer, name, wanted in gradients(plain, summed_loss(plain, ids[0, :TRAIN]), simulation):
        if name == "k.bias":  # moves every score of a query alike, so that its true gradient is zero
            assert float(ours[layer][name].norm()) <= limit * float(ours[layer]["k.weight"].norm())
        else:
            assert relative(ours[layer][name][0], wanted) <= limit, (layer, name)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 0.99999), (torch.float32, 0.999)])
def test_paper_updates_are_autograds_with_detached_scores(model, kind, dtype, limit):
    plain = model(kind, dtype)
    plain.config._attn_implementation = "tests_detached"
    ids = tokens(plain)
    simulation = TinT.build(plain, mode="paper")
    ours = simulation.gradients(ids, prefix_mask())
    seen = set()
    for layer, name, wanted in gradients(plain, summed_loss(plain, ids[0, :TRAIN]), simulation):
        if name[0] in "qk":
            assert name not in ours[layer] and not wanted.any()
        else:
            seen.add(name)
            assert float(F.cosine_similarity(ours[layer][name].flatten(), wanted.flatten(), dim=0)) >= limit
            assert relative(ours[layer][name][0], wanted) <= 0.05
    assert {"v.weight", "o.weight", "up.weight", "down.weight", "norm1.weight", "norm2.weight"} <= seen


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_several_steps_are_plain_gradient_descent(model, kind, dtype, limit):
    plain = model(kind, dtype)
    ids = tokens(plain)
    out = TinT.build(plain, steps=3, mode="exact")(ids, prefix_mask(), lr=0.01)
    trained = copy.deepcopy(plain)
    blocks = [p for name, p in trained.named_parameters() if ".h." in name or ".layers." in name]
    descent = torch.optim.SGD(blocks, lr=0.01)
    losses = []
    for _ in range(3):
        descent.zero_grad()
        loss = summed_loss(trained, ids[0, :TRAIN])
        loss.backward()
        losses.append(loss.detach())
        descent.step()
    assert torch.allclose(out.update.losses[:, 0], torch.stack(losses), rtol=limit)
    with torch.no_grad():
        assert float((out.logits - trained(ids).logits).abs().max()) <= limit * float(out.logits.abs().max())
        moved = float((out.logits - plain(ids).logits).abs().max())
    ours = out.update.parameters(0)
    wanted = dict(trained.named_parameters())
    for name, value in ours.items():
        assert float((value - wanted[name].detach()).abs().max()) <= limit
    assert moved > 100 * limit  # else nothing was tested


@pytest.mark.parametrize("learning", [0, 1])
def test_other_blocks_stay_as_they_are(model, learning):
    """Below the block that learns, and above it, where the gradient passes."""
    plain = model("opt")
    ids = tokens(plain)
    simulation = TinT.build(plain, layers=str(learning), mode="exact")
    out = simulation(ids, prefix_mask(), lr=0.01)
    before = simulation.auxiliary.blocks
    for name, value in out.update.blocks[1 - learning].items():
        assert torch.equal(value, before[1 - learning][name])
    for layer, name, wanted in gradients(plain, summed_loss(plain, ids[0, :TRAIN]), simulation):
        if layer == learning and name != "k.bias":
            moved = before[learning][name] - out.update.blocks[learning][name][0]
            assert relative(moved / 0.01, wanted) < 1e-9


@pytest.mark.parametrize("mode", ["exact", "paper", "published"])
def test_test_tokens_never_touch_the_update(model, mode):
    plain = model("gpt2", torch.float32)
    mask = prefix_mask(2, TOKENS, 16)
    mask[0, 6:9] = False  # test tokens in the midst of training tokens too
    one = tokens(plain, 2)
    other = torch.where(mask, one, tokens(plain, 2, seed=1))
    assert not torch.equal(one, other)
    simulation = TinT.build(plain, steps=2, mode=mode)
    first, second = (simulation(ids, mask, lr=0.01).update for ids in (one, other))
    for a, b in zip(first.blocks, second.blocks, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_a_batch_is_its_rows_one_by_one(model, kind, mode):
    plain = model(kind)
    ids = tokens(plain, 3)
    mask = prefix_mask(3)
    mask[1, 7:] = False
    mask[2, 15:18] = True
    simulation = TinT.build(plain, steps=2, mode=mode)
    together = simulation(ids, mask, lr=0.01)
    for row in range(3):
        alone = simulation(ids[row : row + 1], mask[row : row + 1], lr=0.01)
        assert torch.allclose(together.logits[row], alone.logits[0], rtol=0, atol=1e-9)
        assert torch.allclose(together.update.losses[:, row], alone.update.losses[:, 0])


def test_only_labels_are_learnt_where_a_loss_mask_says_so(model):
    plain = model("llama")
    ids = tokens(plain)
    labels = torch.zeros_like(ids, dtype=torch.bool)
    labels[0, [4, 9, 15]] = True  # the last isn't a training token
    simulation = TinT.build(plain, mode="exact")
    ours = simulation.gradients(ids, prefix_mask(), loss_mask=labels)
    logits = plain(ids[:, :TRAIN]).logits[0]
    loss = F.cross_entropy(logits[[3, 8]], ids[0, [4, 9]], reduction="sum")
    for layer, name, wanted in gradients(plain, loss, simulation):
        assert relative(ours[layer][name][0], wanted) < 1e-9


@pytest.mark.parametrize("kind", FAMILIES)
def test_segments_are_learnt_from_as_if_each_were_alone(model, kind):
    plain = model(kind)
    ids = tokens(plain)
    lengths = (5, 7, 8)
    segments = torch.repeat_interleave(torch.tensor([1, 2, 3]), torch.tensor(lengths))[None]
    simulation = TinT.build(plain, mode="exact")
    ours = simulation.gradients(ids, prefix_mask(), segments=segments)
    loss = summed_loss(plain, ids[0, :5]) + summed_loss(plain, ids[0, 5:12])
    for layer, name, wanted in gradients(plain, loss, simulation):
        if name != "k.bias":
            assert relative(ours[layer][name][0], wanted) < 1e-9, name
    out = simulation(ids, prefix_mask(), lr=0.0, segments=segments)
    start = 0
    for length in lengths:
        wanted = plain(ids[:, start : start + length]).logits
        assert torch.allclose(out.logits[:, start : start + length], wanted, atol=1e-12)
        start += length


def test_segments_share_what_lies_in_segment_zero(model):
    plain = model("gpt2")
    ids = tokens(plain)
    segments = torch.tensor([[0] * 6 + [1] * 5 + [2] * 9])
    simulation = TinT.build(plain)
    logits = simulation.hidden(ids, segments=segments) @ simulation.auxiliary.head.T
    for part in (slice(6, 11), slice(11, 20)):
        alone = plain(torch.cat((ids[:, :6], ids[:, part]), 1)).logits[:, 6:]
        assert torch.allclose(logits[:, part], alone, atol=1e-12)


def test_update_alone_is_the_update_of_the_pass(model):
    plain = model("opt")
    ids = tokens(plain)
    simulation = TinT.build(plain)
    whole = simulation(ids, prefix_mask(), lr=0.01)
    update = simulation.update(ids[:, :TRAIN], lr=0.01)
    for a, b in zip(whole.update.blocks, update.blocks, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    logits = simulation.hidden(ids, update.blocks) @ simulation.auxiliary.head.T
    assert torch.equal(logits, whole.logits)


def test_the_model_itself_is_never_changed(model):
    plain = model("gpt2")
    before = {name: p.clone() for name, p in plain.named_parameters()}
    ids = tokens(plain)
    out = TinT.build(plain, steps=2, mode="exact")(ids, prefix_mask(), lr=0.1)
    assert all(torch.equal(p, before[name]) for name, p in plain.named_parameters())
    with torch.no_grad():
        for name, value in out.update.parameters(0).items():
            dict(plain.named_parameters())[name].copy_(value)
    assert torch.allclose(plain(ids).logits, out.logits, atol=1e-12)


def test_published_arithmetic_has_the_published_faults(model):
    plain = model("opt")
    ids = tokens(plain)
    plain_ones = TinT.build(plain, mode="paper", scale=1000.0).gradients(ids, prefix_mask())
    simulation = TinT.build(plain, mode="published")
    assert simulation.arithmetic.scale == 1000
    faulty = simulation.gradients(ids, prefix_mask())
    assert "norm1.weight" not in faulty[0] and "q.weight" not in faulty[0] and "norm1.bias" in faulty[0]
    top = len(faulty) - 1
    assert relative(faulty[top]["down.bias"], 4 * plain_ones[top]["down.bias"]) < 1e-3
    leak = relative(faulty[0]["v.weight"], plain_ones[0]["v.weight"])
    assert 1e-12 < leak < 1e-2  # tanh(10) isn't one in float64
    single = model("opt", torch.float32)
    assert torch.tensor(TinT.build(single, mode="published").arithmetic.gate, dtype=torch.float32) == 1


def test_half_precision_runs_in_exact_mode(model):
    plain = model("llama", torch.bfloat16)
    ids = tokens(plain)
    out = TinT.build(plain, mode="exact")(ids, prefix_mask(), lr=1e-3)
    assert out.logits.dtype == torch.bfloat16 and bool(torch.isfinite(out.logits).all())


def test_it_says_what_it_is_in_a_line(model):
    plain = model("gpt2")
    assert repr(TinT.build(plain, layers=[1])) == "TinT(mode='paper', steps=1, 1 of 2 blocks learn, fast path)"
    assert "the transformer itself" in repr(TinT.build(plain, materialise=True))
