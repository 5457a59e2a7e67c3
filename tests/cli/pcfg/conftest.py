"""`surgery pcfg` on a folder with a grammar worked by hand, sentences and trees."""

import functools

import pytest

from tests.support.toy_grammar import RULES, TEXT, TREES


@pytest.fixture
def run(run):
    """`run(*arguments)`: of `surgery pcfg`: exit status, stdout, stderr."""
    return functools.partial(run, "pcfg")


@pytest.fixture
def work(tmp_path):
    (tmp_path / "toy.txt").write_text(RULES)
    (tmp_path / "sents.txt").write_text(TEXT)
    (tmp_path / "bank.mrg").write_text(TREES)
    return tmp_path
