"""unlearn(): which pairs to mask, which values to refit, which counts to take back."""

import secrets
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray

from surgery.devices import pick_device
from surgery.errors import OptionError, TaskError
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.unlearning.bottleneck import Bottleneck
from surgery.unlearning.eraser import Eraser
from surgery.unlearning.features.finding import find_rows
from surgery.unlearning.forget_set import ForgetSet
from surgery.unlearning.key_ranking import ANSWERS, RANKINGS
from surgery.unlearning.key_selection import CLOSED, OPEN, SILENT
from surgery.unlearning.settings import check_seed
from surgery.unlearning.values import count


@dataclass(frozen=True)
class Edit:
    """What is asked of an edit, checked.

    Attributes: those of `unlearn`; `examples` is their number.
    """

    method: str
    keys: int | None = None
    examples: int | None = None
    rank: str = "influence"
    answer: str = "next"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("rank", RANKINGS), ("answer", ANSWERS)):
            if (given := getattr(self, name)) not in known:
                raise OptionError(f"`{name}` {given} isn't one of {', '.join(known)}")
        for name, wanted in (("keys", "activations"), ("examples", "examples")):
            number = getattr(self, name)
            if number is not None and self.method != wanted:
                raise OptionError(
                    f"`{name}` is an option of `method` {wanted}: leave it out with `method` {self.method}"
                )
            if number is not None and number < 1:
                raise OptionError(f"`{name}` {number} must be at least 1")
        check_seed(self.seed)


@dataclass(frozen=True, eq=False)
class _Choice:
    """Pairs that an edit changes, in order.

    Attributes:
        entries: what their rows of the table become; None to mask them.
        class_rows: rows of each class that counted values are left with.
    """

    pairs: Int64[np.ndarray, " P"]
    entries: NDArray | None = None
    class_rows: list[int] | None = None
    rule: str | None = None
    examples: int | None = None


# Long: what its arguments mean takes half of it.
def unlearn(
    bottleneck: Bottleneck,
    forget: int | str | np.integer | NDArray | Sequence[int] | Sequence[str] | None = None,
    *,
    rows: Sequence[int] | NDArray | None = None,
    method: str | None = None,
    keys: int | None = None,
    examples: Any = None,
    rank: str = "influence",
    answer: str = "next",
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Progress = silent,
    via: str | None = None,
) -> Eraser:
    """Decide on the edit that makes a bottleneck forget classes, or single training rows. Nothing is changed yet.

    By `activations` (Shah et al., Unlearning via Sparse Representations, section 4): mask the pairs that matter most to
    the forget rows. By `examples` (ibid.): mask every pair that some forget rows select. By `refit`: the values that SGD
    gives without the rows. By `counts`: the rows taken out of the integers that counted values follow from, which equals
    counting without them bit for bit.

    Args:
        forget: a class, or several.
        rows: numbers of training rows instead. Rows of the same content, its twins, go with each.
        method: by default `counts` where it is exact, that is of counted values whose keys other rows placed, unless `keys`,
            `rank` or `answer` ask for a mask; else `activations` for classes; for single rows `counts` if values are
            counted, else `refit`: masks hardly hide a row.
        keys: for `activations`, how many pairs to mask; by default as few as are enough.
        examples: rows by their content instead, as `find_rows` takes it: features, texts, images, tables or a file; twins
            likewise. An integer is for `method="examples"`: how many forget rows, drawn by `seed`, to mask by; by default as
            few as `ForgetSet.fewest` finds enough.
        rank: what `activations` orders pairs by, one of `key_ranking.RANKINGS`.
        answer: what becomes of a row nearest to a masked key: the `next` open key answers, or the codebook `drop`s out.
        device: where keys are selected and values refitted; default CUDA when there is one. The same call gives the same edit
            on CUDA too. Refit where values were learnt: on another device all of them differ by rounding.
        via: the earlier name of `method`.

    Raises:
        OptionError: an option out of its range, or more keys than the forget rows select.
        TaskError: an unknown class, no rows to forget, or all of them.
        BottleneckError: a bottleneck without its training rows.
    """
    number, content = (int(examples), None) if isinstance(examples, int | np.integer) else (None, examples)
    if sum(given is not None for given in (forget, rows, content)) != 1:
        raise OptionError("give `forget`, or `rows` (or their content), one of the two")
    if content is not None:
        rows = find_rows(bottleneck, content)
    mask_asked = keys is not None or (rank, answer) != ("influence", "next")
    method = _renamed(method, via) or _usual(bottleneck, rows is not None, mask_asked)
    asked = Edit(method, keys, number, rank, answer, seed)
    if method == "counts" and not bottleneck.counted:
        raise OptionError("`method` counts needs counted values: fit the bottleneck with `values` counts")
    fingerprint = bottleneck.fingerprint  # known after loading or fitting, or found once for all edits
    began = time.perf_counter()
    classes, positions = _forget_set(bottleneck, forget, rows)
    forgotten = ForgetSet(bottleneck, positions, classes, pick_device(device), progress)
    eraser = _eraser(forgotten, asked, METHODS[method](forgotten, asked), fingerprint)
    seconds = round(time.perf_counter() - began, 5)
    call = {key: eraser.edit[key] for key in ("forget", "rows", "via", "examples")} | {"keys": keys}
    report = provenance(call={"unlearn": call}, inputs={"bottleneck": fingerprint}, seed=seed)
    return replace(eraser, report=report | {"seconds": seconds})


def _renamed(method: str | None, via: str | None) -> str | None:
    """`method`, or what `via` said in earlier versions."""
    if via is None:
        return method
    if method is not None:
        raise OptionError(f"`method` {method} and `via` {via} are two names of one option: give `method` alone")
    warnings.warn("unlearn(via=...) is called method= now", DeprecationWarning, stacklevel=3)
    return via


def _usual(bottleneck: Bottleneck, single: bool, mask_asked: bool) -> str:
    """The method where none is named."""
    if single:
        return "counts" if bottleneck.counted else "refit"
    exact = bottleneck.counted and bottleneck.settings["keys_from"] != "training rows"
    return "counts" if exact and not mask_asked else "activations"


def _eraser(forgotten: ForgetSet, asked: Edit, choice: _Choice, fingerprint: str) -> Eraser:
    """The edit that changes the chosen pairs; JSON calls its method `via`, as it always did."""
    bottleneck, positions, masks = forgotten.bottleneck, forgotten.positions, choice.entries is None
    training, class_rows = bottleneck.need_training(), bottleneck.settings["class_rows"]
    states = bottleneck.selector.states.reshape(-1)
    old_states, old = states[choice.pairs], bottleneck.entries.reshape(len(states), -1)[choice.pairs]
    edit = {
        "via": asked.method,
        "forget": [bottleneck.classes[number] for number in forgotten.classes],
        "rows": len(positions),
        "twins": 0 if len(forgotten.classes) else len(positions) - len(np.unique(training.digests[positions])),
        "pairs": len(choice.pairs),
        "of_pairs": len(states),
        "active": len(forgotten.active),
        "masked": len(choice.pairs) if masks else 0,
        "rank": asked.rank if asked.method == "activations" else None,
        "answer": asked.answer if masks else None,
        "examples": choice.examples,
        "rule": choice.rule,
        "keys_saw_them": training.saw(positions),
        "class_rows": [class_rows, class_rows if masks else choice.class_rows],
        "inputs": dict(bottleneck.report.get("inputs", {})),
        "seed": asked.seed,
    }
    return Eraser(
        pairs=choice.pairs,
        old_entries=old,
        new_entries=np.zeros_like(old) if choice.entries is None else choice.entries,
        old_states=old_states,
        new_states=np.full_like(old_states, CLOSED if asked.answer == "next" else SILENT) if masks else old_states,
        positions=positions,
        salt=np.frombuffer(secrets.token_bytes(32), np.uint8),
        source=training,
        bottleneck=fingerprint,
        previous=bottleneck.history[-1]["hash"] if bottleneck.history else "",
        edit=edit,
    )


def _forget_set(
    bottleneck: Bottleneck,
    forget: int | str | np.integer | NDArray | Sequence[int] | Sequence[str] | None,
    rows: Sequence[int] | NDArray | None,
) -> tuple[Int64[np.ndarray, " F"], Int64[np.ndarray, " R"]]:
    """Numbers of the classes and of the training rows."""
    training = bottleneck.need_training()
    if rows is not None:
        given = np.asarray(rows)
        if not given.size:
            raise TaskError("there are no rows to forget: name at least one")
        if given.dtype.kind not in "iu":
            raise TaskError(f"rows to forget are of type {given.dtype}: give their numbers, counted from 0")
        positions = np.unique(given.astype(np.int64))
        if positions[0] < 0 or positions[-1] >= len(training):
            raise TaskError(
                f"row {positions[0] if positions[0] < 0 else positions[-1]} isn't one of the {len(training):,} training rows, counted from 0"
            )
        positions, classes = training.twins(positions), np.empty(0, np.int64)
    else:
        names: list[int | str] = [] if forget is None else np.atleast_1d(np.asarray(forget)).tolist()
        if not names:
            raise TaskError("there is no class to forget: name at least one")
        number: dict[int | str, int] = {str(name): index for index, name in enumerate(bottleneck.classes)}
        number |= {name: index for index, name in enumerate(bottleneck.classes)}
        for name in names:
            if not isinstance(name, int | float | str) or name not in number:
                raise TaskError(f"no class {name!r} in this bottleneck: it knows {_listed(bottleneck.classes)}")
        classes = np.unique([number[name] for name in names])
        positions = np.flatnonzero(np.isin(training.targets, classes))
        if gone := [bottleneck.classes[c] for c in classes if not (training.targets == c).any()]:
            raise TaskError(f"class {gone[0]!r} has no training rows left: it was forgotten before")
    if len(positions) == len(training):
        raise TaskError("that is every training row: leave something to remember")
    return classes, positions


def _by_activations(forgotten: ForgetSet, asked: Edit) -> _Choice:
    keys, active = asked.keys, len(forgotten.active)
    if keys is not None and keys > active:
        raise OptionError(
            f"`keys` {keys:,} is more than the {active:,} pairs that the forget rows select: ask for fewer, or leave it out"
        )
    scores = forgotten.scores(asked.rank)
    if keys is not None:
        return _Choice(forgotten.best(scores, keys), rule="given")
    most = int((scores > 0).sum())
    number, rule = forgotten.fewest(most, lambda number: forgotten.best(scores, number), asked.answer)
    return _Choice(forgotten.best(scores, number), rule=rule)


def _by_examples(forgotten: ForgetSet, asked: Edit) -> _Choice:
    examples, total = asked.examples, len(forgotten.positions)
    if examples is not None and examples > total:
        raise OptionError(
            f"`examples` {examples:,} is more than the {total:,} forget rows: ask for fewer, or leave it out"
        )
    order, rule = np.random.default_rng([asked.seed, 3]).permutation(total), "given"
    if examples is None:
        examples, rule = forgotten.fewest(total, lambda number: forgotten.pairs_of(order[:number]), asked.answer)
    return _Choice(forgotten.pairs_of(order[:examples]), rule=rule, examples=examples)


def _by_refitting(forgotten: ForgetSet, asked: Edit) -> _Choice:
    bottleneck = forgotten.bottleneck
    stay = np.delete(np.arange(len(bottleneck.need_training())), forgotten.positions)
    after = bottleneck.refit_entries(stay, device=forgotten.device)
    after[bottleneck.selector.states != OPEN] = 0  # masked pairs keep nothing
    pairs = np.flatnonzero((after != bottleneck.entries).any(2))
    return _Choice(pairs, after.reshape(-1, after.shape[2])[pairs], bottleneck.class_rows(stay))


def _by_counts(forgotten: ForgetSet, asked: Edit) -> _Choice:
    bottleneck, positions = forgotten.bottleneck, forgotten.positions
    training, table = bottleneck.need_training(), bottleneck.entries
    gone = count(training.ids[positions], training.targets[positions], table.shape[1], table.shape[2])
    gone[bottleneck.selector.states != OPEN] = 0  # what masked pairs held is gone already
    pairs = np.flatnonzero(gone.any(2))
    left = (table - gone).reshape(-1, table.shape[2])[pairs]
    # Taken off, not counted anew: rows that a mask made forget still weigh in what the open pairs say.
    own = training.class_rows(table.shape[2], positions)
    class_rows = [rows - less for rows, less in zip(bottleneck.settings["class_rows"], own, strict=True)]
    return _Choice(pairs, left, class_rows)


METHODS: dict[str, Callable[[ForgetSet, Edit], _Choice]] = {
    "activations": _by_activations,
    "examples": _by_examples,
    "refit": _by_refitting,
    "counts": _by_counts,
}


def _listed(classes: Sequence[int | str]) -> str:
    return ", ".join(map(str, classes[:12])) + (", ..." if len(classes) > 12 else "")
