"""Selection end to end: from rows to chosen rows, by every way; rows of all kinds; what is refused, and what is said."""

import datetime
import gc
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_tokenizer
from surgery.errors import OptionError, SelectionError
from surgery.selecting import Features, Selection, Warmup, collecting, read_rows
from surgery.selecting import features as features_module
from surgery.selecting.baselines import text_scores
from surgery.selecting.scoring import METHODS, WORDS
from surgery.tasks.rows import RowFile, read_row
from tests.selecting.conftest import opened, raw_rows

OPTIONS = {"warmup": Warmup(share=0.3, epochs=1, rank=2), "sketch": 256, "device": "cpu", "max_length": 48}


def pool():
    """Reviews, and as many rows that say something else."""
    other = [
        {
            "text": f"they saw the film in a place {number} .",
            "label": "business" if number % 2 else "sports",
            "source": "news",
        }
        for number in range(20)
    ]
    return [*raw_rows(20), *other]


@pytest.fixture(scope="module")
def features(tiny, tmp_path_factory):
    folder, maps = tmp_path_factory.mktemp("s") / "features", ("adam", "sgd", "adam-corrected")
    return Features.collect(tiny("bert-encoder"), pool(), folder=folder, maps=maps, **OPTIONS)


@pytest.mark.parametrize("by", METHODS)
def test_every_way_chooses_and_is_saved_and_loaded(by, features, tmp_path):
    found = features.select(list(raw_rows(5, seed=9)), share=0.25, by=by, device="cpu")
    assert len(found.numbers) == 10 and list(found.scores) == sorted(found.scores, reverse=True)
    assert [dict(row) for row in found.rows] == [pool()[number] for number in found.numbers]
    assert sum(source.pool for source in found.sources) == 40
    assert sum(source.chosen for source in found.sources) == 10
    assert sum(sum(source.histogram) for source in found.sources) == 40
    simpler = {"random", "length", "tfidf", "bm25"} | (
        {"hidden"} if by not in WORDS else set()
    )  # where a model is asked anyway
    assert set(found.overlap) == simpler - {by}
    folder = found.save(tmp_path / "s")
    again = Selection.load(folder)
    assert json.dumps(again.content()) == json.dumps(found.content()) and again.rows == found.rows
    assert {path.name for path in folder.iterdir()} == {
        "report.json",
        "selected.jsonl",
        "index.html",
        "README.md",
        "sources.png",
        "scores.png",
    }
    assert "selected.jsonl" in (folder / "README.md").read_text()


def test_features_are_told_in_a_line(features):
    told = repr(features)
    assert told.startswith("<Features: 40 rows, 256 numbers of float16 for each of adam and sgd") and len(told) <= 200


def test_the_command_knows_which_ways_need_no_model():
    from cli.select import _WORDS

    assert _WORDS == WORDS


@pytest.mark.parametrize("by", WORDS)
def test_words_choose_the_same_rows_without_a_model(by, features, monkeypatch):
    target = list(raw_rows(5, seed=9))
    with_model = features.select(target, share=0.25, by=by, device="cpu")
    monkeypatch.setattr(features_module, "open_instrument", lambda *given: pytest.fail("a model is opened"))
    assert features.select(target, share=0.25, by=by).numbers == with_model.numbers
    made = Features.of_words(pool())
    found = made.select(target, share=0.25, by=by)
    if by != "length":  # in words, not in tokens
        assert found.numbers == with_model.numbers and found.overlap.keys() == with_model.overlap.keys()
    assert [source.pool for source in found.sources] == [20, 20]
    assert found.lengths["pool"][1] == np.median([len(f"{row['text']} {row['label']}".split()) for row in pool()])
    assert "No model was asked: lengths are in words." in found.remarks
    assert repr(made) == "<Features: 40 rows, words alone>"
    folder = made.store.folder
    with pytest.raises(OptionError, match=r"needs features by the map adam, and there are none: collect them anew"):
        made.select(target)
    del made, found
    gc.collect()
    assert not folder.exists()


def test_a_report_says_how_features_were_made_and_how_to_tune(features, tiny, tmp_path):
    target = list(raw_rows(5, seed=9))
    page = (features.select(target, device="cpu").save(tmp_path / "a") / "README.md").read_text()
    assert "surgery tune BASE --task NAME --data selected.jsonl --optimizer adamw -o tuned/" in page
    assert all(f"| {name} | {value} |" in page for name, value in {"sketch": 256, "rank": 2, "max_length": 48}.items())
    causal = collect(tiny("gpt2"), list(raw_rows(8)), tmp_path).select(target, device="cpu")
    page = (causal.save(tmp_path / "b") / "README.md").read_text()
    assert "surgery tune BASE --texts selected.jsonl --optimizer adamw --rate 5e-5 -o tuned/" in page


def test_progress_counts_rows_at_every_checkpoint(tiny, tmp_path):
    told = []
    warmup = Warmup(share=0.5, epochs=2, rank=2)
    collect(
        tiny("gpt2"),
        list(raw_rows(10)),
        tmp_path,
        warmup=warmup,
        shard_rows=4,
        progress=lambda *line: told.append(line),
    )
    counts = [(done, total) for done, total, line in told if line.startswith("collecting")]
    assert counts == sorted(counts) and {total for _, total in counts} == {20} and counts[-1][0] == 20
    assert "collecting features: gradients, checkpoint 2 of 2" in {line for *_, line in told}


def test_histograms_are_those_of_each_sources_scores(features):
    found = features.select([{"text": "so be it", "label": "sports"}], share=1.0, by="length", device="cpu")
    for source in found.sources:
        own = [
            score
            for number, score in zip(found.numbers, found.scores, strict=True)
            if pool()[number]["source"] == source.name
        ]
        assert len(own) == source.pool == source.chosen
        assert list(source.histogram) == np.histogram(own, found.edges)[0].tolist()


def test_the_targets_nearest_rows_are_told(features):
    """A row of the pool as the target, worded otherwise: its own gradient is the nearest, by a cosine of 1."""
    twin = {**pool()[3], "text": pool()[3]["text"].replace(" .", " !")}
    found = features.select([*list(raw_rows(3, seed=9)), twin], share=1.0, by="sgd", device="cpu")
    assert len(found.nearest) == 20 and all(-1 <= each.cosine <= 1.001 for each in found.nearest)
    best = max(found.nearest, key=lambda each: each.cosine)
    assert best.text.startswith(pool()[best.row]["text"])


@pytest.mark.real
def test_the_example_finds_what_was_planted(ok, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = ok("select", "--json", "--device", "cpu")
    right = next(source["chosen"] for source in found["sources"] if source["name"] == "feelings")
    assert right >= 5 and (tmp_path / "surgery-select-example" / "selected" / "index.html").exists()


def test_rows_of_the_target_are_left_out_of_the_pool(features):
    target = [{**row, "text": row["text"].upper().replace(" ", "  ")} for row in pool()[:3]]
    found = features.select(target, share=1.0, by="length", device="cpu")
    assert set(found.numbers) == set(range(3, 40))
    assert any("3 rows of the pool have the prompt of a row of the target" in remark for remark in found.remarks)
    with pytest.raises(SelectionError, match="every row of the pool is a row of the target"):
        features.select(pool(), by="length", device="cpu")


def test_conversations_are_learnt_on_the_assistants_turns(tiny):
    tokenizer = load_tokenizer(Checkpoint(tiny("llama")))
    turns = [("user", "was it good ?"), ("assistant", "yes very good"), ("user", "really ?"), ("assistant", "no")]
    row = read_row({"messages": [{"role": role, "content": text} for role, text in turns]}, "here")
    with pytest.raises(SelectionError, match="need a tokenizer with a chat template"):
        row.pieces(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} !\n{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
    pieces = row.pieces(tokenizer)
    assert "".join(text for text, told in pieces if told) == "yes very good !\nno !\n"
    assert "".join(text for text, _ in pieces) == tokenizer.apply_chat_template(
        [{"role": r, "content": t} for r, t in turns], tokenize=False
    )
    _, objective = opened(tiny("llama"))
    objective = replace(objective, tokenizer=tokenizer)
    lesson = objective.encode(row)
    told = [tokenizer.decode([token]) for token in lesson.targets if token != -100]
    assert told == ["yes", "very", "good", "!", "no", "!"]
    # Each is what follows the token that is to say it.
    assert all(
        target in (-100, after) for target, after in zip(lesson.targets, [*lesson.tokens.ids[1:], -100], strict=True)
    )
    alone = read_row({"messages": [{"role": "assistant", "content": "yes"}]}, "here")
    with pytest.raises(SelectionError, match="begins with the assistant"):
        alone.pieces(tokenizer)
    other = read_row({"messages": [{"role": "assistant", "content": "no"}]}, "here")
    assert alone.key != other.key  # else a target's one row would leave out all that have no prompt
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(SelectionError, match="changes earlier turns"):
        row.pieces(tokenizer)


def test_completions_and_pairs_are_read(tiny, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("prompt,completion,source\nwas it good ?, yes,a\n")
    (row,) = read_rows(file)
    assert (row.prompt, row.answers, row.source) == ("was it good ?", " yes", "a")
    _, objective = opened(tiny("gpt2"))
    lesson = objective.encode(row)
    assert [objective.tokenizer.decode([token]) for token in lesson.targets if token != -100] == ["yes"]
    pair = read_row({"text": "it was good", "text_pair": "it was bad", "label": "no"}, "here")
    assert (
        pair.prompt == "it was good\nit was bad" and pair.key == read_row({"text": "It was  good it was bad"}, "x").key
    )


def test_bm25_is_the_formula():
    """Robertson & Zaragoza's, by a plain loop."""
    texts = ["the cat sat", "the dog sat on the cat", "a bird"]
    found = text_scores(texts, ["cat sat", "bird"], ["a", "b"], "bm25")
    split = [text.split() for text in texts]
    mean = sum(map(len, split)) / 3

    def value(words, query):
        total = 0.0
        for word in query.split():
            having = sum(word in other for other in split)
            rarity = math.log(1 + (3 - having + 0.5) / (having + 0.5))
            count = words.count(word)
            total += rarity * count * 2.5 / (count + 1.5 * (0.25 + 0.75 * len(words) / mean))
        return total

    assert np.allclose(found, [max(value(words, "cat sat"), value(words, "bird")) for words in split])
    cosines = text_scores(texts, ["the cat sat"], [""], "tfidf")
    assert cosines[0] == pytest.approx(1) and cosines[2] == 0


def collect(base, rows, tmp_path, **more):
    return Features.collect(base, rows, folder=tmp_path / "f", **{**OPTIONS, **more})


@pytest.mark.parametrize(
    "rows, more, said",
    [
        ([], {}, "holds no rows"),
        ([{"text": "it was good"}], {}, r"row 1 of the pool has no answer .* choose `loss` text"),
        ([{"text": "it was good " * 30, "label": "yes"}], {}, r"row 1 of the pool: its answer begins at token \d+, after the cut at `max_length` 48"),
        ([{"words": "it"}], {}, "row 1: its fields are words: text with label"),
        ([{"text": 3, "label": "yes"}], {}, "row 1: no text, or one that isn't text"),
        ([{"messages": "hello"}], {}, "row 1: messages is to be a list of turns"),
        ([{"messages": [{"role": "user", "content": "hello"}]}], {}, "row 1: the assistant says nothing"),
    ],
)  # fmt: skip
def test_rows_that_nothing_can_be_learnt_of_are_refused(rows, more, said, tiny, tmp_path):
    with pytest.raises(SelectionError, match=said):
        collect(tiny("gpt2"), rows, tmp_path, **more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "more, said",
    [
        ({"maps": ("newton",)}, "`maps`"),
        ({"precision": "float4"}, "`precision` float4"),
        ({"loss": "both"}, "`loss` both"),
        ({"sketch": -1}, "`sketch` -1"),
    ],
)
def test_options_out_of_range_are_refused(more, said, tiny, tmp_path):
    with pytest.raises(OptionError, match=said):
        collect(tiny("gpt2"), list(raw_rows(4)), tmp_path, **more)


def test_the_kinds_that_a_loss_is_not_for(tiny, tmp_path):
    for kind in ("bert", "bert-encoder"):
        with pytest.raises(OptionError, match="`loss` text is for causal models"):
            collect(tiny(kind), list(raw_rows(4)), tmp_path, loss="text")
    with pytest.raises(SelectionError, match="is a classifier"):
        collect(tiny("bert-classifier"), list(raw_rows(4)), tmp_path)
    with pytest.raises(SelectionError, match="no row of the pool has an answer"):
        collect(tiny("bert-encoder"), [{"text": "it was so"}] * 4, tmp_path)
    with pytest.raises(SelectionError, match="tells 2 to 512 different answers apart, and the pool has 1"):
        collect(tiny("bert-encoder"), list(raw_rows(4))[::2], tmp_path)


def test_cut_answers_and_a_start_without_warm_up_are_said(tiny, tmp_path):
    rows = [{"prompt": "was it good", "completion": " yes" * 60}, {"prompt": "was it", "completion": " no"}]
    found = collect(tiny("gpt2"), rows * 2, tmp_path, warmup=Warmup(share=0.0, rank=2))
    remarks = found.store.header["remarks"]
    assert any("2 of 4 answers are cut off at 48 tokens" in remark for remark in remarks)
    assert any("B is zero and A's gradients with it" in remark for remark in remarks)


def test_rows_that_nothing_can_be_learnt_of_are_counted(tiny, tmp_path):
    long = {"prompt": "was it good " * 60, "completion": " yes"}
    with pytest.raises(
        SelectionError, match=r"row 3 of the pool: its answer begins at token \d+, .*; 1 more row of 5 can't"
    ):
        collect(tiny("gpt2"), [*raw_rows(2), long, *raw_rows(1), long], tmp_path)
    with pytest.raises(SelectionError, match=r"row 2 of the pool: its answer .* raise it$"):
        collect(tiny("gpt2"), [*raw_rows(1), long], tmp_path)


def test_gradients_that_are_all_zero_are_refused(tiny, tmp_path, monkeypatch):
    from surgery.selecting.opening import Instrument

    real = Instrument.features
    monkeypatch.setattr(Instrument, "features", lambda *given: {name: 0 * each for name, each in real(*given).items()})
    with pytest.raises(SelectionError, match="all gradients are zero"):
        collect(tiny("gpt2"), list(raw_rows(4)), tmp_path)


def test_an_empty_target_another_base_and_unknown_answers_are_refused(features, tiny):
    with pytest.raises(SelectionError, match="the list of rows holds no rows"):
        features.select([])
    with pytest.raises(SelectionError, match="was made with another base"):
        features.select(list(raw_rows(2, seed=9)), base=tiny("gpt2"), device="cpu")
    with pytest.raises(SelectionError, match="row 1 of the target: the answer 'maybe' is none of the pool's"):
        features.select([{"text": "it was so", "label": "maybe"}], device="cpu")
    with pytest.raises(OptionError, match="`by` magic"):
        features.select(list(raw_rows(2)), by="magic")


def test_a_target_that_nothing_can_be_learnt_of_is_refused_before_the_pass(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "warm_up", lambda *_, **__: pytest.fail("the pass has begun"))
    with pytest.raises(SelectionError, match="row 1 of the target: the answer 'maybe' is none of the pool's"):
        collect(tiny("bert-encoder"), list(raw_rows(4)), tmp_path, target=[{"text": "it was so", "label": "maybe"}])


def test_a_targets_features_are_taken_in_the_pools_precision(tiny, tmp_path, monkeypatch):
    made, asked = collect(tiny("gpt2"), list(raw_rows(4)), tmp_path, dtype="bfloat16"), []
    own = features_module.open_instrument

    def opening(*given):
        asked.append(given[-1])
        return own(*given)

    monkeypatch.setattr(features_module, "open_instrument", opening)
    made.select(list(raw_rows(2, seed=9)), share=1.0, device="cpu")
    made.select(list(raw_rows(2, seed=9)), share=1.0, device="cpu", dtype="float32")
    assert asked == ["bfloat16", "float32"]


def test_dates_of_a_table_are_kept_as_text(tiny, tmp_path):
    rows = [{**row, "when": datetime.date(2020, 1, 2)} for row in raw_rows(4)]
    assert RowFile.write(rows, tmp_path / "pool.jsonl").raw([0])[0]["when"] == "2020-01-02"


@pytest.fixture
def files(tmp_path):
    for name, rows in {"pool": pool(), "target": list(raw_rows(4, seed=9)), "other": pool()[-3:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_the_command_selects_scores_again_and_shows(ok, run, tiny, files):
    base = [
        files / "pool.jsonl",
        "--for",
        files / "target.jsonl",
        "--model",
        tiny("bert-encoder"),
        "--share",
        ".25",
        "--device",
        "cpu",
    ]
    small = ["--sketch", "128", "--rank", "2", "--epochs", "1", "--warmup-share", ".3"]
    told = ok("select", *base, *small, "-o", files / "selected", "--json")
    assert len((files / "selected" / "selected.jsonl").read_text().splitlines()) == 10
    assert told["features"] == str(files / "features") and (files / "features" / "report.json").exists()
    # Another share takes no pass over the pool; another target none either.
    ok("select", *base, *small, "-o", files / "selected2", "--by", "centred")
    said = ok(
        "select",
        "score",
        files / "features",
        "--for",
        files / "other.jsonl",
        "-o",
        files / "selected3",
        "--device",
        "cpu",
    )
    assert "3 rows of the pool have the prompt of a row of the target" in said
    said = ok("select", "show", files / "selected")
    assert "nearest of the target" in said and "Chosen too: random" in said and "reviews" in said
    assert ok("select", "show", files / "selected", "--json")["by"] == "less"
    said = ok("select", files / "pool.jsonl", "--for", files / "target.jsonl", "--by", "tfidf", "-o", files / "words")
    assert "of 40 rows chosen by tfidf" in said and "features" not in said.splitlines()[-1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["select", "pool.jsonl", "--model", "M", "-o", "x"], "--for is missing"),
        (["select", "pool.jsonl", "--for", "target.jsonl", "-o", "x"], "--model is missing"),
        (["select", "pool.jsonl", "--for", "target.jsonl", "--model", "M"], "-o is missing"),
        (["select", "pool.jsonl", "--for", "empty.jsonl", "--model", "M", "-o", "x"], "empty.jsonl holds no rows"),
        (["select", "pool.jsonl", "--for", "target.jsonl", "--model", "M", "-o", "x", "--share", "2"], "--share 2.0 must be"),
        (["select", "pool.jsonl", "--for", "target.jsonl", "--model", "M", "-o", "x", "--by", "luck"], "--by luck isn't one of"),
        (["select", "pool.jsonl", "--for", "target.jsonl", "--model", "M", "-o", "x", "--warmup-share", "2"], "--warmup-share 2.0"),
        (["select", "pool.jsonl", "--for", "broken.jsonl", "--model", "M", "-o", "x"], "broken.jsonl, line 1 isn't JSON"),
        (["select", "pool.jsonl", "--for", "target.jsonl", "--model", "M", "-o", "x", "--maps", "sgd"], "--by less needs features by the map adam"),
        (["select", "pool.jsonl", "--for", "target.jsonl", "--model", "M", "-o", "x", "--subtasks", "part"], "no row of target.jsonl has such a field"),
        (["select", "score", "nowhere", "--for", "target.jsonl", "-o", "x"], "can't be read as a store of features"),
        (["select", "show", "nowhere"], "can't be read as a selection"),
        (["select", "show"], "the folder is missing: see `surgery select show --help`\n"),
        (["select", "score", "--for", "target.jsonl", "-o", "x"], "missing: see `surgery select score --help`\n"),
        (["select", "pool.jsonl", "--for", "target.jsonl", "--model", "M", "-o", "x", "--maps", "foo,sgd"], "--maps foo isn't of sgd, adam"),
    ],
)  # fmt: skip
def test_mistakes_end_with_a_sentence(words, said, run, files, monkeypatch):
    monkeypatch.chdir(files)
    (files / "empty.jsonl").write_text("\n")
    (files / "broken.jsonl").write_text("{")
    before = sorted(files.iterdir())
    status, _, err = run(*words)
    assert status == 2 and said in err and len(err.splitlines()) == 1
    assert sorted(files.iterdir()) == before
