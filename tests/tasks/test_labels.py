"""Labels by their other names, and heads that give them in an order of their own."""

import numpy as np
import pytest
import torch
import transformers

from surgery.errors import TaskError
from surgery.grafting.localization import graft
from surgery.tasks.classifier_heads import head_order
from surgery.tasks.examples import Example
from surgery.tasks.scoring import score
from surgery.tasks.task import Task
from tests.support.tiny import perturb

ROWS = [
    Example("the film was boring", "", "negative"),
    Example("we loved it", "", "positive"),
    Example("awful food", "", "negative"),
    Example("good food", "", "positive"),
]


def named(folder, names):
    """Write a head's names; its weights stay."""
    config = transformers.AutoConfig.from_pretrained(folder)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["LABEL_0", "LABEL_1"], (0, 1)),
        (["LABEL_1", "LABEL_0"], (1, 0)),
        (["0", "1"], (0, 1)),
        (["1", "0"], (1, 0)),
        (["neg", "pos"], (0, 1)),
        (["POS", "Neg"], (1, 0)),
        (["Positive", "negative"], (1, 0)),
    ],
)
def test_a_heads_names_are_understood(names, order):
    assert head_order(names, Task.load("sst2")) == order
    mine = Task.load("mine", train=[row._replace(label=row.label[:3]) for row in ROWS])  # labels neg and pos
    if not names[0][-1].isdecimal():
        assert head_order(names, mine) == order
    else:
        with pytest.raises(TaskError, match="doesn't name its labels"):
            head_order(names, mine)


def test_numbers_name_numbers_and_presets_their_aliases():
    stars = Task.load("mine", train=[Example("a", "", "0"), Example("b", "", "1")])
    assert head_order(["LABEL_1", "LABEL_0"], stars) == (1, 0)
    trec = Task.load("trec")
    heads = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]  # the dataset's own names, in its order
    assert [trec.labels[i] for i in np.argsort(head_order(heads, trec))] == list(trec.integers)
    assert head_order(["NOT-ENTAILMENT", "Entailment"], Task.load("rte")) == (1, 0)
    with pytest.raises(TaskError, match="knows positive, pos, but not the task's label 'negative'"):
        head_order(["positive", "pos"], Task.load("sst2"))


@pytest.mark.parametrize("labels", [("neg", "pos"), ("0", "1"), ("LABEL_0", "LABEL_1"), ("NEGATIVE", "Positive")])
def test_names_in_the_data_and_in_words_are_understood(labels):
    rows = [Example("a", "", labels[0]), Example("b", "", labels[1])]
    task = Task.load("sst2", train=rows, words={labels[1]: "good"}, phrases={labels[0]: "Bad."})
    assert task.targets(task.train) == [0, 1] and task.words == {"negative": "terrible", "positive": "good"}
    assert task.phrases["negative"] == "Bad." and task.causal_prompt == "{text} It was"


def test_splits_that_call_a_class_differently_are_of_one_task():
    train = [Example("a", "", "neg"), Example("b", "", "pos")]
    task = Task.load("mine", train=train, test=[Example("c", "", "Positive"), Example("d", "", "negative")])
    assert task.labels == ("neg", "pos") and task.targets(task.test) == [1, 0]
    # Two classes in the training examples are two, whatever they are called.
    assert Task.load("mine", train=[*train, Example("c", "", "positive")]).labels == ("neg", "pos", "positive")


def test_heads_in_different_orders_are_refused_naming_both(copied, tmp_path):
    base, tuned = copied("bert-classifier"), tmp_path / "tuned"
    perturb(base, tuned)
    task = Task.load("sst2", train=ROWS, test=ROWS)
    named(tuned, ["positive", "negative"])
    with pytest.raises(TaskError, match=r"base .*order negative, positive, .*tuned .*order positive, negative"):
        graft(base, tuned, task, weights=5, method="movement", device="cpu")
    for names in (["neg", "pos"], ["0", "1"], ["NEGATIVE", "POSITIVE"]):
        named(tuned, names)
        assert graft(base, tuned, task, weights=5, method="movement", device="cpu").report["tuned"][
            "accuracy"
        ] == pytest.approx(score(tuned, task, device="cpu").accuracy)
    named(base, ["1", "0"])
    named(tuned, ["positive", "negative"])
    right = graft(base, tuned, task, weights=5, method="movement", device="cpu").report["tuned"]["accuracy"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tuned)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    with torch.no_grad():
        said = [plain(**tokenizer(row.text, return_tensors="pt")).logits[0].argmax().item() for row in ROWS]
    assert right == np.mean([("positive", "negative")[i] == row.label for i, row in zip(said, ROWS, strict=True)])
    named(tuned, ["spam", "ham"])
    with pytest.raises(TaskError, match=r"tuned: the checkpoint's head knows spam, ham"):
        graft(base, tuned, task, weights=5, method="movement", device="cpu")


def test_test_texts_that_are_training_texts_are_told(copied, tmp_path, run):
    base, tuned = copied("bert-classifier"), tmp_path / "tuned"
    perturb(base, tuned)
    rows = [*ROWS[:1], Example("We  loved it", "", "positive"), Example("never seen", "", "negative")]
    task = Task.load("sst2", train=ROWS, test=rows, dev=ROWS[:3])
    assert (task.repeated("test"), task.repeated("dev")) == (2, 3)
    skill = graft(base, tuned, task, weights=5, method="movement", device="cpu")
    assert skill.report["examples"]["test_in_train"] == 2
    skill.save(tmp_path / "skill", figures=False)
    assert "2 of the test texts are training texts too" in (tmp_path / "skill" / "README.md").read_text()

    data = tmp_path / "data.csv"
    data.write_text("text,label\n" + "".join(f"{row.text},{row.label}\n" for row in ROWS))
    common = ("--task", "sst2", "--data", data, "--device", "cpu")
    status, out, _ = run(
        "graft", base, tuned, *common, "--eval", data, "--weights", 5, "--method", "movement", "-o", tmp_path / "out"
    )
    assert status == 0 and "4 of 4 test texts are training texts too" in out
    status, out, _ = run("skill", "show", tmp_path / "out")
    assert status == 0 and "4 of 4 test texts are training texts too" in out
    status, out, _ = run("tune", base, *common, "--dev", data, "--steps", 1, "-o", tmp_path / "again")
    assert status == 0 and "4 of 4 dev texts are training texts too" in out


def test_a_pair_is_repeated_only_as_a_pair():
    pair = Example("a film", "good food", "entailment")
    task = Task.load(
        "rte", train=[pair, pair._replace(label="not_entailment")], test=[pair._replace(text_pair="x"), pair]
    )
    assert task.repeated("test") == 1
