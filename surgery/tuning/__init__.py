"""Fine-tuning that leaves a skill in few weights: what grafting starts from.

from surgery.tuning import Recipe, Tuned, tune
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.tuning.finetuning import Tuned, tune
    from surgery.tuning.recipe import Recipe

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Recipe": "surgery.tuning.recipe",
    "Tuned": "surgery.tuning.finetuning",
    "tune": "surgery.tuning.finetuning",
}

__all__ = ["Recipe", "Tuned", "tune"]


__getattr__, __dir__ = face(__name__, _HOMES)
