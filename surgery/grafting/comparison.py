"""compare(): how far skills of one base touch the same weights, against what chance would give."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from surgery.errors import OptionError, SkillError
from surgery.files import new_folder, replace_json
from surgery.grafting.algebra import Overlap, overlap_by_layer, shared_by_chance
from surgery.grafting.merging import check_comparable
from surgery.grafting.skill import Skill
from surgery.jsonfile import JsonError, load_json
from surgery.provenance import provenance
from surgery.reporting.figures import COLOURS, figure, plain
from surgery.reporting.page import Figure, Page, Part, Table, Text
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result

_FORMAT = "surgery skill comparison 1"
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "ooo")  # which tell the colours apart in grey print
_MOST_BARS = len(_HATCHES)  # pairs that a chart of bars can hold
_LEGEND = {
    "shared": "Weights that both skills touch.",
    "of first": "Their share of the first skill's weights, |A and B| / |A|.",
    "of second": "Their share of the second skill's weights, |A and B| / |B| (Panigrahi et al. 2023, section 5).",
    "chance: all": "Shared weights to expect if both drew theirs at random from all block weights.",
    "chance: moved": "The same among the weights that tuning moved. Reports hold only how many these were, so it is supposed "
    "that the smaller set of moved weights lies within the larger: the most that chance can do. Empty for a skill whose report "
    "doesn't say how many moved, such as a merged one.",
    "chance: tensors": "The same if each skill had as many weights in every tensor as it has, placed at random there: overlap "
    "above it isn't explained by both skills choosing the same tensors.",
    "same direction": "Share of the shared weights that both skills move in the same direction; a coin gives .5.",
    "alignment": "Cosine of the two skills' moves (tuned - base) on the shared weights: 1 is the same move, 0 is unrelated.",
}


@dataclass(frozen=True)
class ComparedSkill:
    """One of the skills: its tasks, its weights, how many were asked for, and how many tuning moved (where reports say)."""

    name: str
    tasks: tuple[str, ...]
    weights: int
    asked: int | None = None
    moved: int | None = None


@dataclass(frozen=True)
class Pair:
    """Two skills' overlap, over all tensors and by layer; `among_moved` is the larger count of moved weights, if known."""

    first: str
    second: str
    overlap: Overlap
    layers: Mapping[int, Overlap]
    movable: int
    among_moved: int | None = None

    @property
    def chance_all(self) -> float:
        """Shared weights by chance among all block weights."""
        return shared_by_chance(self.overlap.first, self.overlap.second, self.movable)

    @property
    def chance_moved(self) -> float | None:
        """Shared weights by chance among the weights that moved (see `shared_by_chance`); None where reports don't say."""
        return shared_by_chance(self.overlap.first, self.overlap.second, self.among_moved) if self.among_moved else None

    @property
    def of_smaller(self) -> float:
        """Shared weights as a share of the smaller skill's."""
        return max(self.overlap.of_first, self.overlap.of_second)


_SHORT = ("shared", "of first", "of second", "chance: moved", "same direction", "alignment")


class _Content(TypedDict):
    """What `report.json` holds."""

    format: str
    provenance: dict[str, Any]
    skills: list[ComparedSkill]
    pairs: list[Pair]


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """What `compare` finds: the skills, in the order they were given, and every pair of them.

    `provenance` says where it comes from: versions, call, fingerprints.
    """

    skills: tuple[ComparedSkill, ...]
    pairs: tuple[Pair, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> list[str]:
        """How many weights the closest pair shares against chance, whether it moves them alike, and which skills are short."""
        ranked = sorted(self.pairs, key=lambda pair: pair.of_smaller)
        top, least = ranked[-1], ranked[0]
        overlap = top.overlap
        lines = [
            f"{_and(top)} share {number_of(overlap.shared, 'weight')}: {100 * overlap.of_first:.1f}% of {top.first}'s {overlap.first:,} and "
            f"{100 * overlap.of_second:.1f}% of {top.second}'s {overlap.second:,}; {_chance(top)}."
        ]
        if overlap.sign_agreement is not None:
            cosine = "" if overlap.alignment is None else f", and the cosine of their moves is {overlap.alignment:.2f}"
            lines[0] += (
                f" Of the shared weights, {100 * overlap.sign_agreement:.0f}% are moved in the same direction{cosine}."
            )
        if len(self.pairs) > 1:
            lines.append(
                f"That is the most of {len(self.pairs)} pairs; the least is shared by {_and(least)}: {number_of(least.overlap.shared, 'weight')}."
            )
        if short := [
            f"{s.name} ({s.weights:,} of {s.asked:,})" for s in self.skills if s.asked and s.weights < s.asked
        ]:
            lines.append(f"Fewer weights than were asked for, since no more moved in tuning: {', '.join(short)}.")
        return lines

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """One row a pair; the columns are explained on the page."""
        rows = []
        for pair in self.pairs:
            overlap = pair.overlap
            chances = [pair.chance_all, pair.chance_moved, overlap.by_tensor]
            shares = [overlap.shared, overlap.of_first, overlap.of_second]
            rows.append([pair.first, pair.second, *shares, *chances, overlap.sign_agreement, overlap.alignment])
        return ["first", "second", *_LEGEND], rows

    def short_table(self) -> tuple[list[str], list[list[Any]]]:
        """The columns that a terminal has room for."""
        columns, rows = self.table()
        kept = [columns.index(name) for name in _SHORT]
        return ["skills", *_SHORT], [[f"{row[0]}, {row[1]}", *(row[number] for number in kept)] for row in rows]

    def matrix(self) -> np.ndarray:
        """[skills, skills]: the share of the row's weights that the column touches too; 1 on the diagonal."""
        place = {skill.name: number for number, skill in enumerate(self.skills)}
        shares = np.eye(len(place))
        for pair in self.pairs:
            one, two = place[pair.first], place[pair.second]
            shares[one, two], shares[two, one] = pair.overlap.of_first, pair.overlap.of_second
        return shares

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json`, two figures and the page."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            parts = {"skills": list(map(asdict, self.skills)), "pairs": list(map(asdict, self.pairs))}
            replace_json(staged / "report.json", {"format": _FORMAT, "provenance": dict(self.provenance), **parts})
            _draw_matrix(self, staged / "overlap.png")
            drawn = _draw_layers(self, staged / "layers.png")
            self.page(drawn).write(staged)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Comparison":
        """Read what `save` wrote; raises SkillError for anything else."""
        file = Path(folder) / "report.json"
        try:
            content = load_json(file, _Content)
        except (OSError, JsonError) as error:
            raise SkillError(f"{file} is no comparison of skills ({error}): make it again") from None
        names = [skill.name for skill in content["skills"]]
        pairs = [(pair.first, pair.second) for pair in content["pairs"]]
        if content["format"] != _FORMAT or not pairs or pairs != list(combinations(names, 2)):
            raise SkillError(f"{file} is no comparison of skills, or one with pairs missing: make it again")
        return cls(tuple(content["skills"]), tuple(content["pairs"]), content["provenance"])

    def page(self, drawn: int = _MOST_BARS) -> Page:
        """The report for people; `drawn` pairs are in the chart of layers."""
        columns, rows = self.table()
        some = "" if drawn == len(self.pairs) else f" The {drawn} pairs that share most are shown."
        layers = [
            [pair.first, pair.second, layer, overlap.first, overlap.second, overlap.shared, overlap.by_tensor]
            for pair in self.pairs
            for layer, overlap in pair.layers.items()
        ]
        sizes = [[s.name, ", ".join(s.tasks), s.weights, s.asked, s.moved] for s in self.skills]
        parts: list[Part] = [
            Figure(
                "overlap.png",
                "The share of the row's weights that the column's skill touches too. The diagonal has the skills' weights.",
                "Heat map of the overlaps of all pairs of skills",
            ),
            Table("Every pair of skills.", columns, rows, _LEGEND),
            Figure(
                "layers.png",
                "Shared weights in each layer as a share of the smaller skill's there; the black line is what chance gives "
                f"within the same tensors.{some}",
                "Bars of the overlap in each layer",
            ),
            Table(
                "The skills.",
                ["skill", "tasks", "weights", "asked for", "moved in tuning"],
                sizes,
                {
                    "moved in tuning": "How many block weights differ between base and tuned; empty where no report says."
                },
            ),
            Table(
                "Every pair by layer.",
                ["first", "second", "layer", "weights of first", "weights of second", "shared", "chance: tensors"],
                layers,
                {"chance: tensors": _LEGEND["chance: tensors"]},
                folded=True,
            ),
            Text(
                "A skill's weights are few of those that moved, and all methods prefer weights that moved far, so overlap "
                "above chance among all block weights says little by itself."
            ),
        ]
        return Page("Overlap of " + ", ".join(skill.name for skill in self.skills), self.summary, parts)


def compare(skills: Mapping[str, Skill]) -> Comparison:
    """Compare skills of one base, each with each: shared weights both ways and by layer, direction, and chance.

    Args:
        skills: two or more, by what to call them.

    Raises:
        SkillError: skills of different bases, tasks of one name with other labels.
        OptionError: fewer than two skills, or the same one twice.
    """
    if len(skills) < 2:
        raise OptionError("one skill is given: name two or more to compare")
    check_comparable(skills)
    compared = tuple(
        ComparedSkill(
            name,
            tuple(task.name for task in skill.tasks),
            skill.delta.weights,
            skill.report.get("call", {}).get("graft", {}).get("weights"),
            skill.report.get("moved"),
        )
        for name, skill in skills.items()
    )
    pairs = []
    for first, second in combinations(compared, 2):
        one, two = skills[first.name].delta, skills[second.name].delta
        layers = overlap_by_layer(one, two)
        moved = max(first.moved, second.moved) if first.moved and second.moved else None
        total = sum(layers.values(), Overlap())
        pairs.append(Pair(first.name, second.name, total, layers, max(one.movable, two.movable), moved))
    inputs = {name: skill.layer.id for name, skill in skills.items()}
    return Comparison(compared, tuple(pairs), provenance(call={"compare": {"skills": list(skills)}}, inputs=inputs))


def _and(pair: Pair) -> str:
    return f"{pair.first} and {pair.second}"


def _chance(pair: Pair) -> str:
    among = "" if pair.chance_moved is None else f"at most {pair.chance_moved:,.1f} among the weights that moved, "
    return (
        f"by chance it would be {among}{pair.overlap.by_tensor:,.1f} within the same tensors, "
        f"{pair.chance_all:,.2g} among all block weights"
    )


# -- figures ---------------------------------------------------------------------------------------------------------


def _draw_matrix(comparison: Comparison, file: Path) -> None:
    names, shares = [_label(skill.name) for skill in comparison.skills], comparison.matrix()
    off = ~np.eye(len(names), dtype=bool)
    top = max(float(shares[off].max()), 1e-9)
    side = 0.85 * len(names)
    widest = 0.085 * max(map(len, names))
    with figure(file, 2.2 + side + widest, 1.2 + side + widest * 0.7) as axes:
        axes.grid(False)
        shown = axes.imshow(np.where(off, shares, np.nan), cmap="Blues", vmin=0, vmax=top)
        axes.set_facecolor("#eeeeee")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="is touched by", ylabel="share of the weights of")
        for row, column in np.ndindex(shares.shape):
            own = row == column
            text = f"{comparison.skills[row].weights:,}" if own else f"{100 * shares[row, column]:.1f}%"
            light = not own and shares[row, column] > 0.6 * top
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if light else "black")
        axes.figure.colorbar(shown, ax=axes, format=lambda share, _: f"{100 * share:.3g}%")


def _label(name: str) -> str:
    """A name that leaves room for the figure."""
    return plain(name if len(name) <= 40 else f"{name[:39]}…")


def _draw_layers(comparison: Comparison, file: Path) -> int:
    """Bars of the pairs that share most; returns how many pairs these are."""
    pairs = sorted(comparison.pairs, key=lambda pair: -pair.of_smaller)[:_MOST_BARS]
    layers = sorted({layer for pair in pairs for layer in pair.layers})
    width = 0.8 / len(pairs)
    labels = [f"{_label(pair.first)} and {_label(pair.second)}" for pair in pairs]
    columns = 2 if max(map(len, labels)) < 36 else 1
    height = 3.2 + 0.25 * -(-len(pairs) // columns)
    with figure(file, min(12, max(6.4, 3 + 0.3 * len(layers) * len(pairs))), height) as axes:
        for number, pair in enumerate(pairs):
            overlaps = [pair.layers.get(layer, Overlap()) for layer in layers]
            smaller = [max(1, min(each.first, each.second)) for each in overlaps]
            places = np.arange(len(layers)) + (number - (len(pairs) - 1) / 2) * width
            shares = [each.shared / size for each, size in zip(overlaps, smaller, strict=True)]
            chance = [each.by_tensor / size for each, size in zip(overlaps, smaller, strict=True)]
            colour = COLOURS[number % len(COLOURS)]
            look = {"color": colour, "hatch": _HATCHES[number], "edgecolor": "white", "linewidth": 0}
            axes.bar(places, shares, 0.9 * width, label=labels[number], **look)
            axes.hlines(chance, places - 0.45 * width, places + 0.45 * width, color="black", linewidth=1.2)
        axes.set_xticks(range(len(layers)), layers)
        axes.set(xlabel="layer", ylabel="shared, of the smaller skill's weights")
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}%")
        axes.grid(False, axis="x")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns)
    return len(pairs)
