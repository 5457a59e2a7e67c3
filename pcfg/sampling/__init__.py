"""Sampling: sentences and trees drawn from a grammar, in memory or as corpora on disk."""
