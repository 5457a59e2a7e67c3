"""Checks that two checkpoints are a base and what was tuned from it: one architecture, one tokenizer."""

import shlex

from surgery.checkpoints import configs
from surgery.checkpoints.checkpoint import Checkpoint, tokenizer_files
from surgery.checkpoints.counterparts import check_pair, counterparts
from surgery.checkpoints.models import load_tokenizer
from surgery.errors import CheckpointError


def check_alike(base: Checkpoint, tuned: Checkpoint, texts: list[str]) -> list[str]:
    """Refuse two checkpoints that aren't one architecture with one tokenizer, naming the first difference.

    Vocabularies may differ in size, as long as the tuned tokenizer only adds to the base's and splits `texts` likewise.

    Returns the base's tensors that have another number of rows in the tuned checkpoint for that reason.
    """
    _check_classes(base, tuned)
    resized = _check_tensors(base, tuned)
    check_configs(base, tuned, resized=bool(resized))
    _check_ties(base)
    _check_ties(tuned)
    known = check_tokenizers(base, tuned, texts)
    theirs = counterparts(base, tuned)
    for tensor in resized:
        if (rows := tuned.entries[theirs[tensor]].shape[0]) < known:
            raise CheckpointError(
                f"tensor {tensor} has {rows} rows in {tuned}, too few for the {known} tokens of its tokenizer: fetch or save it again"
            )
    return resized


def _check_classes(base: Checkpoint, tuned: Checkpoint) -> None:
    ours, theirs = base.structure.model_class, tuned.structure.model_class
    if ours is theirs:
        return
    told = f"{base} is a {ours.__name__} and {tuned} a {theirs.__name__}"
    if base.config.get("model_type") != tuned.config.get("model_type"):
        raise CheckpointError(f"{told}: both must be one architecture")
    raise CheckpointError(
        f"{told}: put the tuned one's head on the base (surgery graft --head tuned; with_tuned_head in Python), or tune the base in its own class"
    )


def check_configs(base: Checkpoint, tuned: Checkpoint, *, resized: bool) -> None:
    """Refuse configs that put the same weights to another use, naming the first field that differs."""
    ours, theirs = (configs.counting(side.config) for side in (base, tuned))
    if resized:
        ours, theirs = ({**side, "vocab_size": 0} for side in (ours, theirs))
    if differs := configs.difference(ours, theirs):
        key, before, after = differs
        raise CheckpointError(
            f"config.json says {key} {before} in {base}, but {after} in {tuned}: both must be one architecture"
        )


def _check_tensors(base: Checkpoint, tuned: Checkpoint) -> list[str]:
    """The base's tensors whose number of tokens differs in the tuned checkpoint; any other difference is refused."""
    theirs = counterparts(base, tuned)
    resized = []
    for tensor, name in sorted(base.structure.parameters.items()):
        if tensor not in theirs and base.structure.kind == "encoder" and "pooler" in name:
            continue  # which no readout reads
        other = theirs.get(tensor, name)
        if name in base.structure.vocabulary and other in tuned.entries:
            ours, shape = base.entries[tensor].shape, tuned.entries[other].shape
            if ours != shape and ours[1:] == shape[1:]:
                resized.append(tensor)
                continue
        check_pair(base, tensor, tuned, other)
    return resized


def _check_ties(checkpoint: Checkpoint) -> None:
    """Refuse tensors that are one in the model and two in the files, which no single model can hold."""
    tensors = {name: tensor for tensor, name in checkpoint.structure.parameters.items()}
    for group in checkpoint.structure.tied:
        held = [tensors[name] for name in group if name in tensors]
        if other := [tensor for tensor in held[1:] if checkpoint.digests[tensor] != checkpoint.digests[held[0]]]:
            raise CheckpointError(
                f"{checkpoint}: tensors {held[0]} and {other[0]} are tied in its config.json, but differ in its files: "
                "set tie_word_embeddings to false there, or save the model again"
            )


def check_tokenizers(base: Checkpoint, tuned: Checkpoint, texts: list[str]) -> int:
    """Refuse a tuned tokenizer that does more than add to the base's, or splits `texts` otherwise.

    Returns how many rows an embedding needs for the base's tokens.
    """
    ours = load_tokenizer(base)
    files = tokenizer_files(base.folder)
    if files and not tokenizer_files(tuned.folder):
        copying = shlex.join(["cp", *map(str, [*files, *sorted(base.folder.glob("*.jinja"))]), str(tuned.folder)])
        raise CheckpointError(f"{tuned} has no tokenizer: copy the base's ({copying})")
    other = load_tokenizer(tuned)
    known, theirs = ours.get_vocab(), other.get_vocab()
    if any(theirs.get(token) != number for token, number in known.items()):
        raise CheckpointError(
            f"{base} and {tuned} have different tokenizers ({len(ours)} and {len(other)} tokens): tune the base with its own tokenizer"
        )
    for text in texts:
        if ours(text)["input_ids"] != other(text)["input_ids"]:
            raise CheckpointError(
                f"the tokenizers of {base} and {tuned} split {text[:60]!r} differently: tune the base with its own tokenizer"
            )
    return max(known.values()) + 1
