"""The one place that prints: tables, progress, JSON and errors."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from cli.flags import all_flags
from surgery.progress import Progress

if TYPE_CHECKING:
    from rich.table import Table

    from surgery.memory import Need

Found = TypeVar("Found")
_QUIET = 30.0  # seconds between lines in a log
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


_speaks = True  # of several workers, one does


def speak(yes: bool) -> None:
    """Let this process print, or not: of several workers, one does. Errors are printed all the same."""
    global _speaks
    _speaks = yes


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    if _speaks:
        print(_whole(json.dumps(content, allow_nan=False, ensure_ascii=False)))


def print_error(message: str) -> None:
    """One line on stderr."""
    print(f"surgery: {_visible(' '.join(message.split()))}", file=sys.stderr)


def say(line: str, *, quiet: bool = False) -> None:
    """A line on stdout for people; nothing where JSON is wanted."""
    if not quiet and _speaks:
        print(_visible(line), flush=True)


def _whole(text: str) -> str:
    """Text without the half letters that JSON can hold and a terminal can't."""
    return text.encode("utf-8", "backslashreplace").decode()


def _visible(text: str) -> str:
    """Names from files as they are written, where a terminal would obey them."""
    return _whole(_OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for people; the first column to the left, the others to the right.

    One that is wider than the terminal, and has more columns than rows, is turned on its side.
    """
    from rich.console import Console

    console, table = Console(), _table(title, columns, rows)
    wide = Console(width=10_000).measure(table).maximum
    if not console.is_terminal:  # a pipe has no width of its own: don't fold a table into a file
        console = Console(width=max(120, console.width, wide))
    elif wide > console.width and len(columns) > len(rows) + 1:
        head, *lines = zip(columns, *rows, strict=True)
        table = _table(title, head, lines)
    console.print(table)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_visible(title)), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        # Names may be long paths: they fold, figures don't.
        table.add_column(
            Text(_visible(column)), justify="right" if number else "left", no_wrap=number > 0, overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(_visible(cell)) for cell in row))  # not a string, which rich would read for markup
    return table


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a progress callback that draws on stderr when that is a terminal, else writes a line there now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not (console.is_terminal and _speaks)) as bar:
        task = bar.add_task("loading", total=None)
        stage, told = "", time.monotonic()

        def show(done: int, total: int, line: str) -> None:
            nonlocal stage, told
            if _speaks and not console.is_terminal and time.monotonic() - told > _QUIET:
                told = time.monotonic()
                print(_visible(f"{line} ({done} of {total})"), file=sys.stderr, flush=True)
            if line.partition(":")[0] != stage:
                stage = line.partition(":")[0]
                bar.reset(task)
            bar.update(task, completed=done, total=total, description=_visible(line))

        yield show


def show_example(run: Callable[..., Found], *given: Any, quiet: bool, **options: Any) -> Found:
    """Run an embedded example with a progress bar, and print what it says unless quiet."""
    with progress_bar() as progress:
        return run(*given, say=lambda line: say(line, quiet=quiet), progress=progress, **options)


def figure(value: float | None, digits: int = 3) -> str:
    """A number for a table; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"


def size(count: int) -> str:
    """Bytes for people, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000  # type: ignore[assignment]
    raise AssertionError("unreachable")


def print_need(need: "Need", json: bool) -> None:
    """What work needs against what is free; raises OptionError, once that is printed, for more than that."""
    from surgery.memory import size

    content = need.content()
    content["lower"] = all_flags(content["lower"])
    if json:
        print_json(content)
    else:
        rows = [[name, size(count)] for name, count in content["parts"].items()]
        rows += [["needed at once", size(content["needed"])], ["free", size(content["free"])]]
        print_table(f"memory on {content['device']}", ["", ""], rows)
        print_table("files", ["", ""], [[name, size(count)] for name, count in content["files"].items()])
        say(f"For less: {content['lower']}")
        if need.note:
            say(need.note)
    need.check()


def print_skill(report: Mapping[str, Any]) -> None:
    """The table of base, tuned and graft, and the points of a sweep or of baselines below it."""
    from surgery.grafting.card import gain

    rows = []
    f1 = report["task"]["metric"] == "f1"  # then it is what the gain is measured in
    low_rank = report.get("values") == "low-rank"
    for name in ("base", "tuned", "graft", "control"):
        if "accuracy" not in (side := report.get(name, {})):
            continue
        own = name == "graft"
        rows.append(
            [
                name,
                figure(side["accuracy"]),
                *([figure(side["f1"])] if f1 else []),
                figure(side["ece"]),
                figure(side.get("agreement")),
                gain(side),
                f"{report['weights']:,}" if own else f"{side['weights']:,}" if name == "control" else "",
                f"{report['sparsity']:.2e}" if own else "",
                size(report["bytes"]) if own else "",
            ]
        )
    print_table(
        "",
        [
            "",
            "accuracy",
            *(["F1"] if f1 else []),
            "ECE",
            "agreement",
            "gain recovered",
            "numbers" if low_rank else "weights",
            "sparsity",
            "file size",
        ],
        rows,
    )
    if len(report.get("points", ())) > 1:
        cells = [
            [
                p["method"],
                f"{p['weights']:,}",
                f"{p['sparsity']:.2e}",
                figure(p["accuracy"]),
                figure(p["ece"]),
                figure(p["agreement"]),
                gain(p),
            ]
            for p in report["points"]
        ]
        print_table(
            "by method and sparsity",
            ["method", "weights", "sparsity", "accuracy", "ECE", "agreement", "gain recovered"],
            cells,
        )
    _say_control(report.get("control", {}).get("agreement_above"))
    examples = report.get("examples", {})
    say_repeated(examples.get("test_in_train", 0), examples.get("test", 0), "test")


def _say_control(above: Sequence[float] | None) -> None:
    """How much more often than the control the graft agrees with tuned, with its interval; nothing without a control."""
    if above:
        evidence = "evidence" if above[1] > 0 else "no evidence"
        say(
            f"control: as many weights of the base tuned anew, which never saw tuned; the graft agrees with tuned {above[0]:+.3f} "
            f"[{above[1]:.3f}, {above[2]:.3f}] more: {evidence} that it carries this checkpoint and not just the task"
        )


def say_repeated(count: int, total: int, split: str) -> None:
    """Say how many examples of a split have the texts of training examples, if any has."""
    if count:
        say(f"{count:,} of {total:,} {split} texts are training texts too: on these, figures show what was remembered")
