"""Folders of repositories on the Hugging Face hub, fetched once and then cached by the hub's library."""

from collections.abc import Sequence
from pathlib import Path

from surgery.errors import SurgeryError


def hub_folder(name: str, patterns: Sequence[str], error: type[SurgeryError]) -> Path:
    """The folder that holds a repository's files of these patterns; raises `error` for one that the hub doesn't give."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except HFValidationError as cause:
        raise error(f"{name!r} is neither a folder nor a possible hub id") from cause
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as cause:
        raise error(
            f"{name!r} is not a folder here, and the hub couldn't give it ({type(cause).__name__}): check the spelling and the network"
        ) from cause


def located(source: str | Path, error: type[SurgeryError]) -> Path:
    """The folder itself; or, where there is none, that of the repository `owner/name` on the hub, public or one's own."""
    folder = Path(source).expanduser()
    name = str(source)
    if folder.exists() or folder.is_absolute() or name.count("/") != 1 or name.startswith((".", "~")):
        return folder
    return hub_folder(name, ("*.json", "*.safetensors"), error)
