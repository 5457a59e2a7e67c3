"""`surgery unlearn`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.bottleneck import Feature, print_report
from cli.render import print_json, progress_bar, say, show_example
from surgery.reporting.plural import number_of
from surgery.unlearning.key_ranking import rankings_help

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from surgery.unlearning.bottleneck import Bottleneck
    from surgery.unlearning.eraser import Eraser

_USAGE = "surgery unlearn BOTTLENECK --forget CLASS -o FOLDER"


# Long: options, declared where Typer reads them.
def unlearn(
    bottleneck: Annotated[
        Path | None, typer.Argument(help="Bottleneck folder, or its hub id.", show_default=False)
    ] = None,
    forget: Annotated[
        list[str] | None,
        typer.Option(help="Class to forget, or several with commas; may be repeated.", show_default=False),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            "--forget-rows",
            help="Rows to forget, and all others of the same content: numbers counted from 0 (3,17), or a file of them as they were in training.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="activations or examples (masks), refit, or counts (of counted values; exact if other rows placed the keys).",
            show_default="counts where exact, else activations; for rows counts or refit",
        ),
    ] = None,
    keys: Annotated[
        int | None,
        typer.Option(help="For activations: how many pairs to mask.", show_default="as few as training rows need"),
    ] = None,
    examples: Annotated[
        int | None,
        typer.Option(
            help="For examples: how many forget rows to mask by.", show_default="as few as training rows need"
        ),
    ] = None,
    rank: Annotated[
        str,
        typer.Option(
            help=f"For activations: which pairs are masked first: by {rankings_help()} (count is the published one)."
        ),
    ] = "influence",
    answer: Annotated[
        str, typer.Option(help="For a masked key, the next open one answers, or the codebook drops out: next or drop.")
    ] = "next",
    output: options.ExampleOutput = None,
    eraser: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the eraser, which is yours alone: it holds the forgotten rows.",
            show_default="<output>-eraser",
        ),
    ] = None,
    feature: Feature = None,
    column: options.Column = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    via: Annotated[str | None, typer.Option("--via", hidden=True)] = None,
) -> None:
    """Make a bottleneck forget classes or single training rows.

    Without arguments: the embedded example, start to finish, in under a minute; an earlier run's folder is replaced.
    """
    from surgery.errors import OptionError
    from surgery.files import check_output
    from surgery.unlearning.bottleneck import Bottleneck
    from surgery.unlearning.forgetting import unlearn as run

    method = _renamed(method, via)
    if bottleneck is None:
        given = [forget, rows, method, keys, examples, eraser, feature, column]
        if (rank, answer) != ("influence", "next") or any(value is not None for value in given):
            raise OptionError(f"the bottleneck is missing: {_USAGE}")
        _example(output, device, seed, overwrite, json)
        return
    folder = options.need_output(output)
    aside = eraser or _beside(folder)
    for name in (folder, aside):
        check_output(name, overwrite=overwrite, inputs=[bottleneck, rows])
    before = Bottleneck.load(bottleneck)
    _check_eraser(aside, folder, before)
    with progress_bar() as progress:
        edit = run(
            before,
            _classes(before, forget) if forget else None,
            rows=_positions(before, rows, feature, column) if rows else None,
            method=method,
            keys=keys,
            examples=examples,
            rank=rank,
            answer=answer,
            seed=seed,
            device=device,
            progress=progress,
        )
    after = edit.apply(before)
    _write(after, folder, edit, aside, overwrite)
    _report(edit, before, after, bottleneck, folder, aside, json)


def _renamed(method: str | None, via: str | None) -> str | None:
    """`--method`, or what `--via` said in earlier versions."""
    from surgery.errors import OptionError

    if method is not None and via is not None:
        raise OptionError("--method and --via are two names of one option: give --method alone")
    return method or via


def _write(after: "Bottleneck", folder: Path, edit: "Eraser", aside: Path, overwrite: bool) -> None:
    """Both folders appear or neither. The eraser takes its name first: without it the other couldn't be undone."""
    from surgery.files import new_folder

    with (
        new_folder(folder, overwrite=overwrite) as staged,
        new_folder(aside, overwrite=overwrite) as private,
    ):
        after.write(staged)
        edit.write(private)


def _example(output: Path | None, device: str | None, seed: int, overwrite: bool, json: bool) -> None:
    from surgery.unlearning.example import run_example

    report, folder = show_example(run_example, output, overwrite=overwrite, device=device, seed=seed, quiet=json)
    print_report(report, folder / "report", json)
    say(f"Next:  surgery bottleneck show {folder / 'forgot'}", quiet=json)
    say(f"       surgery bottleneck undo {folder / 'forgot'} --eraser {folder / 'eraser'} -o again/", quiet=json)


def _beside(folder: Path) -> Path:
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-eraser")


def _check_eraser(aside: Path, folder: Path, before: "Bottleneck") -> None:
    """Refuse an eraser folder inside the output or around it, or one that an earlier edit still needs."""
    from surgery.errors import OptionError
    from surgery.unlearning.storage import read_json

    one, other = aside.resolve(), folder.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise OptionError(
            f"the output {folder} and the eraser {aside} are the same or lie one inside the other: name another --eraser"
        )
    held = read_json(aside / "report.json").get("hash") if (aside / "report.json").exists() else None
    if held in [edit["hash"] for edit in before.history]:
        raise OptionError(
            f"{aside} is the eraser of an earlier edit, which couldn't be undone without it: name another --eraser"
        )


def _classes(before: "Bottleneck", forget: list[str]) -> list[str]:
    """What is a class as it stands is that class, commas and all; else it is several."""
    known = set(map(str, before.classes))
    found = []
    for text in forget:
        found += [text] if text in known else [name.strip() for name in text.split(",") if name.strip()]
    return found


def _positions(before: "Bottleneck", source: str, feature: str | None, column: list[str] | None) -> "NDArray[np.int64]":
    """Numbers as they are, and those of the rows in a file."""
    import numpy as np

    from surgery.errors import TaskError
    from surgery.unlearning.features.finding import find_rows

    if Path(source).exists() or not set(source) <= set("0123456789, "):
        return find_rows(before, source, columns=options.named_columns(column), features=feature)
    numbers = [int(number) for number in source.replace(",", " ").split()]
    if not numbers:
        raise TaskError("there are no rows to forget: name at least one")
    if max(numbers) >= len(before.need_training()):
        raise TaskError(
            f"row {max(numbers)} isn't one of the {len(before.need_training()):,} training rows, counted from 0"
        )
    return np.array(numbers, np.int64)


def _report(
    edit: "Eraser", before: "Bottleneck", after: "Bottleneck", source: Path, folder: Path, aside: Path, json: bool
) -> None:
    from surgery.unlearning.descriptions import promises, what

    done, seconds, effect = edit.edit, edit.report["seconds"], edit.effect(before, after)
    promised = promises(after.history, counted=after.counted)
    if json:
        head = {"output": str(folder), "eraser": str(aside), "hash": edit.hash}
        print_json({**head, **done, "effect": effect, "seconds": seconds, "promises": promised})
        return
    verb = {"refit": "refitted", "counts": "counted down"}.get(done["via"], "masked")
    rows = f" ({number_of(done['rows'], 'row')})" if done["forget"] else _twins(done["twins"])
    took = f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
    say(f"{folder}: {what(done)}{rows} forgotten, {done['pairs']:,} of {done['of_pairs']:,} pairs {verb}, in {took}")
    if done["rule"] not in (None, "given"):
        say(f"As many as it takes for this to hold on training rows: {done['rule']}")
    say(
        f"On training rows: {100 * effect['forgotten_right']:.1f}% of the forgotten are still answered right; "
        f"of the others {100 * effect['retained_after']:.1f}%, {100 * effect['retained_before']:.1f}% before"
    )
    for line in (*promised, *_cautions(edit, after, effect)):
        say(line)
    say(f"{aside}: what undoes it; it holds what was taken out, so keep it, and {source}, to yourself")
    data = "--data test.jsonl" if after.encoder else "--features test.safetensors"
    say(f"Next:  surgery bottleneck verify {folder} --eraser {aside} {data} -o report/")


def _twins(count: int) -> str:
    return f" ({count:,} of them the same content again)" if count else ""


def _cautions(edit: "Eraser", after: "Bottleneck", effect: dict[str, float]) -> list[str]:
    """By training rows alone: of single rows it takes a refit to tell how many ought to be answered right."""
    from surgery.unlearning.remarks import cautions, classes_left

    edited = {"forget_accuracy": effect["forgotten_right"] if edit.forget else None}
    edited["retain_accuracy"] = effect["retained_after"]
    before = {"forget_accuracy": 0.0, "retain_accuracy": effect["retained_before"]}
    return cautions(edited, before, classes_left(after), "training rows")
