"""TinT's arithmetic against the Hugging Face model: autograd, plain gradient descent, and what masks and segments mean."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from surgery.errors import OptionError, SurgeryError, TintError
from surgery.tint import TinT, verify
from surgery.tint.evaluation.perplexity import run_text
from surgery.tint.modules import (
    Arithmetic,
    activate,
    activate_backward,
    attend,
    attend_backward,
    normalise,
    normalise_backward,
    rotate,
)

FAMILIES = ("gpt2", "opt", "llama", "llama-tied")
TRAIN, TOKENS = 12, 20


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


@pytest.fixture
def model(tiny):
    """`model(kind, dtype)`: a tiny model with random weights, norms' weights around one as in real ones."""

    def get(kind, dtype=torch.float64):
        found = AutoModelForCausalLM.from_pretrained(tiny(kind), dtype=dtype).eval()
        with torch.no_grad():
            for name, parameter in found.named_parameters():
                if name.endswith("weight") and ("norm" in name or "ln_" in name):
                    parameter += 1
        return found

    return get


def tokens(model, rows=1, count=TOKENS, seed=0):
    return torch.randint(model.config.vocab_size, (rows, count), generator=torch.Generator().manual_seed(seed))


def prefix_mask(rows=1, count=TOKENS, train=TRAIN):
    return (torch.arange(count) < train).expand(rows, count).clone()


def summed_loss(model, ids):
    logits = model(ids[None]).logits[0]
    return F.cross_entropy(logits[:-1], ids[1:], reduction="sum")


def gradients(model, loss, simulation):
    """Autograd's, cut into the simulation's tensors: [(layer, name, gradient)]."""
    model.zero_grad()
    loss.backward()
    named = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for layer, sites in enumerate(simulation.auxiliary.sites):
        for name, site in sites.items():
            gradient = named[site.parameter].grad
            found.append((layer, name, torch.zeros_like(named[site.parameter]) if gradient is None else gradient))
            found[-1] = (layer, name, site.view(found[-1][2]).clone())
    return found


def relative(ours, wanted):
    return float((ours - wanted).norm() / wanted.norm())


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


def test_other_layers_stay_as_they_are(model):
    plain = model("opt")
    ids = tokens(plain)
    simulation = TinT.build(plain, layers="1", mode="exact")
    out = simulation(ids, prefix_mask(), lr=0.01)
    for name, value in out.update.blocks[0].items():
        assert torch.equal(value, simulation.auxiliary.blocks[0][name])
    for layer, name, wanted in gradients(plain, summed_loss(plain, ids[0, :TRAIN]), simulation):
        if layer == 1 and name != "k.bias":
            moved = simulation.auxiliary.blocks[1][name] - out.update.blocks[1][name][0]
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


@given(
    st.sampled_from(["relu", "gelu", "gelu_new", "silu"]),
    st.integers(0, 10**6),
    st.floats(0.01, 30.0),
)
def test_activation_backward(kind, seed, size):
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(2, 3, 7, dtype=torch.float64, generator=generator) * s for s in (size, 1.0))
    x.requires_grad_()
    y = activate(x, kind)
    (wanted,) = torch.autograd.grad(y, x, g)
    x, y = x.detach(), y.detach()
    assert torch.allclose(activate_backward(g, x, y, kind, Arithmetic.of("exact", torch.float64)), wanted, atol=1e-12)
    differenced = activate_backward(g, x, y, kind, Arithmetic.of("paper", torch.float64))
    clear = x.abs() > 1e-3  # the kink of ReLU
    assert torch.allclose(differenced[clear], wanted[clear], atol=1e-6 * float(g.abs().max()))


@given(st.sampled_from(["layer", "rms"]), st.integers(0, 10**6), st.floats(0.01, 1000.0), st.floats(1e-6, 100.0))
def test_norm_backward(kind, seed, size, height):
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(2, 3, 9, dtype=torch.float64, generator=generator) * s for s in (size, height))
    x.requires_grad_()
    y = normalise(x, kind, 1e-5)
    (wanted,) = torch.autograd.grad(y, x, g)
    x, y = x.detach(), y.detach()
    exact = normalise_backward(g, x, y, kind, 1e-5, Arithmetic.of("exact", torch.float64))
    assert torch.allclose(exact, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    # Relative to each token, so neither a large x nor a small gradient drowns it.
    differenced = normalise_backward(g, x, y, kind, 1e-5, Arithmetic.of("paper", torch.float64))
    assert relative(differenced, wanted) < 1e-6


@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (4, 1), (4, 2), (3, 3)]), st.booleans())
def test_attention_backward(seed, heads, masked):
    generator = torch.Generator().manual_seed(seed)
    queries, keys = heads
    q, k, v, g = (
        torch.randn(2, 5, n, 4, dtype=torch.float64, generator=generator) for n in (queries, keys, keys, queries)
    )
    visible = None
    if masked:
        visible = torch.rand(2, 5, 5, generator=generator) < 0.5
        visible = visible.tril() | torch.eye(5, dtype=torch.bool)
    for x in (q, k, v):
        x.requires_grad_()
    scores = torch.einsum("bqhw,bkhw->bhqk", q, k.repeat_interleave(queries // keys, 2)) / 2
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()[None] if visible is None else visible
    p = scores.masked_fill(~allowed[:, None], -math.inf).softmax(-1)
    read = torch.einsum("bhqk,bkhw->bqhw", p, v.repeat_interleave(queries // keys, 2))
    assert torch.allclose(attend(q, k, v, visible), read, atol=1e-12)
    wanted = torch.autograd.grad(read, (q, k, v), g)
    with torch.no_grad():
        found = attend_backward(g, q, k, v, visible, scores=True)
        _, _, alone = attend_backward(g, q, k, v, visible, scores=False)
    for ours, truth in zip(found, wanted, strict=True):
        assert torch.allclose(ours, truth, atol=1e-12)
    assert torch.equal(alone, found[2])


@given(st.integers(0, 10**6))
def test_turning_back_is_the_transposed_turn(seed):
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(1, 5, 1, 3, dtype=torch.float64, generator=generator).repeat(1, 1, 1, 2)
    turn = (angles.cos(), angles.sin())
    x, y = (torch.randn(1, 5, 2, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.allclose((rotate(x, turn) * y).sum(), (x * rotate(y, turn, back=True)).sum())
    assert torch.allclose(rotate(rotate(x, turn), turn, back=True), x)


def test_bad_input_is_refused_in_a_sentence(model, tiny):
    plain = model("gpt2", torch.float32)
    ids, mask = tokens(plain), prefix_mask()
    simulation = TinT.build(plain)
    everything, nothing = torch.ones_like(mask), torch.zeros_like(mask)
    lonely = nothing.clone()
    lonely[0, [2, 5]] = True
    long = tokens(plain, 1, 65)
    bert = AutoModelForCausalLM.from_pretrained(tiny("gpt2")).transformer
    for error, words, call in (
        (TintError, "nothing is left to test", lambda: simulation(ids, everything)),
        (TintError, "no pair of neighbouring training tokens", lambda: simulation(ids, nothing)),
        (TintError, "no pair of neighbouring training tokens", lambda: simulation(ids, lonely)),
        (TintError, "longer than the model's 64 positions", lambda: simulation(long, prefix_mask(1, 65))),
        (TintError, "longer than the model's 64 positions", lambda: simulation.hidden(long)),
        (TintError, "holds token 5000, but the model has 0 to", lambda: simulation.hidden(long[:, :3] * 0 + 5000)),
        (TintError, "holds token -1", lambda: simulation(long[:, :3] * 0 - 1, prefix_mask(1, 3))),
        (OptionError, "isn't one of exact, paper, published", lambda: TinT.build(plain, mode="best")),
        (OptionError, "must be at least 1", lambda: TinT.build(plain, steps=0)),
        (OptionError, "2 blocks, 0 to 1", lambda: TinT.build(plain, layers=[2])),
        (OptionError, "numbers and ranges", lambda: TinT.build(plain, layers="first")),
        (OptionError, "must be a number, 0 or more", lambda: simulation(ids, prefix_mask(), lr=-1.0)),
        (OptionError, "must be a number, 0 or more", lambda: simulation.update(ids, lr=math.nan)),
        (OptionError, "positive number", lambda: TinT.build(plain, scale=-1.0)),
        (OptionError, "use float32, float64 or mode 'exact'", lambda: TinT.build(model("gpt2", torch.bfloat16))),
        (TintError, "no language-model head", lambda: TinT.build(bert)),
        (TintError, "no Hugging Face model", lambda: TinT.build(3)),
        (TintError, "'bert' can't be simulated", lambda: TinT.build(tiny("bert"))),
        (SurgeryError, "is not a folder", lambda: TinT.build("./nowhere")),
    ):
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"do_layer_norm_before": False}, "LayerNorms after the sublayers"),
        ({"activation_function": "tanh"}, "activation 'tanh'"),
        ({"word_embed_proj_dim": 8}, "word_embed_proj_dim 8"),
    ],
)
def test_an_opt_of_another_build_is_refused_by_name(model, change, words):
    plain = model("opt")
    for key, value in change.items():
        setattr(plain.config, key, value)
    with pytest.raises(TintError, match=words):
        TinT.build(plain)


def test_half_precision_runs_in_exact_mode(model):
    plain = model("llama", torch.bfloat16)
    ids = tokens(plain)
    out = TinT.build(plain, mode="exact")(ids, prefix_mask(), lr=1e-3)
    assert out.logits.dtype == torch.bfloat16 and bool(torch.isfinite(out.logits).all())


def test_a_descent_that_becomes_nan_names_step_and_tensor(model):
    plain = model("gpt2", torch.float32)
    ids = tokens(plain)
    with pytest.raises(
        TintError, match=r"step 2: the gradient of block 1's \w+\.\w+ is NaN or infinite: lower the lear"
    ):
        TinT.build(plain, steps=5)(ids, prefix_mask(), lr=1e30)
    with pytest.raises(TintError, match="after step 1 logits are NaN"):
        TinT.build(plain)(ids, prefix_mask(), lr=1e30)
    plain.transformer.h[1].mlp.c_fc.bias.data[0] = math.inf
    with pytest.raises(TintError, match=r"the gradient of block 1's \w+\.\w+ is NaN or infinite in float32"):
        TinT.build(plain).gradients(ids)


def test_token_ids_need_no_tokenizer(model, tmp_path):
    plain = model("gpt2", torch.float32)
    plain.save_pretrained(tmp_path / "bare")
    ids = tokens(plain)
    found = TinT.build(str(tmp_path / "bare"), materialise=True, device="cpu")(ids, prefix_mask(), lr=1e-3).logits
    assert torch.equal(found, TinT.build(plain, materialise=True)(ids, prefix_mask(), lr=1e-3).logits)
    assert verify(str(tmp_path / "bare"), ids[:1], sweep=False).forward_error < 1e-5
    (tmp_path / "text.txt").write_text("a text")
    with pytest.raises(SurgeryError, match="no tokenizer can be loaded"):
        run_text(str(tmp_path / "bare"), tmp_path / "text.txt", lr=1e-3)


def test_it_says_what_it_is_in_a_line(model):
    plain = model("gpt2")
    assert repr(TinT.build(plain, layers=[1])) == "TinT(mode='paper', steps=1, 1 of 2 blocks learn, fast path)"
    assert "the transformer itself" in repr(TinT.build(plain, materialise=True))
