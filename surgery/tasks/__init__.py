"""What a skill is to a model: labelled text, prompts and label words, readouts, scoring.

from surgery.tasks import Score, Task, score
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.tasks.examples import Columns, Example, k_shot, read_examples
    from surgery.tasks.scoring import Score, score
    from surgery.tasks.task import Task

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Columns": "surgery.tasks.examples",
    "Example": "surgery.tasks.examples",
    "Score": "surgery.tasks.scoring",
    "Task": "surgery.tasks.task",
    "k_shot": "surgery.tasks.examples",
    "read_examples": "surgery.tasks.examples",
    "score": "surgery.tasks.scoring",
}

__all__ = [
    "Columns",
    "Example",
    "Score",
    "Task",
    "k_shot",
    "read_examples",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'surgery.tasks' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
