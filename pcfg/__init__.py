"""Grammars and exact inference; knows nothing of the other packages.

from pcfg import Grammar, inside_outside
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcfg.compiled.compiling import compile_transformer
    from pcfg.grammars.grammar import Grammar
    from pcfg.inference.chart import Chart, inside_outside
    from pcfg.sampling.sampler import sample
    from pcfg.sampling.samples import Samples
    from pcfg.treebanks.trees import Tree

# Loaded on first use: numba and torch take seconds.
_HOMES = {
    "Chart": "pcfg.inference.chart",
    "Grammar": "pcfg.grammars.grammar",
    "Samples": "pcfg.sampling.samples",
    "Tree": "pcfg.treebanks.trees",
    "compile_transformer": "pcfg.compiled.compiling",
    "inside_outside": "pcfg.inference.chart",
    "sample": "pcfg.sampling.sampler",
}

__all__ = ["Chart", "Grammar", "Samples", "Tree", "compile_transformer", "inside_outside", "sample"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pcfg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
