"""The dense engine: exact Inside-Outside in torch for batches under grammars of up to some hundred symbols."""
