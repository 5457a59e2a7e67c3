"""What a model can do with what it says: formal skills, Skill-Mix and TutorEval, before and after surgery.

from surgery.evaluating import Evaluation, evaluate_formal
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.evaluating.evaluation import Evaluation
    from surgery.evaluating.formal.run import evaluate_formal

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Evaluation": "surgery.evaluating.evaluation",
    "evaluate_formal": "surgery.evaluating.formal.run",
}

__all__ = ["Evaluation", "evaluate_formal"]


__getattr__, __dir__ = face(__name__, _HOMES)
