"""How a worker's part in a run ends before the run does."""

from surgery.errors import OptionError, SurgeryError


class LeftOutError(SurgeryError):
    """This worker stopped for so long that the others went on without it."""

    keeps_state = True


class EndedElsewhereError(SurgeryError):
    """Another worker met a mistake of the user's and has said so."""


class WorkerEndedError(OptionError):
    """Another worker is gone, and the run can't go on without its part; a state that was kept stays."""

    keeps_state = True
