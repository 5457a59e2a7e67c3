"""The user with a Trainer: a base of another class, a head of its own, a skill spread thin; and what they are told to do."""

import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from surgery import Skill, graft, score
from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import CheckpointError
from surgery.grafting.card import skill_page
from surgery.grafting.differences import head_tensors
from surgery.grafting.heads import with_tuned_head
from surgery.grafting.remarks import carries, remarks
from tests.checkpoints.test_pairing import grow
from tests.checkpoints.test_structure import configure, rename
from tests.support.tiny import block_names, change, hashes, perturb, weights
from tests.tuning.test_tuning import ROWS, task

CLASSIFIERS = {  # base kind -> the class a user tunes it as
    "bert-encoder": "BertForSequenceClassification",
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
}


def classifier(base, folder, name, seed=1):
    """What a user has after `from_pretrained` into a class with a head, training, `save_pretrained`."""
    torch.manual_seed(seed)
    model = getattr(transformers, name).from_pretrained(base, num_labels=2, pad_token_id=0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_the_base_gets_the_tuned_head(tiny, tmp_path, kind):
    name = CLASSIFIERS[kind]
    tuned = classifier(tiny(kind), tmp_path / "tuned", name)
    with pytest.raises(
        CheckpointError,
        match=rf" is a \w+ and .* a {name}: put the tuned one's head on the base \(surgery graft --head tuned;",
    ):
        graft(tiny(kind), tuned, task(), device="cpu")
    made = with_tuned_head(tiny(kind), tuned, tmp_path / "base")

    model_class = getattr(transformers, name)
    wanted, found = model_class.from_pretrained(tuned), model_class.from_pretrained(made.folder)
    body = transformers.AutoModel.from_pretrained(tiny(kind)).state_dict()
    if kind in ("bert", "llama", "roberta"):  # saved with a language model's head, so without a pooler
        body = {key: value for key, value in body.items() if "pooler" not in key}
    getattr(wanted, wanted.base_model_prefix).load_state_dict(body, strict=False)
    assert all(torch.equal(found.state_dict()[key], value) for key, value in wanted.state_dict().items())
    skill = graft(made, tuned, task(), weights=40, device="cpu")
    assert skill.report["head"] == []
    folder = skill.apply(made, tmp_path / "grafted")
    assert score(folder, task(), device="cpu").accuracy == skill.report["graft"]["accuracy"]


def test_a_base_for_pretraining_whose_own_head_nothing_reads(tiny, tmp_path):
    tuned = classifier(tiny("bert"), tmp_path / "tuned", "BertForSequenceClassification")
    base = shutil.copytree(tiny("bert"), tmp_path / "pre")
    configure(base, architectures=["BertForPreTraining"])
    made = with_tuned_head(base, tuned, tmp_path / "base")
    before, after = weights(base), weights(made.folder)
    assert block_names(base) == block_names(made.folder)
    assert all(torch.equal(before[name], after[name]) for name in block_names(base))


def test_a_tuned_body_alone_is_a_head_too(tiny, tmp_path):
    """A masked model tuned as a sentence encoder."""
    tuned = shutil.copytree(tiny("bert"), tmp_path / "tuned")
    rename(tuned, lambda name: name.removeprefix("bert.") if name.startswith("bert.") else None)
    configure(tuned, architectures=["BertModel"])
    change(tuned, tmp_path / "moved", lambda name, tensor: tensor + 0.1)
    made = with_tuned_head(tiny("bert"), tmp_path / "moved", tmp_path / "base")
    assert all(
        torch.equal(tensor, weights(tiny("bert"))[f"bert.{name}"]) for name, tensor in weights(made.folder).items()
    )


def test_rows_of_added_tokens_are_the_tuned_ones(tiny, tmp_path):
    tuned = grow(classifier(tiny("bert-encoder"), tmp_path / "tuned", "BertForSequenceClassification"), ["<new>"])
    made = with_tuned_head(tiny("bert-encoder"), tuned, tmp_path / "base")
    found = weights(made.folder)["bert.embeddings.word_embeddings.weight"]
    rows = weights(tiny("bert-encoder"))["embeddings.word_embeddings.weight"]
    assert torch.equal(found[: len(rows)], rows)
    assert torch.equal(found[len(rows) :], weights(tuned)["bert.embeddings.word_embeddings.weight"][len(rows) :])


def test_bodies_that_differ_get_no_head(tiny, copied, tmp_path):
    tuned = classifier(tiny("bert"), tmp_path / "tuned", "BertForSequenceClassification")
    with pytest.raises(CheckpointError, match=r"is a gpt2 and .* a bert: both must be one architecture"):
        with_tuned_head(tiny("gpt2"), tuned, tmp_path / "base")
    base = copied("bert", "other")
    configure(base, hidden_act="relu")
    with pytest.raises(CheckpointError, match=r"config\.json says hidden_act relu"):
        with_tuned_head(base, tuned, tmp_path / "base")
    base = copied("bert", "short")
    rename(base, lambda name: None if ".layer.1.output.dense.weight" in name else name)
    with pytest.raises(
        CheckpointError, match=r"holds no tensor for the model's parameter bert\.encoder\.layer\.1\.output"
    ):
        with_tuned_head(base, tuned, tmp_path / "base")
    base = copied("bert", "codes")
    codes = {n: t.to(torch.int8) if n in block_names(base) else t for n, t in weights(base).items()}
    save_file(codes, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is stored as int8"):
        with_tuned_head(base, tuned, tmp_path / "base")
    base = copied("bert", "narrow")
    tensors = load_file(base / "model.safetensors")
    tensors["bert.embeddings.position_embeddings.weight"] = torch.zeros(80, 16)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    configure(base, max_position_embeddings=80)
    with pytest.raises(CheckpointError, match=r"position_embeddings\.weight is \(80, 16\) in .*, but \(64, 16\)"):
        with_tuned_head(base, tuned, tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_head_that_differs_is_named(tiny, tmp_path):
    """Two classifiers, the base's with a head of random weights: nothing fails, and the gain is for nothing."""
    head = ("classifier.weight", "classifier.bias")
    perturb(tiny("bert-classifier"), tmp_path / "moved")
    tuned = change(tmp_path / "moved", tmp_path / "tuned", lambda n, tensor: tensor + 1 if n in head else None)
    report = graft(tiny("bert-classifier"), tuned, task(), weights=20, device="cpu").report
    assert report["head"] == sorted(head)
    assert (
        "The head differs (classifier.bias, classifier.weight), " in remarks(report)[0]
        and "`surgery graft --head tuned`" in remarks(report)[0]
    )
    made = with_tuned_head(tiny("bert-classifier"), tuned, tmp_path / "base")
    assert graft(made, tuned, task(), weights=20, device="cpu").report["head"] == []


# -- what the figures mean -------------------------------------------------------------------------------------------

FIGURES = {"task": {"metric": "accuracy"}, "weights": 1064, "moved": 5000, "movable": 100_000}


def figures(gain, **changes):
    scores = {"accuracy": 0.8, "f1": 0.7, "ece": 0.1}
    return {
        **FIGURES,
        "base": {**scores, "accuracy": 0.6},
        "tuned": scores,
        "graft": {**scores, "gain_recovered": gain, "agreement": 0.9},
        **changes,
    }


@pytest.mark.parametrize(
    ("report", "told"),
    [
        (figures(0.95), []),
        (figures(0.25), []),
        (figures(0.133), ["recovers 0.133"]),
        (
            figures(0.0),
            ["recovers 0.000 of tuning's gain: 1,064 weights don't carry .* `surgery graft --sweep 1e-4:1`"],
        ),
        (figures(-0.4), ["recovers -0.400 of"]),
        (figures(None), [r"gained nothing on the test examples \(accuracy: base 0.600, tuned 0.800\).* check that"]),
        (figures(None, task={"metric": "f1"}), [r"\(f1: base 0.700, tuned 0.700\)"]),
        (
            figures(0.95, moved=99_000),
            [r"moved nearly all block weights \(99,000 of 100,000\), as AdamW .* `surgery tune`"],
        ),
        (figures(0.02, moved=99_000), ["recovers 0.020", "moved nearly all"]),
        (figures(0.9, moved=99_000, dtypes={"base": "float32", "tuned": "float32"}), ["moved nearly all"]),
        (
            figures(0.9, moved=99_000, dtypes={"base": "float32", "tuned": "bfloat16"}),
            ["differ .* by rounding: the base is stored as float32, the tuned one as bfloat16. Save both"],
        ),
        (figures(0.9, head=["a", "b", "c", "d"]), [r"head differs \(a, b, c and 1 more\)"]),
        (figures(0.9, resized=["wte"]), ["resized wte; the graft has the base's"]),
        ({}, []),
        ({"graft": {"accuracy": 0.5}}, []),  # what a skill's header says when its report is lost
        ({"graft": {"accuracy": 0.5, "gain_recovered": 0.0}}, ["0.000 of tuning's gain: its weights don't carry"]),
    ],
)
def test_remarks(report, told):
    found = remarks(report)
    assert len(found) == len(told)
    assert all(re.search(wanted, line) for wanted, line in zip(told, found, strict=True))


def test_the_card_does_not_claim_what_the_figures_deny(tiny, tmp_path):
    perturb(tiny("bert"), tmp_path / "tuned")
    skill = graft(tiny("bert"), tmp_path / "tuned", task(), weights=20, device="cpu")
    for gain, does in (
        (0.0, "which don't carry the task"),
        (None, "which don't carry the task"),
        (0.9, "that carry the task"),
    ):
        report = {**skill.report, "graft": {**skill.report["graft"], "gain_recovered": gain}}
        card = skill_page(skill.delta, skill.tasks, report, []).markdown()
        assert does in card and carries(report) == (gain == 0.9)
        assert all(f"\n\n{remark}\n" in card for remark in remarks(report)) and bool(remarks(report)) == (gain != 0.9)


# -- a Trainer's checkpoint, as a new user would -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A tiny encoder and what transformers' Trainer makes of it: AdamW, two epochs, a classifier's new head."""
    folder = tmp_path_factory.mktemp("trainer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("bert-encoder"))
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tiny("bert-encoder"), num_labels=2)
    rows = [{**tokenizer(row.text), "labels": int(row.label == "positive")} for row in ROWS]
    arguments = transformers.TrainingArguments(
        folder / "run",
        num_train_epochs=2,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
    )
    transformers.Trainer(model, arguments, train_dataset=rows).train()  # without the tokenizer, as many do
    return folder / "run", tokenizer


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in ROWS))
    return file


def test_every_message_leads_to_the_next_right_step(trained, tiny, tmp_path, data, run):
    base, (output, tokenizer) = tiny("bert-encoder"), trained
    options = ("--task", "sst2", "--data", data, "--eval", data, "--device", "cpu", "-o", tmp_path / "skill")
    checkpoint = output / "checkpoint-12"

    status, out, err = run("graft", base, output, *options)  # the Trainer's folder holds checkpoints, it isn't one
    assert (status, out) == (2, "") and f"name {checkpoint}" in err
    status, out, err = run("graft", base, checkpoint, *options)
    assert (status, out) == (2, "") and "BertModel" in err and "BertForSequenceClassification" in err
    assert "--head tuned" in err
    status, out, err = run("graft", base, checkpoint, *options, "--head", "tuned")
    assert (status, out) == (2, "") and "copy the base's" in err and str(checkpoint) in err
    tokenizer.save_pretrained(checkpoint)
    assert not any(path.name.startswith("skill") for path in tmp_path.iterdir())

    status, out, err = run("graft", base, checkpoint, *options, "--head", "tuned")
    assert (status, err) == (0, "") and "moved nearly all block weights" in out and "`surgery tune`" in out
    made, skill = tmp_path / "skill-base", Skill.load(tmp_path / "skill")
    line = next(line for line in out.splitlines() if "surgery skill apply" in line)
    command = line.partition("surgery skill apply ")[2].split()
    assert command == [str(tmp_path / "skill"), str(made), "-o", "grafted/"]
    assert run("skill", "apply", *command[:2], "-o", tmp_path / "grafted")[0] == 0
    assert run("skill", "revert", command[0], tmp_path / "grafted", "-o", tmp_path / "again")[0] == 0
    assert hashes(tmp_path / "again") == hashes(made)
    assert skill.report["tuned"]["accuracy"] == score(checkpoint, task(), device="cpu").accuracy
    assert all(remark in (tmp_path / "skill" / "README.md").read_text() for remark in remarks(skill.report))
    assert "moved nearly all" in run("skill", "show", tmp_path / "skill")[1]
    (tmp_path / "skill" / "report.json").unlink()
    assert run("skill", "show", tmp_path / "skill")[0] == 0


def test_the_head_option_leaves_nothing_behind_when_the_graft_fails(trained, tiny, tmp_path, data, run):
    tuned = shutil.copytree(trained[0] / "checkpoint-12", tmp_path / "tuned")
    trained[1].save_pretrained(tuned)
    options = ("--task", "sst2", "--data", data, "--eval", data, "--device", "cpu", "-o", tmp_path / "skill")
    status, _, err = run("graft", tiny("bert-encoder"), tuned, *options, "--head", "tuned", "--sparsity", "2")
    assert status == 2 and "--sparsity 2" in err
    assert not any(path.name.startswith((".skill", "skill")) for path in tmp_path.iterdir())
    status, _, err = run("graft", tiny("bert-encoder"), tuned, *options, "--head", "magic")
    assert status == 2 and "--head magic" in err
    (tmp_path / "skill-base").mkdir()
    (tmp_path / "skill-base" / "mine").touch()
    status, _, err = run("graft", tiny("bert-encoder"), tuned, *options, "--head", "tuned", "--overwrite")
    assert status == 2 and "skill-base" in err and (tmp_path / "skill-base" / "mine").exists()


def test_a_killed_graft_with_the_tuned_head_can_be_run_again(trained, tiny, tmp_path, data, run):
    tuned = shutil.copytree(trained[0] / "checkpoint-12", tmp_path / "tuned")
    trained[1].save_pretrained(tuned)
    with_tuned_head(tiny("bert-encoder"), tuned, tmp_path / "skill-base")  # what a kill while locating leaves
    options = ("--task", "sst2", "--data", data, "--eval", data, "--device", "cpu", "--weights", 5)
    graft = ("graft", tiny("bert-encoder"), tuned, *options, "--head", "tuned", "-o", tmp_path / "skill")
    assert run(*graft)[0] == 0
    assert (tmp_path / "skill").exists() and (tmp_path / "skill-base").exists()
    shutil.rmtree(tmp_path / "skill")
    report = json.loads((tmp_path / "skill-base" / "report.json").read_text())
    report["inputs"]["tuned"] = "another"
    (tmp_path / "skill-base" / "report.json").write_text(json.dumps(report))
    status, _, err = run(*graft)
    assert status == 2 and "skill-base exists already" in err


def test_the_head_is_what_is_no_part_of_the_body(tiny):
    checkpoint = Checkpoint(tiny("bert-classifier"))
    everything = sorted(checkpoint.entries)
    head = head_tensors(checkpoint, checkpoint, everything, [])
    assert head == [name for name in everything if not name.startswith("bert.")] != []
