"""Model folders as opening them shows, before any weights are read: the config, and where each tensor lies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgery.checkpoints.tensorfile import Entry


class ModelFolder:
    """A Hugging Face model folder: what decides whether, and as what, its tensors can be read.

    Attributes:
        source: the folder or hub id as the user gave it, to name it by.
        folder: where it lies on this disk.
        config: `config.json`.
        entries: each tensor's dtype, shape and place by its name.
    """

    source: str
    folder: Path
    config: dict[str, Any]
    entries: Mapping[str, Entry]

    def __str__(self) -> str:
        return self.source
