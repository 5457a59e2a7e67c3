"""A base with its warm-up's adapters and objective: what features are taken with, of a pool's rows and of a target's alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surgery.checkpoints.models import Model, steady_attention
from surgery.errors import SelectionError
from surgery.progress import Progress, silent
from surgery.selecting.capture import gradients
from surgery.selecting.lora import Adapter
from surgery.selecting.maps import GradientMap
from surgery.selecting.shards import GRADIENT
from surgery.selecting.sketch import CountSketch
from surgery.selecting.warmup import Checkpoints
from surgery.tasks.objectives import Lesson, Objective
from surgery.tasks.readout import alike, collate


@dataclass(frozen=True, eq=False)
class Instrument:
    """A model with adapters, its objective, the warm-up's checkpoints, and the sketch."""

    model: Model
    objective: Objective
    adapter: Adapter
    checkpoints: Checkpoints
    sketch: CountSketch
    batch_size: int

    @classmethod
    def of(
        cls,
        model: Model,
        objective: Objective,
        adapter: Adapter,
        checkpoints: Checkpoints,
        sketch: int,
        seed: int,
        batch_size: int,
    ) -> "Instrument":
        """An instrument with a sketch of its adapters' weights."""
        sizes = {name: layer.in_features * layer.out_features for name, layer in adapter.layers.items()}
        return cls(model, objective, adapter, checkpoints, CountSketch(sizes, sketch, seed), batch_size)

    def features(
        self, lessons: Sequence[Lesson], checkpoint: int, maps: Sequence[str], progress: Progress = silent
    ) -> dict[str, Float[Tensor, "rows _"]]:
        """Rows' features at a checkpoint, by map, not normalised, float32 on the CPU; all maps in one backward pass.

        Under `GRADIENT` the largest number of each row's own gradient, [rows, 1].
        """
        moments = self.adapter.load(self.checkpoints.place(checkpoint))
        made = {name: GradientMap(name, moments, self.checkpoints.steps[checkpoint]) for name in maps}
        found = {name: torch.zeros(len(lessons), self.sketch.length) for name in maps}
        found[GRADIENT] = torch.zeros(len(lessons), 1)
        parts: dict[str, Tensor] = {}

        def sink(numbers: Sequence[int]) -> Any:
            parts.update(
                {name: torch.zeros(len(numbers), self.sketch.length, device=self.model.device) for name in maps}
            )
            parts[GRADIENT] = torch.zeros(len(numbers), 1, device=self.model.device)

            def take(layer: str, each: Tensor) -> None:
                flat = each.flatten(1).float()
                largest = torch.linalg.vector_norm(flat, torch.inf, dim=1, keepdim=True)
                parts[GRADIENT] = torch.maximum(parts[GRADIENT], largest)
                for name, change in made.items():
                    self.sketch.add(layer, change(layer, flat), parts[name])

            return take

        done = 0
        for numbers, losses in gradients(
            self.model, self.objective, lessons, self.adapter.layers, self.batch_size, sink
        ):
            if not bool(torch.isfinite(losses).all()):
                raise SelectionError(
                    f"{self.model.checkpoint} gives losses that are NaN or infinite: try `dtype` float32"
                )
            for name in (*maps, GRADIENT):
                found[name][numbers] = parts[name].cpu()
            done += len(numbers)
            progress(done, len(lessons), "gradients")
        return found

    def hidden(self, lessons: Sequence[Lesson]) -> Float[Tensor, "rows width"]:
        """The base's last hidden states, their mean over a row's tokens, on the CPU."""
        with torch.no_grad():
            for name, weight in self.adapter.weights.items():
                if name.endswith("lora_B.weight"):
                    weight.zero_()  # adapters that add nothing
        body = getattr(self.model.module, "base_model", self.model.module)
        more = {"use_cache": False} if self.model.kind == "causal" else {}
        tokens = [lesson.tokens for lesson in lessons]
        order = sorted(range(len(tokens)), key=lambda number: (len(tokens[number].ids), number))
        found: Tensor | None = None
        with torch.no_grad(), steady_attention():
            for start in range(0, len(order), self.batch_size):
                for numbers in alike(self.model, tokens, order[start : start + self.batch_size]):
                    batch, _ = collate(self.model, [tokens[number] for number in numbers])
                    states = body(**batch, **more).last_hidden_state.float()
                    kept = batch["attention_mask"].unsqueeze(-1).float()
                    means = ((states * kept).sum(1) / kept.sum(1)).cpu()
                    found = torch.zeros(len(tokens), means.shape[1]) if found is None else found
                    found[numbers] = means
        assert found is not None, "there are rows"
        return found
