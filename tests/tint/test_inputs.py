"""What TinT takes: ids and masks in any form, padding, models in memory, more families; and what can be kept of an update."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from surgery.errors import OptionError, SurgeryError, TintError
from surgery.tint import TinT, cuda_graphs, verify
from surgery.tint.auxiliary import Auxiliary

TOKENS, TRAIN = 12, 8
MASK = torch.arange(TOKENS)[None] < TRAIN
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}


@pytest.fixture
def model(tiny):
    def get(kind="gpt2", dtype=torch.float32):
        return AutoModelForCausalLM.from_pretrained(tiny(kind), dtype=dtype).eval()

    return get


def tokens(model, rows=1, count=TOKENS, seed=0):
    return torch.randint(model.config.vocab_size, (rows, count), generator=torch.Generator().manual_seed(seed))


def shaken(module, seed=0):
    """Norms and biases off their initial ones and zeros, so that a forgotten one shows."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
    return module.eval()


@pytest.mark.parametrize(
    "form",
    [
        lambda ids: ids[0],
        lambda ids: ids.tolist(),
        lambda ids: ids[0].tolist(),
        lambda ids: ids.numpy(),
        lambda ids: ids.numpy()[0].astype(np.int32),
        lambda ids: ids.to(torch.int16),
    ],
    ids=["row", "lists", "list", "array", "int32 row", "int16"],
)
def test_ids_come_in_any_form(model, form):
    plain = model()
    ids, simulation = tokens(plain), TinT.build(plain)
    wanted = simulation(ids, MASK).logits
    for mask in (MASK, MASK.tolist(), MASK[0].numpy(), MASK.long()):
        assert torch.equal(simulation(form(ids), mask).logits, wanted)
    assert torch.equal(simulation.hidden(form(ids)), simulation.hidden(ids))
    assert verify(plain, form(ids), MASK[0].tolist(), sweep=False).forward_error < 1e-4


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        ([[1.0, 2.0, 3.0]], [[1, 1, 0]], "input_ids holds float32, but tokens are whole numbers"),
        ([[True, False, True]], [[1, 1, 0]], "input_ids holds bool"),
        ("a text", [[1]], "input_ids can't be read as a table of numbers"),
        ([[1, 2], [3]], [[1, 1]], "input_ids can't be read as a table of numbers"),
        ([], [], "input_ids"),
        ([[[1, 2, 3]]], [[1, 1, 0]], r"input_ids has shape \(1, 1, 3\)"),
        ([[1, 2, 999]], [[1, 1, 0]], "token 999"),
        ([[1, 2, 3]], [[1, 2, 0]], "train_mask must be true or false"),
        ([[1, 2, 3]], [[1, 1]], r"train_mask has shape \(1, 2\)"),
    ],
)
def test_what_is_no_batch_is_refused_in_a_sentence(model, ids, mask, words):
    with pytest.raises(TintError, match=words):
        TinT.build(model())(ids, mask)


def test_segments_must_be_whole_numbers(model):
    with pytest.raises(TintError, match="segments must be whole numbers"):
        TinT.build(model())([[1, 2, 3]], [[1, 1, 0]], segments=[[0.5, 1.0, 1.0]])
    with pytest.raises(TintError, match="segments must be whole numbers"):
        TinT.build(model())([[1, 2, 3]], [[1, 1, 0]], segments=[[-1, 1, 1]])


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("mode", ["paper", "exact"])
def test_padding_anywhere_changes_nothing(model, kind, mode):
    plain = model(kind, torch.float64)
    ids, simulation = tokens(plain), TinT.build(plain, mode=mode)
    alone = simulation(ids, MASK, lr=1e-2)
    # Three pads before, one within, two after: as a left-padded, a patched and a right-padded row have them.
    places = [3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15]
    padded, real, train = (
        torch.full((1, 18), 7),
        torch.zeros(1, 18, dtype=torch.bool),
        torch.zeros(1, 18, dtype=torch.bool),
    )
    padded[0, places], real[0, places], train[0, places] = ids[0], True, MASK[0]
    train_pairs = torch.ones_like(train)
    train_pairs[0, 8] = False  # its neighbour on the left is padding, so that the pair over the gap isn't one
    gap = torch.ones_like(MASK)
    gap[0, 4] = False
    alone = simulation(ids, MASK, lr=1e-2, loss_mask=gap)
    found = simulation(padded, train, lr=1e-2, attention_mask=real)
    assert float((found.logits[0, places] - alone.logits[0]).abs().max()) < 1e-10
    assert (
        float((simulation.hidden(padded, attention_mask=real)[0, places] - simulation.hidden(ids)[0]).abs().max())
        < 1e-10
    )
    assert float((simulation(padded, train, lr=1e-2).logits[0, places] - alone.logits[0]).abs().max()) > 1e-6


def test_a_left_padded_row_reads_as_transformers_reads_it(model):
    plain = model("llama", torch.float64)
    ids = tokens(plain)
    padded, real = F.pad(ids, (4, 0), value=3), F.pad(torch.ones_like(ids), (4, 0))
    simulation = TinT.build(plain)
    with torch.no_grad():
        wanted = plain(padded, attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp_min(0)).logits
    found = simulation.hidden(padded, attention_mask=real) @ simulation.auxiliary.head.T
    # Rounded to float32 within the library's norms.
    assert float((found - wanted)[:, 4:].abs().max()) < 1e-5


def test_padding_is_not_learnt_from(model):
    simulation, ids = TinT.build(model()), [[3, 3, 5, 6, 7]]
    with pytest.raises(TintError, match="row 0 of train_mask marks padding"):
        simulation(ids, [[1, 1, 1, 1, 0]], attention_mask=[[0, 0, 1, 1, 1]])
    everything = simulation.update(ids, attention_mask=[[0, 0, 1, 1, 1]])
    assert torch.equal(everything.losses, simulation.update([[5, 6, 7]]).losses)
    with pytest.raises(TintError, match="row 0 has training tokens only"):
        simulation(ids, [[0, 0, 1, 1, 1]], attention_mask=[[0, 0, 1, 1, 1]])


def test_a_model_in_memory_is_simulated_in_the_precision_asked_for(model):
    plain = model()
    simulation = TinT.build(plain, dtype="float64")
    assert simulation.auxiliary.dtype is torch.float64 and plain.dtype is torch.float32
    assert TinT.build(plain, dtype=torch.float64, device=torch.device("cpu")).auxiliary.dtype is torch.float64
    assert TinT.build(plain, dtype="float32").auxiliary.module is plain  # nothing is copied that needn't be
    assert verify(plain, tokens(plain), sweep=False, dtype="float64").content["dtype"] == "float64"
    for given, words in (
        ({"dtype": "nonsense"}, "nonsense"),
        ({"device": "nowhere"}, "nowhere"),
        ({"dtype": torch.int8}, "int8"),
    ):
        with pytest.raises(OptionError, match=words):
            TinT.build(plain, **given)
    with pytest.raises(OptionError, match="bfloat16 can't resolve"):
        TinT.build(plain, dtype="bfloat16", mode="paper")
    assert TinT.build(plain, dtype="bfloat16", mode="exact")(tokens(plain), MASK).logits.dtype is torch.bfloat16


def test_a_compiled_model_is_the_model_within(model):
    plain = model()
    ids = tokens(plain)
    assert torch.equal(TinT.build(torch.compile(plain))(ids, MASK).logits, TinT.build(plain)(ids, MASK).logits)


def test_weights_that_descent_cannot_move_are_refused_by_name(model):
    plain = copy.deepcopy(model("llama"))
    layer = plain.model.layers[1].self_attn.q_proj
    layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TintError, match=r"model.layers.1.self_attn.q_proj.weight is quantised \(int8\)"):
        TinT.build(plain)
    mixed = copy.deepcopy(model("llama"))
    mixed.model.layers[0].input_layernorm.to(torch.float64)
    with pytest.raises(TintError, match=r"input_layernorm\.weight is float64, but the head float32"):
        TinT.build(mixed)
    assert TinT.build(mixed, dtype="float64").auxiliary.dtype is torch.float64
    adapted = model()
    adapted.merge_and_unload = lambda: None
    with pytest.raises(TintError, match="merge_and_unload"):
        TinT.build(adapted)


FAMILIES = {
    "mistral": transformers.MistralConfig(**SIZES, head_dim=4, sliding_window=None),
    "mistral, window": transformers.MistralConfig(**SIZES, head_dim=4, sliding_window=TOKENS),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "qwen2, window": transformers.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=TOKENS, max_window_layers=1
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_llamas_by_other_names(name):
    torch.manual_seed(0)
    plain = shaken(AutoModelForCausalLM.from_config(FAMILIES[name]))
    ids, simulation = tokens(plain), TinT.build(plain, mode="exact")
    with torch.no_grad():
        assert float((simulation.hidden(ids) @ simulation.auxiliary.head.T - plain(ids).logits).abs().max()) < 1e-5
    logits = plain(ids[:, :TRAIN]).logits[0]
    F.cross_entropy(logits[:-1], ids[0, 1:TRAIN], reduction="sum").backward()
    ours, named = simulation.gradients(ids, MASK), dict(plain.named_parameters())
    for layer, sites in enumerate(simulation.auxiliary.sites):
        learnt = {site.parameter for site in sites.values()}
        assert learnt == {own for own in named if own.startswith(f"model.layers.{layer}.")}
        for own, site in sites.items():
            if own != "k.bias":  # its true gradient is zero
                wanted = site.view(named[site.parameter].grad)
                assert float((ours[layer][own][0] - wanted).norm() / wanted.norm()) < 1e-4, own
    assert simulation.auxiliary.shape.weights == sum(p.numel() for p in plain.parameters())
    if "window" in name:
        with pytest.raises(TintError, match=f"a sequence of {TOKENS + 1} tokens is longer than the model's {TOKENS}"):
            simulation.hidden(tokens(plain, count=TOKENS + 1))


@pytest.mark.parametrize("kind", ["gpt2", "llama-tied"])
def test_an_update_is_kept_as_a_model(tiny, tmp_path, kind):
    folder = tiny(kind)
    simulation = TinT.build(str(folder), device="cpu", mode="exact")
    out = simulation(tokens(simulation.auxiliary.module, rows=2), MASK.expand(2, -1), lr=1e-2)
    module = out.update.model(row=1)
    with torch.no_grad():
        for source in (module, AutoModelForCausalLM.from_pretrained(out.update.save(tmp_path / kind, row=1))):
            found = source.eval()(tokens(simulation.auxiliary.module, rows=2)[1:]).logits
            assert float((found - out.logits[1:]).abs().max()) < 1e-4
    AutoTokenizer.from_pretrained(tmp_path / kind)
    assert module.generate(tokens(module), max_new_tokens=2, do_sample=False).shape == (1, TOKENS + 2)
    in_memory = TinT.build(AutoModelForCausalLM.from_pretrained(folder)).update(tokens(module), lr=1e-2)
    kept = AutoModelForCausalLM.from_pretrained(in_memory.save(tmp_path / f"{kind}-memory"))
    assert all(torch.equal(dict(kept.named_parameters())[n], t) for n, t in in_memory.parameters().items())
    with pytest.raises(OptionError, match="row 2 isn't one of the batch's 2"):
        out.update.save(tmp_path / "none", row=2)
    with pytest.raises(SurgeryError, match="exists already"):
        out.update.save(tmp_path / kind)
    assert not (tmp_path / "none").exists()


class NoWaiting(TorchDispatchMode):
    """Refuses what a CUDA graph can't hold: reading a value, shapes that depend on values, other devices."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "unique", "masked_select")), name
        if "index" in name:
            numbers = [index for index in args[1] if index is not None] if isinstance(args[1], list | tuple) else []
            assert all(index.dtype is not torch.bool for index in numbers), f"{name} by a mask"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("mode", ["paper", "exact"])
def test_a_pass_never_waits_for_the_device(model, monkeypatch, kind, mode):
    simulation = TinT.build(model(kind), steps=2, mode=mode)
    whole = TinT._compute

    def watched(*given):
        with NoWaiting():
            return whole(*given)

    monkeypatch.setattr(TinT, "_compute", watched)
    ids = tokens(simulation.auxiliary.module, rows=2)
    simulation(ids, MASK.expand(2, -1), segments=[[0] * 3 + [1] * 9] * 2)


def replayed(function, inputs):
    """What a captured graph does, by running the function again into the tensors of the first time."""
    static = tuple(None if tensor is None else tensor.clone() for tensor in inputs)
    found = function(*static)

    def replay():
        again = function(*static)
        for old, new in ((found.logits, again.logits), (found.losses, again.losses), (found.sums, again.sums)):
            if old is not None:
                old.copy_(new)
        for old, new in zip(found.blocks, again.blocks, strict=True):
            for name, tensor in old.items():
                if tensor is not new[name]:
                    tensor.copy_(new[name])

    return cuda_graphs.Captured(replay, static, found)


def test_replayed_passes_are_the_passes(model, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "pays", lambda device, weights: True)
    calls = []
    monkeypatch.setattr(cuda_graphs, "record", lambda *given: calls.append(1) or replayed(*given))
    plain = model()
    fast = TinT.build(plain, layers=[1])
    batches = [tokens(plain, seed=seed) for seed in range(4)]
    masks = [MASK, MASK, torch.roll(MASK, 1, 1), MASK]
    rates = [1e-2, 1e-2, 1e-2, 1e-2]
    kept = [fast(ids, mask, lr) for ids, mask, lr in zip(batches, masks, rates, strict=True)]
    updates = [fast.update(ids, lr=1e-2) for ids in batches]
    # Alike but for the ids: the second is recorded. The third's mask leaves it other shapes.
    assert len(calls) == 2
    for ids, mask, lr, out, update in zip(batches, masks, rates, kept, updates, strict=True):
        plainly = TinT.build(plain, layers=[1])  # a first pass is never recorded
        wanted = plainly(ids, mask, lr)
        assert torch.equal(out.logits, wanted.logits) and torch.equal(out.update.losses, wanted.update.losses)
        for name, tensor in wanted.update.parameters().items():
            assert torch.equal(out.update.parameters()[name], tensor), name
        alone = TinT.build(plain, layers=[1]).update(ids, lr=1e-2)
        assert all(torch.equal(update.parameters()[n], t) for n, t in alone.parameters().items())
    other = fast(batches[0], MASK, 3e-2)  # another rate is another graph
    assert torch.equal(other.logits, TinT.build(plain, layers=[1])(batches[0], MASK, 3e-2).logits)


def test_a_capture_that_fails_is_said_and_costs_nothing_else(model, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "pays", lambda device, weights: True)

    def fails(*given):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graphs, "record", fails)
    simulation = TinT.build(model())
    ids = tokens(simulation.auxiliary.module)
    found = [simulation(ids, MASK).logits for _ in range(3)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert simulation._graphs.reason == "CUDA error: operation not permitted when stream is capturing"


def test_few_graphs_are_kept(model, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "pays", lambda device, weights: True)
    monkeypatch.setattr(cuda_graphs, "record", replayed)
    simulation = TinT.build(model())
    for count in range(4, 12):
        for _ in range(2):
            simulation.update(tokens(simulation.auxiliary.module, count=count))
    assert len(simulation._graphs._captured) == cuda_graphs._KEPT


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
@pytest.mark.parametrize("mode", ["paper", "exact"])
def test_on_a_card_it_takes_what_lies_on_the_cpu_and_repeats_itself(model, tiny, kind, mode):
    simulation = TinT.build(str(tiny(kind)), mode=mode, dtype="float64")
    assert simulation.auxiliary.device.type == "cuda"
    on_cpu = TinT.build(str(tiny(kind)), mode=mode, dtype="float64", device="cpu")
    for seed in range(4):
        ids = tokens(on_cpu.auxiliary.module, rows=2, seed=seed)
        mask = MASK.expand(2, -1)
        found = simulation(ids, mask, lr=1e-2)
        wanted = on_cpu(ids.cuda(), mask.cuda(), lr=1e-2)
        assert found.logits.device.type == "cuda" and wanted.logits.device.type == "cpu"
        assert float((found.logits.cpu() - wanted.logits).abs().max()) < 1e-9
        assert torch.equal(simulation(ids.cuda(), mask, lr=1e-2).logits, simulation(ids, mask.cuda(), lr=1e-2).logits)
    assert simulation._graphs.reason is None and simulation._graphs._captured
    first = TinT.build(str(tiny(kind)), mode=mode, dtype="float64")(ids, mask, lr=1e-2)
    assert torch.equal(first.logits, TinT.build(str(tiny(kind)), mode=mode, dtype="float64")(ids, mask, lr=1e-2).logits)


def test_an_auxiliary_is_taken_as_it_is(model):
    auxiliary = Auxiliary.of(model())
    assert Auxiliary.of(auxiliary) is auxiliary
    assert TinT.build(auxiliary, dtype="float64").auxiliary.dtype is torch.float64


@pytest.mark.parametrize(
    "config",
    [
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32, layer_norm_epsilon=0.3),
        transformers.LlamaConfig(**SIZES, rms_norm_eps=0.3),
    ],
    ids=["gpt2", "llama"],
)
def test_norms_divide_by_what_the_config_says(config):
    torch.manual_seed(0)
    plain = shaken(AutoModelForCausalLM.from_config(config))
    ids, simulation = tokens(plain), TinT.build(plain)
    with torch.no_grad():
        assert float((simulation.hidden(ids) @ simulation.auxiliary.head.T - plain(ids).logits).abs().max()) < 1e-5
