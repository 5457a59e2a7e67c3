"""What can't be simulated or learnt from ends in a sentence."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from surgery.errors import OptionError, SurgeryError, TintError
from surgery.tint import TinT, run_text, verify
from tests.support.tint import prefix_mask, tokens


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
