"""Mutated files of every format are loaded, or refused by the project's own error in one sentence: never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fuzzing import FORMATS

# Formats whose every try runs a model: fewer in the short run.
SLOW = {"tune-state": 40, "pretrain-state": 40, "corpus-state": 100, "fit-state": 100}


def fuzz(name, count):
    command = [sys.executable, "-m", "tests.support.fuzzing", str(count), name]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[2])
    assert run.stdout.startswith("{"), run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["tracebacks"] == {}
    assert found["loaded"] + found["refused"] == count
    assert found["refused"] > 0 or name.endswith("state")  # a state that is damaged may be worked out anew


@pytest.mark.parametrize("name", FORMATS)
def test_no_mutation_is_a_traceback(name):
    fuzz(name, SLOW.get(name, 2000))


@pytest.mark.fuzz
@pytest.mark.parametrize("name", FORMATS)
def test_no_mutation_of_twenty_thousand_is_a_traceback(name):
    fuzz(name, 20_000 if name not in SLOW else 10 * SLOW[name])
