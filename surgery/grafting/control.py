"""The control of a graft: as many weights of the base tuned anew, which never saw the checkpoint that the graft is to carry.

A graft that recovers tuning's gain may have learnt the task itself, or be one of many that do. What shows that it carries
*this* checkpoint is that it predicts as the checkpoint does, more often than the control.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.errors import OptionError
from surgery.files import replace_json
from surgery.grafting.budget import candidate_limit
from surgery.grafting.candidates import Candidates, GraftedModel
from surgery.grafting.methods import locate
from surgery.grafting.search import Search, put_parts
from surgery.grafting.task_model import steps_of
from surgery.resuming import read_state
from surgery.tasks.calibration import softmax
from surgery.tasks.scoring import Score, predict
from surgery.tuning.finetuning import tune


def controlled(
    search: Search,
    k: int,
    score: Score,
    patterns: Mapping[str, Any],
    state: Path | None,
    *,
    optional: bool,
) -> dict[str, Any]:
    """The control's figures at k weights, and how much more often the graft agrees with the tuned checkpoint than it does.

    The base is tuned by the default recipe (SGD with a pull) on the same examples, and k of its weights are located by dual
    averaging. Takes that tuning and that locating.

    Args:
        score: the graft's score on the test examples.
        patterns: which tensors may move: `include` and `exclude`.
        optional: say why, instead of raising, where there isn't the memory for a tuning.
    """
    file = state and state / "control.json"
    if file and file.exists():
        return read_state(file, dict[str, Any])
    try:
        figures = _controlled(search, k, score, patterns, state)
    except OptionError as error:
        if not optional:
            raise
        return {"skipped": str(error)}
    if file:
        replace_json(file, figures)
    return figures


def _controlled(
    search: Search, k: int, score: Score, patterns: Mapping[str, Any], state: Path | None
) -> dict[str, Any]:
    pair, model, progress = search.pair, search.grafted.model, search.progress
    before = search.grafted.work
    with tempfile.TemporaryDirectory(dir=state) as scratch:
        again = tune(
            pair.base,
            search.task,
            seed=search.seed,
            device=model.device,
            resume=state and state / "control",
            progress=progress,
            **patterns,
        )
        retuned, steps = Checkpoint(again.save(Path(scratch) / "retuned")), int(again.report["stopped_at"])
        del again
        candidates = Candidates.between(pair.base, retuned, pair.names, candidate_limit([k]), model.device)
        model.load_weights(retuned)
        soft = softmax(predict(model, search.grafted.readout, search.evidence.rows, search.batch_size))
    search.restore()
    graft = GraftedModel(model, search.grafted.readout, candidates)
    evidence = search.evidence._replace(soft=torch.from_numpy(soft).float())
    chosen = locate("dual-averaging", graft, evidence, k, seed=search.seed, progress=progress)
    put_parts(model, candidates.parts(chosen))
    own = search.evaluator.score("the control")
    search.restore()
    found = search.evaluator.point("control", len(chosen), pair.movable, own)
    above = agreement_above(search.evaluator.tuned, score, own)
    return {**found, "steps": steps + steps_of(graft.work + search.grafted.work - before), "agreement_above": above}


def agreement_above(tuned: Score, graft: Score, control: Score) -> tuple[float, float, float]:
    """How much more of the test examples the graft agrees on with tuned than the control does, and a 95% bootstrap interval, paired."""
    graft_agrees = (graft.predictions == tuned.predictions).astype(float)
    more = graft_agrees - (control.predictions == tuned.predictions)
    random = np.random.default_rng(0)
    means = [more[random.integers(len(more), size=len(more))].mean() for _ in range(1000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(more.mean()), float(low), float(high)
