"""Schedules: the paper's figures, the rule against a plain loop, the clock against the plan, and what is refused."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import OptionError
from surgery.sync.planning import Plan, plan, warmed_up
from surgery.sync.schedule import Clock, Schedule, lengths

VIT = {"steps": 93_600, "rate": 0.008, "warmup": 10_000}


def test_the_papers_vit_schedule():
    """ViT-B of Gu et al.: .104 of data parallel's rounds, a last round of 8,142 steps; .42 of constant H = 4."""
    found = plan(warmed_up(**VIT), alpha=0.0175, h_base=4, warmup=10_000)
    assert round(found.share, 3) == 0.104
    assert found.share_of_constant == pytest.approx(0.42, abs=0.0051)
    assert found.lengths[-1] == 8142
    assert found.steps == 93_600
    assert plan(warmed_up(**VIT), alpha=0.0175, h_base=4).rounds == found.rounds  # a warm-up that is seen to rise


def plain_loop(rates, alpha, base, power, warmup, most):
    """The rule written down as the paper has it."""
    found, step = [], 0
    while step < len(rates):
        h = base
        if step >= warmup and rates[step] > 0:
            h = max(base, int((alpha / rates[step]) ** power))
        elif step >= warmup:
            h = len(rates)
        h = min(h, most, len(rates) - step)
        found.append(h)
        step += h
    return found


@given(
    st.integers(1, 300),
    st.integers(0, 40),
    st.sampled_from(["cosine", "linear", "constant"]),
    st.floats(1e-3, 1.0),
    st.integers(1, 9),
    st.sampled_from(["qsr", "cubic"]),
    st.sampled_from([None, 16]),
)
def test_the_rule_is_a_plain_loops_and_the_clocks(steps, warmup, decay, alpha, base, kind, most):
    warmup = min(warmup, steps - 1)
    rates = warmed_up(steps, 0.1, warmup=warmup, end_rate=0.0, decay=decay)
    schedule = Schedule(kind, alpha, base, most, warmup, steps)
    found = lengths(schedule, rates)
    power = {"qsr": 2, "cubic": 3}[kind]
    assert found == plain_loop(rates, alpha, base, power, warmup, most or math.inf)
    clock, ends = Clock(schedule), []
    for step, rate in enumerate(rates):
        if step == steps // 2:  # a clock goes on from its state
            state, clock = clock.state(), Clock(schedule)
            clock.restore(state)
        if clock.tick(rate):
            ends.append(step + 1)
    assert ends == [sum(found[: k + 1]) for k in range(len(found))]


def test_constant_and_post_local():
    rates = [0.1] * 10
    assert plan(rates, kind="constant", h_base=4).lengths == (4, 4, 2)
    assert plan(rates, kind="post-local", h_base=4, switch=3).lengths == (1, 1, 1, 4, 3)
    assert plan(rates, kind="constant", h_base=1).share == 1.0


def test_the_largest_rate_drives_or_the_one_that_is_named():
    rates = [(0.1, 0.01)] * 200
    assert plan(rates, alpha=0.2, h_base=1, warmup=0).lengths[0] == 4
    assert plan(rates, alpha=0.02, h_base=1, warmup=0, drive=1).lengths[0] == 4
    with pytest.raises(OptionError, match="`drive` 2 is no parameter group"):
        plan(rates, alpha=0.02, drive=2)


@pytest.mark.parametrize("kind", ["qsr", "cubic", "constant"])
@pytest.mark.parametrize("budget", [0.06, 0.2])
def test_a_budget_is_kept_and_used_up(kind, budget):
    rates = warmed_up(2000, 0.01, warmup=100)
    found = plan(rates, kind=kind, budget=budget)
    assert budget * 0.8 < found.share <= budget
    if kind != "constant":  # a little less alpha averages too often
        assert plan(rates, kind=kind, alpha=found.schedule.alpha * (1 - 1e-4)).rounds > budget * 2000


def test_bytes_follow_from_weights_and_rounds():
    found = plan([0.1] * 10, kind="constant", h_base=5, weights=1000)
    assert found.bytes == 2 * 1000 * 4
    assert [row[4] for row in found.table()[1]] == [8000, 8000, 40_000]


def test_a_plan_is_kept_and_shown(tmp_path):
    found = plan(warmed_up(400, 0.01, warmup=20), alpha=0.02, weights=5)
    found.save(tmp_path / "plan")
    assert Plan.load(tmp_path / "plan") == found
    assert (tmp_path / "plan" / "h.png").stat().st_size > 1000
    constant = plan([0.1] * 10, kind="constant", budget=0.5)
    content = {
        **constant.content(),
        "schedule": {**constant.content()["schedule"], "alpha": 1.0},
    }  # as it was once written
    (tmp_path / "plan" / "report.json").write_text(json.dumps(content))
    assert Plan.load(tmp_path / "plan") == constant
    (tmp_path / "plan" / "report.json").write_text('{"format": "surgery sync plan 1"}')
    with pytest.raises(OptionError, match=r"report\.json can't be read as a plan"):
        Plan.load(tmp_path / "plan")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0.0}, "`alpha` must be above 0"),
        ({"alpha": math.nan}, "`alpha` must be above 0"),
        ({}, "`alpha` is missing"),
        ({"alpha": 1.0, "h_base": 0}, "`h_base` must be 1 or more"),
        ({"alpha": 1.0, "h_base": 4, "h_max": 2}, "`h_max` 2 is less than `h_base` 4"),
        ({"kind": "square", "alpha": 1.0}, "`kind` square isn't one of qsr, cubic, constant, post-local"),
        ({"budget": 0.0}, "`budget` 0.0 isn't a share"),
        ({"budget": 0.001}, "`budget` allows"),
        ({"kind": "constant", "alpha": 1.0}, "`alpha` goes with qsr and cubic"),
        ({"alpha": 1.0, "switch": 5}, "`switch` goes with post-local"),
        ({"alpha": 1.0, "warmup": -1}, "`warmup` must be 0 or more"),
        ({"kind": "post-local", "switch": -1}, "`switch` must be 0 or more"),
        ({"kind": "constant", "budget": 0.1, "h_max": 5}, "`budget` 0.1 takes H 10, and `h_max` is 5"),
    ],
)
def test_what_no_plan_is_made_of(options, said):
    with pytest.raises(OptionError, match=said):
        plan(warmed_up(2000, 0.01, warmup=100), **options)


def test_rates_of_zero_and_rates_that_rise_late():
    with pytest.raises(OptionError, match="rate is 0 at every step"):
        plan([0.0] * 5, alpha=1.0)
    with pytest.raises(OptionError, match="rises again at step 4"):
        plan([0.1, 0.2, 0.1, 0.15], alpha=1.0)
    plan([0.1, 0.2, 0.1, 0.15], alpha=1.0, warmup=2)  # whoever says how long warm-up is knows of restarts
    clock = Clock(Schedule(alpha=0.1, h_base=1))
    clock.tick(0.0)
    with pytest.raises(OptionError, match="rate is 0 at step 2, where a round would have no end"):
        clock.tick(0.0)
    clock = Clock(Schedule(alpha=0.1, h_base=1))
    clock.tick(0.2)
    clock.tick(0.1)
    with pytest.raises(OptionError, match="rises again at step 3"):
        clock.tick(0.2)


def test_the_command(run, tmp_path):
    line = ["sync", "plan", "--steps", 93600, "--rate", 0.008, "--warmup", 10000, "--alpha", 0.0175, "--h", 4]
    status, out, _ = run(*line, "--weights", "86e6", "-o", tmp_path / "plan")
    assert status == 0
    assert "0.104 of data parallel, 0.415 of constant H = 4" in out
    assert Plan.load(tmp_path / "plan").bytes == 9711 * 86_000_000 * 4
    status, _, said = run(*line[:-4], "--alpha", 0)
    assert (status, said.count("\n")) == (2, 1)
    assert "--alpha must be above 0" in said
    status, _, said = run(*line, "--budget", 0.1)
    assert (status, "--alpha and --budget" in said) == (2, True)
