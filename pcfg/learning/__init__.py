"""Learning: grammars from text and trees, masked language models from grammars."""
