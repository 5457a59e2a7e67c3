"""Devices: picking the one that work runs on, products in full float32 on a GPU, and a sentence when its memory is too small."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch

from surgery.errors import OptionError, first_line
from surgery.memory import free_memory, size


def pick_device(name: str | torch.device | None) -> torch.device:
    """Pick a device that computes, as `working_device` does; raises OptionError for `meta` too."""
    device = working_device(name)
    if device.type == "meta":
        raise OptionError("`device` meta computes nothing: try cpu")
    return device


def working_device(name: str | torch.device | None) -> torch.device:
    """Pick a device by its name, by default CUDA if there is one, else the CPU; raises OptionError for one that isn't here."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"`device` {name} can't be used here ({first_line(error)}): try cpu") from None


def off_cpu(device: torch.device | None) -> TypeGuard[torch.device]:
    """Return whether this is another device than the CPU; None stands for the CPU."""
    return device is not None and device.type != "cpu"


@contextmanager
def full_float32() -> Iterator[None]:
    """Products and convolutions of float32 numbers on a GPU in float32, and the same bits each time.

    By default torch rounds what goes into a GPU's convolutions to TF32, which keeps three digits, and takes whichever of
    several algorithms it finds first. What was set before is set again afterwards.
    """
    with _no_warnings():
        undo = _compute_exactly()
    try:
        yield
    finally:
        with _no_warnings():
            for back in undo:
                back()


def _compute_exactly() -> list[Callable[[], None]]:
    """Set all that matters; returns what sets it back."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    undo = [_put(cudnn, "deterministic", True), _put(cudnn, "benchmark", False)]
    # torch 2.9 has newer names, and refuses to read the older ones where those were used; the older ones set both.
    try:
        undo.append(_put(cudnn, "allow_tf32", False))
    except RuntimeError:
        undo.append(_put(cudnn.conv, "fp32_precision", "ieee"))
    try:
        allowed = torch.get_float32_matmul_precision()
    except RuntimeError:
        return [*undo, _put(matmul, "fp32_precision", "ieee")]
    if allowed != "highest":
        torch.set_float32_matmul_precision("highest")
        undo.append(lambda: torch.set_float32_matmul_precision(allowed))
    return undo


def _put(owner: Any, name: str, value: Any) -> Callable[[], None]:
    kept = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, kept)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """torch from 2.9 on warns of the older names, which are all that earlier ones have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def memory_for(device: torch.device, needed: int, what: str, lower: str) -> Iterator[None]:
    """Run work that needs so many bytes of a GPU's memory at once, about; anything goes on a CPU.

    Args:
        needed: 0 where it can't be told before.
        what: what needs them. `lower`: what to do about it.

    Raises:
        OptionError: fewer bytes are free, or memory runs out all the same; it names both numbers.
    """
    if device.type != "cuda":
        yield
        return
    free = free_memory(device)
    if needed > free:
        raise OptionError(f"{what} needs {size(needed)} on {device}, which has {size(free)} free: {lower}")
    try:
        yield
    except torch.OutOfMemoryError as error:
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        sizes = [size(needed)] * (needed > 0) + [f"{asked[1]} more" if asked else "more"]
        raise OptionError(
            f"{what} needs {' and then '.join(sizes)} on {device}, which had {size(free)} free: {lower}"
        ) from None
