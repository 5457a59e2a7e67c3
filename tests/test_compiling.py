"""Compiled functions where nothing can be kept."""

from numba.core.dispatcher import Dispatcher

from pcfg.compiling import compiled


def test_without_a_place_for_what_was_compiled(monkeypatch):
    def refuse(self):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(Dispatcher, "enable_caching", refuse)
    assert compiled()(lambda x: x + 1)(2) == 3
