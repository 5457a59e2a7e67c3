"""Reports of TinT as folders: `report.json` with everything, figures, and a page as `index.html` and `README.md`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from surgery.errors import TintError
from surgery.files import new_folder, replace_json
from surgery.jsonfile import conform, load_json
from surgery.reporting.page import Figure, Page

Report = TypeVar("Report")


def save_report(
    folder: str | Path,
    form: str,
    content: Mapping[str, Any],
    *,
    draw: Callable[[Path], Sequence[Figure]],
    page: Callable[[Sequence[Figure]], Page],
    overwrite: bool = False,
) -> Path:
    """Write a report's folder; it appears whole or not at all.

    Args:
        form: what `load_report` knows it by: the kind of report and its version.
        draw: writes figures into a folder and says what they show.
    """
    with new_folder(Path(folder), overwrite=overwrite) as staged:
        replace_json(staged / "report.json", {"format": form, **content})
        page(draw(staged)).write(staged)
    return Path(folder)


def load_report(
    folder: str | Path, form: str, kind: Any, make: Callable[[dict[str, Any]], Report], check: Callable[[Report], Any]
) -> Report:
    """Read a saved report.

    Args:
        kind: the type of its content, as far as code reads it.
        make: the report of a content; `check` uses all of it, as some entries may lack what others refer to.

    Raises:
        TintError: no report of this form, or a damaged one.
    """
    path = Path(folder) / "report.json"
    try:
        content = load_json(path)
    except (OSError, ValueError) as error:
        raise TintError(f"{path} can't be read ({error}): name a folder that `surgery tint` wrote") from None
    if not isinstance(content, dict) or content.pop("format", None) != form:
        raise TintError(f"{path} isn't a {form}'s: name a folder that `surgery tint` wrote")
    try:
        conform(content, kind)
        report = make(content)
        check(report)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise TintError(f"{path} is damaged ({error!r}): make it again") from None
    return report
