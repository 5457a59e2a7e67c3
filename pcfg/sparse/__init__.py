"""The sparse engine: exact inference with treebank grammars, in compiled loops, a sentence at a time."""
