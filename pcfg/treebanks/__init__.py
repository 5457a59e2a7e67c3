"""Treebanks: trees, what is done to them, the grammars they hold, and scores of parses against them."""
