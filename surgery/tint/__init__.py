"""Look inside: a transformer that simulates and fine-tunes a smaller one in its forward pass.

from surgery.tint import TinT, count, verify
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgery.tint' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
