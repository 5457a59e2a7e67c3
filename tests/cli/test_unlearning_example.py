"""`surgery unlearn` without arguments, its help, and the earlier name of an option."""

import json

import numpy as np

from surgery.unlearning.evaluation.baselines import BASELINES
from surgery.unlearning.key_ranking import RANKINGS


def test_unlearn_without_arguments_runs_the_example(run, tmp_path, monkeypatch):
    from surgery.unlearning import example
    from surgery.unlearning.evaluation.report import Report

    point = {"forget_accuracy": 0.0, "retain_accuracy": 1.0}
    report = Report({"points": {"after": point, "refitted": point}, "remarks": ["Said."]})
    asked = []

    def instead(output, **options):
        asked.append((output, options["overwrite"], options["seed"]))
        options["say"]("1. A step")
        return report, tmp_path

    monkeypatch.setattr(example, "run_example", instead)
    status, out, _ = run("unlearn", "--seed", 3)
    assert status == 0 and asked == [(None, False, 3)] and "1. A step" in out and "Said." in out
    status, out, _ = run("unlearn", "--json")
    assert status == 0 and json.loads(out)["remarks"] == ["Said."]


def test_help(run):
    status, out, _ = run("--help")
    assert status == 0 and "unlearn" in out and "bottleneck" in out
    for command in ("fit", "undo", "verify", "show"):
        assert run("bottleneck", command, "--help")[0] == 0
    assert run("unlearn", "--help")[0] == 0


def test_the_earlier_name_of_method_goes_on_working_unseen(run, tmp_path):
    from surgery.unlearning import Bottleneck

    features, labels = np.eye(6, dtype=np.float32)[np.arange(24) % 6], np.arange(24) % 3
    Bottleneck.fit_features(features, labels, codebooks=2, keys=4, key_dim=2, device="cpu").save(tmp_path / "bn")
    status, out, err = run("unlearn", tmp_path / "bn", "--forget", 1, "--via", "refit", "-o", tmp_path / "f", "--json")
    assert status == 0 and json.loads(out)["via"] == "refit" and err == ""
    both = ("--via", "refit", "--method", "refit")
    status, out, err = run("unlearn", tmp_path / "bn", "--forget", 1, *both, "-o", tmp_path / "g")
    assert (status, out) == (2, "") and "two names of one option" in err
    status, out, err = run("unlearn", "--via", "refit")
    assert (status, out) == (2, "") and "the bottleneck is missing" in err
    shown = " ".join(run("unlearn", "--help")[1].split())
    assert "--method" in shown and "--via" not in shown
    for name in RANKINGS:
        assert name in shown
    verify = " ".join(run("bottleneck", "verify", "--help")[1].split())
    assert all(baseline.name.split()[0] in verify for baseline in BASELINES)
