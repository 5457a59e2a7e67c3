"""verify: what it says of simulations that are right, and of some that aren't."""

import json
import re

import pytest
import torch

from cli.main import app
from surgery.errors import TintError
from surgery.tint import Run, TinT, Verification, verify
from surgery.tint.modules import Arithmetic


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_verify_finds_what_is_right_and_what_is_wrong(model, kind, tmp_path):
    found = verify(model(kind))
    assert found.forward_error < 1e-12 and max(entry["error"] for entry in found.content["forward"]) < 1e-12
    assert found.worst("exact", "full")["relative_error"] < 1e-9
    assert found.worst("paper", "detached")["cosine"] > 0.99999 > found.worst("paper", "full")["cosine"]
    alone = {entry["approximation"]: entry for entry in found.content["approximations"]}
    assert alone["score gradients dropped"]["cosine"] == pytest.approx(found.worst("paper", "full")["cosine"], abs=1e-4)
    assert alone["norms by differences"]["relative_error"] < 1e-4
    if kind == "gpt2":  # the published code's last bias
        entries = found.content["updates"]["published"]["detached"]
        assert {round(e["norm_ratio"]) for e in entries if e["tensor"] == "down.bias"} == {4}
    sweep = {(p["dtype"], p.get("step")): p["relative_error"] for p in found.content["sweep"] if "step" in p}
    assert sweep["float64", 1e-5] < sweep["float64", 1e-1] and sweep["float32", 3e-3] < sweep["float32", 1e-7]
    found.save(tmp_path / "out")
    again = Verification.load(tmp_path / "out")
    assert again.content["updates"] == json.loads(json.dumps(found.content["updates"]))
    assert again.table() == found.table() and (tmp_path / "out" / "sweep.png").stat().st_size > 5000
    with pytest.raises(TintError, match="isn't a surgery tint run 1's"):
        Run.load(tmp_path / "out")


def test_verify_tells_a_broken_simulation(model, monkeypatch):
    import surgery.tint.block as block

    right = block.affine
    monkeypatch.setattr(block, "affine", lambda x, b, name: right(x, b, name) * (1.01 if name == "norm2" else 1))
    found = verify(model("opt"), sweep=False)
    assert found.forward_error > 1e-4 and found.worst("exact", "full")["relative_error"] > 1e-4


def test_verify_in_half_precision_and_in_training_mode(model):
    plain = model("gpt2")
    plain.train()
    assert verify(plain, sweep=False).forward_error < 1e-12
    assert plain.training
    found = verify(model("gpt2", torch.bfloat16))
    assert set(found.content["updates"]) == {"exact"} and not found.content["sweep"]


def test_a_long_verification_says_what_it_will_take(tiny, monkeypatch, capsys):
    monkeypatch.setattr("cli.tint._LARGE", 0)
    app(["tint", "verify", str(tiny("gpt2")), "--tokens", "8", "--device", "cpu"], standalone_mode=False)
    said = " ".join("".join(capsys.readouterr()).split())
    assert re.search(r"About \d+ seconds and [\d.]+ [kM]?B of memory; --no-sweep leaves out", said)


def test_verify_says_that_a_model_itself_is_nan(model):
    plain = model("gpt2", torch.float16)
    plain.transformer.h[0].mlp.c_proj.weight.data *= 60_000
    with pytest.raises(TintError, match="logits are NaN or infinite in float16"):
        verify(plain)


@pytest.mark.real
def test_smollm_learns_from_a_text_as_autograd_would(made):
    simulations = {mode: TinT.build(str(made("smollm2")), mode=mode) for mode in ("exact", "paper")}
    auxiliary = simulations["exact"].auxiliary
    ids = torch.randint(40_000, (1, 48), generator=torch.Generator().manual_seed(0))
    found = verify(auxiliary, ids, sweep=False)
    assert found.forward_error < 1e-3  # of logits that reach 30
    assert found.worst("exact", "full")["relative_error"] < 1e-4
    assert found.worst("paper", "detached")["cosine"] > 0.999


def test_the_step_of_differences_is_about_the_best_there_is(model):
    """In float32 both of a tenth and of ten times that step are worse."""
    tried = [point for point in verify(model("gpt2", torch.float32)).content["sweep"] if "step" in point]
    for dtype in ("float32", "float64"):
        errors = {point["step"]: point["relative_error"] for point in tried if point["dtype"] == dtype}
        own = Arithmetic.of("paper", getattr(torch, dtype)).step
        assert errors[own] <= 3 * min(errors.values())
