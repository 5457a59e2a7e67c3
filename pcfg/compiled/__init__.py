"""Compiled: a transformer whose weights are a grammar and whose layers are the Inside-Outside algorithm.

from pcfg.compiled import InsideOutsideTransformer, compile_transformer

Importing this package tells the transformers library of the architecture, so that `AutoModel` loads its folders.
"""

from pcfg.compiled.compiling import compile_transformer, save
from pcfg.compiled.model import InsideOutsideConfig, InsideOutsideOutput, InsideOutsideTransformer
from pcfg.compiled.slots import Slots
from pcfg.compiled.truth import used_heads

__all__ = [
    "InsideOutsideConfig",
    "InsideOutsideOutput",
    "InsideOutsideTransformer",
    "Slots",
    "compile_transformer",
    "save",
    "used_heads",
]
