"""The benchmark for a card, where there is none: what fails is a line, what there is to run runs."""

import math
import subprocess
import sys

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks.card import measure, pcfg

PART = """
from tests.benchmarks.card.measure import holds
def lines():
    print("a library's own words")
    yield holds("first", True)
    {rest}
"""


@pytest.mark.parametrize(
    ("rest", "said"),
    [("raise ValueError('no such kernel')", "no such kernel"), ("import time; time.sleep(60)", "more than 5 s")],
)
def test_a_part_that_fails_or_hangs_is_a_failed_line_after_those_it_made(tmp_path, monkeypatch, rest, said):
    # In the part's own process the module is found by this folder's path, which comes before the package's.
    package = tmp_path / "tests" / "benchmarks" / "card"
    package.mkdir(parents=True)
    (package / "made.py").write_text(PART.format(rest=rest))
    hook = f"import tests.benchmarks.card as c; c.__path__.append({str(package)!r}); import tests.benchmarks.gpu as g; g.PARTS['made'] = 1"

    real = subprocess.Popen
    code = f"{hook}; raise SystemExit(g.main(['--part', 'made']))"
    monkeypatch.setattr(
        gpu.subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", code], **options)
    )
    first, last = gpu.collected("made", 5)
    assert first.ok and first.name == "first"
    assert not last.ok and said in f"{last.ours} {last.note}"
    assert "FAILED" in gpu.table([first, last]) and "made: the whole part" in gpu.table([first, last])


def test_without_a_card_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2 and "nothing was measured" in capsys.readouterr().out


def test_a_line_that_fails_is_an_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    found = {"pcfg": [measure.faster("fast", 1.0, 20.0, 15.0)]}
    monkeypatch.setattr(gpu, "collected", lambda name, seconds: found[name])
    assert gpu.main(["--only", "pcfg"]) == 0
    found["pcfg"].append(measure.within("wrong", math.nan, 1e-6))
    assert gpu.main(["--only", "pcfg"]) == 1
    capsys.readouterr()


def test_all_parts_together_take_less_than_four_minutes(monkeypatch, capsys):
    clock, given = [0.0], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: clock[0])

    def slow(name, seconds):
        clock[0] += seconds
        given.append(seconds)
        return []

    monkeypatch.setattr(gpu, "collected", slow)
    monkeypatch.setattr(gpu, "PARTS", dict.fromkeys("abcdef", 60))
    gpu.main([])
    assert given == [60, 60, 60, 55, 1, 1] and sum(given) < 240
    capsys.readouterr()


def test_ratios():
    assert measure.faster("x", 2.0, 30.0, 15.0).ok and not measure.faster("x", 2.1, 30.0, 15.0).ok
    assert measure.within("x", 0.0, 1e-6).ok and not measure.within("x", 2e-6, 1e-6).ok
    assert not measure.holds("x", False).ok and measure.shown(0.0123) == "12.30 ms"


def test_the_chart_part_runs_on_small_charts(monkeypatch):
    monkeypatch.setattr(pcfg, "DEVICE", "cpu")
    monkeypatch.setattr(pcfg, "SIZES", ((3, 4, 2, 6, 0.01), (4, 5, 2, 5, 0)))
    monkeypatch.setattr(pcfg, "BEST", (3, 4, 2, 6))
    monkeypatch.setattr(pcfg, "MIXED", (3, 4, 2, 8))
    lines = list(pcfg.lines())
    assert len(lines) == 13 and isinstance(lines, list) and all(isinstance(line.ratio, float) for line in lines)
    assert [line.ok for line in lines if "error" in line.name] == [True, True]
