"""Products: what a graft can be made of, what each is called, and the file that one survives in while others are still made."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.low_rank import Factors
from surgery.errors import OptionError, first_line
from surgery.files import replace_bytes
from surgery.grafting.candidates import Candidates
from surgery.jsonfile import parse_json
from surgery.resuming import damaged

VALUES = ("tuned", "rescaled", "refitted")
LOW_RANK = "low-rank"
# What each is, for report, page and screen; the plain graft needs no word.
WHAT = {
    "rescaled": (
        "Rescaled: it doesn't hold tuned values. Its weights were drawn at random and moved further than tuning moved them, to "
        "stand in for all that moved. It says nothing of where the skill is."
    ),
    "refitted": (
        "Refitted: it doesn't hold tuned values. Its weights were drawn at random, and their values fitted to the tuned "
        "checkpoint's predictions on training examples. It says nothing of where the skill is."
    ),
    LOW_RANK: (
        "Low rank: it holds components of each matrix's change and moves every weight of those matrices, so it is no "
        "localisation, and the base's own values aren't in it: to take it out again, give the base."
    ),
}


def check_product(values: str, low_rank: bool, method: str, baselines: bool) -> None:
    """Raise OptionError for values that there aren't, and for what doesn't go together."""
    if values not in VALUES:
        raise OptionError(f"`values` {values} isn't one of {', '.join(VALUES)}")
    if low_rank and values != "tuned":
        raise OptionError(f"`low_rank` takes components as they are: leave out `values` {values}")
    if (low_rank or values != "tuned") and method != "dual-averaging":
        raise OptionError(
            f"`method` {method} locates tuned values: leave it out with `{'low_rank' if low_rank else 'values'}`"
        )
    if low_rank and baselines:
        raise OptionError("`baselines` are sets of weights: leave them out with `low_rank`")


@dataclass(frozen=True, eq=False)
class Product:
    """What a graft is made of: weights with their values, or factors.

    Attributes:
        seconds: what it took to make; `steps`: the same in tuning steps of 16 examples.
    """

    support: Candidates | None
    factors: Mapping[str, Factors] | None
    seconds: float = 0.0
    steps: int = 0

    def __len__(self) -> int:
        """How many numbers it holds besides where they go."""
        if self.support is not None:
            return len(self.support)
        return sum(factors.numbers for factors in (self.factors or {}).values())


def kept_product(
    file: Path | None, base: Checkpoint, find: Callable[[], Product], agree: Callable[[bool], bool] = bool
) -> Product:
    """Read the product that is in a file, or make it by `find` and keep it there.

    `agree`: whether all processes that make it find the file.
    """
    if file is not None and agree(file.exists()):
        return _read(file, base)
    began = time.monotonic()
    made = replace(find(), seconds=round(time.monotonic() - began, 2))
    if file is not None:
        replace_bytes(file, _content(made))
    return made


def _content(made: Product) -> bytes:
    header: dict[str, Any] = {"seconds": made.seconds, "steps": made.steps}
    if made.factors is not None:
        header["names"] = list(made.factors)
        arrays = {
            f"{side}/{name}": getattr(own, side) for name, own in made.factors.items() for side in ("left", "right")
        }
    else:
        assert made.support is not None
        support = made.support
        header |= {"names": support.names, "bounds": support.bounds, "movable": support.movable, "moved": support.moved}
        arrays = {"indices": support.indices, "values": support.tuned}
    held = {name: array.detach().cpu().contiguous() for name, array in arrays.items()}
    return save(held, metadata={"about": json.dumps(header)})


def _read(file: Path, base: Checkpoint) -> Product:
    try:
        with safe_open(file, "pt") as opened:
            about = parse_json(opened.metadata()["about"], dict[str, Any])
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        seconds, steps = float(about["seconds"]), int(about["steps"])
        if "bounds" not in about:
            factors = {name: Factors(arrays[f"left/{name}"], arrays[f"right/{name}"]) for name in about["names"]}
            for name, own in factors.items():
                if (own.left @ own.right).numel() != base.entries[name].size:
                    raise ValueError(f"factors of another tensor than {name}")
            return Product(None, factors, seconds, steps)
        return Product(_support(about, arrays, base), None, seconds, steps)
    except (
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
        RuntimeError,
        IndexError,
        AttributeError,
    ) as error:
        raise damaged(file, first_line(error)) from None


def _support(about: Mapping[str, Any], arrays: Mapping[str, torch.Tensor], base: Checkpoint) -> Candidates:
    names, bounds, indices, values = about["names"], about["bounds"], arrays["indices"], arrays["values"]
    if indices.dtype != torch.int64 or not indices.shape == values.shape == (bounds[-1],) or not bounds[-1]:
        raise ValueError("it holds no weights of these checkpoints")
    before = []
    for name, (start, stop) in zip(names, pairwise(bounds), strict=True):
        own = indices[start:stop]
        if len(own) and (int(own[0]) < 0 or int(own[-1]) >= base.entries[name].size or bool((own.diff() <= 0).any())):
            raise ValueError("it holds no weights of these checkpoints")
        before.append(base.tensor(name).reshape(-1)[own].to(values.dtype))
    held = torch.cat(before)
    return Candidates(tuple(names), tuple(bounds), indices, held, values, int(about["movable"]), int(about["moved"]))
