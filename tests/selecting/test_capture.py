"""Gradients of a batch's rows at once are those of each row alone, on models of several kinds; Adam's map is LESS's formula."""

import math

import pytest
import torch
import transformers

from surgery.errors import CheckpointError, OptionError
from surgery.selecting.capture import stacked
from surgery.selecting.lora import Adapter
from surgery.selecting.maps import GradientMap
from tests.selecting.conftest import encoded, looped, opened, shaken
from tests.support import architectures

TINY = ("bert", "bert-encoder", "roberta", "gpt2", "opt", "llama", "llama-tied")
# A shared layer that is used twice; convolutions beside attention, where padding matters; parallel blocks.
OTHERS = {
    "albert": "AlbertForMaskedLM",
    "phi": "PhiForCausalLM",
    "convbert": "ConvBertForMaskedLM",
    "gpt_neox": "GPTNeoXForCausalLM",
}


def check(folder, loss="answer", device="cpu"):
    model, objective = opened(folder, loss, device=device)
    rows = encoded(objective, 9)
    adapter = Adapter.beside(model, 2, 4.0)
    shaken(adapter)
    found, wanted = stacked(model, objective, rows, adapter.layers, 4), looped(model, objective, rows, adapter)
    ours, theirs = (torch.cat(list(each.values()), 1).double() for each in (found, wanted))
    assert (theirs.norm(dim=1) > 0).all()
    cosines = torch.nn.functional.cosine_similarity(ours, theirs)
    assert (cosines >= 0.99999).all(), cosines
    assert torch.allclose(ours.norm(dim=1), theirs.norm(dim=1), rtol=1e-4)
    assert list(found) == list(wanted)


@pytest.mark.parametrize("kind", TINY)
def test_gradients_are_those_of_a_loop(kind, tiny):
    check(tiny(kind))


@pytest.mark.parametrize("kind", OTHERS)
def test_gradients_of_other_architectures_are_those_of_a_loop(kind, tmp_path):
    family = "masked" if "Masked" in OTHERS[kind] else "causal"
    check(architectures.build(OTHERS[kind], tmp_path / kind, family))


def test_the_whole_texts_loss_is_captured_too(tiny):
    check(tiny("gpt2"), "text")


@pytest.mark.cuda
def test_gradients_on_a_card_are_those_of_a_loop(tiny):
    check(tiny("llama"), device="cuda")


def test_the_loss_is_the_librarys_own(tiny):
    model, objective = opened(tiny("llama"))
    rows = encoded(objective, 3)
    with torch.no_grad():
        found = objective.losses(model, rows)
        for row, loss in zip(rows, found, strict=True):
            labels = [-100, *row.targets[:-1]]
            wanted = model.module(input_ids=torch.tensor([row.tokens.ids]), labels=torch.tensor([labels])).loss
            assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


def test_no_stack_of_gradients_is_held(tiny):
    """While a batch runs, no more than one layer's gradients are alive."""
    import weakref

    model, objective = opened(tiny("llama"))
    adapter = Adapter.beside(model, 2, 4.0)
    shaken(adapter)
    from surgery.selecting.capture import gradients

    alive, most = weakref.WeakSet(), []

    def sink(_):
        def take(name, each):
            alive.add(each)
            most.append(len(alive))

        return take

    list(gradients(model, objective, encoded(objective, 4), adapter.layers, 4, sink))
    assert len(most) == len(adapter.layers) > 20
    assert max(most) == 1


def test_rows_that_a_layer_mixes_are_refused():
    from surgery.selecting.capture import _Caught

    caught = _Caught({}, 3, 5, lambda name, each: None)
    assert caught.by_row("x", torch.zeros(3, 5, 4)).shape == (3, 5, 4)
    assert caught.by_row("x", torch.zeros(15, 4)).shape == (3, 5, 4)
    for shape in ((7, 4), (3, 4), (1, 15, 4)):  # an expert's share of the tokens; one state a row; all rows in one
        with pytest.raises(CheckpointError, match="rows can't be told apart"):
            caught.by_row("x", torch.zeros(shape))


def test_targets_that_nothing_fits_are_refused(tiny):
    model, _ = opened(tiny("bert"))
    with pytest.raises(OptionError, match="`targets` \\*nothing\\*: no matrix"):
        Adapter.beside(model, 2, 4.0, ["*nothing*"])


def test_adams_map_is_the_formula_of_less():
    """A worked example: b1 .9, b2 .999, eps 1e-8 inside the root, no bias correction."""
    state = {"layer.weight": {"exp_avg": torch.tensor([[0.2, -1e-5]]), "exp_avg_sq": torch.tensor([[0.09, 1e-9]])}}
    found = GradientMap("adam", state, 7)("layer", torch.tensor([[0.5, 2e-5], [0.0, 0.0]]))
    wanted = [
        [(0.9 * 0.2 + 0.1 * 0.5) / math.sqrt(0.999 * 0.09 + 0.001 * 0.25 + 1e-8), (-0.9e-5 + 0.2e-5) / math.sqrt(0.999e-9 + 0.001 * 4e-10 + 1e-8)],
        [0.18 / math.sqrt(0.999 * 0.09 + 1e-8), -0.9e-5 / math.sqrt(0.999e-9 + 1e-8)],
    ]  # fmt: skip
    assert torch.allclose(found, torch.tensor(wanted), rtol=1e-5)


def test_the_corrected_map_is_the_step_of_torchs_adam():
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0, 3.0]]))
    optimizer = torch.optim.Adam([weight], lr=1.0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        weight.grad = torch.randn(1, 3, generator=draw)
        optimizer.step()
    state = {"layer.weight": {name: optimizer.state[weight][name].clone() for name in ("exp_avg", "exp_avg_sq")}}
    gradient = torch.randn(1, 3, generator=draw)
    before = weight.detach().clone()
    weight.grad = gradient.clone()
    optimizer.step()
    assert torch.allclose(
        GradientMap("adam-corrected", state, 3)("layer", gradient), before - weight.detach(), atol=1e-5
    )
    assert torch.equal(GradientMap("sgd", {})("layer", gradient), gradient)


def test_the_librarys_own_forward_pass_is_left_as_it_was(tiny):
    """Hooks go with the batch, also after an error."""
    model, objective = opened(tiny("bert"))
    adapter = Adapter.beside(model, 2, 4.0)
    stacked(model, objective, encoded(objective, 2), adapter.layers)
    assert not any(layer._forward_hooks for layer in adapter.layers.values())
    assert not model.module.get_output_embeddings()._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert transformers.__version__ and tiny
