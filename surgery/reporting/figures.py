"""The one place that imports matplotlib: a plain style, and saving."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Okabe and Ito's colours: told apart by colour-blind readers; the markers tell them apart in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def plain(name: object) -> str:
    """A name from a file as it stands, where matplotlib would read formulas between dollar signs."""
    return "".join(letter if letter.isprintable() else " " for letter in str(name)).replace("$", r"\$")


@contextmanager
def figure(file: Path, width: float = 6.4, height: float = 4.0, columns: int = 1) -> Iterator[Any]:
    """Yield the axes (an array of them for several columns) of a figure that is saved as `file` when the block ends."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        drawing = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawing)
        yield drawing.subplots(1, columns)
        drawing.savefig(file, metadata={"Software": None})


def write_numbers(axes: Any, grid: Any, places: Any, dark: Callable[[float], bool]) -> None:
    """Write a heat map's whole numbers into its fields: `places` (row, column), white where `dark` says that the field is."""
    for row, column in places:
        value = float(grid[row, column])
        colour = "white" if dark(value) else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
