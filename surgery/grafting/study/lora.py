"""LoRA by the library `peft`, as a rival of grafts in transfer and calibration."""

import importlib.util

import torch
from numpy.typing import NDArray
from torch import nn

from surgery.checkpoints.models import load_model
from surgery.grafting.study.bench import Bench
from surgery.quiet import quiet
from surgery.tasks.readout import alike
from surgery.tasks.scoring import predict
from surgery.tuning.recipe import Recipe
from surgery.tuning.training import batches
from surgery.tuning.training_sets import LabelledSet

_RANK, _RATE = 8, 1e-3  # peft's default rank; a usual rate for it with AdamW


def tune_lora(bench: Bench, seed: int, name: str) -> tuple[dict[str, NDArray], int] | None:
    """Label scores on every task with the same labels, by task, after tuning adapters of rank 8; and their weights.

    As many steps and the same batches as `tune` has; adapters in every linear layer of the blocks. None without `peft`.
    """
    if importlib.util.find_spec("peft") is None:
        return None
    from peft import LoraConfig, get_peft_model

    model = load_model(bench.start, device=bench.device)
    examples = LabelledSet.of(model, bench.task(seed, name))
    readouts = {other: bench.readouts[other] for other in bench.group(name)}
    blocks = {parameter.rpartition(".")[0] for parameter in bench.base.structure.parameters.values()}
    targets = [
        path for path, module in model.module.named_modules() if isinstance(module, nn.Linear) and path in blocks
    ]
    layers = [path for path in targets if any(part.isdigit() for part in path.split("."))]
    torch.manual_seed(seed)
    with quiet():  # it asks a model for all of its attributes, deprecated ones too
        adapted = get_peft_model(model.module, LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=layers)).eval()
    weights = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    recipe = Recipe("adamw", rate=_RATE, steps=bench.settings.steps)
    pace = recipe.pace(model.kind, 1, len(examples.rows), 0.0)
    optimizer = torch.optim.AdamW(weights, lr=_RATE, weight_decay=0.0)
    for step, numbers in enumerate(batches(len(examples.rows), recipe.batch_size, seed, 0, pace.steps)):
        for piece in alike(model, examples.rows, numbers):
            (examples.loss(model, piece) * (len(piece) / len(numbers))).backward()
        for group in optimizer.param_groups:
            group["lr"] = pace.rate_at(step)
        torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bench.progress(step + 1, pace.steps, "tuning: LoRA")
    scores = {
        other: predict(model, readout, readout.encode(bench.task(0, other).test)) for other, readout in readouts.items()
    }
    return scores, sum(weight.numel() for weight in weights)
