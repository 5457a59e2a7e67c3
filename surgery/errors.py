"""Errors that the user can mend: every message is one sentence that says what, where and what to do."""


class SurgeryError(Exception):
    """Something the user can mend; the command line prints it and exits with status 2."""

    keeps_state = False  # whether the state of the run that it ends stays, as it may be somebody else's


class CheckpointError(SurgeryError):
    """A checkpoint that can't be read, isn't what was expected, or can't be written."""


class TaskError(SurgeryError):
    """Examples, labels, prompts or label words that don't fit together or don't fit the model."""


class SkillError(SurgeryError):
    """A skill file that is damaged, or that doesn't fit the checkpoint it is put to."""


class BottleneckError(SurgeryError):
    """A bottleneck or an eraser that is damaged, or two that don't fit together."""


class TintError(SurgeryError):
    """An auxiliary model, an input or a descent that the simulation in a transformer can't do."""


class EvaluationError(SurgeryError):
    """A model, a grader, a file of gradings or a report that an evaluation can't use."""


class SelectionError(SurgeryError):
    """Rows, a store of features or a warm-up that data can't be selected with."""


class OptionError(SurgeryError):
    """An option out of its range."""


class MissingPackageError(SurgeryError):
    """An optional package isn't installed; `extra` names the group of ours that holds it, where one does."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        wanted = f"'surgery[{extra}]'" if extra else package
        super().__init__(f"{purpose} needs the package {package}: pip install {wanted}")


def first_line(error: Exception) -> str:
    """First line of a library's error; its type when it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
