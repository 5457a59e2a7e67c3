"""What goes wrong with grammars and trees on the user's side; every other error is the toolkit's own (`surgery.errors`)."""

from surgery.errors import MissingPackageError, OptionError, SurgeryError

__all__ = ["GrammarError", "MissingPackageError", "OptionError", "PcfgError", "SurgeryError", "TreebankError"]

PcfgError = SurgeryError  # one family, by the name that this package's callers catch


class GrammarError(PcfgError):
    """Rules, probabilities or words that don't make a grammar, or don't fit the one at hand."""


class TreebankError(PcfgError):
    """Trees that can't be read, or that don't fit together."""
