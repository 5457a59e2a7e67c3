"""What a model can do with what it says: formal skills, Skill-Mix and TutorEval, before and after surgery.

from surgery.evaluating import Evaluation, evaluate_formal, evaluate_skillmix, evaluate_tutor, regrade
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.evaluating.damaging import damage
    from surgery.evaluating.evaluation import Evaluation
    from surgery.evaluating.formal.run import evaluate_formal
    from surgery.evaluating.regrading import regrade
    from surgery.evaluating.skillmix import evaluate_skillmix
    from surgery.evaluating.tutoring.dialogues import Dialogue, make_dialogues, read_dialogues
    from surgery.evaluating.tutoring.questions import Question
    from surgery.evaluating.tutoring.run import evaluate_tutor

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Dialogue": "surgery.evaluating.tutoring.dialogues",
    "Evaluation": "surgery.evaluating.evaluation",
    "Question": "surgery.evaluating.tutoring.questions",
    "damage": "surgery.evaluating.damaging",
    "evaluate_formal": "surgery.evaluating.formal.run",
    "evaluate_skillmix": "surgery.evaluating.skillmix",
    "evaluate_tutor": "surgery.evaluating.tutoring.run",
    "make_dialogues": "surgery.evaluating.tutoring.dialogues",
    "read_dialogues": "surgery.evaluating.tutoring.dialogues",
    "regrade": "surgery.evaluating.regrading",
}

__all__ = [
    "Dialogue",
    "Evaluation",
    "Question",
    "damage",
    "evaluate_formal",
    "evaluate_skillmix",
    "evaluate_tutor",
    "make_dialogues",
    "read_dialogues",
    "regrade",
]


__getattr__, __dir__ = face(__name__, _HOMES)
