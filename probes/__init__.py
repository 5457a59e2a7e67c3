"""Measures a checkpoint, changes nothing. Empty so far: span and tree probes come here."""
