"""Reporting: figures, tables and pages that every method shares."""
