"""What a skill is to a model: labelled text, prompts and label words, readouts, scoring.

from surgery.tasks import Columns, Example, Task, Texts, score
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.tasks.calibration import Reliability
    from surgery.tasks.examples import Columns, Example, k_shot, read_examples
    from surgery.tasks.readout import pick_readout
    from surgery.tasks.scoring import Score, score
    from surgery.tasks.task import Task
    from surgery.tasks.texts import Texts

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Columns": "surgery.tasks.examples",
    "Example": "surgery.tasks.examples",
    "Reliability": "surgery.tasks.calibration",
    "Score": "surgery.tasks.scoring",
    "Task": "surgery.tasks.task",
    "Texts": "surgery.tasks.texts",
    "k_shot": "surgery.tasks.examples",
    "pick_readout": "surgery.tasks.readout",
    "read_examples": "surgery.tasks.examples",
    "score": "surgery.tasks.scoring",
}

__all__ = [
    "Columns",
    "Example",
    "Reliability",
    "Score",
    "Task",
    "Texts",
    "k_shot",
    "pick_readout",
    "read_examples",
    "score",
]

__getattr__, __dir__ = face(__name__, _HOMES)
