"""A card that isn't there: tensors that claim to be on cuda:0, know their shapes and types, and refuse others' devices.

Nothing is computed; what comes back to numpy is zeros. What a walk through the code shows is which tensor was left behind.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

CARD = "cuda:0"
_ATEN = torch.ops.aten


@contextmanager
def fake_card():
    """Tensors moved to `CARD` are fakes there."""
    mode, from_numpy = FakeTensorMode(allow_non_fake_inputs=True), torch.from_numpy

    def numpy(tensor):
        assert tensor.device.type == "cpu", "numpy wants what is on the CPU"
        return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    with pytest.MonkeyPatch.context() as patch, mode:
        patch.setattr(torch, "from_numpy", lambda array: mode.from_tensor(from_numpy(array)))
        patch.setattr(torch, "as_tensor", lambda x: x if isinstance(x, Tensor) else torch.from_numpy(x))
        patch.setattr(Tensor, "numpy", numpy)
        # Python's brackets look for the driver, which these operators don't.
        patch.setattr(Tensor, "__getitem__", _get)
        patch.setattr(Tensor, "__setitem__", _set)
        for name, found in (("mem_get_info", (1 << 40, 1 << 40)), ("memory_reserved", 0), ("memory_allocated", 0)):
            patch.setattr(torch.cuda, name, lambda device=None, found=found: found)
        yield


def _view(tensor, key):
    """The part that numbers, slices and None choose, and the indices that are left: a tensor or None an axis."""
    axis, indices = 0, []
    for part in key if isinstance(key, tuple) else (key,):
        if part is None:
            tensor = _ATEN.unsqueeze(tensor, axis)
        elif isinstance(part, int):
            tensor = _ATEN.select(tensor, axis, part)
            continue
        elif isinstance(part, slice):
            tensor = _ATEN.slice(tensor, axis, part.start, part.stop)
        indices.append(part if isinstance(part, Tensor) else None)
        axis += 1
    return tensor, indices if any(index is not None for index in indices) else None


def _get(tensor, key):
    view, indices = _view(tensor, key)
    if indices is None:
        return view
    assert all(index is None or index.device == tensor.device for index in indices), "an index on another device waits"
    return _ATEN.index(view, indices)


def _set(tensor, key, value):
    view, indices = _view(tensor, key)
    if indices is not None:
        _ATEN.index_put_(
            view, indices, value if isinstance(value, Tensor) else torch.full((), value, device=tensor.device)
        )
    elif isinstance(value, Tensor):
        _ATEN.copy_(view, value)
    else:
        _ATEN.fill_(view, value)
