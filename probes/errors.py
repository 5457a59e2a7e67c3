"""ProbeError, the one family of errors: whatever a user can mend when a model is probed is one of these."""

from collections.abc import Iterator
from contextlib import contextmanager

from pcfg.errors import GrammarError
from surgery.errors import CheckpointError, OptionError, SurgeryError


class ProbeError(SurgeryError):
    """Sentences, trees, a grammar and a model that don't fit together, and reports that can't be read."""


class ProbeOptionError(ProbeError, OptionError):
    """An option out of its range, or a state to resume from that belongs to another run."""


class ProbeModelError(ProbeError, CheckpointError):
    """A model that can't be read, or that has no hidden states to probe."""


class ProbeGrammarError(ProbeError, GrammarError):
    """A grammar that doesn't know the words, or whose words the model doesn't know."""


_KINDS = ((CheckpointError, ProbeModelError), (GrammarError, ProbeGrammarError), (OptionError, ProbeOptionError))


@contextmanager
def probe_errors() -> Iterator[None]:
    """Raise what the rest of the toolkit refuses in the block as a ProbeError, in the same words and still of its own kind."""
    try:
        yield
    except ProbeError:
        raise
    except SurgeryError as error:
        kind = next((ours for theirs, ours in _KINDS if isinstance(error, theirs)), ProbeError)
        raise kind(str(error)) from error
