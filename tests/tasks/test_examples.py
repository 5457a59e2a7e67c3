"""Reading examples, and tasks made of them."""

import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from surgery.errors import TaskError
from surgery.tasks.examples import Columns, Example, k_shot, read_examples
from surgery.tasks.presets import PRESETS
from surgery.tasks.task import Task

ROWS = [{"text": "a fine film", "label": "positive"}, {"text": 'dull, "really"', "label": "negative"}]
WANTED = [Example("a fine film", "", "positive"), Example('dull, "really"', "", "negative")]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        quoted = [['"' + str(value).replace('"', '""') + '"' for value in row.values()] for row in rows]
        path.write_text("\n".join(separator.join(cells) for cells in [list(rows[0]), *quoted]))
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet"])
def test_every_format_gives_the_same_examples(tmp_path, ending):
    assert read_examples(write(tmp_path / f"x.{ending}", ROWS)) == WANTED


def test_usual_column_names_are_found_and_others_can_be_named(tmp_path):
    glue = write(tmp_path / "a.jsonl", [{"sentence1": "p", "sentence2": "h", "label": 1}])
    assert read_examples(glue) == [Example("p", "h", "1")]
    odd = write(tmp_path / "b.jsonl", [{"review": "p", "stars": "5"}])
    assert read_examples(odd, Columns("review", None, "stars")) == [Example("p", "", "5")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no examples"),
        ('{"text": "a", "label": "x"}\nnonsense', "line 2 isn't JSON"),
        ('{"text": "a", "label": "x"}\n[1]', "line 2 isn't a JSON object"),
        ('{"text": "a"}', "line 1: no label"),
        ('{"label": "a", "body": "b"}', "line 1: no text"),
        ('{"text": "", "label": "a"}', "line 1: no text"),
    ],
)
def test_unreadable_lines_are_named(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(TaskError, match=message):
        read_examples(tmp_path / "x.jsonl")


def test_missing_file_and_damaged_parquet_are_refused(tmp_path):
    with pytest.raises(TaskError, match="no such file"):
        read_examples(tmp_path / "none.csv")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(TaskError, match="can't be read"):
        read_examples(tmp_path / "x.parquet")


def test_shots_are_balanced_disjoint_by_nothing_but_seed_and_repeatable():
    examples = [Example(str(i), "", "ab"[i % 3 == 0]) for i in range(60)]
    first = k_shot(examples, ["a", "b"], 8, seed=1)
    assert sorted(example.label for example in first) == ["a"] * 8 + ["b"] * 8
    assert len(set(first)) == 16
    assert first == k_shot(examples, ["a", "b"], 8, seed=1) != k_shot(examples, ["a", "b"], 8, seed=2)
    with pytest.raises(TaskError, match="label 'b' has 20 examples, fewer than the 21"):
        k_shot(examples, ["a", "b"], 21, seed=0)


def test_presets_are_the_papers_and_whole():
    assert set(PRESETS) == {
        "sst2",
        "mr",
        "cr",
        "mpqa",
        "subj",
        "trec",
        "agnews",
        "mnli",
        "snli",
        "qnli",
        "rte",
        "qqp",
        "mrpc",
    }
    for name in PRESETS:
        task = Task.load(name)
        assert set(task.words) == set(task.phrases)
        assert task.metric == ("f1" if name in ("qqp", "mrpc") else "accuracy")
        pair = name in ("mnli", "snli", "qnli", "rte", "qqp", "mrpc")
        assert ("{text_pair}" in task.prompt, "{text_pair}" in task.causal_prompt) == (pair, pair)


def test_labels_are_matched_by_name_case_and_alias():
    rows = [Example("a", "", "Positive"), Example("b", "", "0"), Example("c", "", "negative")]
    assert [example.label for example in Task.load("sst2", train=rows).train] == ["positive", "negative", "negative"]
    with pytest.raises(TaskError, match="unknown label 'meh'"):
        Task.load("sst2", train=[*rows, Example("d", "", "meh")])


def test_a_task_of_ones_own_takes_its_labels_from_the_data():
    task = Task.load("mood", train=[Example("a", "", "sad"), Example("b", "", "glad")])
    assert task.labels == ("glad", "sad") and task.words == {"glad": "glad", "sad": "sad"}
    assert task.targets(task.train) == [1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": [Example("a", "", "positive")] * 2}, "one class only"),
        ({"words": {"negative": "bad", "positive": "bad"}}, "share the label word 'bad'"),
        ({"words": {"happy": "good"}}, "one class only"),
        ({"prompt": "{text} It was"}, "must hold"),
        ({"causal_prompt": "It was"}, "must hold"),
        ({"phrases": {"happy": "It was good."}}, "one phrase a label"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(TaskError, match=message):
        Task.load("sst2", **arguments)


def test_words_and_phrases_replace_a_presets_label_by_label():
    task = Task.load("sst2", words={"positive": "good"}, phrases={"negative": "Bad."})
    assert task.words == {"negative": "terrible", "positive": "good"}
    assert task.phrases == {"negative": "Bad.", "positive": "It was great."}
    other = Task.load("sst2", words={"bad": "bad", "good": "good"})
    assert other.labels == ("bad", "good") and other.phrases == {"bad": "It is bad.", "good": "It is good."}


def test_spec_survives_json():
    task = Task.load("trec", prompt="{mask}? {text}", max_length=64)
    assert Task.from_spec(json.dumps(task.spec())) == task


def test_a_datasets_hidden_labels_are_left_out_and_named_ones_named(monkeypatch):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        features = datasets.Features(
            {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
        )
        return datasets.Dataset.from_dict(
            {"sentence": ["good", "who knows", "bad"], "label": [1, -1, 0]}, features=features
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    wanted = [Example("good", "", "positive"), Example("bad", "", "negative")]
    assert read_examples("nyu-mll/glue:sst2@validation", split="test") == wanted == read_examples("sst2", split="test")
    assert asked == [("nyu-mll/glue", "sst2", "validation"), ("sst2", None, "test")]


def test_a_presets_columns_give_way_to_the_usual_names(tmp_path):
    for name, keys in (("a", ("question", "sentence")), ("b", ("text", "text_pair"))):
        write(tmp_path / f"{name}.jsonl", [{keys[0]: "q", keys[1]: "s", "label": "entailment"}])
        assert Task.load("qnli", test=tmp_path / f"{name}.jsonl").test == (Example("q", "s", "entailment"),)


def test_integers_stand_for_labels_in_the_datasets_order():
    assert Task.load("trec", test=[Example("x", "", "0")]).test[0].label == "abbreviation"
    assert Task.load("snli", test=[Example("x", "y", "2")]).test[0].label == "contradiction"
