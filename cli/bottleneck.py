"""`surgery bottleneck ...`: fit a bottleneck, look at it, take an edit back, verify what was forgotten."""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, workers
from cli.render import print_json, print_table, progress_bar, say, size
from surgery.reporting.plural import number_of
from surgery.unlearning.evaluation.baselines import baselines_help

if TYPE_CHECKING:
    from surgery.tasks.examples import Columns
    from surgery.unlearning.bottleneck import Bottleneck
    from surgery.unlearning.eraser import Eraser
    from surgery.unlearning.evaluation.report import Report
    from surgery.unlearning.values import Sgd

app = typer.Typer(
    help="Fit a classifier that can forget, look at it, take an edit back, verify what was forgotten.",
    no_args_is_help=True,
)

_LISTED = 30  # classes in a table

BottleneckFolder = Annotated[Path, typer.Argument(help="Bottleneck folder, or its hub id.")]
Features = Annotated[
    str | None,
    typer.Option(help="Features file, .safetensors or .npz: row k is that of the data's row k.", show_default=False),
]
Feature = Annotated[
    str | None, typer.Option(help="Tensor of a features file.", show_default="features, pixels, X or the only one")
]


# Long: options, declared where Typer reads them.
@app.command()
def fit(
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Frozen text or image model that makes the features: a folder or a hub id. Required, or --features.",
            show_default=False,
        ),
    ] = None,
    features: Features = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled training rows: .jsonl, .csv, .tsv, .parquet, a dataset id, a folder of images by class.",
            show_default="the features file's own labels",
        ),
    ] = None,
    keys_from: Annotated[
        str | None,
        typer.Option(
            help="Other rows to place the keys by, labels not needed; forgetting can be exact only then.",
            show_default="the training rows",
        ),
    ] = None,
    output: options.NeededOutput = None,
    feature: Feature = None,
    pooling: Annotated[
        str | None, typer.Option(help="mean or last for texts, pooled or mean for images.", show_default="by model")
    ] = None,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens a text may have; longer ones are cut.")] = 128,
    codebooks: Annotated[int, typer.Option(help="Number of codebooks.")] = 256,
    keys: Annotated[int, typer.Option(help="Keys in each codebook.")] = 256,
    key_dim: Annotated[int, typer.Option(help="Dimensions of a key.")] = 14,
    top: Annotated[int, typer.Option(help="Number of nearest keys that answer in each codebook.")] = 1,
    projection: Annotated[
        str, typer.Option(help="random, or segments: each codebook sees features of its own.")
    ] = "random",
    key_init: Annotated[str, typer.Option(help="kmeans, ema (moving averages, as published) or sample.")] = "kmeans",
    values: Annotated[
        str, typer.Option(help="sgd (as published), or counts: closed form, from which a row can be taken exactly.")
    ] = "sgd",
    rate: Annotated[float | None, typer.Option(help="Learning rate of SGD.", show_default="0.3")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of SGD.", show_default="10")] = None,
    seed: options.Seed = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts or images encoded at once.")] = 32,
    column: options.Column = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Fit a discrete key-value bottleneck on a frozen encoder's features.

    Features are computed once and kept in $SURGERY_CACHE, by default ~/.cache/surgery; under torchrun, by several workers.
    """
    import time

    from surgery.files import check_output
    from surgery.unlearning.bottleneck import Bottleneck

    folder = options.need_output(output)
    check_output(folder, overwrite=overwrite, inputs=[encoder, features, data, keys_from])
    columns, began = options.named_columns(column), time.monotonic()
    source = _training_source(data, encoder, features or feature, pooling or dtype, features)
    settings: dict[str, Any] = {
        "codebooks": codebooks,
        "keys": keys,
        "key_dim": key_dim,
        "top": top,
        "projection": projection,
        "key_init": key_init,
        "values": values,
        "sgd": _recipe(values, rate, epochs),
        "seed": seed,
        "device": workers.device(device),
    }
    with workers.by_rank(), progress_bar() as progress:
        settings["progress"] = progress
        if encoder:
            opening = {"pooling": pooling, "dtype": dtype, "max_length": max_length, "batch_size": batch_size}
            bottleneck = Bottleneck.fit(
                encoder, source, keys_from=keys_from, columns=columns, opening=opening, **settings
            )
        else:
            workers.alone("bottleneck fit of features")
            read = _read_features(source, features if data else None, feature, columns, keys_from)
            bottleneck = Bottleneck.fit_rows(**read, **settings)
        bottleneck.save(folder, overwrite=overwrite)
        _fitted(bottleneck, folder, round(time.monotonic() - began, 3), json)


@app.command()
def undo(
    forgot: BottleneckFolder,
    eraser: Annotated[
        Path | None, typer.Option(help="The eraser folder of the last edit. Required.", show_default=False)
    ] = None,
    output: options.NeededOutput = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Take the last edit back: gives the bottleneck as it was, bit for bit."""
    import time

    from surgery.errors import OptionError
    from surgery.files import check_output
    from surgery.unlearning.bottleneck import Bottleneck
    from surgery.unlearning.descriptions import what
    from surgery.unlearning.eraser import Eraser

    folder = options.need_output(output)
    if eraser is None:
        raise OptionError("--eraser is missing: name the folder that `surgery unlearn` wrote beside this one")
    check_output(folder, overwrite=overwrite, inputs=[forgot, eraser])
    began = time.monotonic()
    edit = Eraser.load(eraser)
    again = edit.undo(Bottleneck.load(forgot))
    again.save(folder, overwrite=overwrite)
    seconds = round(time.monotonic() - began, 3)
    if json:
        print_json(
            {"output": str(folder), "fingerprint": again.fingerprint, "edits": len(again.history), "seconds": seconds}
        )
        return
    left = len(again.history)
    say(
        f"{folder}: bit for bit as before {what(edit.edit)} was forgotten, {number_of(left, 'edit')} left, in {seconds:.2f} s"
    )


# Long: options, declared where Typer reads them.
@app.command()
def verify(
    forgot: BottleneckFolder,
    data: Annotated[
        str | None,
        typer.Option(help="Labelled test rows, as for fit.", show_default="the features file's own labels"),
    ] = None,
    features: Features = None,
    feature: Feature = None,
    eraser: Annotated[
        list[Path] | None,
        typer.Option(
            help="Eraser folder or hub id; may be repeated.",
            show_default="those that lie beside the folder and belong to it",
        ),
    ] = None,
    column: options.Column = None,
    shadows: Annotated[
        int,
        typer.Option(min=0, help="Bottlenecks trained for the attack by likelihood ratio, 4 or more; 0 leaves it out."),
    ] = 16,
    baselines: Annotated[
        bool,
        typer.Option("--baselines/--no-baselines", help=f"Compare with other ways to forget: {baselines_help()}."),
    ] = True,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id of the encoder, if it has moved since the fit.", show_default="where it lay for fit"
        ),
    ] = None,
    output: options.NeededOutput = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure what is gone, what stayed, and what an attacker can tell, beside a bottleneck refitted without the rows.

    Test rows that are training rows are left out, and counted.
    """
    from surgery.files import check_output
    from surgery.unlearning.evaluation.verification import verify_folder

    folder = options.need_output(output)
    check_output(folder, overwrite=overwrite, inputs=[forgot, data, features, *(eraser or ())])
    with progress_bar() as progress:
        report = verify_folder(
            forgot,
            data,
            features_file=features,
            features=feature,
            columns=options.named_columns(column),
            erasers=eraser or None,
            encoder=encoder,
            baselines=baselines,
            shadows=shadows,
            seed=seed,
            device=device,
            progress=progress,
        )
    report.save(folder, overwrite=overwrite)
    print_report(report, folder, json)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="Bottleneck or eraser: a folder or a hub id.")],
    json: options.Json = False,
) -> None:
    """Show what a bottleneck or an eraser is: sizes, classes, how it was made, what was forgotten."""
    from surgery.checkpoints.hub import located
    from surgery.errors import BottleneckError
    from surgery.unlearning.bottleneck import Bottleneck
    from surgery.unlearning.eraser import ERASER_FILE, Eraser

    folder = located(folder, BottleneckError)
    if (folder / ERASER_FILE).exists():
        _show_eraser(Eraser.load(folder), json)
    else:
        _show_bottleneck(Bottleneck.load(folder), json)


def print_report(report: "Report", folder: Path, json: bool) -> None:
    """The table of a report and what must be said with it, or all of it as JSON."""
    if json:
        print_json({**report.content, "output": str(folder)})
        return
    columns, rows = report.shown()
    for numbers in _side_by_side(columns, rows):
        print_table("", [columns[n] for n in numbers], [[row[n] for n in numbers] for row in rows])
    for line in (report.caption, "", *report.remarks):
        say(line)
    figures = len(list(folder.glob("*.png")))
    say(f"{folder}: index.html to open, with {number_of(figures, 'figure')}; README.md, report.json")


def _side_by_side(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[int]]:
    """Numbers of the columns that fit on a screen together, each time with the first, which names the rows."""
    room = (shutil.get_terminal_size((120, 0)).columns if sys.stdout.isatty() else 120) - 4  # margins
    widths = [3 + max(len(cell) for cell in (columns[n], *(row[n] for row in rows))) for n in range(len(columns))]
    screens: list[list[int]] = []
    for number in range(1, len(columns)):
        if not screens or sum(widths[n] for n in screens[-1]) + widths[number] > room:
            screens.append([0])
        screens[-1].append(number)
    return screens


def _training_source(
    data: str | None, encoder: str | None, made: str | None, opened: str | None, features: str | None
) -> str:
    """The file of training rows; refuses options that don't go together."""
    from surgery.errors import OptionError

    source = data or features
    if source is None:
        raise OptionError("the training rows are missing: give --data FILE with --encoder MODEL, or --features FILE")
    if encoder and made:
        raise OptionError("--encoder makes the features: leave it out, or --features and --feature")
    if not encoder and opened:
        raise OptionError("--pooling and --dtype are an encoder's: give --encoder, or leave them out")
    return source


def _read_features(
    source: str, beside: str | None, feature: str | None, columns: "Columns | None", keys_from: str | None
) -> dict[str, Any]:
    """Training rows, rows to place keys by and how they were read, as `Bottleneck.fit_rows` takes them."""
    from surgery.unlearning.features.reading import named_columns
    from surgery.unlearning.features.rows import read_rows

    rows = read_rows(source, features=feature, features_file=beside, columns=columns)
    others = read_rows(keys_from, features=feature, labels_needed=False) if keys_from else None
    read_as = {**named_columns(columns), **({"features": feature} if feature else {})}
    return {"rows": rows, "keys_from": others, "read_as": read_as}


def _recipe(values: str, rate: float | None, epochs: int | None) -> "Sgd":
    from surgery.errors import OptionError
    from surgery.unlearning.values import Sgd

    if values != "sgd" and (rate is not None or epochs is not None):
        raise OptionError("--rate and --epochs are options of --values sgd: leave them out")
    usual = Sgd()
    return Sgd(rate=usual.rate if rate is None else rate, epochs=usual.epochs if epochs is None else epochs)


def _fitted(bottleneck: "Bottleneck", folder: Path, seconds: float, json: bool) -> None:
    training = bottleneck.need_training()
    right = float((bottleneck.answer_ids(training.ids).targets == training.targets).mean())
    if json:
        print_json({**_content(bottleneck), "training_accuracy": right, "output": str(folder), "seconds": seconds})
        return
    codebooks, keys, d = bottleneck.selector.keys.shape
    written = sum(path.stat().st_size for path in folder.iterdir())
    say(
        f"{folder}: {number_of(codebooks, 'codebook')} of {keys:,} keys in {number_of(d, 'dimension')}, {len(bottleneck.classes):,} classes, "
        f"{100 * right:.1f}% of {len(training):,} training rows right, {size(written)} in {seconds:.1f} s"
    )
    if bottleneck.settings["keys_from"] == "training rows":
        say(
            "The training rows placed the keys, so forgetting won't be exact: for that, give other rows by --keys-from."
        )
    say(f"Next:  surgery unlearn {folder} --forget CLASS -o forgot/")


def _content(bottleneck: "Bottleneck") -> dict[str, Any]:
    return {"kind": "bottleneck", "fingerprint": bottleneck.fingerprint, **bottleneck.facts.content()}


def _show_bottleneck(bottleneck: "Bottleneck", json: bool) -> None:
    facts = bottleneck.facts
    if json:
        print_json(_content(bottleneck))
        return
    size_line, *others = facts.made
    say(f"bottleneck {bottleneck.fingerprint[:16]}: {size_line}")
    for line in others:
        say(line)
    columns, rows = bottleneck.table()
    cells = [[str(name), "" if count is None else f"{count:,}"] for name, count in rows]
    print_table("", columns, cells[:_LISTED])
    if len(cells) > _LISTED:
        say(f"... and {len(cells) - _LISTED:,} more classes")
    for line in facts.edits:
        say(line)


def _show_eraser(eraser: "Eraser", json: bool) -> None:
    import numpy as np

    from surgery.unlearning.descriptions import edit_line, promises

    edit = eraser.edit
    touched = np.array([pairs for _, pairs in eraser.table()[1]])
    codebooks = len(touched)
    spread = {"min": int(touched.min()), "median": float(np.median(touched)), "max": int(touched.max())}
    if json:
        head = {"kind": "eraser", "hash": eraser.hash, "bottleneck": eraser.bottleneck, "previous": eraser.previous}
        print_json({**head, **edit, "codebooks": codebooks, "pairs_per_codebook": spread})
        return
    say(f"eraser {edit_line({**edit, 'hash': eraser.hash})}")
    say(
        f"made for bottleneck {eraser.bottleneck[:16]}, {f'after edit {eraser.previous[:16]}' if eraser.previous else 'its first edit'}"
    )
    say(
        f"pairs: {edit['pairs']:,} of {edit['of_pairs']:,}, where the forgotten rows select {edit['active']:,}; "
        f"in each of {codebooks:,} codebooks {spread['min']:,} to {spread['max']:,}, median {spread['median']:g}"
    )
    if edit["rank"]:
        say(f"ranked by {edit['rank']}")
    if edit.get("examples"):
        say(f"examples: {edit['examples']:,}, drawn by seed {edit['seed']}")
    if edit.get("rule"):
        say(f"how many: {edit['rule']}")
    for promise in promises([edit], first=not eraser.previous):
        say(promise)
    say("It holds what was taken out: keep it private.")
