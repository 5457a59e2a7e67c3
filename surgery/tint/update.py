"""What a pass gives: the updated weights, as tensors, as a Hugging Face model or as a folder, and the logits."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.checkpoints.checkpoint import rewrite
from surgery.errors import OptionError
from surgery.files import check_output, new_folder
from surgery.reporting.plural import number_of
from surgery.reporting.results import Shown
from surgery.tint.auxiliary import Auxiliary, Block


@dataclass(frozen=True, eq=False)
class Update(Shown):
    """The blocks after the inner training.

    `model()` is the Hugging Face model with a row's weights, to generate with; `save` writes it as a folder, which any
    library loads.

    Attributes:
        blocks: each block's tensors; those that learnt are [batch, ...], one copy a row; on the model's device.
        losses: the summed loss of each row before each step, [steps, batch].
    """

    auxiliary: Auxiliary
    blocks: tuple[Block, ...]
    losses: Float[Tensor, "steps batch"]

    @property
    def summary(self) -> list[str]:
        """How much was learnt, and what the loss was on the way."""
        steps, batch = self.losses.shape
        learnt = sum(value[0].numel() for _, _, value in self._learnt())
        first, last = (float(self.losses[step].mean()) for step in (0, -1))
        way = (
            f"{first:.4g} before the step"
            if steps == 1
            else f"{first:.4g} before step 1, {last:.4g} before step {steps}"
        )
        rows = f" of {batch} rows, each with weights of its own" if batch > 1 else ""
        return [
            f"{number_of(learnt, 'weight')} learnt{rows}; summed loss {way}{' (mean of rows)' if batch > 1 else ''}."
        ]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows: how far each tensor that learnt has moved in each row of the batch, as a share of its norm."""
        rows = []
        for layer, name, value in self._learnt():
            before = self.auxiliary.blocks[layer][name].double()
            moved = (value.double() - before).flatten(1).norm(dim=1) / before.norm().clamp_min(1e-30)
            rows += [[layer, name, row, float(share)] for row, share in enumerate(moved)]
        return ["block", "tensor", "row", "moved"], rows

    def _learnt(self) -> Iterator[tuple[int, str, Tensor]]:
        """The tensors that learnt, by block and name: those with an axis for the rows of the batch."""
        for layer, (block, before) in enumerate(zip(self.blocks, self.auxiliary.blocks, strict=True)):
            for name, value in block.items():
                if value.dim() > before[name].dim():
                    yield layer, name, value

    def parameters(self, row: int = 0) -> dict[str, Tensor]:
        """One row's blocks as parameters of the Hugging Face model, by name."""
        self._check_row(row)
        named = dict(self.auxiliary.module.named_parameters(remove_duplicate=False))
        parameters: dict[str, Tensor] = {}
        for block, before, sites in zip(self.blocks, self.auxiliary.blocks, self.auxiliary.sites, strict=True):
            for name, site in sites.items():
                whole = parameters.setdefault(site.parameter, named[site.parameter].detach().clone())
                learnt = block[name].dim() > before[name].dim()
                site.view(whole).copy_(block[name][row] if learnt else block[name])
        return parameters

    def model(self, row: int = 0) -> Any:
        """A copy of the Hugging Face model with one row's weights, to generate with or to go on from."""
        parameters = self.parameters(row)
        module = copy.deepcopy(self.auxiliary.module).eval()
        named = dict(module.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, tensor in parameters.items():
                named[name].copy_(tensor)
        return module

    def save(self, folder: str | Path, row: int = 0, *, overwrite: bool = False) -> Path:
        """Write one row's weights as a Hugging Face folder.

        A model that came from a folder or hub id keeps its files, tokenizer included, and the precision it was stored in;
        of a model in memory config and weights are written.

        Raises:
            OptionError: a row that isn't there; SurgeryError: a folder that can't be written to.
        """
        source, folder = self.auxiliary.checkpoint, Path(folder)
        self._check_row(row)
        check_output(folder, overwrite=overwrite, replaces="config.json", inputs=[source.folder] if source else [])
        with new_folder(folder, overwrite=overwrite, replaces="config.json") as staged:
            if source is None:
                self.model(row).save_pretrained(staged)
            else:
                theirs = {name: tensor for tensor, name in source.structure.parameters.items()}
                rewrite(source, {theirs[name]: tensor for name, tensor in self.parameters(row).items()}, staged)
        return folder

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.losses.shape[1]:
            raise OptionError(f"row {row} isn't one of the batch's {self.losses.shape[1]}, counted from 0")


@dataclass(frozen=True, eq=False)
class Output(Shown):
    """What one pass gives; shown as its update is.

    Attributes:
        logits: [batch, tokens, vocabulary], with the updated weights.
        update: the updated weights and the losses on the way.
    """

    logits: Float[Tensor, "batch tokens vocabulary"]
    update: Update

    @property
    def summary(self) -> list[str]:
        """The shape of the logits, and what was learnt."""
        return [f"logits {list(self.logits.shape)}; {self.update.summary[0]}"]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The update's table."""
        return self.update.table()
