"""What goes wrong when a model is probed."""

from surgery.errors import SurgeryError


class ProbeError(SurgeryError):
    """Sentences, trees, a grammar and a model that don't fit together."""
