"""Evaluation: what is forgotten, what is kept, what an attacker can tell, and what else would have done it."""
