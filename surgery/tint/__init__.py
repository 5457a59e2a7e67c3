"""Look inside: a transformer that simulates and fine-tunes a smaller one in its forward pass.

from surgery.tint import TinT, count, verify
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.tint.auxiliary import Auxiliary
    from surgery.tint.counting import Count, count
    from surgery.tint.incontext import run_task
    from surgery.tint.layout import Layout
    from surgery.tint.report import Run
    from surgery.tint.shape import Shape
    from surgery.tint.simulator import TinT, Update
    from surgery.tint.text import run_text
    from surgery.tint.verification import Verification, verify

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Auxiliary": "surgery.tint.auxiliary",
    "Count": "surgery.tint.counting",
    "Layout": "surgery.tint.layout",
    "Run": "surgery.tint.report",
    "Shape": "surgery.tint.shape",
    "TinT": "surgery.tint.simulator",
    "Update": "surgery.tint.simulator",
    "Verification": "surgery.tint.verification",
    "count": "surgery.tint.counting",
    "run_task": "surgery.tint.incontext",
    "run_text": "surgery.tint.text",
    "verify": "surgery.tint.verification",
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
