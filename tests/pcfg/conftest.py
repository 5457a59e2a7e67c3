"""NLTK's data, code run where no types are checked, and the steps of the dense engine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.replaying import Eager

SHARED = Path(__file__).resolve().parents[3] / "shared" / "nltk_data"


@pytest.fixture(scope="module")
def home():
    """The folder of NLTK's data."""
    found = os.environ.get("NLTK_DATA") or str(SHARED)
    if not Path(found).is_dir():
        pytest.skip(f"no NLTK data at {found}")
    return found


@pytest.fixture
def untyped(home):
    """`untyped(code)`: its output in a process of its own; checking the types of millions of small calls takes minutes."""

    def run(code, *arguments):
        command = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NLTK_DATA": home})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(params=["loops", "tensors", "replayed"])
def steps(request, monkeypatch):
    """What uses it holds for compiled loops, for tensors and for charts that are padded and replayed as on a card."""
    monkeypatch.setattr("pcfg.dense.steps.MOST", {"loops": 1 << 60}.get(request.param, 0))
    if request.param == "replayed":
        monkeypatch.setattr("pcfg.dense.passes.RECORDED", ("cpu",))
        monkeypatch.setattr("pcfg.dense.passes.charts", Eager())
