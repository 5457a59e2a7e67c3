"""Rows of files as other programs write them: pandas, the csv module, GLUE's scripts, spreadsheets."""

import csv
import io
import json
import random

import pyarrow
import pyarrow.parquet
import pytest

from surgery.errors import TaskError
from surgery.tasks.examples import Example, read_examples
from surgery.tasks.task import Task

# Texts that hold what could be taken for syntax.
TEXTS = [
    '"a good film',
    'he said "no" and left',
    "plain",
    '"wholly quoted"',
    'ends with a quote"',
    '"it\'s" , he wrote',
    '""',
    "` ` quote",
]


def read(path, content):
    path.write_bytes(content.encode())
    return [(example.text, example.label) for example in read_examples(path)]


def test_quotes_in_tsv_are_characters_where_the_writer_did_not_quote(tmp_path):
    """GLUE's files: one example a line, tabs between, nothing quoted."""
    rng = random.Random(0)
    for number in range(200):
        rows = [(rng.choice(TEXTS), rng.choice("01")) for _ in range(16)]
        rows.append((TEXTS[0], "1"))  # a quote that nothing closes
        content = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
        assert read(tmp_path / f"{number}.tsv", content) == rows


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(("ending", "separator"), [("csv", ","), ("tsv", "\t"), ("CSV", ","), ("TSV", "\t")])
def test_quotes_are_taken_off_where_the_writer_put_them(tmp_path, quoting, ending, separator):
    rng = random.Random(1)
    for number in range(50):
        rows = [(rng.choice([*TEXTS, "two\nlines", "a\ttab, a comma"]), rng.choice("01")) for _ in range(12)]
        rows += [('he said "no"', "1"), ("after it", "0")]
        file = io.StringIO()
        csv.writer(file, delimiter=separator, quoting=quoting).writerows([("sentence", "label"), *rows])
        assert read(tmp_path / f"{number}.{ending}", file.getvalue()) == rows


def test_a_tab_too_many_and_an_open_quote_are_refused_by_line(tmp_path):
    with pytest.raises(TaskError, match=r"line 3 has 3 values under 2 column names"):
        read(tmp_path / "a.tsv", 'text\tlabel\nfine\t1\n"a\tb\t0\n')
    with pytest.raises(TaskError, match=r"line 2 has 3 values under 2 column names"):
        read(tmp_path / "a.csv", "text,label\ngood, they say,1\n")
    for content in ('text,label\n"a good film,1\nfine,0\n', 'text,label\n"a good film,1\n"fine" it was,0\n'):
        with pytest.raises(TaskError, match=r"line \d: its quotes don't fit together"):
            read(tmp_path / "b.csv", content)


def test_long_fields_are_read_and_the_csv_modules_limit_stays(tmp_path):
    text, before = "good " * 40_000, csv.field_size_limit()
    for ending, separator in (("csv", ","), ("tsv", "\t")):
        assert read(tmp_path / f"a.{ending}", f'text{separator}label\n"{text}"{separator}1\n') == [(text, "1")]
    assert csv.field_size_limit() == before


def test_endings_are_read_in_any_case(tmp_path):
    for name, content in (("A.JSONL", '{"text": "a", "label": 1}'), ("A.Csv", "text,label\na,1\n")):
        assert read(tmp_path / name, content) == [("a", "1")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "a", "label": 1}]), tmp_path / "a.PARQUET")
    assert read_examples(tmp_path / "a.PARQUET") == [Example("a", "", "1")]


@pytest.mark.parametrize("label", ["NaN", "null", '"nan"', '"None"', '""', '"  "'])
def test_labels_that_stand_for_none_are_refused_by_line(tmp_path, label):
    with pytest.raises(TaskError, match=r"line 2: (no label|the label .* stands for a missing one)"):
        read(tmp_path / "a.jsonl", f'{{"text": "a", "label": "x"}}\n{{"text": "b", "label": {label}}}\n')


def test_missing_values_of_parquet_and_of_memory_too(tmp_path):
    rows = [{"text": "a", "label": 1.0}, {"text": "b", "label": float("nan")}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(TaskError, match="line 2: no label"):
        read_examples(tmp_path / "a.parquet")
    for label in (float("nan"), None, "", "nan"):
        with pytest.raises(TaskError, match=r"the test examples, number 1, counted from 0: the label .* missing"):
            Task.load("mine", test=[Example("a", "", "x"), Example("b", "", label)])
    assert read_examples(tmp_path / "a.parquet", labelled=False)[1] == Example("b", "", "")


def test_whole_numbers_are_one_label_however_they_are_written(tmp_path):
    lines = [json.dumps({"text": "a", "label": label}) for label in (1, 1.0, "1", "1.0", " 1 ")]
    assert {label for _, label in read(tmp_path / "a.jsonl", "\n".join(lines))} == {"1"}
    assert read(tmp_path / "a.csv", "text,label\na,1.5\nb,10\nc,0.0\n") == [("a", "1.5"), ("b", "10"), ("c", "0")]
    task = Task.load("mine", train=[Example("a", "", 1.0), Example("b", "", 0)], test=[Example("c", "", "1")])
    assert task.labels == ("0", "1") and task.targets(task.test) == [1]
    assert Task.load("mine", test=task.train, words={"1.0": "yes", "0.0": "no"}).words == {"1": "yes", "0": "no"}


def test_an_empty_field_is_told_from_a_column_that_is_not_there(tmp_path):
    with pytest.raises(TaskError, match="line 3: no label, the field is empty"):
        read(tmp_path / "a.csv", "text,label\na,x\nb,\n")
    with pytest.raises(TaskError, match=r"no label .*name the column if it is called otherwise"):
        read(tmp_path / "b.csv", "text,mark\na,x\n")
