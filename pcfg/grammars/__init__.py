"""Grammars: rules of any shape, checked, made binary, read and written."""
