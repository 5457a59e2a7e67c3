"""Baselines that masking is measured against: other ways to forget, on the same bottleneck, by changing values alone.

To add one, write a function that teaches a `Student`, and name it in `BASELINES`: `verify`, its help, its report and its
figures know it then. Nothing heavy is imported until one runs, so that the command line can read the names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgery.unlearning.evaluation.student import Student

# One choice for all data, by held-out training rows of digits and of Fashion-MNIST.
_BETA = 0.87  # NegGrad+: the weight of retained rows; forget rows have 1 - beta
_KEEP = 0.5  # SCRUB: the weight of what the teacher says of retained rows, next to 1 for their labels
_LEAVE = 3  # SCRUB: batches of forget rows in a max-step


def fine_tune(student: "Student") -> None:
    """Go once through the retained rows alone, by the published objective."""
    student.epoch(student.retained, student.toward(student.targets))


def random_labels(student: "Student") -> None:
    """Go once through all rows by the published objective, each forget row with a wrong label."""
    student.epoch(student.everything, student.toward(student.disguised))


def neggrad(student: "Student") -> None:
    """Go once through the retained rows, whose cross-entropy goes down while that of as many forget rows goes up."""
    down = student.toward(student.targets)
    # Without smoothing: where a row has reached its smoothed target there is no way up.
    up = student.toward(student.targets, smoothing=0.0)

    def contrast(rows: Any, logits: Any) -> Any:
        return ((_BETA - 1) * up(rows, logits)).where(student.is_forgotten(rows), _BETA * down(rows, logits))

    student.epoch(student.retained, contrast, beside=student.forget)


def scrub(student: "Student") -> None:
    """Take a max-step and a min-step. The first max-step does nothing: as long as both agree there is no way up.

    Max-steps are as long for few rows as for many: what they move apart grows with each batch.
    """
    label, keep = student.toward(student.targets), student.like_teacher(_KEEP)
    student.epoch(student.draw(student.forget, batches=_LEAVE), student.like_teacher(-1.0))
    student.epoch(student.retained, lambda rows, logits: label(rows, logits) + keep(rows, logits))


def mask_logits(student: "Student") -> None:
    """Put the forgotten classes' values below every mean of the others', yet finite, so that probabilities stay defined."""
    values = student.values.copy()
    values[:, :, student.forget_classes] = values.min() - (values.max() - values.min()) - 1
    student.values = values


@dataclass(frozen=True)
class Baseline:
    """A way to forget.

    Attributes:
        name: in reports, figures and help.
        lesson: one epoch of it.
        epochs: how many; by default as many as the values were learnt in.
        unbounded: it would go on without end, and stops once the forget rows are forgotten.
        classes_only: single rows can't be forgotten by it.
    """

    name: str
    lesson: Callable[["Student"], None]
    epochs: int | None = None
    unbounded: bool = False
    classes_only: bool = False


# NegGrad+ and SCRUB: Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023.
BASELINES = (
    Baseline("fine-tune", fine_tune),
    Baseline("random labels", random_labels),
    Baseline("NegGrad+", neggrad, unbounded=True),
    Baseline("SCRUB", scrub, unbounded=True),
    Baseline("logit masking", mask_logits, epochs=1, classes_only=True),
)


def baselines_help() -> str:
    """The names of all baselines."""
    return ", ".join(baseline.name for baseline in BASELINES)
