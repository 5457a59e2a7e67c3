"""Formal Skill-Mix: skills that a program checks, texts that show them, and two readings of a model."""
