"""Comparison of two configs: do they put the same weights to the same use?

They are compared as the library completes them, with its defaults and in its spelling: saving a config again changes its
text (`"p2c|c2p"` becomes a list, a window that is not in use becomes null), and not what the model computes.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from surgery.quiet import quiet

# Fields that change nothing in how weights are put to use.
_FREE = re.compile(
    r"_token_id$|drop|label|^output_|^use_cache|^problem|^torch_dtype|^dtype|version|^_|^architectures|^gradient_|^return_|^task"
    r"|^init|^torchscript|^chunk_size_feed_forward|^name_or_path|^tokenizer_class"
)


def counting(config: Mapping[str, Any], also: Collection[str] = ()) -> dict[str, Any]:
    """A config's fields that count, at every depth, and those called as `also` says."""
    return {
        key: counting(value, also) if isinstance(value, dict) else value
        for key, value in config.items()
        if key in also or not _FREE.search(key)
    }


def difference(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], where_given: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first field in which two configs (`counting`) differ, with both values; None for none.

    Args:
        where_given: fields that count too, where both sides give one.
    """
    if _same(ours, theirs):
        return None
    whole = [_complete(config, where_given) for config in (ours, theirs)]
    if None not in whole:  # one library has filled in both, so a field that is missing is no field of the class
        ours, theirs = whole  # type: ignore[assignment]
    for key in sorted(ours.keys() & theirs.keys()):
        one, other = ours[key], theirs[key]
        if not _same(one, other) and not (key in where_given and None in (one, other)):
            return key, one, other
    return None


def _complete(config: Mapping[str, Any], also: Collection[str]) -> dict[str, Any] | None:
    """The config with the library's defaults and spellings; None where it doesn't know the kind of model, or won't."""
    from transformers import CONFIG_MAPPING

    try:
        with quiet():
            made = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)).to_dict()
    except Exception:  # anything a config can provoke in a class of the library
        return None
    return counting(json.loads(json.dumps(made, default=str)), also)


def _same(one: Any, other: Any) -> bool:
    return one == other or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)  # NaN is NaN here
