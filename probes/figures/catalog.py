"""Every figure of a report, in the order of its page: a new one is a file of its own and a line here."""

from collections.abc import Callable, Sequence
from pathlib import Path

from probes.figures import calibration, causal, f1, heads, loss, marginals, selectivity, sentences
from probes.figures.drawing import Drawing
from probes.findings import Findings

FIGURES: tuple[Callable[[Findings], list[Drawing]], ...] = (
    f1.drawings,
    marginals.drawings,
    selectivity.drawings,
    loss.drawings,
    causal.drawings,
    heads.drawings,
    sentences.drawings,
    calibration.drawings,
)


def drawings(findings: Findings) -> list[Drawing]:
    """Every figure that the findings have numbers for."""
    return [drawing for figure in FIGURES for drawing in figure(findings)]


def draw_figures(wanted: Sequence[Drawing], folder: Path) -> list[Path]:
    """Draw figures into a folder as PNG, and return the files."""
    files = [folder / f"{drawing.name}.png" for drawing in wanted]
    for drawing, file in zip(wanted, files, strict=True):
        drawing.draw(file)
    return files
