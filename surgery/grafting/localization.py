"""graft(): from a base and a tuned checkpoint to a skill with its evidence."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.low_rank import LowRankDelta
from surgery.checkpoints.models import pick_dtype
from surgery.checkpoints.pairing import check_alike
from surgery.devices import pick_device
from surgery.errors import OptionError
from surgery.grafting.budget import budget, candidate_limit
from surgery.grafting.control import controlled
from surgery.grafting.differences import block_dtype, head_tensors, left_out
from surgery.grafting.heads import given_head
from surgery.grafting.memory_need import graft_need, most_of_grafting
from surgery.grafting.methods import method_named
from surgery.grafting.products import WHAT, Product, check_product
from surgery.grafting.prospects import is_spread, told
from surgery.grafting.search import Pair, Search, Wanted
from surgery.grafting.skill import Skill
from surgery.grafting.targets import check_target, smallest
from surgery.memory import check_before
from surgery.progress import Progress, silent
from surgery.provenance import provenance
from surgery.resuming import digest
from surgery.sync.sharding import loaded, unbroken
from surgery.sync.together import resumable_together
from surgery.sync.workers import Workers
from surgery.tasks.classifier_heads import check_one_order
from surgery.tasks.examples import Example
from surgery.tasks.readout import PhraseReadout, readout_file
from surgery.tasks.scoring import Score
from surgery.tasks.task import Task

_EXAMPLES = 1024


# Long: options and what they mean; the work is the last lines.
def graft(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    task: Task,
    *,
    sparsity: float | None = None,
    weights: int | None = None,
    target_gain: float | None = None,
    values: str = "tuned",
    low_rank: bool = False,
    method: str = "dual-averaging",
    epochs: int | None = None,
    sweep: Sequence[float] = (),
    baselines: bool = False,
    control: bool | None = None,
    seed: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    batch_size: int = 32,
    resume: str | Path | None = None,
    workers: Workers | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = silent,
) -> Skill:
    """Find the few weights that carry a task from base to tuned (Panigrahi et al. 2023, sections 2 and 3).

    The graft is the base with exactly `weights` of its block weights replaced by their tuned values; nothing is
    trained afterwards. Locating reads the training examples, the figures come from the test examples. Of a checkpoint in
    which nearly all weights moved, as AdamW leaves one, `values` and `low_rank` give what is nearest to that.

    Args:
        base, tuned: checkpoints of one architecture and tokenizer: Checkpoint, folder or hub id.
        sparsity: the share of the block weights to take, in (0, 1]; default 1e-4. `weights` gives their number instead.
        target_gain: instead of both, take the smallest number found to recover this share of tuning's gain, in (0, 1], on the
            dev examples, or on the training examples without any; by bisection.
        values: `tuned` (default), `rescaled` (drawn at random and moved further) or `refitted` (then fitted to the tuned
            checkpoint's predictions); see `surgery.grafting.rescaling`.
        low_rank: take components of each matrix's change instead, as many as hold that many numbers.
        method: `dual-averaging` (default; `averaging` is its earlier name), `sigmoid` (the published one) or `movement`.
        epochs: of `sigmoid`; by default their number, 10 to 100, is chosen on training examples held out for it.
        sweep: further sparsities at which to locate and score.
        baselines: score top movement, random weights, biases only and zeroing outside the region at every sparsity too.
        control: tune the base again by the default recipe, graft as many weights of that, and set its agreement with the
            tuned checkpoint beside the graft's; default where tuning moved at least half of the weights. It takes a tuning and
            a locating more.
        include, exclude: patterns over tensor names, as `Checkpoint.block_weights` takes them.
        resume: a folder for what was located at each sparsity; a later call with the same arguments goes on from there
            (`surgery.resuming`). The caller deletes it.
        workers: those of a run under torchrun (`surgery.sync`), over which the base is split: for models that one device doesn't
            hold. All do the same work and return the same skill; there is no control.
        say: called with sentences on what to expect, before anything is located.

    Raises:
        CheckpointError: checkpoints that don't fit together, hold NaN, or don't differ.
        OptionError: a sparsity outside (0, 1], more weights than are movable, options that don't go together, or more
            memory than the device has free.
        TaskError: no training or no test examples, or a task that doesn't fit the model.
    """
    began = time.monotonic()
    method = method_named(method, epochs)
    check_product(values, low_rank, method, baselines)
    check_target(target_gain, sparsity, weights, sweep)
    pair = _open(base, tuned, task, include, exclude, seed)
    place, precision = pick_device(device), pick_dtype(dtype)
    k = budget(pair.movable, sparsity, weights)
    ladder = sorted({budget(pair.movable, share, None) for share in sweep} | {k})
    patterns = {"include": list(include), "exclude": list(exclude)}
    product = {"values": values, "low_rank": low_rank, "target_gain": target_gain}
    asked = {**patterns, **product, "method": method, "sweep": sweep, "processes": workers.count if workers else 1}
    _check_memory(pair, task, ladder, asked, place, precision, batch_size)
    call = {
        "base": str(pair.base),
        "tuned": str(pair.tuned),
        "method": method,
        **({} if epochs is None else {"epochs": epochs}),
        **{key: value for key, value in product.items() if value not in (None, False, "tuned")},
        **({} if control is None else {"control": control}),
        "weights": k,
        "sweep": list(sweep),
        "baselines": baselines,
        **patterns,
        "dtype": None if dtype is None else str(precision).removeprefix("torch."),
        "batch_size": batch_size,
    }
    wanted = Wanted(values, low_rank, method, epochs)
    if control and workers:
        raise OptionError("a `control` is tuned by one process: leave it out where several share the model")
    about = {"task": task.spec(), "examples": digest([pair.train, task.test, task.dev]), "device": place.type}
    identity = {"graft": call, "inputs": pair.inputs, "seed": seed, **about}
    with loaded(pair.base, pair.names, workers, device=place, dtype=precision) as model:
        search = Search.start(pair, task, model, candidate_limit(ladder), wanted, seed, batch_size, progress)
        with resumable_together(resume, identity, workers) as state, unbroken(workers):
            found: dict[str, Any] = {"prospects": search.prospects(k)}
            for sentence in told(found["prospects"], tuned_values=not wanted.of_all):
                say(sentence)
            if target_gain is not None:
                k, found["target"] = _target(search, target_gain, state)
                ladder, call["weights"] = [k], k
            points, made, scores = search.climb(ladder, baselines, state)
            spread = is_spread(search.grafted.candidates.moved, pair.movable)
            if control or (control is None and spread and workers is None):
                found["control"] = controlled(search, k, scores[k], patterns, state, optional=control is None)
    origin = provenance(call={"graft": call}, inputs=pair.inputs, seed=seed)
    return _skill(search, made[k], scores[k], {**origin, **found, "points": points}, began)


def _check_memory(
    pair: Pair,
    task: Task,
    ladder: Sequence[int],
    asked: Mapping[str, Any],
    place: torch.device,
    precision: torch.dtype,
    batch_size: int,
) -> None:
    limit = min(pair.movable, candidate_limit([pair.movable] if asked["target_gain"] else ladder))
    whole = pair.movable if asked["low_rank"] or asked["values"] != "tuned" else 0
    check_before(
        most_of_grafting(pair.base, task, limit, batch_size, precision, whole),
        lambda: graft_need(
            pair.base,
            task,
            weights=None if asked["target_gain"] else ladder[0],
            **asked,
            device=place,
            dtype=precision,
            batch_size=batch_size,
        ),
        place,
    )


def _target(search: Search, target: float, state: Path | None) -> tuple[int, dict[str, Any]]:
    """The number of weights for a gain, and how it was found, for the report."""
    split, gain = search.gain_judge(state)
    if not split:
        raise OptionError(
            f"tuning gained nothing on the {'dev' if search.task.dev else 'training'} examples, so no `target_gain` can be reached: give `sparsity`"
        )
    k, points = smallest(target, search.pair.movable, gain)
    return k, {"gain": target, "judged_on": split, "weights": k, "points": points}


def _open(
    base: str | Path | Checkpoint,
    tuned: str | Path | Checkpoint,
    task: Task,
    include: Sequence[str],
    exclude: Sequence[str],
    seed: int,
) -> Pair:
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    names = before.block_weights(include, exclude)
    train = _sample(task.need("train"), seed)
    task.need("test")
    resized = check_alike(before, after, [example.text for example in train[:100]])
    check_one_order(before, after, task)
    return Pair(before, after, names, sum(before.entries[name].size for name in names), train, resized)


def _sample(examples: Sequence[Example], seed: int) -> Sequence[Example]:
    """At most so many examples as locating looks at (the published method's number), drawn by seed."""
    if len(examples) <= _EXAMPLES:
        return examples
    return [examples[number] for number in np.random.default_rng(seed).permutation(len(examples))[:_EXAMPLES]]


def _skill(search: Search, made: Product, score: Score, origin: Mapping[str, Any], began: float) -> Skill:
    """The skill of a product, with its report."""
    pair, task, wanted = search.pair, search.task, search.wanted
    figures = search.evaluator.summary(score)
    figures["base"]["accuracy_bias_fitted"] = search.evaluator.accuracy_with(search.bias)
    header = _header(task, figures, wanted.label)
    parts = {} if made.support is None else made.support.parts(torch.arange(len(made.support)))
    delta = SparseDelta.from_parts(pair.base, parts, movable=pair.movable, metadata=header)
    factors = None
    if made.factors is not None:
        factors = LowRankDelta.of(pair.base, made.factors, movable=pair.movable, metadata=header)
    others = left_out(pair.base, pair.tuned, pair.names)
    report = {
        **origin,
        "task": task.spec(),
        "examples": {
            "train": len(task.train),
            "located_on": len(pair.train),
            "test": len(task.test),
            "test_in_train": task.repeated("test"),
        },
        "device": str(search.grafted.model.device),
        "method": wanted.label,
        "values": "low-rank" if wanted.low_rank else wanted.values,
        **figures,
        "weights": len(made),
        "sparsity": len(made) / pair.movable,
        "movable": pair.movable,
        "moved": search.grafted.candidates.moved,
        "left_out": others,
        "head": head_tensors(pair.base, pair.tuned, others, pair.resized),
        "head_given": given_head(pair.base),
        "resized": pair.resized,
        "dtypes": {"base": block_dtype(pair.base), "tuned": block_dtype(pair.tuned)},
        "bytes": len((factors or delta).to_bytes()),
        "seconds": round(time.monotonic() - began, 2),
    }
    readout, inherited = search.grafted.readout, (pair.base.folder / readout_file(task)).exists()
    own = readout.to_bytes() if isinstance(readout, PhraseReadout) and not inherited else None
    return Skill(delta, task, report, own, factors=factors)


def _header(task: Task, figures: Mapping[str, Mapping[str, Any]], label: str) -> dict[str, str]:
    """What a skill file says of itself without its report."""
    keys = ("accuracy", "ece", "agreement", "gain_recovered")
    metrics = {
        who: {key: round(own[key], 6) for key in keys if own.get(key) is not None} for who, own in figures.items()
    }
    product = {"values": label} if label in WHAT else {}
    return {"task": json.dumps(task.spec()), "metrics": json.dumps(metrics), **product}
