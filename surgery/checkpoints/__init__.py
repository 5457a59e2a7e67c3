"""Checkpoints: model folders as named tensors, the differences between two, and putting them into files."""
