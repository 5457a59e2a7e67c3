"""verify(): what is gone, what stayed and what an attacker can tell, always beside the same keys with values refitted without the rows."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64

from surgery.devices import pick_device
from surgery.errors import BottleneckError, OptionError, TaskError
from surgery.jsonfile import parse_loose
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.tasks.examples import Columns
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.descriptions import what_all
from surgery.unlearning.eraser import Eraser
from surgery.unlearning.evaluation.attacks import Attacked, attack
from surgery.unlearning.evaluation.comparison import compared
from surgery.unlearning.evaluation.curves import in_turn, shared_keys, sweep_keys
from surgery.unlearning.evaluation.evaluator import Evaluator
from surgery.unlearning.evaluation.report import Report
from surgery.unlearning.features.inputs import inputs_of
from surgery.unlearning.features.reading import targets_of
from surgery.unlearning.features.rows import Rows, encoded, feature_digests
from surgery.unlearning.key_selection import OPEN
from surgery.unlearning.remarks import remarks
from surgery.unlearning.settings import check_seed

_FEWEST_SHADOWS = 4


# Long: what its arguments mean takes half of it.
def verify(
    bottleneck: Bottleneck,
    edits: Eraser | Sequence[Eraser],
    test: Any,
    *,
    baselines: bool = True,
    shadows: int = 16,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Progress = silent,
) -> Report:
    """Measure an edit, or a chain of them, on test rows.

    Every figure stands beside that of the same keys with values refitted without the forgotten rows: without a class
    the rest gets easier, so a comparison with "before" flatters.

    Args:
        bottleneck: as it was before the edits; or, with none at hand, as it is after them: then what needs the forgotten
            rows (before, membership, relearning, baselines) is left out.
        edits: an eraser, or several in the order they are applied; may be empty.
        test: labelled `Rows`, a file that `read_rows` takes, tables with `text` (or `image`) and `label`, or (features,
            labels). Rows that are training rows too are left out, and counted.
        baselines: fine-tuning, random labels, NegGrad+, SCRUB and logit masking on the same bottleneck too.
        shadows: bottlenecks trained for the likelihood-ratio attack, 4 or more; 0 leaves it out. They forget as the edit
            did, and the refitted bottleneck is attacked by the same ones.
        device: default CUDA when there is one; `bit_identical` can only be true where values were learnt and refitted on one
            kind of device.

    Raises:
        TaskError: test labels missing, or of a class that training never saw; no test row that isn't a training row.
        BottleneckError: edits that don't follow from the bottleneck.
        OptionError: too few shadows, a negative seed.
    """
    check_options(shadows, seed)
    place, began = pick_device(device), time.perf_counter()
    chain = _chain(edits)
    states = _states(bottleneck, chain)
    before, after = states[0], states[-1]
    positions = _positions(before, chain)
    classes = sorted({after.classes.index(name) for edit in after.history for name in edit["forget"]})
    rows, known = _strangers(before, _test_rows(after, test, device, progress))
    removed = before.need_training().take(positions) if chain else None
    evaluator = Evaluator(after, rows, classes, removed, place)
    how: dict[str, Any] = {"baselines": baselines, "seed": seed, "device": place, "progress": progress}
    models, seconds = compared(before if chain else None, after, positions, classes, **how)
    if chain:
        seconds["after"] = sum(edit.report["seconds"] for edit in chain)
    points = {name: evaluator.point(model) | {"seconds": seconds.get(name)} for name, model in models.items()}
    if suspects := evaluator.suspects():
        for name, areas in attack(Attacked(models, suspects, chain, shadows, seed, place, progress)).items():
            points[name]["membership"] = areas
    if removed is not None and classes and (half := points["before"]["forget_accuracy"]):
        for name in ("after", "refitted"):
            points[name]["relearn"] = evaluator.relearn(models[name], removed, half, seed)
    content: dict[str, Any] = {
        **provenance(
            call={"verify": {"baselines": baselines, "shadows": shadows, "edits": [edit.hash for edit in chain]}},
            inputs={"after": after.fingerprint},  # that of before would let anyone test a guess at the rows
            seed=seed,
        ),
        **_told(after, models["refitted"], evaluator, len(positions) if chain else None, known),
        "points": points,
        "probe": evaluator.probe(seed),
    }
    if chain:
        content |= _curves(states, chain, positions, evaluator, seed, place, progress)
    content["remarks"] = remarks(content, after)
    content["total_seconds"] = round(time.perf_counter() - began, 1)
    return Report(content)


def _chain(edits: Eraser | Sequence[Eraser]) -> list[Eraser]:
    chain = list(edits) if isinstance(edits, Sequence) else [edits]
    if strange := [edit for edit in chain if not isinstance(edit, Eraser)]:
        raise BottleneckError(
            f"an edit is a {type(strange[0]).__name__}: give Erasers, as unlearn() and Eraser.load() return them"
        )
    return chain


def _states(bottleneck: Bottleneck, chain: Sequence[Eraser]) -> list[Bottleneck]:
    """The bottleneck before the edits, and after each."""
    states = [bottleneck]
    for edit in chain:
        states.append(edit.apply(states[-1]))
    return states


def _told(
    after: Bottleneck, refitted: Bottleneck, evaluator: Evaluator, forgotten: int | None, known: int
) -> dict[str, Any]:
    """What was forgotten, by which rows that is measured, and whether it is exact."""
    identical = np.array_equal(after.values, refitted.values) and bool((after.selector.states == OPEN).all())
    return {
        "forgotten": what_all(after.history),
        "history": [dict(edit) for edit in after.history],
        "examples": {
            "test": len(evaluator.rows),
            "test_forgotten": int(evaluator.forgotten.sum()),
            "retained": len(after.need_training()),
            "forgotten": forgotten,
        },
        "known_test_rows": known,
        "class_rows": evaluator.rows.class_rows(len(after.classes)),
        "classes": [str(name) for name in after.classes],
        "bit_identical": identical,
        "exact": identical and not any(edit["keys_saw_them"] for edit in after.history),
    }


def _curves(
    states: Sequence[Bottleneck],
    chain: Sequence[Eraser],
    positions: Int64[np.ndarray, " R"],
    evaluator: Evaluator,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> dict[str, Any]:
    """What figures are drawn from: keys that classes share, masks of growing size, edits in turn."""
    curves: dict[str, Any] = {"shared_keys": shared_keys(states[0])}
    last = chain[-1].edit
    if last["via"] == "activations" and len(chain) == 1:
        options = {"rank": last["rank"], "answer": last["answer"]}
        curves["sweep"] = sweep_keys(
            states[0], positions, evaluator, **options, seed=seed, device=device, progress=progress
        )
    if len(chain) > 1:
        curves["turns"] = in_turn(states, evaluator, device)
    return curves


def verify_folder(
    folder: str | Path,
    data: str | Path | None = None,
    *,
    features_file: str | Path | None = None,
    features: str | None = None,
    columns: Columns | None = None,
    encoder: str | Path | None = None,
    erasers: Sequence[str | Path] | None = None,
    **options: Any,
) -> Report:
    """`verify` of a saved bottleneck after its edits.

    Args:
        data: labelled test rows as `read_rows` takes them, read by the bottleneck's own encoder.
        features_file, features, columns: a file of features for these rows, which tensor in it, which columns of the data.
        encoder: where the bottleneck's encoder lies now, if it has moved.
        erasers: their folders, in any order; by default those that lie beside `folder` and belong to its history.
    """
    check_options(options.get("shadows", 0), options.get("seed", 0))
    after = Bottleneck.load(folder)
    chain = _erasers(after, Path(folder), erasers)
    before = after
    for edit in reversed(chain):
        before = edit.undo(before)
    source, beside = (features_file, None) if data is None else (data, features_file)
    if source is None:
        raise OptionError("there are no test rows: give `data`, or a features file")
    test = after.read(
        source,
        features_file=beside,
        features=features,
        columns=columns,
        encoder=encoder,
        device=options.get("device"),
        progress=options.get("progress", silent),
    )
    return verify(before, chain, test, **options)


def check_options(shadows: int, seed: int) -> None:
    """Raise OptionError for what `verify` can't use."""
    if shadows and shadows < _FEWEST_SHADOWS:
        raise OptionError(f"`shadows` {shadows} tells nothing: give 0, or {_FEWEST_SHADOWS} at least")
    check_seed(seed)


def _test_rows(bottleneck: Bottleneck, test: Any, device: str | torch.device | None, progress: Progress) -> Rows:
    if isinstance(test, Rows):
        return test
    if isinstance(test, str | Path):
        return bottleneck.read(test, device=device, progress=progress)
    listed = isinstance(test, list | tuple)
    if listed and test and all(isinstance(row, Mapping) for row in test):
        inputs = inputs_of(test, bottleneck.encoder["kind"] if bottleneck.encoder else "text")
        targets_of(bottleneck.classes, inputs.labels)
        return encoded(bottleneck.need_encoder(device=device), inputs, progress)
    if listed and len(test) == 2:
        return Rows.of(*test)
    raise TaskError(
        f"test rows can't be a {type(test).__name__} alone: give (features, labels), labelled Rows, a file, or tables with text and label"
    )


def _strangers(bottleneck: Bottleneck, test: Rows) -> tuple[Rows, int]:
    """The test rows that aren't training rows, by content or by features, and how many are.

    Whoever was trained on is no witness: as a non-member it hides a leak, and it makes accuracies those of training.
    """
    targets_of(bottleneck.classes, test.labels)  # refused first: it tells more than which rows are known
    training = bottleneck.need_training()
    known = np.isin(test.digests, training.digests)
    known |= np.isin(feature_digests(test.features), feature_digests(training.features))
    if known.all():
        raise TaskError(f"all {len(test):,} test rows are training rows: give rows that training never saw")
    return (test.take(np.flatnonzero(~known)) if known.any() else test), int(known.sum())


def _erasers(after: Bottleneck, folder: Path, erasers: Sequence[str | Path] | None) -> list[Eraser]:
    """The erasers of a bottleneck's history, oldest first, as far back as they are at hand."""
    wanted = [edit["hash"] for edit in after.history]
    if erasers is not None:
        given = {eraser.hash: eraser for eraser in map(Eraser.load, erasers)}
        if strange := given.keys() - set(wanted):
            raise BottleneckError(
                f"eraser {min(strange)[:16]} isn't in the history of {folder}: name the one made with it"
            )
    else:
        given = {}
        for path in sorted(folder.absolute().parent.glob("*/report.json")):
            try:
                if parse_loose(path.read_bytes()).get("hash") in wanted:
                    eraser = Eraser.load(path.parent)
                    given[eraser.hash] = eraser
            except (OSError, ValueError, AttributeError, BottleneckError):
                continue  # someone else's file
    chain: list[Eraser] = []
    for number in reversed(wanted):
        if number not in given:
            break
        chain.insert(0, given[number])
    if erasers is not None and len(chain) < len(given):
        raise BottleneckError("an eraser between those given is missing: name all back to the first, or none")
    return chain


def _positions(before: Bottleneck, chain: Sequence[Eraser]) -> Int64[np.ndarray, " R"]:
    """Forgotten rows of all edits, as numbers of the training rows before the first."""
    numbers = np.arange(len(before.need_training()))
    gone = []
    for edit in chain:
        gone.append(numbers[edit.positions])
        numbers = np.delete(numbers, edit.positions)
    return np.sort(np.concatenate(gone)) if gone else np.empty(0, np.int64)
