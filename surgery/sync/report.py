"""Report of a run of rounds: how many, what they sent, H over time, loss against bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from surgery.errors import OptionError
from surgery.files import new_folder, replace_json
from surgery.jsonfile import JsonError, load_named
from surgery.reporting.page import Figure, Page, Part, Table
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.sync.schedule import Schedule

FORMAT = "surgery sync report 1"


class Round(NamedTuple):
    """A round that ended.

    Attributes:
        step: steps made by then. `sent`: bytes that this worker gave to the collective. `loss`: mean over workers of the
            round's last step, where it was told. `workers`: how many took part.
    """

    step: int
    sent: int
    loss: float | None
    workers: int


@dataclass(frozen=True)
class SyncReport(Result):
    """What averaging took.

    Attributes:
        weights: numbers that were averaged. `workers`: at the start. `lost`: numbers of those that were left out.
        seconds: `all` of the run, and of it `averaging`.
    """

    schedule: Schedule
    rounds: tuple[Round, ...]
    weights: int
    workers: int
    lost: tuple[int, ...]
    seconds: Mapping[str, float]

    @property
    def lengths(self) -> list[int]:
        """Steps of each round."""
        ends = [each.step for each in self.rounds]
        return [end - begin for begin, end in pairwise([0, *ends])]

    @property
    def sent(self) -> int:
        """Bytes that a worker gave to the collective."""
        return sum(each.sent for each in self.rounds)

    @property
    def summary(self) -> list[str]:
        """Rounds, bytes, and who was lost."""
        steps = self.rounds[-1].step if self.rounds else 0
        share = f", {len(self.rounds) / steps:.3f} of data parallel" if steps else ""
        found = [
            f"{number_of(len(self.rounds), 'round')} of {number_of(self.workers, 'worker')} in {number_of(steps, 'step')}{share}; {self.sent:,} bytes a worker."
        ]
        if self.lost:
            found.append(
                f"{number_of(len(self.lost), 'worker')} of them died or stopped on the way, and the others went on."
            )
        return found

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Each round: its last step, its length, bytes so far, the loss and the number of workers."""
        rows: list[list[Any]] = []
        sent = 0
        for number, (each, length) in enumerate(zip(self.rounds, self.lengths, strict=True)):
            sent += each.sent
            rows.append([number + 1, each.step, length, sent, each.loss, each.workers])
        return ["round", "step", "H", "bytes", "loss", "workers"], rows

    def curve(self) -> list[tuple[float, float]]:
        """Bytes so far and loss, of the rounds whose loss was told."""
        return [(float(row[3]), row[4]) for row in self.table()[1] if row[4] is not None]

    def content(self) -> dict[str, Any]:
        """All of it as JSON."""
        found: dict[str, Any] = {
            "format": FORMAT,
            "schedule": asdict(self.schedule),
            "rounds": [list(each) for each in self.rounds],
        }
        found |= {"weights": self.weights, "workers": self.workers, "lost": list(self.lost), "bytes": self.sent}
        return {**found, "seconds": dict(self.seconds)}

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write a folder: `report.json`, and the page `index.html` and `README.md` with figures."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_json(staged / "report.json", self.content())
            Page(f"Averaged by {self.schedule.kind}", self.summary, self._parts(staged)).write(staged)
        return Path(folder)

    def _parts(self, folder: Path) -> Sequence[Part]:
        from surgery.sync.plots import draw_lengths, draw_loss

        parts: list[Part] = []
        if self.rounds:
            draw_lengths(self.lengths, folder / "h.png")
            parts.append(
                Figure("h.png", "Steps of each round, from its first step on.", "Length of rounds over training")
            )
        if curve := self.curve():
            draw_loss({self.schedule.kind: curve}, folder / "loss.png")
            parts.append(Figure("loss.png", "Training loss against bytes that a worker gave.", "Loss against bytes"))
        return [*parts, Table("Rounds.", *self.table())]

    @classmethod
    def load(cls, folder: str | Path) -> "SyncReport":
        """Read what `save` wrote; raises OptionError, naming the file, for anything else."""
        path = Path(folder).expanduser() / "report.json"
        try:
            content = load_named(path, FORMAT, _Content)
            return cls.of(content)
        except (OSError, JsonError, TypeError, KeyError, OptionError) as error:
            raise OptionError(f"{path} can't be read as a report of averaging ({error}): name another folder") from None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "SyncReport":
        """Read `content`'s JSON."""
        rounds = tuple(Round(*each) for each in content["rounds"])
        schedule = Schedule.of(content["schedule"])
        return cls(schedule, rounds, content["weights"], content["workers"], tuple(content["lost"]), content["seconds"])


class _Content(TypedDict):
    """What `SyncReport` reads of its report."""

    schedule: dict[str, Any]
    rounds: list[tuple[int, int, float | None, int]]
    weights: int
    workers: int
    lost: list[int]
    seconds: dict[str, float]
