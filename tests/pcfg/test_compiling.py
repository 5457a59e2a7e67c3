"""Compiled functions where nothing can be kept, and under interrupts."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

from surgery.compiling import compiled, uninterrupted


def test_without_a_place_for_what_was_compiled(monkeypatch):
    def refuse(self):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(Dispatcher, "enable_caching", refuse)
    function = compiled(error_model="numpy")(lambda x: 1 / x)
    assert function(0.0) == np.inf and function.targetoptions["nogil"]


def test_options_reach_the_compiler(monkeypatch):
    """What is compiled is kept, runs without the interpreter's lock, and divides by zero as it was asked to."""
    kept = []
    monkeypatch.setattr(Dispatcher, "enable_caching", lambda self: kept.append(self))
    function = compiled(error_model="numpy")(lambda x: 1 / x)
    assert function(0.0) == np.inf and kept == [function] and function.targetoptions["nogil"]


@pytest.fixture
def interruptible():
    """What SIGINT does at a terminal: a job in the background starts with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_the_end_of_the_block(interruptible):
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the block")
    assert done == ["the rest of the block"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:  # where no handler can be set
        assert pool.submit(lambda: uninterrupted().__enter__()).result() is None


def test_an_interrupt_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_interrupts_at_any_moment_end_in_no_crash():
    """In a process of its own, as it used to be killed: one interrupt after another, each into running kernels."""
    code = """
import os, random, signal, threading, time
from pcfg import Grammar, inside_outside, sample

grammar = Grammar.random(30, 30, 20, 0, rules=900)
sentences = [list(sentence) for sentence in sample(grammar, 2, seed=0, max_length=12)]

def work():
    chart = inside_outside(grammar, sentences, engine="sparse")
    return chart.label_marginals, chart.best_trees(), chart.k_best(2), chart.sample_trees(2, seed=0)

def interrupt():
    while True:
        wanted.wait()
        wanted.clear()
        time.sleep(random.uniform(1e-4, 5e-3))
        os.kill(os.getpid(), signal.SIGINT)

work()
signal.signal(signal.SIGINT, signal.default_int_handler)
wanted, caught = threading.Event(), 0
threading.Thread(target=interrupt, daemon=True).start()
for _ in range(200):
    try:
        wanted.set()
        while True:
            work()
    except KeyboardInterrupt:
        caught += 1
print(caught)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "200"), done.stderr
