"""Tuning a language model on texts: prompts with answers, messages, dialogues; against a plain loop and transformers' own loss."""

import json

import pytest
import torch

from surgery import Checkpoint, Recipe, tune
from surgery.checkpoints.models import load_model
from surgery.errors import OptionError, SelectionError, TaskError
from surgery.evaluating.tutoring.dialogues import Dialogue
from surgery.memory import Need
from surgery.tasks.task import Task
from surgery.tasks.texts import Texts
from surgery.tuning.finetuning import Tuned
from surgery.tuning.memory_need import tune_need
from surgery.tuning.training_sets import TextSet

ROWS = [
    {"prompt": "this film was", "completion": " very good"},
    {"prompt": "the film", "completion": " was bad and it was very very bad"},
] * 6
DIALOGUE = Dialogue.of(
    "openbook", [("chapter", "the film was good"), ("user", "was it?"), ("assistant", "it was very good")]
).row()


def their_loss(folder, row):
    """The mean loss that transformers gives a row whose prompt has the label -100."""
    model = load_model(Checkpoint(folder), device="cpu")
    tokenizer = model.tokenizer
    before = tokenizer(row["prompt"])["input_ids"]
    ids = tokenizer(row["prompt"] + row["completion"])["input_ids"]
    labels = [-100] * len(before) + ids[len(before) :]
    with torch.no_grad():
        return float(model.module(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_loss_is_transformers_own_on_the_answers(tiny, kind):
    folder = tiny(kind)
    texts = TextSet.of(load_model(Checkpoint(folder), device="cpu"), Texts.load(ROWS[:2]))
    wanted = [their_loss(folder, row) for row in ROWS[:2]]
    model = load_model(Checkpoint(folder), device="cpu")
    with torch.no_grad():
        assert [float(texts.loss(model, [number])) for number in (0, 1)] == pytest.approx(wanted, rel=1e-5)
        assert float(texts.loss(model, [0, 1])) == pytest.approx(sum(wanted) / 2, rel=1e-5)
        assert float(texts.loss(model, [0, 1], reduction="sum")) == pytest.approx(sum(wanted), rel=1e-5)


def test_a_dialogue_is_learnt_where_it_says_so(tiny):
    model = load_model(Checkpoint(tiny("llama")), device="cpu")
    ids, labels = Dialogue.of_row(DIALOGUE).encode(model.tokenizer)
    (lesson,) = TextSet.of(model, Texts.load([DIALOGUE])).lessons
    assert (lesson.tokens.ids, lesson.targets) == (ids, [*labels[1:], -100])
    silent = {**DIALOGUE, "learn": [False, False, False]}
    for wrong in (silent, {**DIALOGUE, "learn": [True]}, {**DIALOGUE, "learn": "yes"}):
        with pytest.raises(SelectionError, match="learn is to say"):
            Texts.load([wrong])


def test_texts_are_learnt_and_dev_rows_choose_the_step(tiny, tmp_path):
    recipe = Recipe("sgd", rate=0.3, steps=40, batch_size=4, evaluations=4)
    tuned = tune(tiny("llama"), Texts.load(ROWS, dev=ROWS[:2]), recipe, device="cpu")
    assert sum(tuned.report["losses"][-5:]) < 0.95 * sum(tuned.report["losses"][:5])
    values = [entry["value"] for entry in tuned.report["dev"]]
    assert all(0 < value < 1 for value in values) and values[-1] > values[0]
    assert tuned.report["examples"] == {"train": 12, "dev": 2, "dev_in_train": 2}
    loaded = Tuned.load(tuned.save(tmp_path / "tuned"))
    assert loaded.task == Texts() and loaded.table() == tuned.table()
    # The likelihood is the geometric mean of the answers' probabilities in the saved model.
    after = [their_loss(tmp_path / "tuned", row) for row in ROWS[:2]]
    best = max(values)
    assert best == pytest.approx(float(torch.tensor(after).mean().neg().exp()), rel=1e-4)


def test_a_stopped_run_ends_in_the_same_weights(tiny, tmp_path):
    recipe, texts = Recipe("sgd", rate=0.1, steps=6, batch_size=4), Texts.load(ROWS)

    def stop(step, steps, line):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(tiny("llama"), texts, recipe, device="cpu", resume=tmp_path / "state", progress=stop)
    again = tune(tiny("llama"), texts, recipe, device="cpu", resume=tmp_path / "state")
    whole = tune(tiny("llama"), texts, recipe, device="cpu")
    assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)
    with pytest.raises(OptionError):
        other = Texts.load(ROWS, loss="text")
        tune(tiny("llama"), other, recipe, device="cpu", resume=tmp_path / "state")


def test_the_need_of_texts_grows_with_their_length(tiny):
    needs = [
        tune_need(tiny("llama"), Texts.load([{"prompt": "the film", "completion": " was very" * n}]), device="cpu")
        for n in (2, 12)
    ]
    assert all(isinstance(need, Need) and not need.note for need in needs)
    assert needs[1].parts["activations"] > 2 * needs[0].parts["activations"]


@pytest.mark.parametrize(
    ("kind", "texts", "error", "told"),
    [
        ("bert-encoder", Texts.load(ROWS), TaskError, "isn't a language model"),
        ("llama", Texts(), TaskError, "no train rows"),
        ("llama", Texts.load([{"prompt": "the film", "completion": "x"}], max_length=2), SelectionError, "max_length"),
        ("llama", Texts.load([{"text": "the film"}]), SelectionError, "has no answer"),
    ],
)
def test_what_cannot_be_learnt_is_refused(tiny, kind, texts, error, told):
    with pytest.raises(error, match=told):
        tune(tiny(kind), texts, Recipe("sgd", steps=1), device="cpu")


def test_all_of_a_text_is_learnt_where_that_is_asked(tiny):
    model = load_model(Checkpoint(tiny("llama")), device="cpu")
    (lesson,) = TextSet.of(model, Texts.load([{"text": "the film was good"}], loss="text")).lessons
    assert lesson.targets[:-1] == lesson.tokens.ids[1:] and lesson.targets[-1] == -100
    with pytest.raises(OptionError, match="isn't one of answer, text"):
        Texts.load(ROWS, loss="words")


def test_texts_and_a_task_take_turns(tiny):
    rows = [("the film was good", "positive"), ("the film was bad", "negative")] * 4
    from surgery.tasks.examples import Example

    task = Task.load("sst2", train=[Example(text, "", label) for text, label in rows])
    report = tune(tiny("llama"), [Texts.load(ROWS), task], Recipe("sgd", steps=4), device="cpu").report
    assert [spec["name"] for spec in report["tasks"]] == ["texts", "sst2"] and len(report["losses"]) == 4


def test_the_command_tunes_on_a_file(ok, run, tiny, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    given = ("tune", tiny("llama"), "--texts", rows, "--device", "cpu", "--steps", "3")
    ok(*given, "--optimizer", "sgd", "--dev", rows, "-o", tmp_path / "tuned")
    report = json.loads((tmp_path / "tuned" / "report.json").read_text())
    assert report["task"] == {"name": "texts", "loss": "answer", "max_length": 1024}
    for wrong, told in (
        (("--task", "sst2"), "--task goes with a task"),
        (("--method", "mezo"), "--method goes with a task"),
        (("--loss", "words"), "--loss words isn't one of"),
    ):
        status, _, error = run(*given, "-o", tmp_path / "other", *wrong)
        assert status == 2 and told in error and not (tmp_path / "other").exists()
