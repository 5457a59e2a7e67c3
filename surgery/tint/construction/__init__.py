"""Construction: the simulating transformer's layers, its weights and its size."""
