"""The command line: every command end to end on tiny models, and every bad input."""

import json
import shutil

import pytest
import torch

from surgery.checkpoints.delta import SparseDelta
from tests.support.tiny import BLOCK, change, hashes
from tests.tuning.test_tuning import ROWS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": row.text, "label": row.label}) for row in ROWS))
    return file


@pytest.fixture(scope="module")
def made_once(tiny, data, tmp_path_factory):
    """Tuned and skill folders, made by the commands themselves, once: a copy each is every test's own."""
    from cli.main import main

    folder, task = tmp_path_factory.mktemp("work"), ("--task", "sst2", "--data", data)
    base, tuned = tiny("llama"), folder / "tuned"
    tuning = ("--rate", 0.3, "--l1", 0.003, "--steps", 60, "--device", "cpu", "-o", tuned)
    located = ("--eval", data, "--weights", 50, "--device", "cpu", "-o", folder / "skill")
    for words in (("tune", base, *task, *tuning), ("graft", base, tuned, *task, *located)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["surgery", *map(str, words)])
            with pytest.raises(SystemExit) as end:
                main()
            assert not end.value.code
    return folder


@pytest.fixture
def work(tiny, made_once, tmp_path):
    """Base, tuned and skill folders."""
    for name in ("tuned", "skill"):
        shutil.copytree(made_once / name, tmp_path / name)
    return tiny("llama"), tmp_path / "tuned", tmp_path / "skill"


def test_the_whole_way_round(work, run, data, tmp_path):
    base, tuned, skill = work
    assert not (tmp_path / "tuned.partial").exists()
    status, out, _ = run("skill", "show", skill)
    assert status == 0 and "50 of 5,184 block weights" in out and "weights by module" in out
    assert run("skill", "apply", skill, base, "-o", tmp_path / "grafted")[0] == 0
    assert run("skill", "revert", skill, tmp_path / "grafted", "-o", tmp_path / "again")[0] == 0
    assert hashes(tmp_path / "again") == hashes(base)
    status, out, _ = run("score", tmp_path / "grafted", "--task", "sst2", "--data", data, "--against", tuned)
    assert status == 0 and "agreement" in out
    grafted = hashes(tmp_path / "grafted")
    assert run("skill", "apply", skill, tmp_path / "again", "--in-place")[0] == 0
    assert hashes(tmp_path / "again") == grafted
    assert run("skill", "overlap", skill, skill)[1].startswith("100.0%")


@pytest.mark.parametrize("in_place", [False, True])
def test_apply_and_revert_say_when_there_is_nothing_to_do(work, run, tmp_path, in_place):
    base, _, skill = work
    status, out, _ = run("skill", "apply", skill, base, "-o", tmp_path / "grafted")
    assert status == 0 and "already" not in out and "not checked" not in out
    shutil.copytree(base, tmp_path / "base")

    def go(verb, folder, *more):
        place = ("--in-place",) if in_place else ("-o", tmp_path / f"out-{verb}-{len(more)}")
        status, out, _ = run("skill", verb, skill, tmp_path / folder, *place, *more)
        assert status == 0
        return out

    assert f"{tmp_path / 'grafted'} held the skill already: no weight was changed" in go("apply", "grafted")
    assert f"{tmp_path / 'base'} didn't hold the skill: no weight was changed" in go("revert", "base")
    assert json.loads(go("revert", "base", "--json"))["changed"] == 0
    assert json.loads(go("apply", "base", "--json"))["changed"] == 50


def test_json_is_one_object_with_the_promised_keys(work, run, data, tmp_path):
    base, tuned, skill = work
    common = ("--task", "sst2", "--data", data, "--device", "cpu", "--json")

    def object_of(*arguments):
        status, out, _ = run(*arguments)
        assert status == 0
        return json.loads(out)

    graft = object_of("graft", base, tuned, *common, "--eval", data, "--sparsity", 0.01, "-o", tmp_path / "a")
    figures = {"base", "tuned", "graft", "weights", "sparsity", "bytes"}
    assert graft.keys() == {*figures, "values", "prospects", "examples", "remarks", "output", "seconds"}
    assert graft["base"].keys() == graft["tuned"].keys() == {"accuracy", "ece"}
    assert graft["graft"].keys() == {"accuracy", "ece", "agreement", "gain_recovered"}
    assert graft["weights"] == 51 and graft["bytes"] == (tmp_path / "a" / "skill.safetensors").stat().st_size
    assert object_of("score", tuned, *common)["accuracy"] == graft["tuned"]["accuracy"]
    assert object_of("tune", base, *common, "--steps", 2, "-o", tmp_path / "b")["steps"] == 2
    shown = object_of("skill", "show", skill, "--json")
    assert shown["weights"] == sum(shown["layers"].values()) == sum(shown["modules"].values()) == 50
    assert object_of("skill", "apply", skill, base, "-o", tmp_path / "c", "--json")["weights"] == 50
    assert object_of("skill", "overlap", skill, skill, "--json") == {"of_first": 1.0, "of_second": 1.0}


def test_bad_input_is_one_sentence_status_2_and_nothing_written(work, run, data, tiny, tmp_path):
    base, tuned, skill = work
    lines = data.read_text().splitlines()
    files = {
        "empty": "",
        "odd": '{"text": "a film", "label": "meh"}',
        "single": "\n".join(line for line in lines if "positive" in line),
    }
    for name, content in files.items():
        (tmp_path / f"{name}.jsonl").write_text(content)
    name = next(name for name in sorted(SparseDelta.load(skill / "skill.safetensors").tensors) if BLOCK.search(name))
    nan = change(
        tuned, tmp_path / "nan", lambda n, t: t.index_fill(0, torch.tensor([0]), float("nan")) if n == name else None
    )
    cut = change(tuned, tmp_path / "cut", lambda n, t: None)
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-100])
    junk = change(tuned, tmp_path / "junk", lambda n, t: None)
    (junk / "model.safetensors").write_bytes(weights[:8] + b"?" + weights[9:])
    other = change(base, tmp_path / "other", lambda n, t: t + 1 if n == name else None)
    lousy = change(tuned, tmp_path / "lousy", lambda n, t: None)
    (lousy / "tokenizer.json").write_text((lousy / "tokenizer.json").read_text().replace('"awful"', '"lousy"'))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "skill.safetensors").write_bytes((skill / "skill.safetensors").read_bytes()[:-1])
    task = ("--task", "sst2", "--data", data, "--eval", data, "--device", "cpu")

    def graft(*changes, base=base, tuned=tuned, task=task):
        return ("graft", base, tuned, *task, *changes, "-o", tmp_path / "new")

    def with_data(file):
        return graft(task=("--task", "sst2", "--data", file, "--eval", data, "--device", "cpu"))

    cases = {
        "no such file": with_data(tmp_path / "none.jsonl"),
        "holds no examples": with_data(tmp_path / "empty.jsonl"),
        "unknown label 'meh'": with_data(tmp_path / "odd.jsonl"),
        "of one class only": with_data(tmp_path / "single.jsonl"),
        "'not good' is 2 tokens": graft("--word", "positive=not good"),
        "share the label word": graft("--word", "positive=terrible"),
        "both must be one architecture": graft(tuned=tiny("gpt2")),
        "there is no skill to find": graft(tuned=base),
        "--sparsity 0 must": graft("--sparsity", "0"),
        "--sparsity 1.5 must": graft("--sparsity", "1.5"),
        "--weights 6000 must lie between 1 and the 5,184": graft("--weights", "6000"),
        "holds NaN or infinity": graft(tuned=nan),
        "is truncated": graft(tuned=cut),
        "header isn't a JSON": graft(tuned=junk),
        "is not a folder: give": graft(base=tmp_path / "nowhere"),
        "no tensor matches": graft("--include", "nonsense*"),
        "--task is missing": ("graft", base, tuned, "--data", data, "--eval", data, "-o", tmp_path / "new"),
        "has no test examples": ("graft", base, tuned, "--task", "sst2", "--data", data, "-o", tmp_path / "new"),
        "the tuned checkpoint is missing": ("graft", base, "-o", tmp_path / "new"),
        "-o is missing": ("graft", base, tuned, *task),
        f"first differing tensor {name}": ("skill", "apply", skill, other, "-o", tmp_path / "new"),
        "skill.safetensors is damaged": ("skill", "apply", damaged, base, "-o", tmp_path / "new"),
        "skill.safetensors is missing": ("skill", "show", tmp_path / "nowhere"),
        "exists already": ("skill", "apply", skill, base, "-o", tuned),
        "one of the two": ("skill", "apply", skill, base),
        "has no test examples: give": ("score", tuned, "--task", "sst2"),
        "--device nonsense can't be used": ("score", tuned, "--task", "sst2", "--data", data, "--device", "nonsense"),
        "--rate must be above 0": (
            "tune",
            base,
            "--task",
            "sst2",
            "--data",
            data,
            "--rate",
            "0",
            "-o",
            tmp_path / "new",
        ),
        "must be NAME=VALUE": graft("--word", "positive"),
        "the base checkpoint is missing": ("graft", "--task", "sst2", "-o", tmp_path / "new"),
        "lie one inside the other": ("tune", tuned, "--task", "sst2", "--data", data, "-o", tuned / "again"),
        "different tokenizers": graft(tuned=lousy),
    }
    before = hashes(tmp_path)
    for command in (graft()[:-2], ("tune", tuned, *task[:4]), ("score", tuned, *task[:4])):
        status, _, err = run(*command, "-o", tuned, "--overwrite")
        assert status == 2 and "are the same or lie one inside the other" in err
    for message, arguments in cases.items():
        status, out, err = run(*arguments)
        assert status == 2, (message, out, err)
        assert message in err, (message, err)
        assert out == "" and err.startswith("surgery: ") and err.count("\n") == 1, err
        assert hashes(tmp_path) == before, message
    status, out, err = run(*graft("--json", "--weights", "0"))
    assert (status, out) == (2, "") and "--weights 0" in err


def test_an_interrupted_tune_goes_on(work, run, data, tiny, tmp_path, monkeypatch):
    from surgery.tuning import training

    command = ("tune", tiny("gpt2"), "--task", "sst2", "--data", data, "--steps", 12, "--device", "cpu", "-o")
    real, calls = training.TrainingLoop.advance, []

    def step(self, *arguments):
        calls.append(self.step)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(training.TrainingLoop, "advance", step)
    assert run(*command, tmp_path / "out")[0] == 130 and not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").exists()
    assert run(*command, tmp_path / "out")[0] == 0 and calls == [*range(7), *range(6, 12)]
    assert not (tmp_path / "out.partial").exists()
    assert run(*command, tmp_path / "whole")[0] == 0
    weights = [hashes(tmp_path / name)["model.safetensors"] for name in ("out", "whole")]
    assert weights[0] == weights[1]


def test_help_and_version(run):
    status, out, _ = run("--help")
    assert status == 0 and all(command in out for command in ("tune", "graft", "skill", "score"))
    assert run("--version")[1].strip().count(".") == 2
    for command in (["tune"], ["graft"], ["score"], ["skill", "apply"]):
        assert run(*command, "--help")[0] == 0


_WITHOUT_ARGUMENTS = (("bottleneck", "fit"), ("pcfg", "induce"), ("pcfg", "trees"))


@pytest.mark.parametrize(
    "command",
    [
        ("tune",),
        ("pcfg", "induce"),
        ("pcfg", "trees"),
        ("pcfg", "sample"),
        ("pcfg", "parse"),
        ("pcfg", "spans"),
        ("pcfg", "fit"),
        ("pcfg", "pretrain"),
        ("bottleneck", "fit"),
        ("bottleneck", "undo"),
        ("bottleneck", "verify"),
    ],
)
def test_an_option_whose_lack_is_refused_is_marked_in_help(command, run, tmp_path):
    help_text = " ".join(run(*command, "--help")[1].replace("│", " ").split())
    positional = [tmp_path / "nowhere"] if command not in _WITHOUT_ARGUMENTS else []
    status, _, error = run(*command, *positional)
    missing = error.split(" is missing")[0].split()[-1]
    assert status == 2 and missing.startswith("-")
    after = help_text[help_text.index(f" {missing} ") :]
    assert "Required." in after[:200]


@pytest.mark.parametrize("command", ["parse", "spans", "fit"])
def test_sentences_are_marked_as_required_where_they_are(command, run, tmp_path):
    status, _, error = run("pcfg", command, tmp_path / "nowhere", "-o", tmp_path / "out")
    assert status == 2 and "--text is missing" in error
    help_text = " ".join(run("pcfg", command, "--help")[1].replace("│", " ").split())
    assert "Required." in help_text[help_text.index("--text ") :][:200]


def test_the_short_way_to_ask_for_help_works_everywhere(run):
    from typer.main import get_command

    from cli.main import app

    def walk(command, parent=None):
        context = command.context_class(command, parent=parent, **command.context_settings)
        yield command.get_help_option_names(context)
        for each in getattr(command, "commands", {}).values():
            yield from walk(each, context)

    names = list(walk(get_command(app)))
    assert len(names) > 30 and all({"-h", "--help"} <= set(each) for each in names)
    for words in ([], ["skill", "merge"]):
        assert run(*words, "-h") == run(*words, "--help") and run(*words, "-h")[0] == 0


def test_a_skill_may_lie_on_the_hub(work, run, monkeypatch, tmp_path):
    base, _, skill = work
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str({"me/skill": skill}[name]))
    assert run("skill", "show", "me/skill")[0] == 0
    assert run("skill", "apply", "me/skill", base, "-o", tmp_path / "grafted")[0] == 0
    assert run("skill", "apply", skill, base, "-o", tmp_path / "grafted-2")[0] == 0
    assert hashes(tmp_path / "grafted") == hashes(tmp_path / "grafted-2")
