"""Look inside: a transformer that simulates and fine-tunes a smaller one in its forward pass.

from surgery.tint import TinT, count, verify
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.tint.auxiliary import Auxiliary
    from surgery.tint.construction.counting import Count, count
    from surgery.tint.construction.layout import Layout
    from surgery.tint.evaluation.in_context import run_task
    from surgery.tint.evaluation.perplexity import run_text
    from surgery.tint.evaluation.report import Run
    from surgery.tint.evaluation.verification import Verification, verify
    from surgery.tint.shape import Shape
    from surgery.tint.simulator import TinT
    from surgery.tint.update import Update

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Auxiliary": "surgery.tint.auxiliary",
    "Count": "surgery.tint.construction.counting",
    "Layout": "surgery.tint.construction.layout",
    "Run": "surgery.tint.evaluation.report",
    "Shape": "surgery.tint.shape",
    "TinT": "surgery.tint.simulator",
    "Update": "surgery.tint.update",
    "Verification": "surgery.tint.evaluation.verification",
    "count": "surgery.tint.construction.counting",
    "run_task": "surgery.tint.evaluation.in_context",
    "run_text": "surgery.tint.evaluation.perplexity",
    "verify": "surgery.tint.evaluation.verification",
}

__all__ = [
    "Auxiliary",
    "Count",
    "Layout",
    "Run",
    "Shape",
    "TinT",
    "Update",
    "Verification",
    "count",
    "run_task",
    "run_text",
    "verify",
]


__getattr__, __dir__ = face(__name__, _HOMES)
