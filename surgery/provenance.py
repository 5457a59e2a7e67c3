"""Provenance of a report: versions, call, inputs."""

import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = 1


def provenance(*, call: Mapping[str, Any], inputs: Mapping[str, str], seed: int | None = None) -> dict[str, Any]:
    """The fields every report shares.

    Args:
        call: what was asked for: function or command and its arguments.
        inputs: fingerprint of each input by what it was.
    """
    return {
        "schema": SCHEMA,
        "surgery": package_version("surgery"),
        "commit": _commit(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv if Path(sys.argv[0]).name == "surgery" else None,
        "call": dict(call),
        "seed": seed,
        "inputs": dict(inputs),
        "libraries": {name: package_version(name) for name in ("torch", "transformers", "safetensors", "numpy")}
        | {"python": sys.version.split()[0]},
    }


def package_version(name: str) -> str:
    """An installed package's version, or `unknown`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


@cache
def _commit() -> str | None:
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None  # installed as a package: the version says it
    try:
        run = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
