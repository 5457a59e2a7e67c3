"""Fixtures of the dense engine's tests."""

import pytest

from tests.support.replaying import Eager


@pytest.fixture(params=["loops", "tensors", "replayed"])
def steps(request, monkeypatch):
    """What uses it holds for compiled loops, for tensors and for charts that are padded and replayed as on a card."""
    monkeypatch.setattr("pcfg.dense.steps.MOST", {"loops": 1 << 60}.get(request.param, 0))
    if request.param == "replayed":
        monkeypatch.setattr("pcfg.dense.passes.RECORDED", ("cpu",))
        monkeypatch.setattr("pcfg.dense.passes.charts", Eager())
