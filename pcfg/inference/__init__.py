"""Inference: charts by the engine that suits the grammar, and what can be asked of them."""
