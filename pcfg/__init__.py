"""Grammars and exact inference. Empty so far; will know nothing of the other packages."""
