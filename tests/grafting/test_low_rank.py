"""Skills of low rank: components against autograd, the file, and the way into a base and out of it again."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from surgery import Checkpoint, Skill, graft, tune
from surgery.checkpoints.low_rank import Factors, LowRankDelta
from surgery.errors import OptionError, SkillError
from surgery.grafting.comparison import compare
from surgery.grafting.low_rank import _slopes, _within, decompose, kept, low_rank, put_factors
from surgery.grafting.merging import merge_skills
from tests.support.tiny import build, change, hashes, weights
from tests.tuning.test_tuning import task


@pytest.fixture(scope="module")
def skill(spread):
    return graft(*spread, task(), sparsity=0.3, low_rank=True, control=False, device="cpu")


def test_all_components_together_are_the_whole_change(moved):
    found, _ = moved
    factors = decompose(found, 10**9)
    put_factors(found, factors)
    now = torch.cat([found.model.parameters[name].detach().reshape(-1) for name in found.names])
    assert torch.allclose(now, found.tuned, atol=1e-5)


def test_a_components_slope_is_the_derivative_that_autograd_gives(moved):
    found, evidence = moved
    name, stretch = next((n, s) for n, s in found.stretches() if found.model.parameters[n].dim() == 2)
    left, right = decompose(found, 10**9)[name]
    slopes = _slopes(found.gradient(evidence.rows, evidence.soft)[stretch], Factors(left, right))
    share = torch.zeros(len(right), requires_grad=True)
    parameter = found.model.parameters[name]
    worn = found.base[stretch].view_as(parameter) + (left * share) @ right
    names = found.model.checkpoint.structure.parameters
    words, losses = list(found.readout.word_ids), []
    for row, soft in zip(evidence.rows, evidence.soft, strict=True):
        states = torch.func.functional_call(found.model.module, {names[name]: worn}, (torch.tensor([row.ids]),))
        losses.append(F.cross_entropy(states.logits[0, -1, words][None], soft[None]))
    torch.stack(losses).mean().backward()
    assert torch.allclose(slopes, share.grad, atol=1e-6, rtol=1e-3) and float(slopes.abs().max()) > 1e-6


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_the_budget_of_numbers_is_kept(moved, share):
    found, evidence = moved
    budget = int(share * len(found))
    factors = low_rank(found, evidence, budget)
    assert 0 < sum(own.numbers for own in factors.values()) <= budget
    assert all(own.left.shape[1] == own.right.shape[0] > 0 for own in factors.values())
    with pytest.raises(OptionError, match="no component of a matrix fits into 3 numbers"):
        low_rank(found, evidence, 3)


def test_components_are_taken_by_score_as_far_as_they_fit_and_none_that_harms():
    score, cost = torch.tensor([3.0, 5.0, -1.0, 2.0, 1.0]), torch.tensor([4, 6, 1, 9, 2])
    assert _within(score, cost, 12).tolist() == [True, True, False, False, True]
    assert _within(score, cost, 100).tolist() == [True, True, False, True, True]
    found = {"a": Factors(torch.ones(2, 2), torch.ones(2, 3)), "b": Factors(torch.ones(4, 3), torch.ones(3, 5))}
    some = kept(found, torch.tensor([False, False, True, False, True]))
    assert list(some) == ["b"] and some["b"].left.shape == (4, 2)


def test_a_skill_of_low_rank_goes_in_and_out_with_its_base(spread, skill, tmp_path):
    base = spread[0]
    skill.save(tmp_path / "skill")
    again = Skill.load(tmp_path / "skill")
    assert again.delta_bytes() == skill.delta_bytes() and again.summary == skill.summary and not again.delta.weights
    again.apply(base, tmp_path / "grafted")
    before, after = weights(base.folder), weights(tmp_path / "grafted")
    held = load_file(tmp_path / "skill" / "low-rank.safetensors")
    for name, tensor in before.items():
        change = held[f"left/{name}"] @ held[f"right/{name}"] if f"left/{name}" in held else torch.zeros(1)
        assert torch.allclose(
            after[name], tensor + change.reshape(tensor.shape if change.numel() > 1 else 1), atol=1e-6
        )
    again.revert(tmp_path / "grafted", tmp_path / "again", base=base)
    assert hashes(tmp_path / "again") == hashes(base.folder)
    assert "moves every weight of those matrices" in (tmp_path / "skill" / "README.md").read_text()


def test_what_a_skill_of_low_rank_can_not_do_is_refused(spread, skill, tiny, tmp_path):
    base = spread[0]
    skill.apply(base, tmp_path / "grafted")
    with pytest.raises(OptionError, match="so it can't be taken out without it: give `base`"):
        skill.revert(tmp_path / "grafted", tmp_path / "again")
    with pytest.raises(OptionError, match="can't be applied with `in_place`"):
        skill.apply(base.folder, in_place=True)
    with pytest.raises(SkillError, match="is not the skill's base"):
        skill.apply(tmp_path / "grafted", tmp_path / "twice")
    with pytest.raises(SkillError, match="is not the skill's base"):
        skill.revert(tmp_path / "grafted", tmp_path / "again", base=tmp_path / "grafted")
    change(tmp_path / "grafted", tmp_path / "more", lambda name, x: x + 1 if "embed" in name else None)
    with pytest.raises(SkillError, match="differs from the base in tensors that the skill doesn't touch"):
        skill.revert(tmp_path / "more", tmp_path / "again", base=base)
    for call in (lambda: merge_skills({"a": skill, "b": skill}), lambda: compare({"a": skill, "b": skill})):
        with pytest.raises(SkillError, match="is of low rank"):
            call()
    skill.save(tmp_path / "skill", figures=False)
    for only in (skill, tmp_path / "skill"):
        with pytest.raises(SkillError, match="of low rank"):
            tune(base, task(), only=only)
    assert not (tmp_path / "again").exists() and not (tmp_path / "twice").exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_come_back_to_the_bit(tmp_path, dtype):
    base = Checkpoint(build("bert", tmp_path / "base", dtype=dtype))
    name = next(name for name in base.block_weights() if len(base.entries[name].shape) == 2)
    rows, columns = base.entries[name].shape
    side = torch.float64 if dtype == torch.float64 else torch.float32
    delta = LowRankDelta.of(
        base, {name: Factors(torch.randn(rows, 2, dtype=side), torch.randn(2, columns, dtype=side))}, movable=10**6
    )
    made = delta.tensors(base)[name]
    assert made.dtype == dtype and not torch.equal(made, base.tensor(name))
    (tmp_path / "file").write_bytes(delta.to_bytes())
    assert LowRankDelta.load(tmp_path / "file").to_bytes() == delta.to_bytes()


def test_a_changed_bit_in_the_file_is_refused(skill, tmp_path):
    skill.save(tmp_path / "skill", figures=False)
    file = tmp_path / "skill" / "low-rank.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    with pytest.raises(SkillError, match="don't match its checksum"):
        Skill.load(tmp_path / "skill")
    (tmp_path / "skill" / "skill.safetensors").write_bytes(b"")
    with pytest.raises(SkillError, match="one of which is another skill's"):
        Skill.load(tmp_path / "skill")


def test_the_commands_take_it_in_and_out(spread, skill, tmp_path, run):
    skill.save(tmp_path / "skill", figures=False)
    base, folder = str(spread[0].folder), str(tmp_path / "skill")
    status, shown, _ = run("skill", "show", folder)
    shown = " ".join(shown.split())
    assert status == 0 and "numbers for 5,184 block weights" in shown and "so it is no localisation" in shown
    status, shown, _ = run("skill", "apply", folder, base, "-o", tmp_path / "grafted")
    assert status == 0 and "components of" in shown
    out = ("skill", "revert", folder, tmp_path / "grafted", "-o", tmp_path / "again")
    status, _, error = run(*out)
    assert status == 2 and "give --base" in error
    assert run(*out, "--base", base)[0] == 0
    assert hashes(tmp_path / "again") == hashes(base)
    status, _, error = run("skill", "overlap", folder, folder)
    assert status == 2 and "is of low rank" in error
