"""A pool without features: its rows alone, for ways of choosing that look at words."""

from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from surgery.selecting.shards import FORMAT, Header, Store
from surgery.tasks.rows import RowFile, Source

REMARK = "No model was asked: lengths are in words."


class PlainStore(Store):
    """A pool's rows in a folder; their columns are worked out anew."""

    @classmethod
    def write(cls, source: Source, folder: Path) -> "PlainStore":
        """Copy a pool's rows into a folder; raises SelectionError for none, or for one that is none."""
        rows = RowFile.write(source, folder / "pool.jsonl")
        sources: dict[str, int] = {}
        columns: dict[str, list[int]] = {"key": [], "tokens": [], "source": []}
        for start in range(0, len(rows), 1024):
            for row in rows.rows(range(start, min(start + 1024, len(rows)))):
                columns["key"].append(row.key)
                columns["tokens"].append(len(f"{row.prompt} {row.answers}".split()))
                columns["source"].append(sources.setdefault(row.source, len(sources)))
        about = {name: np.array(column, np.int64) for name, column in columns.items()} | {"offsets": rows.offsets}
        header = {
            "format": FORMAT, "base": "", "fingerprint": "", "rows": len(rows), "maps": [], "length": 0, "precision": "none",
            "sources": list(sources), "hidden": False, "remarks": [REMARK], "call": {},
        }  # fmt: skip
        made = cls(folder, cast(Header, header))
        made.__dict__["about"] = about
        return made

    @property
    def broken(self) -> NDArray[np.bool_]:
        """No row: there are no gradients."""
        return np.zeros(len(self), bool)
