"""curves(): the theory's bound, what is exactly the worst for independent draws, and tuples of skills; Curves."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import convert

from probes.emergence.figures import draw_curves
from probes.emergence.report import FILE, read_report
from probes.emergence.theory import check_shares, exact_bound, monte_carlo, theorem_bound, tupled
from probes.errors import ProbeError, ProbeOptionError, probe_errors
from surgery.files import new_folder, replace_json
from surgery.reporting.page import Figure, Page, Table, Text
from surgery.reporting.results import Result

FORMAT = "surgery emergence curves 1"
_DRAWN = 1_000_000  # texts of a simulation
_ALPHAS = np.round(np.geomspace(0.02, 0.9, 40), 4).tolist()


@dataclass(frozen=True)
class CurvePoint:
    """Beta for k skills a text, a share theta of failed texts and the worst share alpha of skills (or of tuples of them).

    Attributes:
        theorem: the paper's bound; None where it has no root, as even all texts of a skill wouldn't be too unlikely.
        exact: the most there can be for independent draws. `simulated`: the same from drawn texts; None where none were drawn.
    """

    k: int
    theta: float
    alpha: float
    tuples: int
    theorem: float | None
    exact: float
    simulated: float | None


@dataclass(frozen=True)
class Curves(Result):
    """Bounds for some k, theta and alpha.

    Attributes:
        points: that were asked for, tuples of 1, 2, ... skills each.
        lines: for the figure: single skills by alpha, at the first theta.
    """

    points: tuple[CurvePoint, ...]
    lines: tuple[CurvePoint, ...]

    def find(self, k: int, theta: float, alpha: float, tuples: int = 1) -> CurvePoint:
        """The point of these values; raises KeyError for others."""
        for point in self.points:
            if (point.k, point.theta, point.alpha, point.tuples) == (k, theta, alpha, tuples):
                return point
        raise KeyError((k, theta, alpha, tuples))

    @property
    def summary(self) -> list[str]:
        """How far the worst skills can be from the mean, and where the theorem says nothing."""
        first = self.points[0]
        proved = "no bound by the theorem" if first.theorem is None else f"at most {first.theorem:.3f} by the theorem"
        lines = [
            f"With {first.k} skills a text and a share {first.theta:g} of texts failed, all but a share {first.alpha:g} of skills fail at most {first.exact:.3f} times as often (exact for skills chosen beforehand, many texts and independent draws); {proved}."
        ]
        silent = [p for p in self.points if p.theorem is None]
        if silent:
            which = "; ".join(f"k {p.k}, theta {p.theta:g}, alpha {p.alpha:g}, tuples {p.tuples}" for p in silent[:4])
            more = "; ..." if len(silent) > 4 else ""
            lines.append(f"The theorem's inequality has no root for {which}{more}: there it says nothing.")
        return lines

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row a point."""
        columns = ["k", "theta", "alpha", "skills of a tuple", "theorem", "exact", "simulated"]
        return columns, [
            [p.k, p.theta, p.alpha, p.tuples, "no root" if p.theorem is None else p.theorem, p.exact, p.simulated]
            for p in self.points
        ]

    @probe_errors()
    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json`, `curves.png`, `README.md` and `index.html`; the folder appears whole or not at all."""
        with new_folder(Path(folder), overwrite=overwrite) as staged:
            replace_json(staged / FILE, {"format": FORMAT, **asdict(self)})
            self._page(draw_curves(self.points, self.lines, staged / "curves.png")).write(staged)
        return Path(folder)

    def _page(self, drawn: Figure) -> Page:
        legend = {
            "skills of a tuple": "1: single skills; k' skills: theta becomes k' theta.",
            "theorem": "least beta with H(theta) <= k theta KL(beta alpha || alpha) (Arora & Goyal 2023).",
            "exact": "CVaR of a binomial's upper share theta, over k alpha: for skills chosen beforehand, in the limit of many texts. On few texts skills chosen to fit can exceed it a little.",
            "simulated": f"the same from {_DRAWN:,} drawn texts.",
        }
        caption = "Beta: how many times more than texts all but a share alpha of skills fail at most."
        reading = "Excess loss gives theta at most: mean total variation is at most sqrt(excess / 2), by Pinsker."
        return Page(
            "Curves of emergence",
            self.summary,
            [drawn, Table(caption, *self.table(), legend, folded=False), Text(reading)],
        )

    @classmethod
    def load(cls, folder: str | Path) -> "Curves":
        """Read what `save` wrote; raise ProbeError, naming the file, for anything else."""
        content = read_report(folder, FORMAT)
        try:
            curves = convert(content, cls)
            if not curves.summary:
                raise ValueError("no points")
            return curves
        except (LookupError, ValueError, TypeError, ArithmeticError) as error:
            raise ProbeError(f"{Path(folder) / FILE} is damaged ({error}): write it again") from None


@probe_errors()
def curves(
    k: Sequence[int],
    theta: Sequence[float] = (0.05,),
    alpha: Sequence[float] = (0.2,),
    *,
    tuples: int = 4,
    simulate: bool = True,
    seed: int = 0,
) -> Curves:
    """Work out how much more than texts the worst skills can fail, for every k, theta and alpha.

    Args:
        k: skills that a text draws.
        theta: shares of texts that fail. `alpha`: shares of skills that may be worse than the bound.
        tuples: also tuples of up to so many skills, as far as `tuples` * theta is below 1.
        simulate: also draw texts, to hold the exact value to.

    Raises:
        ProbeOptionError: shares outside (0, 1), no k, or one below 1.
    """
    check_shares(theta=tuple(theta), alpha=tuple(alpha))
    if not k or not theta or not alpha:
        raise ProbeOptionError("there is nothing to work out: give `k`, `theta` and `alpha`")
    tupled(theta[0] / max(tuples, 1), tuples)
    points = []
    for number, share, worst in product(k, theta, alpha):
        for size in range(1, tuples + 1):
            if size == 1 or size * share < 1:
                points.append(_point(number, share, worst, size, simulate, seed))
    lines = [_point(number, theta[0], worst, 1, False, seed) for number, worst in product(k, _ALPHAS)]
    return Curves(tuple(points), tuple(lines))


def _point(k: int, theta: float, alpha: float, tuples: int, simulate: bool, seed: int) -> CurvePoint:
    simulated = monte_carlo(k, theta, alpha, texts=_DRAWN, tuples=tuples, seed=seed) if simulate else None
    theorem = theorem_bound(k, theta, alpha, tuples=tuples)
    return CurvePoint(k, theta, alpha, tuples, theorem, exact_bound(k, theta, alpha, tuples=tuples), simulated)
