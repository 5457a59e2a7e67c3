"""Run: what learning while reading is worth, on a text or a task, as fields to read, one table, JSON and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from surgery.errors import OptionError
from surgery.reporting.page import Figure, Page, Table, Text
from surgery.reporting.plural import number_of
from surgery.reporting.results import Result
from surgery.tint.reports import load_report, save_report

_FORMAT = "surgery tint run 1"
_LEGENDS = {
    "text": {
        "method": "frozen: the model as it is. dynamic evaluation: gradient descent by autograd on the training share. TinT: the "
        "same descent within the forward pass, by the paper's arithmetic (paper), in closed form (exact), or with the faults of "
        "the published code (published).",
        "training share": "Share of each window that is learnt from; perplexity is measured on the rest of the window.",
        "perplexity": "e to the mean loss of a token, over all windows.",
        "low": "Lower end of the 95% interval, by resampling windows.",
        "high": "Upper end of it.",
        "learning rate": "Of the descent on the summed loss; where there were several, the best on windows that are left out "
        "here.",
        "gain": "Nats a token below the frozen model, the mean over windows of their differences.",
        "gain's error": "Standard error of the gain, over windows.",
    },
    "task": {
        "method": "zero-shot: the test prompt alone. few-shot: the demonstrations before it. TinT: after an update on the "
        "demonstrations, each on its own (zero-shot) or as one text (few-shot), by the named arithmetic.",
        "low": "Lower end of the 95% interval (Wilson's).",
        "high": "Upper end of it.",
        "learning rate": "Of the descent on the summed loss; where there were several, the best on development examples.",
        "gain": "Above the same prompt without learning, the mean over test examples of their differences.",
        "gain's error": "Standard error of the gain, over test examples.",
    },
}


class _Point(TypedDict):
    method: str
    value: float
    low: float
    high: float
    lr: float | None
    share: NotRequired[float]
    gain: NotRequired[float]
    gain_error: NotRequired[float | None]


class _Content(TypedDict):
    """What `report.json` holds, as far as table and page read it."""

    kind: Literal["text", "task"]
    points: list[_Point]
    metric: NotRequired[str]
    tests: NotRequired[int]
    window: NotRequired[int]
    windows: NotRequired[int]
    dev_windows: NotRequired[int]
    dev_examples: NotRequired[int]
    call: NotRequired[dict[str, dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class Run(Result):
    """Perplexity on a text's windows, or accuracy on a task, by method.

    Attributes:
        content: everything, as it is saved; `content["points"]` has one entry a method (and, for texts, a training share),
            each with `value`, `low` and `high` (a 95% interval), the learning rate `lr` and, for methods that learn, `gain`
            and `gain_error`: see `difference`.
    """

    content: Mapping[str, Any]

    @property
    def points(self) -> list[Mapping[str, Any]]:
        """The entries."""
        return self.content["points"]

    def value(self, method: str, share: float | None = None) -> float:
        """A method's perplexity or accuracy; raises KeyError for one that wasn't run."""
        for point in self.points:
            if point["method"] == method and (share is None or point.get("share") == share):
                return point["value"]
        raise KeyError(method)

    @property
    def metric(self) -> str:
        """Perplexity, or the task's metric."""
        return "perplexity" if self.content["kind"] == "text" else self.content["metric"]

    @property
    def summary(self) -> list[str]:
        """What each method comes to, what the best one gains, and on what."""
        first = self.points[0].get("share")
        shown = [point for point in self.points if point.get("share") == first]
        digits = 2 if first is not None else 3
        values = "; ".join(f"{point['method']} {point['value']:.{digits}f}" for point in shown)
        where = "" if first is None else f" after learning from {first:.0%} of each window"
        return [f"{self.metric.capitalize()}{where}: {values}.", *self._best(), self._on()]

    def _best(self) -> list[str]:
        """The method that gains most; reports written before gains were kept have none."""
        learn = [point for point in self.points if "gain" in point]
        if not learn:
            return []
        top = max(learn, key=lambda point: point["gain"])
        at = f" at {top['share']:.0%}" if "share" in top else ""
        against = "the frozen model" if at else "the same prompt without learning"
        if top["gain"] <= 0:
            return [f"No method gains on {against}."]
        error = "" if top["gain_error"] is None else f" (standard error {top['gain_error']:.2g})"
        nats = " nats a token" if at else ""
        return [f"The most is gained by {top['method']}{at}: {top['gain']:.2g}{nats} on {against}{error}."]

    def _on(self) -> str:
        """What was measured on, and how learning rates were chosen."""
        content, text = self.content, self.content["kind"] == "text"
        size = (
            f"{number_of(content.get('windows', 0), 'window')} of {content.get('window')} tokens"
            if text
            else f"{content['tests']} test examples"
        )
        held = content.get("dev_windows" if text else "dev_examples")
        chosen = (
            f"; learning rates chosen on {held} other {'window' if text else 'example'}{'s' * (held != 1)}"
            if held
            else ""
        )
        return f"Measured on {size}{chosen}."

    @property
    def caption(self) -> str:
        """What the table shows, in a sentence."""
        if self.content["kind"] == "text":
            return "Perplexity on what follows the training share of each window, with 95% intervals over windows."
        return f"{self.metric.capitalize()} with 95% intervals, {self.content['tests']} test examples."

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows: one row a method and, for texts, a training share."""
        share = ["training share"] if self.content["kind"] == "text" else []
        columns = ["method", *share, self.metric, "low", "high", "learning rate", "gain", "gain's error"]
        keys = ["method", *(["share"] if share else []), "value", "low", "high", "lr", "gain", "gain_error"]
        return columns, [[point.get(key) for key in keys] for point in self.points]

    def page(self, figures: Sequence[Figure] = ()) -> Page:
        """The report for people."""
        of = "perplexity of a text" if self.content["kind"] == "text" else "a task from demonstrations"
        table = Table(self.caption, *self.table(), legend=_LEGENDS[self.content["kind"]], folded=False)
        call: Mapping[str, Any] = next(iter(self.content.get("call", {}).values()), {})
        options = ", ".join(
            f"{key} {call[key]}" for key in ("steps", "layers", "dtype", "loss", "shots") if key in call
        )
        made = Text(f"Model {call.get('model', 'unknown')}; {options}. All that was measured is in report.json.")
        return Page(f"Fine-tuned in the forward pass: {of}", self.summary, [*figures, table, made])

    def markdown(self) -> str:
        """The page, without figures, as Markdown."""
        return self.page().markdown()

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json`, the figure, and the page as `index.html` and `README.md`."""
        from surgery.tint.evaluation.figures import draw_run

        def draw(staged: Path) -> list[Figure]:
            return draw_run(self.content, staged)

        return save_report(folder, _FORMAT, self.content, draw=draw, page=self.page, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> "Run":
        """Read a saved one; raises TintError for anything else."""
        return load_report(folder, _FORMAT, _Content, cls, cls.markdown)


def difference(values: Sequence[float]) -> dict[str, float | None]:
    """The mean of paired differences, and its standard error; None of a single pair."""
    count = len(values)
    mean = sum(values) / count
    spread = sum((value - mean) ** 2 for value in values)
    return {"gain": mean, "gain_error": (spread / (count - 1) / count) ** 0.5 if count > 1 else None}


def best(scores: Mapping[float, float], *, lowest: bool) -> float:
    """The learning rate with the best score on the development split; of equals, the smallest."""
    sign = 1 if lowest else -1
    return min(sorted(scores), key=lambda rate: sign * scores[rate])


def pick_rates(given: float | Sequence[float] | None, usual: Sequence[float]) -> tuple[float, ...]:
    """The learning rates to choose among; one alone isn't chosen."""
    rates = tuple(usual) if given is None else (given,) if isinstance(given, int | float) else tuple(given)
    if not rates or any(not 0 < rate < float("inf") for rate in rates):
        raise OptionError(f"learning rates {list(rates)} must be positive numbers")
    return tuple(sorted({float(rate) for rate in rates}))
