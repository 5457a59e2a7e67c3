"""Evaluation: the simulation against autograd, perplexity of text, and in-context tasks."""
