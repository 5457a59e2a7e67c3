"""A base with another head: its own body in the architecture that it was tuned in."""

from pathlib import Path
from typing import Any

from torch import Tensor

from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint, rewrite
from surgery.checkpoints.pairing import check_configs, check_tokenizers
from surgery.checkpoints.refusals import check_plain, check_weight
from surgery.checkpoints.structure import body_tensors
from surgery.errors import CheckpointError
from surgery.files import check_apart, new_folder, replace_json
from surgery.jsonfile import JsonError, load_json
from surgery.provenance import provenance


def with_tuned_head(
    base: str | Path | Checkpoint, tuned: str | Path | Checkpoint, folder: str | Path, *, overwrite: bool = False
) -> Checkpoint:
    """Write the tuned checkpoint with its body as in the base: a base that `graft` can hold against the tuned one.

    For a base without the tuned one's head, or with another, such as a BertModel tuned as a BertForSequenceClassification
    by transformers' Trainer. The body is what both architectures share; all else (the head, a pooler that the base
    lacks, rows of embeddings for added tokens) is the tuned one's. Files, names and dtypes are the tuned one's too.

    Raises:
        CheckpointError: two bodies that differ in architecture or tokenizer, or tensors that are no plain weights.
    """
    before, after = open_checkpoint(base), open_checkpoint(tuned)
    check_apart(Path(folder), before.folder, after.folder)
    check_plain(before)
    if before.config.get("model_type") != after.config.get("model_type"):
        raise CheckpointError(
            f"{before} is a {before.config.get('model_type')} and {after} a {after.config.get('model_type')}: both must be one architecture"
        )
    body = _body(before, after)
    resized = any(before.entries[ours].shape != after.entries[name].shape for name, ours in body.items())
    check_configs(before, after, resized=resized)
    check_tokenizers(before, after, [])
    head = sorted(after.structure.parameters.keys() - body.keys())
    with new_folder(Path(folder), overwrite=overwrite) as staged:
        rewrite(after, {name: _with_rows(before, ours, after, name) for name, ours in body.items()}, staged)
        report = provenance(
            call={"with_tuned_head": {"base": str(before), "tuned": str(after)}},
            inputs={"base": before.fingerprint, "tuned": after.fingerprint},
        )
        replace_json(staged / "report.json", {**report, "head": head})
    return Checkpoint(folder)


def given_head(base: Checkpoint) -> list[str]:
    """The tensors that a base has of a tuned checkpoint by `with_tuned_head`; none for any other base."""
    try:
        report = load_json(base.folder / "report.json", dict[str, Any])
        return [str(name) for name in report["head"]] if "with_tuned_head" in report["call"] else []
    except (OSError, JsonError, KeyError, TypeError):
        return []


def _body(base: Checkpoint, tuned: Checkpoint) -> dict[str, str]:
    """Each tensor of the tuned checkpoint's body that the base has -> the base's tensor."""
    ours = {name: tensor for tensor, name in body_tensors(base, tuned).items()}
    structure = tuned.structure
    body = {}
    for tensor, name in structure.parameters.items():
        # An output matrix that is tied to the embedding belongs to the body, though its name doesn't say so.
        held = next((ours[mate] for mate in (name, *structure.mates(name)) if mate in ours), None)
        if held is None:
            continue
        check_weight(base, held)
        shapes = base.entries[held].shape, tuned.entries[tensor].shape
        if shapes[0] != shapes[1] and (name not in structure.vocabulary or shapes[0][1:] != shapes[1][1:]):
            raise CheckpointError(
                f"tensor {held} is {shapes[0]} in {base}, but {shapes[1]} in {tuned}: both must be one architecture"
            )
        body[tensor] = held
    return body


def _with_rows(base: Checkpoint, ours: str, tuned: Checkpoint, name: str) -> Tensor:
    """The base's tensor, with the tuned one's rows for tokens that were added."""
    value = base.finite_tensor(ours)
    if value.shape == tuned.entries[name].shape:
        return value
    whole = tuned.finite_tensor(name).to(value.dtype)
    rows = min(len(whole), len(value))
    whole[:rows] = value[:rows]
    return whole
