"""Runs of `surgery pcfg` that are stopped go on and end with the same bytes; outputs are replaced only when asked."""

import functools

import pytest

import pcfg.inference.parsing
import pcfg.learning.resumable_fit
import pcfg.sampling.corpus
from tests.support.tiny import hashes
from tests.support.toy_grammar import SENTENCE, sample


def interrupted(monkeypatch, module, name, calls):
    """Ctrl-C at the given call of a function, counted over all runs; returns the list of calls."""
    real, made = getattr(module, name), []

    def stop(*arguments, **options):
        made.append(arguments)
        if len(made) == calls:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, stop)
    return made


@pytest.mark.parametrize("command", ["sample", "parse", "spans"])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(work, ok, run, monkeypatch, command):
    (work / "long.txt").write_text("".join(f"{SENTENCE}\n{'her saw stars with ' * k}stars\n" for k in range(1, 9)))
    arguments = {
        "sample": lambda out: sample(work, out, "--shard-size", 100, "--held-out", 0.2),
        "parse": lambda out: ("parse", work / "toy.txt", "--text", work / "long.txt", "-o", work / out),
        "spans": lambda out: ("spans", work / "toy.txt", "--text", work / "long.txt", "-o", work / out),
    }[command]
    for name in ("write_parses", "write_spans"):
        monkeypatch.setattr(
            pcfg.inference.parsing, name, functools.partial(getattr(pcfg.inference.parsing, name), shard_size=4)
        )

    def content(out):
        return hashes(work / out) if (work / out).is_dir() else (work / out).read_bytes()

    ok(*arguments("whole"))
    module, name = {"sample": (pcfg.sampling.corpus, "write_jsonl"), "parse": (pcfg.inference.parsing, "parse")}.get(
        command, (pcfg.inference.parsing, "_marginals")
    )
    made = interrupted(monkeypatch, module, name, 3)
    assert run(*arguments("out"))[0] == 130
    assert not (work / "out").exists() and (work / "out.partial").exists()
    ok(*arguments("out"))
    assert content("out") == content("whole") and not (work / "out.partial").exists()
    # Shards of two parts each; four shards, after a call that only checks options; four shards. One of them twice.
    assert len(made) == {"sample": 2 + 1 + 4 * 2, "parse": 1 + 2 + 1 + 3, "spans": 3 + 2}[command]


def test_a_stopped_fit_goes_on_after_its_last_round(work, ok, run, monkeypatch):
    command = ("fit", work / "toy.txt", "--text", work / "sents.txt", "--em", 4, "--json", "-o")
    whole = ok(*command, work / "whole.pcfg.json")
    made = interrupted(monkeypatch, pcfg.learning.resumable_fit, "replace_json", 3)
    status, _, err = run(*command, work / "out.pcfg.json")
    assert (status, len(made)) == (130, 3)
    assert f"run the same command again to go on ({work / 'out.pcfg.json.partial'} holds the state)" in err
    assert not (work / "out.pcfg.json").exists()
    found = ok(*command, work / "out.pcfg.json")
    assert len(made) == 5  # rounds 3 and 4, and none twice
    assert found["log_likelihoods"] == whole["log_likelihoods"]
    assert (work / "out.pcfg.json").read_bytes() == (work / "whole.pcfg.json").read_bytes()
    interrupted(monkeypatch, pcfg.learning.resumable_fit.Grammar, "save", 5)  # four rounds, then the output itself
    assert run(*command, work / "late.pcfg.json")[0] == 130
    assert ok(*command, work / "late.pcfg.json")["log_likelihoods"] == pytest.approx(
        whole["log_likelihoods"], abs=1e-12
    )


def test_what_a_stopped_run_left_is_not_taken_for_another_call(work, ok, run, monkeypatch):
    real = pcfg.sampling.corpus.write_jsonl
    interrupted(monkeypatch, pcfg.sampling.corpus, "write_jsonl", 2)
    assert run(*sample(work, "out", "--shard-size", 100))[0] == 130
    monkeypatch.setattr(pcfg.sampling.corpus, "write_jsonl", real)
    other = (work / "toy.txt", "-n", 500, "--max-length", 12, "--seed", 4, "--shard-size", 100, "-o")
    ok("sample", *other, work / "out")
    ok("sample", *other, work / "clean")
    assert hashes(work / "out") == hashes(work / "clean")


def test_outputs_are_replaced_only_when_asked(work, ok, run):
    ok(*sample(work, "corpus"))
    ok("parse", work / "toy.txt", "--text", work / "sents.txt", "-o", work / "parses.txt")
    before = hashes(work)
    for command in (
        sample(work, "corpus"),
        ("parse", work / "toy.txt", "--text", work / "sents.txt", "-o", work / "parses.txt"),
    ):
        status, out, err = run(*command)
        assert (status, out) == (2, "") and "add --overwrite" in err and hashes(work) == before
        ok(*command, "--overwrite")
    assert not list(work.glob("*.partial")) and not list(work.glob(".*"))
