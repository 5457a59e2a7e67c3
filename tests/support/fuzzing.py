"""Files that are damaged, or forged, are each refused in one sentence or loaded and shown: mutations, counted.

python -m tests.support.fuzzing COUNT [FORMAT ...]    prints one JSON object a format; status 1 where there was a traceback

It runs by itself, since the types that pytest's import hook checks as the tests run would refuse what nothing refuses
for a user. A mutation changes bits, bytes or stretches of a file, or a value of its JSON, of a safetensors header or of
an array; where a file carries a checksum it is mostly made right again, so that what is behind it is reached.
"""

import contextlib
import copy
import io
import json
import math
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from safetensors.numpy import load, save

from surgery.errors import SurgeryError

ODD = [
    None,
    True,
    -1,
    0,
    7,
    1e308,
    0.5,
    2**40,
    2**70,
    "",
    "x",
    "\ud800",
    "a/../b",
    "[/b]",
    [],
    {},
    [[]],
    {"a": 1},
    [None],
]
WORDS = ["the", "dog", "cat", "sees", "a", "fish"]


# -- mutations ---------------------------------------------------------------------------------------------------------


def mutated_bytes(raw, rng):
    """A few bits, bytes or stretches changed, or the end cut off."""
    found = bytearray(raw)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        place = rng.randrange(len(found) or 1)
        stretch = slice(place, place + rng.choice([1, 1, 2, 8, 64]))
        how = rng.randrange(6)
        if how == 0 and found:
            found[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            del found[stretch]
        elif how == 2:
            found[place:place] = rng.randbytes(rng.choice([1, 4]))
        elif how == 3:
            found[place:place] = found[stretch]
        elif how == 4:
            found[place:place] = rng.choice(
                [b"[", b"{", b"(", b")", b'"', b",", b"0", b"\n", b"\xef\xbb\xbf", b"-", b"'", b"|"]
            )
        elif rng.random() < 0.2:
            del found[place:]
    return bytes(found)


def mutated_json(content, rng):
    """A parsed JSON text with one or two of its values replaced, dropped, doubled or moved."""
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(content))
        if not places:
            return copy.deepcopy(rng.choice(ODD))
        holder, key = rng.choice(places)
        how = rng.randrange(7)
        if how <= 2:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        elif how == 3:
            del holder[key]
        elif how == 4:
            other, place = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[place])) if _there(other, place) else None
        elif how == 5 and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), holder[key])
        elif isinstance(holder[key], bool) or not isinstance(holder[key], (int, float)):
            holder[key] = [holder[key]]
        else:
            holder[key] = rng.choice([-holder[key], holder[key] + 1, holder[key] * 1000, str(holder[key])])
    return content


def _places(content):
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)


def _there(holder, key):
    return key in holder if isinstance(holder, dict) else key < len(holder)


def json_text(raw, rng):
    """JSON, mutated as text or as values; now and then very deep."""
    if rng.random() < 0.01:
        deep = rng.choice(["[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 100_000])
        return raw.replace(b": ", b": " + deep.encode() + b", ", 1) if rng.random() < 0.5 else deep.encode()
    if rng.random() < 0.3:
        return mutated_bytes(raw, rng)
    return json.dumps(mutated_json(json.loads(raw), rng)).encode()


def safetensors_file(raw, rng):
    """A safetensors file with bytes, its header or an array mutated."""
    if rng.random() < 0.3:
        return mutated_bytes(raw, rng)
    stop = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:stop])
    if rng.random() < 0.5:
        for key, value in header.get("__metadata__", {}).items():  # some of it is JSON
            if value[:1] in ("[", "{") and rng.random() < 0.4:
                header["__metadata__"][key] = json.dumps(mutated_json(json.loads(value), rng))
                break
        else:
            header = mutated_json(header, rng)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + raw[stop:]
    arrays, metadata = load(raw), header.get("__metadata__")
    name = rng.choice(sorted(arrays))
    arrays[name] = mutated_array(arrays[name], rng)
    if rng.random() < 0.1:
        del arrays[name]
    return save({key: np.ascontiguousarray(value) for key, value in arrays.items()}, metadata)


def mutated_array(array, rng):
    """Another number, type or shape."""
    how = rng.randrange(5)
    if how == 0 and array.size:
        array = array.copy()
        odd = [0, 1, 255, *([-1.0, np.nan, np.inf, 1e30] if array.dtype.kind == "f" else [np.iinfo(array.dtype).max])]
        array.reshape(-1)[rng.randrange(array.size)] = rng.choice(odd)
        return array
    if how == 1:
        return array.astype(rng.choice([np.float32, np.float16, np.int32, np.uint8, np.int64, np.uint16, np.uint64]))
    if how == 2:
        return array[: rng.randrange(len(array) + 1)] if array.ndim else array
    if how == 3:
        return array.reshape(-1) if array.ndim > 1 else array[None]
    return np.concatenate([array, array]) if array.ndim else array


# -- formats: how a sound file is made, mutated, and read --------------------------------------------------------------


class Format:
    """Files in a folder, by name; a mutation changes one of them."""

    def __init__(self, folder):
        self.folder = folder
        self.sound = {}

    def mutate(self, rng):
        name = rng.choice([name for name in self.sound if self.mutable(name)])
        raw = self.sound[name]
        how = {".json": json_text, ".jsonl": mutated_lines, ".safetensors": safetensors_file}.get(
            Path(name).suffix, mutated_bytes
        )
        return {name: how(raw, rng)}

    def mutable(self, name):
        return name.endswith((".json", ".safetensors", ".txt", ".mrg", ".jsonl"))

    def take(self):
        self.sound = {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}


def mutated_lines(raw, rng):
    """JSON a line, or bytes."""
    lines = raw.split(b"\n")
    number = rng.randrange(len(lines))
    with contextlib.suppress(ValueError):
        lines[number] = json_text(lines[number], rng)
        return b"\n".join(lines)
    return mutated_bytes(raw, rng)


class Skills(Format):
    def make(self):
        from surgery import graft
        from surgery.tasks.examples import Example
        from surgery.tasks.task import Task
        from tests.support.tiny import build, perturb

        base, tuned = build("bert", self.folder.parent / "skill-base"), self.folder.parent / "skill-tuned"
        perturb(base, tuned)
        rows = [
            Example(f"the film was {word}", "", label) for word, label in (("good", "positive"), ("bad", "negative"))
        ]
        task = Task.load("sst2", train=rows * 4, test=rows * 4)
        graft(base, tuned, task, weights=20, device="cpu").save(self.folder, figures=False)

    def mutate(self, rng):
        found = super().mutate(rng)
        name = "skill.safetensors"
        if name in found and rng.random() < 0.7:
            with contextlib.suppress(Exception):
                found[name] = self.summed(found[name])
        return found

    @staticmethod
    def summed(raw):
        """With the checksum of what is in it."""
        import xxhash

        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
        arrays, total = load(raw), xxhash.xxh3_128()
        for key in ("indices", "values", "base_values"):
            array = arrays[key].astype(np.int64) if key == "indices" else arrays[key]
            total.update(np.ascontiguousarray(array).tobytes())
        return save(arrays, {**header, "checksum": total.hexdigest()})

    def use(self):
        from cli.skill import show
        from surgery.grafting.card import model_card
        from surgery.grafting.skill import Skill

        skill = Skill.load(self.folder)
        model_card(skill.delta, skill.task, skill.report, [])
        show(self.folder, json=False)
        show(self.folder, json=True)


class Grammars(Format):
    def make(self):
        from pcfg.grammars.grammar import Grammar
        from pcfg.treebanks.trees import Tree

        trees = [Tree.parse(line) for line in BANK]
        Grammar.from_trees(trees).save(self.folder / "trees.json")
        Grammar.from_trees(trees, smooth_lexicon=False).save(self.folder / "plain.json")
        Grammar.from_text(RULES).save(self.folder / "rules.json")

    def use(self):
        from pcfg.grammars.grammar import Grammar
        from pcfg.inference.chart import inside_outside
        from pcfg.sampling.sampler import sample

        for name in self.changed:
            grammar = Grammar.load(self.folder / name)
            inside_outside(grammar, [["the", "dog", "sees"], ["a"]], device="cpu").best_trees()
            sample(grammar, 2, seed=0, max_length=6)
            grammar.to_text()


BANK = ["(S (NP (DT the) (NN dog)) (VP (VB sees) (NP (DT a) (NN cat))))", "(S (NP (NN fish)) (VP (VB sees)))"] * 3
RULES = """% start S
S -> NP VP [0.5] | VP [0.5]
NP -> 'the' N [0.75] | N [0.25]
N -> 'dog' [0.5] | 'cat' [0.25] | 'New York' [0.25]
VP -> 'sees' [0.5] | 'sees' NP [0.25] | X [0.25]
X -> 'a' 'fish' 'the' [1.0]
"""


class Rules(Grammars):
    def make(self):
        (self.folder / "rules.txt").write_text(RULES)

    def use(self):
        from cli.grammars import load_grammar
        from pcfg.inference.chart import inside_outside

        grammar = load_grammar(self.folder / "rules.txt")
        inside_outside(grammar, [["the", "dog", "sees"]], device="cpu").best_trees()
        grammar.to_text()


class Trees(Format):
    def make(self):
        (self.folder / "trees.mrg").write_text(
            "\n".join([*BANK, "( (S (NP-SBJ-1 (-NONE- *T*-1)) (VP (VB run) (. .))))"])
        )

    def use(self):
        from pcfg.grammars.grammar import Grammar
        from pcfg.treebanks.cleaning import clean_trees
        from pcfg.treebanks.evalb import score_labelled, score_unlabelled
        from pcfg.treebanks.trees import read_trees

        trees = read_trees(self.folder / "trees.mrg")
        Grammar.from_trees(trees)
        cleaned = clean_trees(trees)
        score_labelled(cleaned, cleaned)
        score_unlabelled(cleaned, cleaned)


def bottleneck(values="sgd"):
    from surgery.unlearning import Bottleneck
    from surgery.unlearning.features.rows import Rows
    from surgery.unlearning.values import Sgd

    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 6)).astype(np.float32), [f"c{i % 3}" for i in range(40)]
    more = (
        {"sgd": Sgd(epochs=1)}
        if values == "sgd"
        else {"keys_from": Rows.of(rng.normal(size=(20, 6)).astype(np.float32))}
    )
    return Bottleneck.fit_rows(
        Rows.of(features, labels), codebooks=4, keys=5, key_dim=3, values=values, device="cpu", **more
    )


class Checked(Format):
    """Files of bottlenecks and erasers, which carry a checksum each."""

    def mutate(self, rng):
        ((name, raw),) = super().mutate(rng).items()
        if rng.random() < 0.8:
            with contextlib.suppress(Exception):
                raw = self.summed(name, raw)
        return {name: raw}

    def summed(self, name, raw):
        from surgery.unlearning.storage import _table_checksum, hash_arrays

        if name.endswith(".json"):
            table = json.loads(raw)
            table.pop("checksum", None)
            return json.dumps({**table, "checksum": _table_checksum(table)}).encode()
        arrays = load(raw)
        return save(arrays, {"checksum": hash_arrays(arrays).hexdigest()})


class Bottlenecks(Checked):
    values = "sgd"

    def make(self):
        from surgery.unlearning import unlearn

        whole = bottleneck(self.values)
        edited = unlearn(
            whole, forget=["c1"], via="activations" if self.values == "sgd" else "counts", device="cpu"
        ).apply(whole)
        edited.save(self.folder)
        self.encoder = {
            "source": "a/b",
            "kind": "text",
            "pooling": "mean",
            "width": 6,
            "max_length": None,
            "dtype": "float32",
            "fingerprint": 64 * "0",
        }
        replace(edited, encoder=self.encoder).write(self.folder) if self.values == "sgd" else None

    def use(self):
        from cli.bottleneck import show
        from surgery.unlearning import Bottleneck
        from surgery.unlearning.card import bottleneck_card

        loaded = Bottleneck.load(self.folder)
        bottleneck_card(loaded.facts)
        loaded.predict(np.ones((2, 6), np.float32))
        show(self.folder, json=True)
        show(self.folder, json=False)


class Counted(Bottlenecks):
    values = "counts"


class Erasers(Checked):
    def make(self):
        from surgery.unlearning import unlearn

        unlearn(bottleneck(), forget=["c1"], via="activations", device="cpu").save(self.folder)

    def summed(self, name, raw):
        from surgery.unlearning.storage import hash_arrays

        other = {**self.sound, name: raw}
        report, arrays = json.loads(other["report.json"]), load(other["eraser.safetensors"])
        content = {key: report[key] for key in ("edit", "bottleneck", "previous")}
        report["hash"] = hash_arrays(arrays, json.dumps(content, sort_keys=True).encode()).hexdigest()
        self.extra = {"report.json": super().summed("report.json", json.dumps(report).encode())}
        return self.extra["report.json"] if name == "report.json" else super().summed(name, raw)

    def mutate(self, rng):
        self.extra = {}
        found = super().mutate(rng)
        return {**self.extra, **found}

    def use(self):
        from cli.bottleneck import show
        from surgery.unlearning import Eraser
        from surgery.unlearning.card import eraser_card

        eraser = Eraser.load(self.folder)
        eraser_card(eraser.content)
        repr(eraser)
        show(self.folder, json=True)
        show(self.folder, json=False)
        whole = bottleneck()
        with contextlib.suppress(SurgeryError):
            eraser.apply(replace(whole))
        forged = replace(eraser, bottleneck=whole.fingerprint)  # as an eraser that was forged for this very bottleneck
        forged.undo(forged.apply(whole))


class VerifyReports(Checked):
    def make(self):
        from surgery.unlearning import unlearn, verify
        from surgery.unlearning.features.rows import Rows

        whole = bottleneck()
        eraser = unlearn(whole, forget=["c1"], via="activations", device="cpu")
        rng = np.random.default_rng(1)
        rows = Rows.of(rng.normal(size=(30, 6)).astype(np.float32), [f"c{i % 3}" for i in range(30)])
        verify(whole, eraser, rows, device="cpu").save(self.folder, figures=False)

    def use(self):
        from surgery.unlearning import Report

        report = Report.load(self.folder)
        report.markdown()


class ProbeReports(Format):
    def mutable(self, name):
        return name == "report.json"

    def make(self):
        from pcfg.treebanks.trees import Tree
        from probes import probe_trees
        from tests.support.tiny import build

        base = build("bert", self.folder.parent / "probe-base")
        nouns = ["cat", "dog", "fox", "hen"]
        trees = [
            Tree.parse(f"(S (NP-SBJ (DT the) (NN {a})) (VP (VBZ {v}) (NP (DT a) (NN {b}))) (. .))")
            for a in nouns
            for b in nouns
            for v in ("sees", "bites")
        ]
        probe_trees(base, trees, layers=[1], seeds=1, device="cpu").save(self.folder)

    def use(self):
        from cli.probe import _show
        from probes.page import write_pages
        from probes.report import ProbeReport

        report = ProbeReport.load(self.folder)
        report.to_json()
        write_pages(report, [])
        _show(report, self.folder, json=False)
        _show(report, self.folder, json=True)


def tint_model(folder):
    from tests.support.tiny import build

    return build("llama", folder)


class TintRuns(Format):
    def make(self):
        from surgery.tint import run_text

        base = tint_model(self.folder.parent / "tint-base")
        text = self.folder.parent / "text.txt"
        text.write_text("the film was good and the food was bad . " * 20)
        run = run_text(
            base,
            text,
            window=16,
            windows=3,
            dev_windows=1,
            lr=[1e-3, 1e-2],
            methods=("frozen", "TinT exact"),
            device="cpu",
        )
        run.save(self.folder)

    def use(self):
        from surgery.tint import Run

        run = Run.load(self.folder)
        run.markdown()
        for point in run.points:
            run.value(point["method"], point.get("share"))


class TintVerifications(Format):
    def make(self):
        from surgery.tint import verify

        verify(tint_model(self.folder.parent / "tint-verified"), sweep=False, device="cpu").save(self.folder)

    def use(self):
        from surgery.tint import Verification

        found = Verification.load(self.folder)
        found.markdown()


class ProbeStates(Format):
    def make(self):
        from probes.experiment import _keep
        from probes.intervals import Measure

        _keep(self.folder / "model-1.json", [Measure("depth", "model", 1, "f1", "", 0.5, 0.4, 0.6, (0.5, 0.5))] * 3)

    def use(self):
        from probes.experiment import _kept

        for measure in _kept(self.folder / "model-1.json"):
            assert math.isfinite(measure.value), measure


class TintStates(Format):
    def make(self):
        from surgery.resuming import Memo, resumable

        with resumable(self.folder, {"call": 1}) as state:
            known = Memo(state / "figures.jsonl")
            for key in ("a", "b", "c"):
                known.get((key, 0.5), lambda: [1.0, 2.0])

    def use(self):
        from surgery.resuming import Memo, resumable

        with resumable(self.folder, {"call": 1}) as state:
            known = Memo(state / "figures.jsonl")
            for key in ("a", "b", "c"):
                assert known.get((key, 0.5), lambda: [1.0, 2.0]) == [1.0, 2.0]


class FitStates(Format):
    def setup(self):
        from pcfg.grammars.grammar import Grammar

        self.grammar = Grammar.from_text(RULES.replace("New York", "York"))
        self.sentences = [["the", "dog", "sees"], ["a", "fish", "the"], ["cat", "sees", "the", "cat"]]

    def make(self):
        from pcfg.learning.resumable_fit import fit_file

        self.setup()

        def stop(done, value):
            if done == 2:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            fit_file(self.grammar, self.sentences, 4, self.folder / "fitted.json", on_round=stop)

    def use(self):
        from pcfg.learning.resumable_fit import fit_file

        fit_file(self.grammar, self.sentences, 4, self.folder / "fitted.json")


class CorpusStates(FitStates):
    def mutable(self, name):
        return name.endswith(("report.json", "call.json"))

    def make(self):
        from pcfg.sampling.corpus import write_corpus

        self.setup()

        def stop(done, total, text):
            if done:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            write_corpus(self.grammar, self.folder / "corpus", 4, seed=0, max_length=6, shard_size=2, progress=stop)

    def use(self):
        from pcfg.sampling.corpus import write_corpus

        write_corpus(self.grammar, self.folder / "corpus", 4, seed=0, max_length=6, shard_size=2)


class TuneStates(Format):
    def make(self):
        from surgery.tasks.examples import Example
        from surgery.tasks.task import Task
        from surgery.tuning.finetuning import tune
        from surgery.tuning.recipe import Recipe
        from tests.support.tiny import build

        self.base = build("bert", self.folder.parent / "tune-base")
        rows = [
            Example(f"the film was {word}", "", label) for word, label in (("good", "positive"), ("bad", "negative"))
        ]
        self.task, self.recipe = Task.load("sst2", train=rows * 4, dev=rows), Recipe("adamw", steps=4, batch_size=4)

        def stop(done, total, text):
            if done == 2:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            tune(self.base, self.task, self.recipe, device="cpu", resume=self.folder, progress=stop)

    def use(self):
        from surgery.tuning.finetuning import tune

        tune(self.base, self.task, self.recipe, device="cpu", resume=self.folder)


class PretrainStates(Format):
    def make(self):
        from pcfg.grammars.grammar import Grammar
        from pcfg.grammars.random_grammar import random_arrays  # noqa: F401
        from pcfg.learning.pretraining import PretrainRecipe, pretrain

        self.grammar = Grammar.from_text("S -> A B [1.0]\nA -> 'a' [0.5] | 'b' [0.5]\nB -> 'c' [0.5] | 'd' [0.5]")
        self.recipe = PretrainRecipe(
            layers=1, heads=1, width=8, sentences=64, max_length=4, batch_size=16, evaluation=8
        )

        def stop(done, total, text):
            if done == 2:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            pretrain(self.grammar, self.recipe, device="cpu", resume=self.folder, progress=stop)

    def use(self):
        from pcfg.learning.pretraining import pretrain

        pretrain(self.grammar, self.recipe, device="cpu", resume=self.folder)


FORMATS = {
    "skill": Skills, "grammar": Grammars, "rules": Rules, "trees": Trees, "bottleneck": Bottlenecks, "counted": Counted,
    "eraser": Erasers, "verify-report": VerifyReports, "probe-report": ProbeReports, "tint-run": TintRuns,
    "tint-verification": TintVerifications, "probe-state": ProbeStates, "tint-state": TintStates, "fit-state": FitStates,
    "corpus-state": CorpusStates, "tune-state": TuneStates, "pretrain-state": PretrainStates,
}  # fmt: skip


def fuzz(name, count, seed=0):
    """How many mutations were loaded and refused, and tracebacks by where they came from."""
    rng, found = random.Random(f"{name} {seed}"), {"format": name, "loaded": 0, "refused": 0, "tracebacks": {}}
    with tempfile.TemporaryDirectory() as scratch:
        form = FORMATS[name](Path(scratch) / "files")
        form.folder.mkdir()
        with contextlib.redirect_stdout(io.StringIO()):
            form.make()
            form.take()
            form.changed = [n for n in form.sound if form.mutable(n)]
            form.use()  # what is sound is loaded
        for _ in range(count):
            changed = form.mutate(rng)
            form.changed = list(changed)
            clear(form, changed)
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    form.use()
                found["loaded"] += 1
            except SurgeryError as error:
                found["refused"] += 1
                if "\n" in str(error):
                    note(found, error)
            except Exception as error:
                note(found, error)
    return found


def clear(form, changed):
    """The sound files again, but for the changed ones."""
    for path in sorted(form.folder.rglob("*"), reverse=True):
        name = str(path.relative_to(form.folder))
        if path.is_file() and name not in form.sound:
            path.unlink()
        elif path.is_dir() and not any(other.startswith(f"{name}/") for other in form.sound):
            shutil.rmtree(path)
    for name, raw in {**form.sound, **changed}.items():
        path = form.folder / name
        if not path.exists() or path.read_bytes() != raw:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)


def note(found, error):
    place = [f for f in traceback.extract_tb(error.__traceback__) if "/fuzzing.py" not in f.filename][-4:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(place))
    key = f"{type(error).__name__} {str(error)[:90]!r} at {where}"
    found["tracebacks"][key] = found["tracebacks"].get(key, 0) + 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    bad = False
    for name in sys.argv[2:] or FORMATS:
        found = fuzz(name, int(sys.argv[1]))
        print(json.dumps(found), flush=True)
        bad |= bool(found["tracebacks"])
    sys.exit(bad)
