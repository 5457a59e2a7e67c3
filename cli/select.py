"""`surgery select` and its commands."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, workers
from cli.render import print_json, print_table, progress_bar, say, show_example
from cli.resuming import told_how_to_go_on

if TYPE_CHECKING:
    from surgery.selecting.selection import Selection

_ROWS = "text with label, prompt with completion, or messages; .jsonl, .csv, .tsv, .parquet or a dataset id"
_FEATURES, _WARMUP, _CHOICE = "Features", "Warm-up", "Choice"
Pool = Annotated[
    str | None, typer.Argument(help=f"Rows to choose from: {_ROWS}. Required but for the example.", show_default=False)
]
Target = Annotated[
    str | None,
    typer.Option(
        "--for", help=f"Rows of what is to be learnt: {_ROWS}. Required.", show_default=False, rich_help_panel=_CHOICE
    ),
]
Share = Annotated[float, typer.Option(help="Share of the pool that is chosen.", rich_help_panel=_CHOICE)]
By = Annotated[
    str,
    typer.Option(
        help="less, sgd, centred, less-centred (without the pool's mean), less-corrected (Adam's own step, with --maps adam-corrected), or random, length, tfidf, bm25, hidden.",
        rich_help_panel=_CHOICE,
    ),
]
Subtasks = Annotated[
    str | None,
    typer.Option(
        help="Field of the target's rows that says which part they are of.",
        show_default="subtask",
        rich_help_panel=_CHOICE,
    ),
]
Baselines = Annotated[
    bool, typer.Option("--baselines/--no-baselines", help="Say what simpler ways choose too.", rich_help_panel=_CHOICE)
]
_WORDS = ("random", "length", "tfidf", "bm25")  # as `surgery.selecting.scoring` has them, which takes seconds to import
Model = Annotated[
    str | None,
    typer.Option(
        help=f"Base: a folder or a hub id. Required but for --by {', '.join(_WORDS[:-1])} or {_WORDS[-1]}.",
        show_default=False,
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Rows in a backward pass.")]


# Long: options, declared where Typer reads them.
def select(
    pool: Pool = None,
    target: Target = None,
    model: Model = None,
    share: Share = 0.05,
    by: By = "less",
    subtasks: Subtasks = None,
    baselines: Baselines = True,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the features.", show_default="features beside the output", rich_help_panel=_FEATURES
        ),
    ] = None,
    sketch: Annotated[
        int, typer.Option(min=0, help="Numbers that a gradient is kept as; 0: all.", rich_help_panel=_FEATURES)
    ] = 8192,
    precision: Annotated[str, typer.Option(help="float16, int8 or bit.", rich_help_panel=_FEATURES)] = "float16",
    maps: Annotated[
        str,
        typer.Option(
            help="What is kept of a gradient: adam, sgd, adam-corrected, with commas.", rich_help_panel=_FEATURES
        ),
    ] = "adam,sgd",
    loss: Annotated[
        str,
        typer.Option(
            help="Whose gradient it is: the answer's, or for causal models the text's.", rich_help_panel=_FEATURES
        ),
    ] = "answer",
    max_length: Annotated[
        int, typer.Option(min=8, help="Tokens after which a row is cut.", rich_help_panel=_FEATURES)
    ] = 512,
    processes: Annotated[
        int,
        typer.Option(min=1, help="Processes that share the pool; on several GPUs one each.", rich_help_panel=_FEATURES),
    ] = 1,
    warmup: Annotated[
        Path | None,
        typer.Option(
            help="Other features of this base, whose warm-up is taken.",
            show_default="trained now",
            rich_help_panel=_WARMUP,
        ),
    ] = None,
    warmup_share: Annotated[
        float,
        typer.Option(help="Share of the pool that is trained on; 0: adapters as they start.", rich_help_panel=_WARMUP),
    ] = 0.05,
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over it, each with a checkpoint.", rich_help_panel=_WARMUP)
    ] = 4,
    rate: Annotated[float, typer.Option(help="Largest learning rate.", rich_help_panel=_WARMUP)] = 1e-3,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.", rich_help_panel=_WARMUP)] = 8,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="Modules beside which adapters go, a shell pattern; may be repeated.",
            show_default="all matrices of the blocks",
            rich_help_panel=_WARMUP,
        ),
    ] = None,
    batch_size: Batch = 16,
    output: options.ExampleOutput = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Choose the rows of a pool that teach what a few target rows ask for (LESS).

    Without arguments: a planted mixture is made on the spot and its skill is looked for, in about a minute; the folder
    surgery-select-example of an earlier run is replaced. Interrupted, the same command goes on where it was. Under torchrun
    several workers share the pool.
    """
    if pool is None and target is None and model is None:
        workers.alone("surgery select without arguments")
        _example(output, overwrite=overwrite, device=device, seed=seed, json=json)
        return
    words = by in _WORDS and model is None
    _need("select", {"the pool": pool, "--for": target, **({} if words else {"--model": model})}, example=True)
    from surgery.errors import OptionError
    from surgery.files import check_output
    from surgery.selecting.features import Features
    from surgery.selecting.maps import MAPS
    from surgery.selecting.scoring import check_choice
    from surgery.selecting.warmup import Warmup
    from surgery.tasks.rows import read_rows

    folder = options.need_output(output)
    check_output(folder, overwrite=overwrite, inputs=[pool, target, model])
    assert pool is not None and target is not None
    asked = maps.split(",")
    if unknown := [name for name in asked if name not in MAPS]:
        raise OptionError(f"--maps {','.join(unknown)} isn't of {', '.join(MAPS)}")
    read_rows(target, subtasks)  # before anything that takes long
    check_choice(share, by, asked, hidden=True)
    if words:
        workers.alone("surgery select without a model")
        rows = Features.of_words(pool)
        found = rows.select(target, share=share, by=by, subtasks=subtasks, baselines=baselines, seed=seed)
        _finish(found, folder, None, overwrite=overwrite, json=json)
        return
    assert model is not None
    begun: Any = warmup or Warmup(warmup_share, epochs, rate, rank, targets=tuple(targets or ()), seed=seed)
    place = features or folder.absolute().parent / "features"
    kept: dict[str, Any] = {
        "sketch": sketch,
        "precision": precision,
        "maps": tuple(asked),
        "target": target,
        "loss": loss,
        "max_length": max_length,
    }
    shared: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "device": workers.device(device), "dtype": dtype}
    with workers.by_rank(), told_how_to_go_on(place), progress_bar() as progress:
        store = Features.collect(
            model, pool, warmup=begun, folder=place, processes=processes, overwrite=overwrite, progress=progress,
            **kept, **shared,
        )  # fmt: skip
        found = store.select(
            target, share=share, by=by, subtasks=subtasks, baselines=baselines, progress=progress, **shared
        )
        _finish(found, folder, place, overwrite=overwrite, json=json)


def score(
    features: Annotated[
        Path | None, typer.Argument(help="Features that `surgery select` made.", show_default=False)
    ] = None,
    target: Target = None,
    model: Annotated[str | None, typer.Option(help="Where the base is now.", show_default="where it was")] = None,
    share: Share = 0.05,
    by: By = "less",
    subtasks: Subtasks = None,
    baselines: Baselines = True,
    batch_size: Batch = 16,
    output: options.NeededOutput = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Choose rows for another target from features that are there, without a pass over the pool."""
    workers.alone("select score")
    _need("select score", {"the folder of features": features, "--for": target})
    from surgery.files import check_output
    from surgery.selecting.features import Features

    folder = options.need_output(output)
    assert features is not None and target is not None
    check_output(folder, overwrite=overwrite, inputs=[features, target, model])
    with progress_bar() as progress:
        found = Features.load(features).select(
            target, share=share, by=by, subtasks=subtasks, base=model, baselines=baselines, batch_size=batch_size, seed=seed,
            device=device, dtype=dtype, progress=progress,
        )  # fmt: skip
    _finish(found, folder, features, overwrite=overwrite, json=json)


def show(
    folder: Annotated[Path | None, typer.Argument(help="Folder of a selection.", show_default=False)] = None,
    json: options.Json = False,
) -> None:
    """Show what was chosen and why: sources, lengths, the target's nearest rows, and what simpler ways choose too."""
    from surgery.selecting.selection import Selection

    workers.alone("select show")
    _need("select show", {"the folder": folder})
    assert folder is not None
    found = Selection.load(folder)
    if json:
        print_json(found.content())
        return
    _print(found)
    for each in found.nearest[:5]:
        say(f"row {each.row + 1}, score {each.score:.3f}: {_short(each.text)}")
        say(f"   nearest of the target, cosine {each.cosine:.3f}: {_short(each.target)}")


def _example(output: Path | None, *, overwrite: bool, device: str | None, seed: int, json: bool) -> None:
    from surgery.selecting.example import run_example

    found, folder = show_example(run_example, output, overwrite=overwrite, device=device, seed=seed, quiet=json)
    if json:
        print_json({"output": str(folder), **found.content()})
        return
    _print(found)
    say(f"Written to {folder}.  Next:  surgery select show {folder / 'selected'}")


def _finish(found: "Selection", folder: Path, features: Path | None, *, overwrite: bool, json: bool) -> None:
    found.save(folder, overwrite=overwrite)
    if json:
        print_json({"output": str(folder), "features": features and str(features), **found.content()})
        return
    _print(found)
    more = f"; features for other targets are in {features}" if features else ""
    say(f"Written to {folder}: selected.jsonl to train on, index.html to read{more}")


def _print(found: "Selection") -> None:
    from surgery.reporting.page import cell

    columns, rows = found.table()
    print_table("", columns, [[cell(value) for value in row] for row in rows])
    for line in [*found.summary, *found.remarks]:
        say(line)
    if found.overlap:
        say("Chosen too: " + ", ".join(f"{name} {value:.0%}" for name, value in found.overlap.items()))
    pool, chosen = found.lengths["pool"], found.lengths["chosen"]
    say(f"Length of a row, the median: {pool[1]:.0f} in the pool, {chosen[1]:.0f} chosen")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:97]}..."


def _need(command: str, given: Mapping[str, Any], *, example: bool = False) -> None:
    from surgery.errors import OptionError

    for name, value in given.items():
        if value is None:
            more = ", or give nothing for the embedded example" if example else ""
            raise OptionError(f"{name} is missing: see `surgery {command} --help`{more}")
