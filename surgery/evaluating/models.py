"""Models by name: a folder, a hub id, or `openai:NAME@URL`."""

from pathlib import Path
from typing import Any

from surgery.evaluating.runner import LanguageModel
from surgery.evaluating.server import PREFIX, ServerModel


def open_language_model(
    source: str | Path | LanguageModel,
    *,
    device: Any = None,
    dtype: Any = None,
    batch_size: int = 16,
    chat: bool | None = None,
    parallel: int = 8,
    context: int | None = None,
) -> LanguageModel:
    """The model that a folder, a hub id or `openai:NAME@URL` names; one that is open already is given back.

    Args:
        device, dtype, batch_size, chat: of weights, as `LocalModel` takes them.
        parallel, context: of a server, as `ServerModel` takes them.
    """
    if isinstance(source, LanguageModel):
        return source
    if str(source).startswith(PREFIX):
        return ServerModel(str(source), parallel=parallel, context=context)
    from surgery.evaluating.local import LocalModel

    return LocalModel(source, device=device, dtype=dtype, batch_size=batch_size, chat=chat)
