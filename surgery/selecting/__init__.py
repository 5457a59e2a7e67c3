"""Choosing the training data that teaches a skill, by gradients (LESS), beside simpler ways.

from surgery.selecting import Features, Warmup; store = Features.collect("base", "pool.jsonl", warmup=Warmup(share=.05))
"""

from typing import TYPE_CHECKING

from surgery.faces import face

if TYPE_CHECKING:
    from surgery.selecting.features import Features
    from surgery.selecting.selection import Selection
    from surgery.selecting.warmup import Warmup
    from surgery.tasks.rows import Row, read_rows

# Loaded on first use, like the names of `surgery`.
_HOMES = {
    "Features": "surgery.selecting.features",
    "Row": "surgery.tasks.rows",
    "Selection": "surgery.selecting.selection",
    "Warmup": "surgery.selecting.warmup",
    "read_rows": "surgery.tasks.rows",
}

__all__ = ["Features", "Row", "Selection", "Warmup", "read_rows"]


__getattr__, __dir__ = face(__name__, _HOMES)
