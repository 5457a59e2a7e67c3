"""Files that are damaged, or forged, are each refused in one sentence or loaded and shown: mutations, counted.

python -m tests.support.fuzzing COUNT [FORMAT ...]    prints one JSON object a format; status 1 where there was a traceback

It runs by itself, since the types that pytest's import hook checks as the tests run would refuse what nothing refuses
for a user. A mutation changes bits, bytes or stretches of a file, or a value of its JSON, of a safetensors header or of
an array; where a file carries a checksum it is mostly made right again, so that what is behind it is reached.
"""

import contextlib
import io
import os
import random
import shutil
import tempfile
import traceback
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from surgery.errors import SurgeryError
from tests.support.fuzzing.combining import Comparisons, MergedSkills, Stacks
from tests.support.fuzzing.grafting import LowRankSkills, Skills, TuneStates
from tests.support.fuzzing.grammars import CorpusStates, FitStates, Grammars, PretrainStates, Rules, Trees
from tests.support.fuzzing.probing import ProbeReports, ProbeStates
from tests.support.fuzzing.tint import TintRuns, TintStates, TintVerifications
from tests.support.fuzzing.unlearning import Bottlenecks, Counted, Erasers, VerifyReports

FORMATS = {
    "skill": Skills, "low-rank-skill": LowRankSkills, "grammar": Grammars, "rules": Rules, "trees": Trees, "bottleneck": Bottlenecks, "counted": Counted,
    "eraser": Erasers, "verify-report": VerifyReports, "probe-report": ProbeReports, "tint-run": TintRuns,
    "tint-verification": TintVerifications, "probe-state": ProbeStates, "tint-state": TintStates, "fit-state": FitStates,
    "merged-skill": MergedSkills, "comparison": Comparisons, "stack": Stacks,
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
    place = [f for f in traceback.extract_tb(error.__traceback__) if "/fuzzing/" not in f.filename][-4:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(place))
    key = f"{type(error).__name__} {str(error)[:90]!r} at {where}"
    found["tracebacks"][key] = found["tracebacks"].get(key, 0) + 1
