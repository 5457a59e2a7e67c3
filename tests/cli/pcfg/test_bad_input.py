"""Bad input of `surgery pcfg` is one sentence with status 2, and nothing is written."""

import pytest

from tests.support.tiny import hashes
from tests.support.toy_grammar import SENTENCE, sample


def test_a_folder_that_cant_be_written_to_is_refused_before_any_work(work, run, monkeypatch):
    monkeypatch.setattr("cli.grammars.os.access", lambda path, mode: path != work)
    monkeypatch.setattr("pcfg.inference.parsing.parse", lambda *_, **__: pytest.fail("work was spent"))
    status, out, error = run("parse", work / "toy.txt", "--text", work / "sents.txt", "-o", work / "new")
    assert status == 2 and not out and error.count("\n") == 1
    assert f"{work} can't be written to: name an output elsewhere" in error


def test_bad_input_is_one_sentence_status_2_and_nothing_written(work, run, monkeypatch):
    for name, content in {
        "sum": "0.5 S -> 'a'\n",
        "negative": "-0.5 S -> 'a'\n1.5 S -> 'b'\n",
        "nan": "nan S -> 'a'\n",
        "empty": "",
        "undefined": "1.0 S -> NP\n",
        "wild": "0.6 S -> S S\n0.4 S -> 'a'\n",
        "endless": "1.0 S -> S T\n1.0 T -> 'a'\n",
        "odd": "hello\n",
        "unknown": f"{SENTENCE}\nher saw kangaroos\n",
        "open": "(S (NP (DT a)\n(NN b))\n",
        "bare": "(S (NP (DT a) (NN b)))\nword\n",
        "fewer": "(S (NP (DT a) (NN b)))\n",
        "gold": "(S (NP (DT a) (NN b)))\n(S (NP (DT c) (NN d)))\n",
        "other": "(S (NP (DT a) (NN b)))\n(S (NP (DT c) (NN e)))\n",
        "long": "her saw stars " * 40_000,
        "special": "0.5 S -> '<mask>'\n0.5 S -> 'a'\n",
    }.items():
        (work / f"{name}.txt").write_text(content)
    (work / "bytes.txt").write_bytes(b"\xff\xfe")
    (work / "damaged.json").write_text('{"schema": 1}')
    (work / "list.json").write_text("[]")
    (work / "rows.jsonl").write_text('{"tokens": ["her"]}\n{"text": "her"}\n')
    (work / "kept.partial").mkdir()
    (work / "kept.partial" / "mine.txt").write_text("mine")
    (work / "folder").mkdir()
    monkeypatch.setenv("NLTK_DATA", str(work))
    monkeypatch.setattr("pcfg.treebanks.nltk_sample._HOMES", ())
    new, text = ("-o", work / "new"), ("--text", work / "sents.txt")

    def parse(grammar="toy.txt", *more, text="sents.txt"):
        return ("parse", work / grammar, "--text", work / text, *more, *new)

    def induce(*more):
        return ("induce", *more, *new)

    bank = ("--trees", work / "bank.mrg")
    cases = {
        "the rules of S sum to 0.5": parse("sum.txt"),
        "has the probability -0.5": parse("negative.txt"),
        "has the probability nan": parse("nan.txt"),
        "holds no rules": parse("empty.txt"),
        "uses NP, which has no rules": parse("undefined.txt"),
        "every tree goes on for ever": parse("endless.txt"),
        "odd.txt, line 1: a rule looks like": parse("odd.txt"),
        "none.txt can't be read: No such file": parse("none.txt"),
        "bytes.txt isn't UTF-8": parse("bytes.txt"),
        "damaged.json is damaged": parse("damaged.json"),
        "list.json: the file isn't a grammar": parse("list.json"),
        "expected length of a sentence is infinite": ("sample", work / "wild.txt", "-n", 5, *new),
        "no sentence of 2 words": ("sample", work / "toy.txt", "--max-length", 2, *new),
        "held-out share --held-out is 1.5": (*sample(work, "new"), "--held-out", 1.5),
        "holds the special token <mask>": ("sample", work / "special.txt", "--tokenizer", *new),
        "unknown.txt, line 2: the word 'kangaroos' (number 3": parse(text="unknown.txt"),
        "empty.txt holds no sentences": parse(text="empty.txt"),
        "missing.txt can't be read": parse(text="missing.txt"),
        "rows.jsonl, line 2 isn't a JSON object with tokens": parse(text="rows.jsonl"),
        "words would take": parse(text="long.txt"),
        "GB": ("spans", work / "toy.txt", "--text", work / "long.txt", *new),
        "--rule nonsense isn't one of": parse("toy.txt", "--rule", "nonsense"),
        "--cost is for --rule mbr": parse("toy.txt", "--cost", 0.5),
        "--binary is for --rule viterbi": parse("toy.txt", "--rule", "mbr", "--binary"),
        "--cost of a label is 1.5": parse("toy.txt", "--rule", "mbr", "--cost", 1.5),
        "--text is missing": ("parse", work / "toy.txt", *new),
        "-o is missing": ("parse", work / "toy.txt", *text),
        "no interrupted run made it": (*parse()[:-1], work / "kept"),
        "is a folder, not a file": (*parse()[:-1], work / "folder"),
        "is not a folder: make it first": (*parse()[:-1], work / "nowhere" / "parses.txt"),
        "are the same or lie one inside the other": (*parse()[:-1], work / "sents.txt", "--overwrite"),
        "dtype 'float16'": ("spans", work / "toy.txt", *text, "--dtype", "float16", *new),
        "--device quantum": parse("toy.txt", "--device", "quantum"),
        "device nonsense": ("spans", work / "toy.txt", *text, "--device", "nonsense", *new),
        "no sentence has a parse": ("fit", work / "toy.txt", "--text", work / "verbs.txt", *new),
        "one of them": induce(),
        "open.txt, line 1: a '(' is never closed": induce("--trees", work / "open.txt"),
        "bare.txt, line 2: 'word' stands outside": induce("--trees", work / "bare.txt"),
        "empty.txt holds no trees": induce("--trees", work / "empty.txt"),
        "NLTK's treebank sample isn't in NLTK_DATA": induce("--nltk-treebank"),
        "--horizontal -1 must be": induce(*bank, "--horizontal", "-1"),
        "vertical order --vertical is 3": induce(*bank, "-v", 3),
        "folder holds no .mrg or .txt files": induce("--trees", work / "folder"),
        "--keep-labels is for labelled scores": (
            "score",
            work / "gold.txt",
            work / "gold.txt",
            "--kim",
            "--keep-labels",
        ),
        "--only 2-9 must be": induce(*bank, "--only", "2-9"),
        "--strength is for --smooth": induce(*bank, "--no-smooth", "--strength", 2),
        "there are 2 gold trees and 1 parses": ("score", work / "gold.txt", work / "fewer.txt"),
        "sentence 2 isn't the same in both": ("score", work / "gold.txt", work / "other.txt"),
        "no tree has 2 words or fewer": ("trees", *bank, "--max-length", 2, *new),
        "are for treebanks, not for --raw": ("trees", "--raw", work / "sents.txt", "--keep-labels", *new),
        "--model is for --raw": ("trees", *bank, "--model", "benepar_en3", *new),
        "--raw FILE: one of them": ("trees", *bank, "--raw", work / "sents.txt", *new),
        "the parser nowhere can't be loaded": ("trees", "--raw", work / "sents.txt", "--model", "nowhere", *new),
        "has no symbol XP": ("show", work / "toy.txt", "--symbol", "XP"),
    }
    (work / "verbs.txt").write_text("saw\nsaw saw\n")
    before = hashes(work)
    for message, arguments in cases.items():
        status, out, err = run(*arguments)
        assert status == 2, (message, out, err)
        assert message in err, (message, err)
        assert out == "" and err.startswith("surgery: ") and err.count("\n") == 1, err
        assert hashes(work) == before and not (work / "new.partial").exists(), message
    status, out, err = run(*parse("sum.txt"), "--json")
    assert (status, out) == (2, "") and "sum to 0.5" in err


def test_every_command_has_help(run):
    for command in ("induce", "trees", "sample", "parse", "spans", "score", "fit", "show"):
        assert run(command, "--help")[0] == 0
