"""What a CUDA graph does, on a CPU: a recorder that runs a function again on what its inputs hold, over what was there before."""

import math

import torch

from pcfg.dense.cuda_graphs import Recordings


class Again:
    """Nothing is there before the first play, and each spoils what the one before it left: no result may be a view of it."""

    size = 1

    def __init__(self, function, inputs, beside=None):
        self.function, self.inputs, self.state = function, inputs, None

    def play(self):
        spoil(self.state, {x.untyped_storage().data_ptr() for x in self.inputs})
        self.state = self.function(*self.inputs)


class Eager(Recordings):
    """Recordings that record whatever they see at first sight."""

    def __init__(self, **options):
        super().__init__(Again, **{"limit": 1 << 40, **options})

    def _is_worth_it(self, key):
        return super()._is_worth_it(key) or super()._is_worth_it(key)


def spoil(state, kept):
    """Overwrite every tensor of a state but those that lie in these storages."""
    if isinstance(state, torch.Tensor):
        if state.untyped_storage().data_ptr() in kept:
            return
        with torch.inference_mode():
            state.fill_(math.nan if state.is_floating_point() or state.is_complex() else 1)
    elif isinstance(state, (list, tuple)):
        for part in state:
            spoil(part, kept)
    elif isinstance(state, dict):
        spoil(list(state.values()), kept)
    elif type(state).__module__.startswith("pcfg.dense.") and not callable(state):
        spoil({name: part for name, part in vars(state).items() if name not in ("inside", "steps")}, kept)
        if "inside" in vars(state) and "outside" in vars(state):
            spoil(state.inside, kept)
