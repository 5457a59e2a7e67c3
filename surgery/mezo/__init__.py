"""Tuning with forward passes only (MeZO), in the memory of inference, replayable bit for bit.

from surgery import mezo; mezo.tune("base", task, steps=1000).save("tuned")
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.mezo.noise import Noise
    from surgery.mezo.recipe import MezoRecipe
    from surgery.mezo.run import tune
    from surgery.mezo.trajectory import MezoTuned, Trajectory

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "MezoRecipe": "surgery.mezo.recipe",
    "MezoTuned": "surgery.mezo.trajectory",
    "Noise": "surgery.mezo.noise",
    "Trajectory": "surgery.mezo.trajectory",
    "tune": "surgery.mezo.run",
}

__all__ = ["MezoRecipe", "MezoTuned", "Noise", "Trajectory", "tune"]


__getattr__, __dir__ = face(__name__, _HOMES)
