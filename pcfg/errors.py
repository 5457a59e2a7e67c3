"""What goes wrong on the user's side: every message is one sentence that says what, where and what to do."""


class PcfgError(Exception):
    """Something the user can mend; the command line prints it and exits with status 2."""


class GrammarError(PcfgError):
    """Rules, probabilities or words that don't make a grammar, or don't fit the one at hand."""


class TreebankError(PcfgError):
    """Trees that can't be read, or that don't fit together."""


class OptionError(PcfgError):
    """An option out of its range."""


class MissingPackageError(PcfgError):
    """An optional package isn't installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'surgery[{extra}]'")
