"""Checkpoints: model folders as named tensors, the differences between two, and putting them into files.

from surgery.checkpoints import Checkpoint, SparseDelta, load_model
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.checkpoints.applying import patch_folder, write_patched
    from surgery.checkpoints.checkpoint import Checkpoint
    from surgery.checkpoints.delta import SparseDelta
    from surgery.checkpoints.low_rank import LowRankDelta
    from surgery.checkpoints.models import Model, load_model
    from surgery.checkpoints.pairing import check_alike
    from surgery.checkpoints.region import Region

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Checkpoint": "surgery.checkpoints.checkpoint",
    "LowRankDelta": "surgery.checkpoints.low_rank",
    "Model": "surgery.checkpoints.models",
    "Region": "surgery.checkpoints.region",
    "SparseDelta": "surgery.checkpoints.delta",
    "check_alike": "surgery.checkpoints.pairing",
    "load_model": "surgery.checkpoints.models",
    "patch_folder": "surgery.checkpoints.applying",
    "write_patched": "surgery.checkpoints.applying",
}

__all__ = [
    "Checkpoint",
    "LowRankDelta",
    "Model",
    "Region",
    "SparseDelta",
    "check_alike",
    "load_model",
    "patch_folder",
    "write_patched",
]


__getattr__, __dir__ = face(__name__, _HOMES)
