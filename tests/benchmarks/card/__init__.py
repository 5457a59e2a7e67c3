"""Parts of `python -m tests.benchmarks.gpu`: a module each, whose `lines()` yields what `tests.benchmarks.card.measure` makes."""
