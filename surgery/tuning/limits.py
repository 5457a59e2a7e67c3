"""Which of a checkpoint's weights tuning may move."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from surgery.checkpoints.checkpoint import Checkpoint
from surgery.checkpoints.delta import SparseDelta
from surgery.checkpoints.models import Model
from surgery.checkpoints.region import HasDelta, Region
from surgery.errors import OptionError
from surgery.tuning.moving import Moving, moving
from surgery.tuning.recipe import Recipe

OneRegion = str | Path | Region | SparseDelta | HasDelta
Regions = OneRegion | Sequence[OneRegion]


@dataclass(frozen=True)
class Limits:
    """The tensors that may move, and of these a region's weights alone or all but a region's.

    Attributes:
        names: the tensors that hold weights which may move.
        movable: how many weights that are.
        trained: how many numbers the optimiser is given: `movable`, and those that are kept.
        call: `only` and `outside` as the caller named them, for the report; empty without.
    """

    names: tuple[str, ...]
    movable: int
    trained: int
    only: Region | None
    outside: Region | None
    call: dict[str, Any]

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        only: Regions | None = None,
        outside: Regions | None = None,
    ) -> "Limits":
        """Raises OptionError for `only` beside another limit, or where nothing is left; SkillError as `Region` does."""
        alone, kept = (_together(given, checkpoint) for given in (only, outside))
        call = {name: _told(given) for name, given in (("only", only), ("outside", outside)) if given is not None}
        if alone is not None:
            if other := next((name for name, given in _others(include, exclude, outside).items() if given), None):
                raise OptionError(f"give `only` or `{other}`, not both")
            return cls(tuple(sorted(alone.indices)), alone.weights, alone.weights, alone, None, call)
        names = checkpoint.block_weights(include, exclude)
        trained = sum(checkpoint.entries[name].size for name in names)
        held = sum(len(index) for name, index in kept.indices.items() if name in names) if kept else 0
        if held == trained:
            raise OptionError("`outside` names all weights that may move: nothing is left to train")
        return cls(names, trained - held, trained, None, kept, call)

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe; without a pull for a region's weights alone, unless it gives one."""
        return replace(recipe, l1=0.0) if self.only and recipe.l1 is None else recipe

    def moving(self, model: Model) -> Moving:
        """What the optimiser is given."""
        return moving(model, self.names, self.only, self.outside)

    @property
    def digests(self) -> dict[str, str]:
        """The regions, for what identifies a run; empty without."""
        given = {"only": self.only, "outside": self.outside}
        return {name: region.digest for name, region in given.items() if region}


def _others(include: Sequence[str], exclude: Sequence[str], outside: object) -> dict[str, object]:
    return {"include": include, "exclude": exclude, "outside": outside is not None}


def _together(given: Regions | None, checkpoint: Checkpoint) -> Region | None:
    if given is None:
        return None
    listed = [given] if isinstance(given, str | Path | Region | SparseDelta | HasDelta) else list(given)
    if not listed:
        raise OptionError("`only` or `outside` is an empty list: name a skill")
    region = Region.union(map(Region.of, listed)) if len(listed) > 1 else Region.of(listed[0])
    region.check_fits(checkpoint)
    return region


def _told(given: Regions) -> Any:
    if isinstance(given, Sequence) and not isinstance(given, str):
        return [_told(one) for one in given]
    return str(given) if isinstance(given, str | Path) else f"{Region.of(given).weights} weights"
