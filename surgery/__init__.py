"""Find, move, remove and measure skills in language-model checkpoints.

from surgery import Checkpoint, Skill, Task, graft, score, tune
"""

from typing import TYPE_CHECKING, Any

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.checkpoints.checkpoint import Checkpoint
    from surgery.checkpoints.delta import SparseDelta
    from surgery.errors import SurgeryError
    from surgery.grafting.localization import graft
    from surgery.grafting.skill import Skill
    from surgery.tasks.scoring import Score, score
    from surgery.tasks.task import Task
    from surgery.tasks.texts import Texts
    from surgery.tuning.finetuning import Tuned, tune
    from surgery.tuning.recipe import Recipe

# Loaded on first use: torch and transformers take seconds, and `surgery --help` needs neither.
_HOMES = {
    "Checkpoint": "surgery.checkpoints.checkpoint",
    "Recipe": "surgery.tuning.recipe",
    "Score": "surgery.tasks.scoring",
    "Skill": "surgery.grafting.skill",
    "SparseDelta": "surgery.checkpoints.delta",
    "SurgeryError": "surgery.errors",
    "Task": "surgery.tasks.task",
    "Texts": "surgery.tasks.texts",
    "Tuned": "surgery.tuning.finetuning",
    "graft": "surgery.grafting.localization",
    "score": "surgery.tasks.scoring",
    "tune": "surgery.tuning.finetuning",
}

__all__ = [
    "Checkpoint",
    "Recipe",
    "Score",
    "Skill",
    "SparseDelta",
    "SurgeryError",
    "Task",
    "Texts",
    "Tuned",
    "graft",
    "score",
    "tune",
]


_get, _names = face(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from surgery.provenance import package_version

        return package_version("surgery")
    return _get(name)


def __dir__() -> list[str]:
    return sorted({*_names(), "__version__"})
