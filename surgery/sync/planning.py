"""Plan: how often a schedule averages over a training, what that sends, and how long workers go apart. Nothing is run."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from surgery.errors import OptionError
from surgery.files import new_folder, replace_json
from surgery.jsonfile import JsonError, load_named
from surgery.reporting.page import Figure, Page, Table
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.sync.schedule import Schedule, fitted, lengths

FORMAT = "surgery sync plan 1"
BYTES = 4  # of a weight as it is averaged; 16-bit weights are averaged in float32
DECAYS = ("cosine", "linear", "constant")
_LEGEND = {
    "rounds": "averagings in the whole training, the last one included",
    "of data parallel": "share of the rounds of data parallel, which averages gradients at every step",
    "of constant H": "share of the rounds with the same H base throughout",
    "bytes": "what each worker gives to the collective; a ring sends about twice as many over each link",
    "longest round": "steps that workers go without each other, at most",
}


@dataclass(frozen=True)
class Plan(Result):
    """Rounds of a training under a schedule.

    Attributes:
        lengths: steps of each round, in order.
        weights: numbers that are averaged; None where that isn't known.
    """

    schedule: Schedule
    lengths: tuple[int, ...]
    weights: int | None = None

    @property
    def steps(self) -> int:
        """Steps of the training."""
        return sum(self.lengths)

    @property
    def rounds(self) -> int:
        """Number of averagings."""
        return len(self.lengths)

    @property
    def share(self) -> float:
        """Rounds as a share of the steps: of what data parallel sends."""
        return self.rounds / self.steps

    @property
    def share_of_constant(self) -> float:
        """Rounds as a share of those with H base throughout."""
        return self.rounds / math.ceil(self.steps / self.schedule.h_base)

    @property
    def bytes(self) -> int | None:
        """Bytes that each worker gives to the collective."""
        return None if self.weights is None else self.rounds * self.weights * BYTES

    @property
    def summary(self) -> list[str]:
        """Rounds, beside constant H and data parallel, and the longest."""
        base = self.schedule.h_base
        return [
            f"{number_of(self.rounds, 'round')} in {number_of(self.steps, 'step')}: {self.share:.3f} of data parallel, {self.share_of_constant:.3f} of constant H = {base}.",
            f"The longest round has {number_of(max(self.lengths), 'step')}, the last {number_of(self.lengths[-1], 'step')}.",
        ]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Rounds, shares, bytes and the longest round: of this schedule, of constant H and of data parallel."""
        rows: list[list[Any]] = []
        base = self.schedule.h_base
        constant = math.ceil(self.steps / base)
        for name, rounds, longest in (
            (self.schedule.kind, self.rounds, max(self.lengths)),
            (f"constant H = {base}", constant, min(base, self.steps)),
            ("data parallel", self.steps, 1),
        ):
            sent = None if self.weights is None else rounds * self.weights * BYTES
            rows.append([name, rounds, rounds / self.steps, rounds / constant, sent, longest])
        return ["schedule", "rounds", "of data parallel", "of constant H", "bytes", "longest round"], rows

    def content(self) -> dict[str, Any]:
        """All of it as JSON."""
        figures = {"rounds": self.rounds, "steps": self.steps, "share": self.share, "bytes": self.bytes}
        figures |= {"share_of_constant": self.share_of_constant, "longest": max(self.lengths)}
        return {
            "format": FORMAT,
            **figures,
            "schedule": asdict(self.schedule),
            "lengths": list(self.lengths),
            "weights": self.weights,
        }

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder: `report.json`, the figure `h.png`, and the page `index.html` and `README.md`."""
        from surgery.sync.plots import draw_lengths

        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_json(staged / "report.json", self.content())
            draw_lengths(self.lengths, staged / "h.png")
            shown = Figure("h.png", "Steps of each round, from its first step on.", "Length of rounds over training")
            table = Table("Against constant H and data parallel.", *self.table(), _LEGEND, folded=False)
            Page(f"When to average: {self.schedule.kind}", self.summary, [table, shown]).write(staged)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Plan":
        """Read what `save` wrote; raises OptionError, naming the file, for anything else."""
        path = Path(folder).expanduser() / "report.json"
        try:
            content = load_named(path, FORMAT, _Content)
            if not content["lengths"] or min(content["lengths"]) < 1:
                raise JsonError("its rounds have no steps")
            return cls(Schedule.of(content["schedule"]), tuple(content["lengths"]), content["weights"])
        except (OSError, JsonError, TypeError, KeyError, OptionError) as error:
            raise OptionError(
                f"{path} can't be read as a plan ({error}): name a folder that `surgery sync plan` wrote"
            ) from None


class _Content(TypedDict):
    """What `Plan` reads of its report."""

    schedule: dict[str, Any]
    lengths: list[int]
    weights: int | None


def plan(
    rates: Sequence[float] | Sequence[Sequence[float]],
    schedule: Schedule | None = None,
    *,
    budget: float | None = None,
    weights: int | None = None,
    drive: int | None = None,
    **options: Any,
) -> Plan:
    """Plan the rounds of a training from its learning rates.

    Args:
        rates: of every step; or, for each step, those of several parameter groups.
        schedule: when to average; by default `options` give the fields of a `Schedule`.
        budget: instead of alpha, or of a constant H: the most rounds, as a share of data parallel's.
        weights: numbers that are averaged, to count bytes by; on a budget they don't matter.
        drive: the parameter group whose rate drives H; by default whichever is largest at a step.

    Raises:
        OptionError: values out of their range, rates that rise again, a budget that no alpha meets.
    """
    driving = [driving_rate(rate, drive) if isinstance(rate, Sequence) else float(rate) for rate in rates]
    if schedule is None:
        if budget is not None and options.get("kind", "qsr") in ("qsr", "cubic"):
            options.setdefault("alpha", 1.0)  # looked for below
        if options.get("kind") == "post-local":
            options.setdefault("switch", len(driving) // 2)
        schedule = Schedule(**options)
    if budget is not None:
        schedule = fitted(schedule, driving, budget)
    found = lengths(schedule, driving)
    return Plan(replace(schedule, steps=len(driving)), tuple(found), weights)


def driving_rate(rates: Sequence[float], drive: int | None = None) -> float:
    """The rate that drives H among those of several parameter groups: the largest, or that of group `drive`."""
    if drive is None:
        return float(max(rates))
    if not 0 <= drive < len(rates):
        raise OptionError(f"`drive` {drive} is no parameter group: there are {len(rates)}, counted from 0")
    return float(rates[drive])


def warmed_up(
    steps: int, rate: float, *, warmup: int = 0, end_rate: float = 1e-6, decay: str = "cosine"
) -> list[float]:
    """Rates of a linear warm-up from 0 to `rate` and a decay to `end_rate`: cosine, linear or constant; one a step.

    Raises OptionError for values out of their range.
    """
    if decay not in DECAYS:
        raise OptionError(f"`decay` {decay} isn't one of {', '.join(DECAYS)}")
    if steps < 1:
        raise OptionError(f"`steps` must be 1 or more, not {steps}")
    if not 0 < rate < math.inf:
        raise OptionError(f"`rate` must be above 0, not {rate}: at a rate of 0 nothing is trained")
    if not 0 <= warmup < steps:
        raise OptionError(f"`warmup` {warmup} must be 0 or more, and fewer than the {steps:,} `steps`")
    if not 0 <= end_rate <= rate:
        raise OptionError(f"`end_rate` {end_rate} must lie between 0 and `rate` {rate:g}: H follows a rate that falls")

    def at(step: int) -> float:
        if step < warmup:
            return rate * step / warmup
        done = (step - warmup) / (steps - warmup)
        left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[decay]
        return end_rate + (rate - end_rate) * left

    return [at(step) for step in range(steps)]
