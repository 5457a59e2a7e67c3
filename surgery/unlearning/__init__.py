"""Remove a skill: a discrete key-value bottleneck, its edits, their proof and their undo.

from surgery.unlearning import Bottleneck, Eraser, unlearn, verify
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.unlearning.bottleneck import Bottleneck
    from surgery.unlearning.eraser import Eraser
    from surgery.unlearning.evaluation.report import Report
    from surgery.unlearning.evaluation.verification import verify
    from surgery.unlearning.features.encoders import Encoder
    from surgery.unlearning.features.rows import Rows
    from surgery.unlearning.forgetting import unlearn

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Bottleneck": "surgery.unlearning.bottleneck",
    "Encoder": "surgery.unlearning.features.encoders",
    "Eraser": "surgery.unlearning.eraser",
    "Report": "surgery.unlearning.evaluation.report",
    "Rows": "surgery.unlearning.features.rows",
    "unlearn": "surgery.unlearning.forgetting",
    "verify": "surgery.unlearning.evaluation.verification",
}

__all__ = ["Bottleneck", "Encoder", "Eraser", "Report", "Rows", "unlearn", "verify"]


__getattr__, __dir__ = face(__name__, _HOMES)
