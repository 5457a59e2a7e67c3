"""Where things are computed and where results are: one rule, which all of this project keeps.

- Without a device, work goes to CUDA if there is one, inputs are moved there, and what a user reads (marginals, posteriors,
  scores, counts) comes back on the CPU.
- Where a device is named, work is done there and tensors of results are there, whichever engine made them. numpy arrays,
  trees and numbers are what they are everywhere.
- Where tensors are handed in, work is done where they are and results are there. Tensors on several devices are refused by
  the names of the arguments; lengths, masks and other numbers of places are moved.
"""

import torch
from torch import Tensor

from pcfg.errors import OptionError
from surgery.devices import working_device

__all__ = ["Device", "Dtype", "dtype_name", "one_device", "returned", "working_device"]

Device = str | torch.device  # as users name them: "cuda:1" or torch's own object
Dtype = str | torch.dtype


def returned(result: Tensor, name: Device | None) -> Tensor:
    """A result where the user who named this device, or none, expects it."""
    return result.to("cpu" if name is None else name)


def dtype_name(dtype: Dtype) -> str:
    """`float32` or `float64`, from its name or torch's object; OptionError for another."""
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float64"):
        raise OptionError(f"dtype {name!r} isn't float32 or float64")
    return name


def one_device(**arguments: Tensor) -> torch.device:
    """The device that all of these are on; OptionError with their names and devices otherwise."""
    places = {name: str(value.device) for name, value in arguments.items()}
    if len(set(places.values())) > 1:
        listed = ", ".join(f"{name} on {place}" for name, place in places.items())
        raise OptionError(
            f"arguments are on several devices ({listed}): move them to one, as with .to({next(iter(places.values()))!r})"
        )
    return next(iter(arguments.values())).device
