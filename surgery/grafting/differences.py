"""Differences between a base and its tuned checkpoint outside of what a graft may move: heads, embeddings, dtypes."""

from collections.abc import Sequence

import torch

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.counterparts import counterparts


def left_out(base: Checkpoint, tuned: Checkpoint, names: Sequence[str]) -> list[str]:
    """Tensors that differ but may not move, such as an embedding or a head that was tuned too."""
    pairs = {tensor: other for tensor, other in counterparts(base, tuned).items() if tensor not in names}
    return sorted(tensor for tensor, other in pairs.items() if _differ(base, tensor, tuned, other))


def head_tensors(base: Checkpoint, tuned: Checkpoint, others: Sequence[str], resized: Sequence[str]) -> list[str]:
    """Those left out that belong to the head; not one that only has other rows for tokens that were added."""
    theirs, names = counterparts(base, tuned), []
    for name in sorted(set(others) - set(base.structure.body)):
        if name in resized:
            ours, other = base.tensor(name), tuned.tensor(theirs[name])
            rows = min(len(ours), len(other))
            if torch.equal(ours[:rows], other[:rows].to(ours.dtype)):
                continue
        names.append(name)
    return names


def _differ(base: Checkpoint, name: str, tuned: Checkpoint, other: str) -> bool:
    """Whether two tensors differ in the base's dtype, which a skill holds values in."""
    ours, theirs = base.entries[name], tuned.entries[other]
    if (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype):
        return base.digests[name] != tuned.digests[other]
    return not torch.equal(base.tensor(name), tuned.tensor(other).to(ours.dtype))


def block_dtype(checkpoint: Checkpoint) -> str:
    """Dtype that the blocks are stored in."""
    return " and ".join(sorted({str(checkpoint.entries[name].dtype)[6:] for name in checkpoint.structure.blocks}))
