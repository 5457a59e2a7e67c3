"""The transformer itself against the fast path, its layout, and its size against the built one's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from surgery.errors import OptionError, SurgeryError, TintError
from surgery.tint import Count, Layout, Shape, TinT, count
from surgery.tint.auxiliary import Auxiliary
from surgery.tint.construction.layers import LayerSet
from surgery.tint.construction.packing import pack, unpack
from surgery.tint.construction.transformer import Transformer
from tests.support.tint import prefix_mask, tokens


def shape_of(width, layers, heads, inner, vocabulary=11, positions=9, family="gpt2"):
    return Shape(
        family, width, layers, heads, heads, width // heads, inner, vocabulary, positions, "layer", 1e-5, "gelu_new",
        False, True, True, True,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
@pytest.mark.parametrize(("dtype", "scale", "limit"), [(torch.float64, 1e3, 1e-11), (torch.float32, 30.0, 1e-4)])
def test_the_transformer_and_the_fast_path_agree(model, kind, dtype, scale, limit):
    plain = model(kind, dtype)
    ids, mask = tokens(plain, 2), prefix_mask(2)
    mask[0, 5] = mask[1, 9:] = False
    for options in ({}, {"steps": 2, "layers": "1"}, {"layers": "0"}):
        whole = TinT.build(plain, scale=scale, materialise=True, **options)
        fast = TinT.build(plain, scale=scale, **options)
        ours, wanted = whole(ids, mask, lr=0.01), fast(ids, mask, lr=0.01)
        assert float((ours.logits - wanted.logits).abs().max()) <= limit * float(wanted.logits.abs().max())
        assert torch.allclose(ours.update.losses, wanted.update.losses, rtol=limit)
        assert float((wanted.logits - fast.hidden(ids) @ fast.auxiliary.head.T).abs().max()) > 100 * limit
        for a, b in zip(ours.update.blocks, wanted.update.blocks, strict=True):
            assert set(a) == set(b)
            for name, value in b.items():
                assert float((a[name] - value).abs().max()) <= limit, name


def test_the_transformer_heeds_labels_and_segments(model):
    plain = model("gpt2")
    ids, mask = tokens(plain), prefix_mask()
    given_ = {
        "loss_mask": torch.arange(20)[None] % 3 == 0,
        "segments": torch.tensor([[1] * 5 + [2] * 7 + [3] * 8]),
    }
    ours = TinT.build(plain, scale=1e3, materialise=True)(ids, mask, 0.01, **given_)
    wanted = TinT.build(plain, scale=1e3)(ids, mask, 0.01, **given_)
    assert torch.allclose(ours.logits, wanted.logits, atol=1e-10)


def test_only_the_papers_construction_is_materialised(model):
    with pytest.raises(OptionError, match="the paper's construction alone"):
        TinT.build(model("gpt2"), mode="exact", materialise=True)
    with pytest.raises(OptionError, match="the paper's construction alone"):  # whose gate is one in float32
        TinT.build(model("gpt2", torch.float32), mode="published", materialise=True)
    with pytest.raises(TintError, match="the fast path runs them"):
        TinT.build(model("llama"), materialise=True)


def test_the_transformer_stops_where_its_descent_becomes_nan(model):
    plain = model("gpt2", torch.float32)
    with pytest.raises(TintError, match=r"step 2: the prefixes of block 1's \w+ are NaN or infinite: lower the lear"):
        TinT.build(plain, steps=5, materialise=True)(tokens(plain), prefix_mask(), lr=1e30)
    with pytest.raises(TintError, match="after step 1 logits are NaN"):
        TinT.build(plain, materialise=True)(tokens(plain), prefix_mask(), lr=1e30)


@given(st.sampled_from([(8, 2, 32), (12, 3, 30), (16, 4, 16), (6, 1, 25)]), st.integers(0, 10**6), st.data())
@settings(max_examples=15)
def test_weights_lie_in_prefixes_and_come_back_bit_for_bit(sizes, seed, data):
    width, heads, inner = sizes
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=11, n_embd=width, n_layer=1, n_head=heads, n_inner=inner, n_positions=9, bos_token_id=None, eos_token_id=None
    )  # fmt: skip
    auxiliary = Auxiliary.of(GPT2LMHeadModel(config))
    block = {name: torch.randn_like(value) for name, value in auxiliary.blocks[0].items()}
    rows = data.draw(st.sampled_from([n for n in range(1, width + 1) if width % n == 0]))
    layout = Layout.plan(auxiliary.shape, rows)
    prefixes = pack(layout, block)
    assert all(value.shape[-1] == layout.embedding for value in prefixes.values())
    back = unpack(layout, prefixes)
    assert set(back) == set(block) and all(torch.equal(back[name], value) for name, value in block.items())
    # One row, where it is said to lie.
    row = data.draw(st.integers(0, width - 1))
    lies = prefixes["o"][row // rows, row % rows * width : (row % rows + 1) * width]
    assert torch.equal(lies, block["o.weight"][row])


@given(st.sampled_from([8, 12, 16]), st.integers(1, 3), st.integers(5, 70), st.sampled_from(["gpt2", "opt"]))
@settings(max_examples=8)
def test_count_is_the_built_models(width, layers, inner, family):
    shape = shape_of(width, layers, 2, inner, family=family)
    for rows in (None, 1, 4):
        found = count(shape, rows=rows)
        transformer = Transformer(found.layout, 8.0)
        assert found.total == sum(p.numel() for p in transformer.parameters())
        layers_ = [*transformer.blocks.parameters(), *transformer.loss.parameters()]
        assert found.layer_weights == sum(p.numel() for p in layers_)
        assert found.nonzero == sum(int(p.count_nonzero()) for p in layers_)
        assert found.nonzero < found.read <= found.layer_weights


class Inputs(TorchFunctionMode):
    """Marks the weights whose input was ever other than zero, in products and gates, by parameter."""

    def __init__(self, parameters):
        super().__init__()
        self.by_storage = {p.untyped_storage().data_ptr(): p for p in parameters}
        self.read = {p: torch.zeros(p.shape, dtype=torch.bool) for p in self.by_storage.values()}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        product = getattr(function, "__name__", "") in ("matmul", "__matmul__", "mul", "__mul__")
        if product and isinstance(args[1], torch.Tensor) and (p := self._owner(args[1])) is not None:
            left, right = args[0] != 0, args[1]
            mark = torch.as_strided(self.read[p], right.size(), right.stride(), right.storage_offset())
            if right.dim() == 1:  # a gate, or one that reads a flag
                mark |= left.flatten(0, -2).any(0)
            else:
                heads = right.shape[:-2]
                left = left.any(-2)
                while left.dim() > len(heads) + 1:
                    left = left.any(0)
                for place, size in enumerate(heads):
                    left = left.any(place, keepdim=True) if size == 1 else left
                mark |= left.unsqueeze(-1)
        return function(*args, **(kwargs or {}))

    def _owner(self, tensor):
        return self.by_storage.get(tensor.untyped_storage().data_ptr())


@pytest.mark.parametrize(("width", "heads", "inner"), [(8, 2, 20), (12, 3, 48), (6, 1, 6)])
def test_count_says_how_many_weights_ever_read_anything(width, heads, inner):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=23, n_embd=width, n_layer=1, n_head=heads, n_inner=inner, n_positions=16, bos_token_id=None, eos_token_id=None
    )  # fmt: skip
    plain = GPT2LMHeadModel(config).eval()
    for parameter in plain.parameters():
        parameter.data.normal_(0, 0.5)
    whole = TinT.build(plain, steps=2, materialise=True)
    layers, loss = whole.transformer.sets[0], whole.transformer.loss
    with Inputs([*layers.parameters(), *loss.parameters()]) as inputs:
        whole(torch.randint(23, (2, 12)), prefix_mask(2, 12, 8), lr=0.01)
    # Some of these are used as one minus them, which is no parameter.
    inputs.read[layers.masks] |= inputs.read[layers.masks].any(0)
    found = count(plain)
    assert found.read == sum(int(marked.sum()) for marked in inputs.read.values())
    assert found.loss.read == sum(int(inputs.read[p].sum()) for p in loss.parameters())


@pytest.mark.parametrize("inner", [20, 8])
def test_a_pass_uses_each_layer_as_often_as_count_says(inner, monkeypatch):
    """One inner step; what the layers of block 0 are called for, counted as they are called."""
    kinds = {
        "linear, forward": "linear", "linear, backward": "linear_backward", "linear, descent": "linear_descent",
        "norm weights, forward": "scaled", "norm weights, backward": "scaled_backward", "norm weights, descent": "scaled_descent",
        "attention": "attend", "normalising, forward": "normalised", "normalising, backward": "normalised_backward",
        "activation, forward": "activated", "activation, backward": "activated_backward", "moves between slots": "move",
    }  # fmt: skip
    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_inner=inner, n_positions=9, bos_token_id=None, eos_token_id=None)  # fmt: skip
    plain = GPT2LMHeadModel(config).eval()
    whole = TinT.build(plain, materialise=True)
    first, calls = whole.transformer.sets[0], dict.fromkeys(kinds.values(), 0)

    def counted(name, method):
        def call(self, *arguments, **options):
            calls[name] += self is first
            return method(self, *arguments, **options)

        return call

    for name in calls:
        monkeypatch.setattr(LayerSet, name, counted(name, getattr(LayerSet, name)))
    whole(torch.randint(11, (1, 8)), prefix_mask(1, 8, 5), lr=0.01)
    size = count(plain)
    assert {kinds[piece.name]: piece.uses for piece in size.pieces} == calls
    # Without sharing there would be as many layers as calls; dense ones have four square matrices.
    rest = size.prefixes + size.tables
    own = sum(calls[kinds[piece.name]] * piece.weights for piece in size.pieces)
    assert size.unshared == 2 * own + size.loss.weights + rest
    assert size.dense == 4 * size.layout.embedding**2 * (2 * sum(calls.values()) + 1) + rest
    assert size.total - size.shared_by_all == size.set_weights  # two blocks: one set more


def test_opt_125m_is_simulated_with_fewer_than_two_billion_weights():
    found = count("opt-125m")
    assert found.shape.weights == 125_239_296
    assert found.total < 2e9 < found.unshared < found.dense
    transformer = Transformer.sketch(found.layout)
    assert all(p.is_meta for p in transformer.parameters())
    assert found.total == sum(p.numel() for p in transformer.parameters())
    assert found.total <= min(count("opt-125m", rows=rows).total for rows in (1, 2, 4, 6, 8))


@pytest.mark.parametrize(
    ("name", "model_class", "config"),
    [
        ("facebook/opt-125m", OPTForCausalLM, OPTConfig()),
        (
            "opt-1.3b",
            OPTForCausalLM,
            OPTConfig(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, ffn_dim=8192, word_embed_proj_dim=2048),
        ),
        ("gpt2", GPT2LMHeadModel, GPT2Config()),
        ("openai-community/gpt2-medium", GPT2LMHeadModel, GPT2Config(n_embd=1024, n_layer=24, n_head=16)),
        (
            "smollm2-135m",
            LlamaForCausalLM,
            LlamaConfig(
                vocab_size=49152,
                hidden_size=576,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                head_dim=64,
                intermediate_size=1536,
                max_position_embeddings=8192,
                rms_norm_eps=1e-5,
                tie_word_embeddings=True,
            ),
        ),
    ],
)  # fmt: skip
def test_well_known_sizes_are_the_librarys(name, model_class, config):
    with torch.device("meta"):
        built = model_class(config)
    shape = Shape.named(name)
    assert shape.weights == sum(p.numel() for p in built.parameters())
    blocks = built.model.layers if shape.family == "llama" else getattr(built, "transformer", None)
    blocks = blocks.h if shape.family == "gpt2" else built.model.decoder.layers if shape.family == "opt" else blocks
    assert shape.block_weights == sum(p.numel() for p in blocks.parameters())
    read = Shape.of_config(config.to_dict())
    assert (read.width, read.layers, read.heads, read.key_heads, read.inner) == (
        shape.width, shape.layers, shape.heads, shape.key_heads, shape.inner,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: count("opt-350m"), "opt-350m: LayerNorms after the sublayers"),
        (lambda: count("gpt5"), "no sizes of a model called 'gpt5' are known here: known are opt-125m"),
        (lambda: count("smollm2-135m"), "rotary positions and gated feed-forward layers have no construction"),
        (lambda: count("opt-125m", tokens=4096), "longer than the 2048 positions of opt-125m"),
        (lambda: count("opt-125m", rows=5), "5 rows a prefix don't divide the width 768"),
        (lambda: count({"model_type": "bert"}), "architecture 'bert' can't be simulated"),
        (lambda: count("./someone/gpt2"), "is not a folder"),
        (lambda: Shape.named("someone/gpt2"), "no sizes of a model called 'someone/gpt2' are known here"),
        (lambda: count({"model_type": "gpt2", "n_embd": 8}), "the config doesn't say n_head"),
        (lambda: count(GPT2Config(n_embd=10, n_head=3).to_dict()), "width 10 can't be cut into 3 equal heads"),
        (
            lambda: Shape.of_config(LlamaConfig(num_attention_heads=4, num_key_value_heads=3).to_dict()),
            "4 heads can't share 3 heads of keys evenly",
        ),
    ],
)
def test_what_cannot_be_planned_is_said(call, words):
    with pytest.raises(SurgeryError, match=words):
        call()


def test_a_count_of_a_model_and_of_its_folder_agree(tiny, model):
    folder, built = count(tiny("opt")), count(model("opt"))
    assert folder.total == built.total and folder.content()["total"] == folder.total
    columns, rows = folder.table()
    assert len(columns) == 5 and rows[-1][1] == folder.set_weights
    assert f"{folder.total:,}" in folder.summary[0]


def test_a_count_is_kept_and_read_again(tiny, tmp_path):
    kept = count(tiny("opt"))
    assert Count.load(kept.save(tmp_path / "count")) == kept
    assert f"{kept.total:,}" in (tmp_path / "count" / "index.html").read_text()
    report = tmp_path / "count" / "report.json"
    report.write_text(report.read_text().replace('"prefixes"', '"suffixes"'))
    with pytest.raises(TintError, match=r"report\.json is damaged"):
        Count.load(tmp_path / "count")
