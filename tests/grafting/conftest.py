"""A checkpoint in which tuning moved every weight, as AdamW leaves one."""

import pytest
import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.models import load_model
from surgery.grafting.displacement import Displacement
from surgery.grafting.methods import Evidence
from surgery.tasks.readout import pick_readout
from surgery.tuning.finetuning import tune
from surgery.tuning.recipe import Recipe
from tests.tuning.test_tuning import ROWS, task


@pytest.fixture(scope="session")
def spread(tiny, tmp_path_factory):
    """A tiny LLaMA and the same tuned by AdamW, which moved every weight."""
    folder = tmp_path_factory.mktemp("spread") / "tuned"
    tune(tiny("llama"), task(), Recipe("adamw", rate=3e-3, steps=60), device="cpu").save(folder)
    return Checkpoint(tiny("llama")), Checkpoint(folder)


@pytest.fixture
def moved(spread):
    """All its weights, and what the tuned model predicts."""
    base, tuned = spread
    model = load_model(base, device="cpu")
    readout = pick_readout(model, task())
    found = Displacement(model, readout, base, tuned, base.block_weights())
    rows = readout.encode(ROWS)
    found.put(found.tuned)
    soft = found.scores(rows).softmax(1)
    found.put(found.base)
    return found, Evidence(rows, torch.tensor(task().targets(ROWS)), soft)
