"""Fixtures for all tests: checkpoints of every model family, small enough to take milliseconds, and ways to change them."""

# ruff: noqa: E402 (the first lines must run before the imports that follow)
import fcntl
import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the hub's library

from tests.support.checked_types import check_types

check_types("surgery", "probes", "pcfg", "cli")

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tests.support.tiny import KINDS, build

settings.register_profile("tests", max_examples=50, deadline=None, derandomize=True, print_blob=True)
settings.load_profile("tests")


def pytest_runtest_setup(item):
    """Tests that are marked `cuda` are skipped where there is no card."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a card: torch.cuda.is_available() is False")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny(kind)`: the folder of a tiny checkpoint, made once a session; for reading only."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = build(kind, tmp_path_factory.mktemp("tiny") / kind)
        return made[kind]

    return get


@pytest.fixture
def copied(tiny, tmp_path):
    """`copied(kind, name)`: a copy of a tiny checkpoint in the test's own folder, to be changed at will."""

    def get(kind, name="base"):
        return shutil.copytree(tiny(kind), tmp_path / name)

    return get


@pytest.fixture(params=KINDS)
def kind(request):
    """Each kind of tiny checkpoint in turn."""
    return request.param


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(*arguments)`: what the command `surgery` ends with: exit status, stdout, stderr."""
    from cli.main import main

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["surgery", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.fixture
def ok(run):
    """`ok(*arguments)`: stdout of a run that must end well; parsed with --json."""

    def call(*arguments):
        status, out, err = run(*arguments)
        assert status == 0, err
        return json.loads(out) if "--json" in arguments else out

    return call


@pytest.fixture(scope="session")
def made():
    """`made(part)`: the folder of a real checkpoint or of image features, made once by the script in `shared`."""

    def get(part):
        folder = Path(os.environ.get("MODELS_DIR", "~/.cache/surgery-models")).expanduser() / part
        if not folder.exists():
            script = Path(__file__).resolve().parent.parent.parent / "shared" / "models" / "get_models.py"
            if not script.exists():
                pytest.skip(f"no {folder}, and no script at {script} to make it")
            online = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
            folder.parent.mkdir(parents=True, exist_ok=True)
            with (folder.parent / ".lock").open("w") as lock:  # one of the processes that run tests makes it
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not folder.exists():
                    subprocess.run([sys.executable, script, "--dir", folder.parent, part], check=True, env=online)
        return folder

    return get
