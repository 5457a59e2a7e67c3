"""`surgery unlearn` and `surgery bottleneck`: every command end to end, the undo bit for bit, and every bad input."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from tests.support.tiny import hashes

NAMES = ("ant", "bee", "cat", "dog, or wolf")
WIDTH, EACH = 12, 30
SMALL = ("--codebooks", 8, "--keys", 16, "--key-dim", 6, "--device", "cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path_factory.mktemp("cache")))


def blobs(seed, each=EACH):
    """Four well separated clouds; labels 0 to 3."""
    labels = np.repeat(np.arange(len(NAMES)), each)
    centers = np.random.default_rng(99).normal(0, 4, (len(NAMES), WIDTH))
    noise = np.random.default_rng(seed).normal(0, 1, (len(labels), WIDTH))
    return (centers[labels] + noise).astype(np.float32), labels


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Features files whose classes have names: train, other (from the same clouds) and test."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "classes.json").write_text(json.dumps(NAMES))
    for seed, name in enumerate(("train", "other", "test")):
        features, labels = blobs(seed)
        save_file({"features": features, "label": labels}, folder / f"{name}.safetensors")
    features, _ = blobs(0)
    save_file({"X": features[[3, 40]]}, folder / "two.safetensors")
    return folder


@pytest.fixture
def work(files, ok, tmp_path):
    """`bn`: SGD values, keys from the training rows. `counted`: counts, keys from other rows."""
    fit = ("bottleneck", "fit", "--features", files / "train.safetensors", *SMALL)
    ok(*fit, "-o", tmp_path / "bn")
    ok(*fit, "--keys-from", files / "other.safetensors", "--values", "counts", "-o", tmp_path / "counted")
    return tmp_path


def predictions(folder, file):
    from surgery.unlearning import Bottleneck

    return Bottleneck.load(folder).predict(load_file(file)["features"])


def test_a_class_is_forgotten_the_rest_stays_and_undoing_gives_the_same_bytes(work, files, ok):
    before = hashes(work / "bn")
    labels = np.array(NAMES)[load_file(files / "test.safetensors")["label"]]
    assert (predictions(work / "bn", files / "test.safetensors") == labels).mean() > 0.95
    out = ok("unlearn", work / "bn", "--forget", "bee", "-o", work / "forgot")
    assert "bee (30 rows) forgotten" in out and f"surgery bottleneck verify {work / 'forgot'}" in out
    assert "betrays membership" in out and "30 of the forgotten rows too: this is not exact" in out
    assert hashes(work / "bn") == before
    answers = predictions(work / "forgot", files / "test.safetensors")
    assert "bee" not in answers and (answers[labels != "bee"] == labels[labels != "bee"]).mean() > 0.95
    ok("bottleneck", "undo", work / "forgot", "--eraser", work / "forgot-eraser", "-o", work / "again")
    assert hashes(work / "again") == before


def test_what_is_given_away_holds_neither_masked_values_nor_forgotten_rows(work, files, ok):
    ok("unlearn", work / "bn", "--forget", "bee", "-o", work / "forgot")
    model, training = (load_file(work / "forgot" / f"{name}.safetensors") for name in ("model", "training"))
    masked = model["states"] != 0
    assert masked.any() and not model["table"][masked].any()
    features, labels = blobs(0)
    gone = {row.tobytes() for row in features[labels == 1]}
    assert not gone & {row.tobytes() for row in training["features"]} and len(training["features"]) == 3 * EACH
    assert b"bee" not in (work / "forgot" / "training.safetensors").read_bytes()
    (work / "forgot" / "training.safetensors").unlink()  # as the card says one may
    assert "bee" not in predictions(work / "forgot", files / "test.safetensors")
    assert "can't be edited" in ok("bottleneck", "show", work / "forgot")


@pytest.mark.parametrize("how", [("examples", "drop"), ("activations", "drop"), ("refit", "next"), ("counts", "next")])
def test_every_way_of_forgetting_forgets_and_can_be_undone(how, work, files, ok):
    via, answer = how
    source = work / ("counted" if via == "counts" else "bn")
    edit = ok("unlearn", source, "--forget", "ant", "--method", via, "--answer", answer, "-o", work / "f", "--json")
    assert (edit["via"], edit["forget"], edit["rows"]) == (via, ["ant"], EACH)
    assert "ant" not in predictions(work / "f", files / "test.safetensors").tolist()
    ok("bottleneck", "undo", work / "f", "--eraser", edit["eraser"], "-o", work / "again")
    assert hashes(work / "again") == hashes(source)


def test_rows_can_be_taken_from_counts_after_a_mask(work, files, ok):
    ok("unlearn", work / "counted", "--forget", "cat", "--method", "activations", "-o", work / "masked")
    command = ("unlearn", work / "masked", "--forget-rows", files / "two.safetensors", "--method", "counts")
    ok(*command, "-o", work / "f")
    assert load_file(work / "f" / "model.safetensors")["table"].min() >= 0


def test_a_counted_bottleneck_with_keys_of_other_rows_forgets_a_class_exactly_by_default(work, files, ok):
    out = ok("unlearn", work / "counted", "--forget", "cat", "-o", work / "f")
    assert "counted down" in out and "Exact" in out and "betrays" not in out
    assert "cat" not in predictions(work / "f", files / "test.safetensors")
    masked = ok("unlearn", work / "counted", "--forget", "cat", "--keys", 9, "-o", work / "m", "--json")
    assert (masked["via"], masked["masked"]) == ("activations", 9)


def test_edits_that_miss_or_break_something_are_said_at_once(work, ok):
    out = ok("unlearn", work / "bn", "--forget", "bee", "--keys", 1, "-o", work / "few")
    assert "Not all is forgotten" in out and "of the forgotten training rows are still answered right" in out
    out = ok("unlearn", work / "bn", "--forget", "ant,bee,cat", "-o", work / "one")
    assert "Only the class dog, or wolf is left to answer" in out
    assert "Not all" not in ok("unlearn", work / "bn", "--forget", "bee", "-o", work / "plain")


def test_bottlenecks_and_erasers_may_lie_on_the_hub(work, files, ok, run, monkeypatch):
    ok("unlearn", work / "bn", "--forget", "bee", "-o", work / "forgot")
    hub = {"me/forgot": work / "forgot", "me/secret": work / "forgot-eraser"}
    asked = []

    def fetch(name, allow_patterns):
        asked.append(name)
        if name not in hub:
            raise LocalEntryNotFoundError("offline")
        return str(hub[name])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    ok("bottleneck", "undo", "me/forgot", "--eraser", "me/secret", "-o", work / "again")
    assert hashes(work / "again") == hashes(work / "bn") and asked == ["me/secret", "me/forgot"]
    assert ok("bottleneck", "show", "me/secret", "--json")["kind"] == "eraser"
    verify = ("bottleneck", "verify", "me/forgot", "--eraser", "me/secret", "--data", files / "test.safetensors")
    found = ok(*verify, "--shadows", 0, "--no-baselines", "-o", work / "report", "--json")
    assert found["points"]["before"]["retain_accuracy"] > 0.9
    assert ok("unlearn", "me/forgot", "--forget", "cat", "-o", work / "two", "--json")["forget"] == ["cat"]
    status, out, err = run("bottleneck", "show", "me/nothing")
    assert (status, out) == (2, "") and "is not a folder here, and the hub couldn't give it" in err
    asked.clear()
    for local in ("nowhere", work / "nowhere" / "at-all", "one/two/three"):
        status, out, err = run("bottleneck", "show", local)
        assert (status, out) == (2, "") and "is it a folder that this program wrote" in err
    assert not asked


def test_edits_chain_and_are_undone_from_the_last(work, files, ok, run):
    ok("unlearn", work / "bn", "--forget", "ant", "-o", work / "one", "--eraser", work / "e1")
    ok("unlearn", work / "one", "--forget", "cat", "--method", "examples", "-o", work / "two", "--eraser", work / "e2")
    assert not {"ant", "cat"} & set(predictions(work / "two", files / "test.safetensors"))
    undo = ("bottleneck", "undo", work / "two", "--eraser")
    status, out, err = run(*undo, work / "e1", "-o", work / "new")
    assert (status, out) == (2, "") and "1 later edit must be undone first" in err and err.count("\n") == 1
    ok(*undo, work / "e2", "-o", work / "back")
    assert hashes(work / "back") == hashes(work / "one")
    status, out, err = run(
        "unlearn", work / "one", "--forget", "cat", "-o", work / "x", "--eraser", work / "e1", "--overwrite"
    )
    assert (status, out) == (2, "") and "eraser of an earlier edit" in err and not (work / "x").exists()
    ok("bottleneck", "undo", work / "back", "--eraser", work / "e1", "-o", work / "start")
    assert hashes(work / "start") == hashes(work / "bn")


def test_commas_in_names_and_several_classes(work, ok):
    def forgotten(*options):
        return ok("unlearn", work / "bn", *options, "-o", work / "f", "--overwrite", "--json")["forget"]

    assert forgotten("--forget", "dog, or wolf") == ["dog, or wolf"]
    assert forgotten("--forget", "ant, bee") == ["ant", "bee"]
    assert forgotten("--forget", "dog, or wolf", "--forget", "ant") == ["ant", "dog, or wolf"]


def test_single_rows_are_deleted_exactly_from_counts_with_keys_from_other_rows(work, files, ok):
    command = ("unlearn", work / "counted", "--forget-rows", files / "two.safetensors", "--method", "counts")
    out = ok(*command, "-o", work / "f")
    assert "2 single rows forgotten" in out and "Exact" in out and "membership" not in out
    features, labels = blobs(0)
    rest = work / "rest.safetensors"
    stay = np.delete(np.arange(len(labels)), [3, 40])
    save_file({"features": features[stay], "label": np.array(labels[stay])}, rest)
    shutil.copy(files / "classes.json", work)
    fit = ("bottleneck", "fit", "--features", rest, *SMALL, "--keys-from", files / "other.safetensors")
    ok(*fit, "--values", "counts", "-o", work / "without")
    model = [hashlib.sha256((work / name / "model.safetensors").read_bytes()).digest() for name in ("f", "without")]
    assert model[0] == model[1]
    card = (work / "f" / "README.md").read_text()
    assert "Exact" in card and "2 single rows" in card and "betrays" not in card


def test_cards_say_what_masks_and_keys_give_away(work, ok):
    assert "Nothing yet." in (work / "bn" / "README.md").read_text()
    ok("unlearn", work / "bn", "--forget", "bee", "-o", work / "forgot")
    card = (work / "forgot" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: surgery\n")
    for said in (
        "a mask by itself betrays membership",
        "rows nearest to closed keys were probably forgotten",
        "use refit, or counts with keys from other rows",
        "this is not exact unlearning",
        "the *remaining* training rows",
        "encoder itself is as it was",
        "1. bee (30 rows), forgotten by masking",
        'Bottleneck.load("THIS_FOLDER")',
    ):
        assert said.lower() in card.lower(), said
    mine = (work / "forgot-eraser" / "README.md").read_text()
    assert "For the owner only: keep it private" in mine and "# Eraser: bee" in mine
    assert "surgery bottleneck undo" in mine


def test_show_tells_a_bottleneck_from_an_eraser(work, ok):
    show = ("bottleneck", "show")
    found = ok(*show, work / "counted", "--json")
    assert found["kind"] == "bottleneck" and found["classes"] == list(NAMES) and found["training_rows"] == [EACH] * 4
    assert (found["codebooks"], found["keys"], found["key_dim"], found["width"]) == (8, 16, 6, WIDTH)
    assert "other rows (120, of which none are in training too)" in found["placed_by"] and found["history"] == []
    edit = ok("unlearn", work / "bn", "--forget", "bee", "--keys", 11, "--rank", "purity", "-o", work / "f", "--json")
    after = ok(*show, work / "f", "--json")
    assert after["pairs"] == {"open": 8 * 16 - 11, "closed": 11, "silent": 0} and after["training_rows"][1] == 0
    assert after["history"][0]["hash"] == edit["hash"]
    eraser = ok(*show, work / "f-eraser", "--json")
    assert eraser["kind"] == "eraser" and eraser["hash"] == edit["hash"] and eraser["pairs"] == 11
    assert eraser["bottleneck"] == ok(*show, work / "bn", "--json")["fingerprint"] and eraser["previous"] == ""
    pairs = load_file(work / "f-eraser" / "eraser.safetensors")["pairs"]
    touched = sorted(sum(pair // 16 == codebook for pair in pairs) for codebook in range(8))
    assert eraser["pairs_per_codebook"] == {
        "min": touched[0],
        "median": (touched[3] + touched[4]) / 2,
        "max": touched[-1],
    }
    for folder, words in (("f", "edit 1: bee (30 rows)"), ("f-eraser", "ranked by purity"), ("bn", "k-means")):
        assert words in ok(*show, work / folder)


def test_verify_makes_a_report_and_finds_the_eraser_itself(work, files, ok):
    ok("unlearn", work / "bn", "--forget", "bee", "-o", work / "forgot")
    command = ("bottleneck", "verify", work / "forgot", "--shadows", 0, "--device", "cpu")
    out = ok(*command, "--data", files / "test.safetensors", "-o", work / "report")
    for row in ("before", "after", "refitted"):
        assert any(line.split()[:1] == [row] for line in out.splitlines())
    assert "Compare with the refitted" in out and (work / "report" / "report.json").exists()
    assert all(len(line) <= 120 for line in out.splitlines() if line.startswith("  "))
    given = ("--features", files / "test.safetensors", "--eraser", work / "forgot-eraser")
    found = ok(*command, *given, "-o", work / "again", "--json")
    assert found["points"]["after"]["forget_accuracy"] == 0 and found["output"] == str(work / "again")


def test_texts_from_fit_to_single_rows(tiny, ok, run, tmp_path):
    rows = [
        {"text": f"{'the' * (number % 2)} {' '.join([word] * (1 + number % 5))} {end}", "label": label}
        for word, label in (("good", "up"), ("bad", "down"), ("film", "flat"))
        for number, end in enumerate((".", "!", "?", ",", ":", "-", "and", "but"))
    ]
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    fit = ("bottleneck", "fit", "--encoder", tiny("bert-encoder"), "--data", data, "--codebooks", 4, "--keys", 12)
    small = ("--key-dim", 4, "--device", "cpu", "--epochs", 40)
    out = ok(*fit, *small, "-o", tmp_path / "bn")
    assert "3 classes" in out and "24 training rows" in out
    card = (tmp_path / "bn" / "README.md").read_text()
    assert str(tiny("bert-encoder").parent) not in card and '["a text", "another"]' in card
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"text": rows[5]["text"]}))
    edit = ok("unlearn", tmp_path / "bn", "--forget-rows", one, "--method", "refit", "-o", tmp_path / "f", "--json")
    same = [number for number, row in enumerate(rows) if row["text"] == rows[5]["text"]]
    assert edit["rows"] == len(same) and edit["forget"] == []
    positions = load_file(tmp_path / "f-eraser" / "eraser.safetensors")["positions"]
    assert positions.tolist() == same
    ok("bottleneck", "undo", tmp_path / "f", "--eraser", tmp_path / "f-eraser", "-o", tmp_path / "again")
    assert hashes(tmp_path / "again") == hashes(tmp_path / "bn")
    one.write_text(json.dumps({"text": "never seen"}))
    status, out, err = run("unlearn", tmp_path / "bn", "--forget-rows", one, "-o", tmp_path / "g")
    assert (status, out) == (2, "") and "none of the 24 training rows" in err and not (tmp_path / "g").exists()


def test_bad_input_is_one_sentence_status_2_and_nothing_written(work, files, ok, run, tiny):
    features, labels = blobs(0)
    names = np.array(NAMES)[labels]
    made = {
        "nan": {"X": np.where(np.arange(WIDTH) == 5, np.float32("nan"), features), "y": names},
        "bare": {"X": features},
        "narrow": {"X": features[:, :7], "y": names},
        "strange": {"X": features, "y": np.where(names == "bee", "eel", names)},
        "single": {"X": features, "y": np.full(len(names), "ant")},
    }
    for name, arrays in made.items():
        np.savez(work / f"{name}.npz", **arrays)
    empty, jsonl = work / "empty.jsonl", work / "rows.jsonl"
    empty.write_text("")
    jsonl.write_text(json.dumps({"text": "a", "label": "ant"}))
    ok("unlearn", work / "bn", "--forget", "ant", "-o", work / "f", "--eraser", work / "e")
    ok("bottleneck", "undo", work / "f", "--eraser", work / "e", "-o", work / "undone")
    ok("unlearn", work / "counted", "--forget", "ant", "-o", work / "other", "--eraser", work / "strange-eraser")
    damaged = shutil.copytree(work / "bn", work / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:-8])
    changed = shutil.copytree(work / "e", work / "changed")
    report = json.loads((changed / "report.json").read_text())
    (changed / "report.json").write_text(json.dumps(report | {"previous": "0" * 64}))
    train, test = files / "train.safetensors", files / "test.safetensors"
    new = ("-o", work / "new")

    def fit(*options, source=("--features", train)):
        return ("bottleneck", "fit", *source, *SMALL, *options, *new)

    def unlearn(*options, bottleneck="bn"):
        return ("unlearn", work / bottleneck, *options, *new)

    def undo(forgot, eraser):
        return ("bottleneck", "undo", work / forgot, "--eraser", work / eraser, *new)

    def verify(*options):
        return ("bottleneck", "verify", work / "f", "--shadows", 0, *options, *new)

    cases = {
        "no class 'cow'": unlearn("--forget", "cow"),
        "there is no class to forget": unlearn("--forget", ""),
        "holds no examples": unlearn("--forget-rows", empty),
        "that is every training row": unlearn("--forget", "dog, or wolf", "--forget", "ant,bee,cat"),
        "that is every training row: leave": unlearn("--forget-rows", train),
        "--keys 9,999 is more than the": unlearn("--forget", "ant", "--keys", 9999),
        "--keys 0 must be": unlearn("--forget", "ant", "--keys", 0),
        "--examples 31 is more than the 30": unlearn("--forget", "ant", "--method", "examples", "--examples", 31),
        "--keys is an option of --method activations": unlearn("--forget", "ant", "--method", "refit", "--keys", 3),
        "--method magic isn't one of": unlearn("--forget", "ant", "--method", "magic"),
        "--rank magic isn't one of": unlearn("--forget", "ant", "--rank", "magic"),
        "--answer magic isn't one of": unlearn("--forget", "ant", "--answer", "magic"),
        "--method counts needs counted values": unlearn("--forget", "ant", "--method", "counts"),
        "one of the two": unlearn("--forget", "ant", "--forget-rows", files / "two.safetensors"),
        "give --forget": unlearn(),
        "it was forgotten before": unlearn("--forget", "ant", bottleneck="f"),
        "none of the 120 training rows": unlearn("--forget-rows", test),
        "row 0 of those to forget": unlearn("--forget-rows", jsonl),
        "the bottleneck is missing: surgery": ("unlearn", "--method", "refit"),
        "the bottleneck is missing": ("unlearn", "--forget", "ant", *new),
        "-o is missing": ("unlearn", work / "bn", "--forget", "ant"),
        "holds no config.json": unlearn("--forget", "ant", bottleneck="nowhere"),
        "damaged": unlearn("--forget", "ant", bottleneck="damaged"),
        "are the same or lie one inside the other: name another --eraser": (
            *unlearn("--forget", "ant"),
            "--eraser",
            work / "new" / "eraser",
        ),
        "lie one inside the other": ("unlearn", work / "bn", "--forget", "ant", "-o", work / "bn" / "in"),
        "exists already": ("unlearn", work / "bn", "--forget", "ant", "-o", work / "f"),
        "exists already: name": (*unlearn("--forget", "ant"), "--eraser", work / "e"),
        "use the one made with this folder": undo("f", "strange-eraser"),
        "or is undone already": undo("undone", "e"),
        "was changed since it was written": undo("f", "changed"),
        "holds no report.json": undo("f", "nowhere"),
        "isn't an eraser's folder": undo("f", "bn"),
        "--eraser is missing": ("bottleneck", "undo", work / "f", *new),
        "holds NaN": fit(source=("--features", work / "nan.npz")),
        "holds no labels": fit(source=("--features", work / "bare.npz")),
        "are of class": fit(source=("--features", work / "single.npz")),
        "7 features, the training rows 12": fit("--keys-from", work / "narrow.npz"),
        "but": fit("--data", jsonl),
        "the training rows are missing": fit(source=()),
        "--encoder makes the features": fit("--encoder", tiny("bert-encoder")),
        "are an encoder's": fit("--pooling", "mean"),
        "options of --values sgd": fit("--values", "counts", "--rate", 0.1),
        "rate must be positive": fit("--rate", 0),
        "--key-dim 13 is more than the 12 features": fit("--key-dim", 13),
        "disjoint segments": fit("--projection", "segments"),
        "--values magic isn't one of": fit("--values", "magic"),
        "--projection magic isn't one of": fit("--projection", "magic"),
        "--keys 121 must lie between 2 and 120": fit("--keys", 121),
        "--top 17 is more than the 16 keys": fit("--top", 17),
        "holds no tensor nonsense": fit("--feature", "nonsense"),
        "only text, text_pair and label": fit("--column", "colour=x"),
        "there is no such file": fit(source=("--features", work / "none.safetensors")),
        "--device nonsense can't be used": fit("--device", "nonsense"),
        "there are no test rows": verify(),
        "holds no labels, only": verify("--features", work / "bare.npz"),
        "class 'eel' of the test rows": verify("--data", work / "strange.npz"),
        "7 features, and this bottleneck takes 12": verify("--data", work / "narrow.npz"),
        "isn't in the history": verify("--data", test, "--eraser", work / "strange-eraser"),
        "is it a folder that this program wrote": ("bottleneck", "show", work / "nowhere"),
    }
    before = hashes(work)
    for message, arguments in cases.items():
        status, out, err = run(*arguments)
        assert status == 2, (message, out, err)
        assert message in err, (message, err)
        assert out == "" and err.startswith("surgery: ") and err.count("\n") == 1, err
        assert hashes(work) == before and not (work / "new").exists() and not list(work.glob(".*")), message


def test_a_second_run_is_refused_without_overwrite(work, files, ok, run):
    commands = {
        "bn": ("bottleneck", "fit", "--features", files / "train.safetensors", *SMALL),
        "f": ("unlearn", work / "bn", "--forget", "ant"),
        "u": ("bottleneck", "undo", work / "f", "--eraser", work / "f-eraser"),
        "r": ("bottleneck", "verify", work / "f", "--data", files / "test.safetensors", "--shadows", 0),
    }
    for name, command in commands.items():
        if name != "bn":
            ok(*command, "-o", work / name)
        before = hashes(work / name)
        status, out, err = run(*command, "-o", work / name)
        assert (status, out) == (2, "") and "exists already" in err
        assert hashes(work / name) == before
    before = hashes(work / "u")
    for name in ("f", "u"):
        ok(*commands[name], "-o", work / name, "--overwrite")
    assert hashes(work / "u") == before == hashes(work / "bn")


def test_neither_folder_appears_when_one_cannot_be_written(work, run, monkeypatch):
    from surgery.unlearning import Eraser

    def full(self, folder):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Eraser, "write", full)
    before = hashes(work)
    status, out, err = run("unlearn", work / "bn", "--forget", "ant", "-o", work / "f")
    assert (status, out) == (2, "") and "No space left" in err
    assert hashes(work) == before and not (work / "f").exists() and not (work / "f-eraser").exists()
