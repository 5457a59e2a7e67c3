"""What a study is to do: its options, and the stages that follow from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from surgery.errors import OptionError

# Measured on MiniLM, 64 examples a class, as multiples of tuning on one task: rough, for an estimate beforehand.
_COSTS = {"base": 0.3, "skill": 2.0, "locate": 1.0, "regions": 1.0, "biases": 1.0, "lora": 1.5, "merges": 3.0}


@dataclass(frozen=True)
class Settings:
    """Options of a study. Raises OptionError for a value out of its range.

    Attributes:
        tasks: names, in the order in which they are learnt one after another; two at least.
        shots: training examples of each label.
        seeds: how many seeds: 0, 1 and so on, which draw examples and batches.
        sparsity: the share of the block weights that a skill has.
        steps: steps of tuning on one task; None as `Recipe` picks them.
        test: test examples of a task at most, the same for every model and seed.
        held: training examples left out of training at most, on which scales, rules and temperatures are chosen.
    """

    tasks: tuple[str, ...]
    shots: int = 64
    seeds: int = 1
    sparsity: float = 1e-4
    steps: int | None = None
    test: int = 500
    held: int = 200
    max_length: int = 128

    def __post_init__(self) -> None:
        if len(self.tasks) < 2:
            raise OptionError(f"`tasks` {', '.join(self.tasks) or 'none'}: a study takes two or more")
        if again := next((name for name in self.tasks if self.tasks.count(name) > 1), None):
            raise OptionError(f"`tasks` has {again} twice: name each task once")
        least = {"shots": self.shots, "seeds": self.seeds, "test": self.test, "held": self.held}
        for name, value in (least | ({} if self.steps is None else {"steps": self.steps})).items():
            if value < 1:
                raise OptionError(f"`{name}` must be 1 or more, not {value}")
        if not 0 < self.sparsity <= 1:
            raise OptionError(f"`sparsity` {self.sparsity:g} must lie above 0 and be at most 1")


class Stage(NamedTuple):
    """A piece of work that is done as a whole: its kind, its seed, and the task (and its place in the row) it is about."""

    kind: str
    seed: int
    task: str = ""
    place: int = 0

    @property
    def name(self) -> str:
        """What its file is called."""
        return "-".join(part for part in (f"seed{self.seed}", self.kind, self.task) if part)


ROWS = ("plain", "fresh", "disjoint")  # ways to learn one task after another


def stages(settings: Settings, groups: Sequence[Sequence[str]]) -> list[Stage]:
    """All stages in the order of work; `groups` are the tasks with the same labels, which transfer is measured between."""
    tasks, made = settings.tasks, []
    for seed in range(settings.seeds):
        made += [Stage("base", seed), *(Stage("skill", seed, task) for task in tasks)]
        made += [Stage("merges", seed), Stage("multi", seed), *(Stage("locate", seed, task) for task in tasks)]
        made.append(Stage("regions", seed))
        for kind in ROWS:
            made += [Stage(kind, seed, task, place) for place, task in enumerate(tasks) if place]
        for kind in ("biases", "lora"):
            made += [Stage(kind, seed, task) for group in groups if len(group) > 1 for task in group]
    return made


def alike(labels: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Tasks by name in groups of the same labels."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, own in labels.items():
        groups.setdefault(tuple(own), []).append(name)
    return list(groups.values())


def cost(stage: Stage, settings: Settings) -> float:
    """How long a stage takes, in tunings on one task, roughly."""
    return float(len(settings.tasks)) if stage.kind == "multi" else _COSTS.get(stage.kind, 1.0)
