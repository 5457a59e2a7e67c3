"""`surgery tint` and its commands."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.render import print_error, print_json, print_need, print_table, progress_bar, say, show_example, size
from cli.resuming import state_beside

if TYPE_CHECKING:
    from surgery.reporting.results import Result
    from surgery.tint.evaluation.report import Run
    from surgery.tint.evaluation.verification import Verification

    Context = typer.Context
else:
    Context = typer.Context.__base__  # what Typer really passes

_LARGE = 20_000_000  # weights of a model that takes more than moments to verify

app = typer.Typer(
    help="Simulate and fine-tune a small model inside a larger one's forward pass. Without a command: an embedded example.",
    invoke_without_command=True,
)

Model = Annotated[str, typer.Argument(help="Model folder or hub id.")]
Rates = Annotated[
    list[float] | None,
    typer.Option("--lr", help="Learning rate; several, to choose among on held-out data.", show_default="a grid"),
]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the inner descent.")]
LearningBlocks = Annotated[str, typer.Option("--layers", help="Blocks that learn: all, or such as 0,2,8-11.")]
Modes = Annotated[
    list[str] | None,
    typer.Option("--mode", help="paper, exact or published; may be repeated.", show_default="paper and exact"),
]
_DEFAULT_MODES = ("paper", "exact")


@app.callback()
def tint(
    context: Context,
    output: options.Output = None,
    device: options.Device = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Simulate and fine-tune a small model inside a larger one's forward pass.

    Without a command: a small model is made on the spot, verified and run, within two minutes; the folder
    surgery-tint-example of an earlier run is replaced.
    """
    if context.invoked_subcommand is not None:
        return
    from surgery.tint.example import run_example

    checked, run, folder = show_example(run_example, output, overwrite=overwrite, device=device, seed=seed, quiet=json)
    if json:
        print_json({"output": str(folder), "verification": checked.content, "run": run.content})
        return
    _print(run)
    say(f"Written to {folder}.  Next:  surgery tint verify {folder / 'model'}")
    say(f"       surgery tint text {folder / 'model'} {folder / 'text.txt'} --train-share 0.7")


@app.command()
def count(
    model: Annotated[
        str | None, typer.Argument(help="Model folder or hub id. Required, or --config.", show_default=False)
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(help="A well-known model's name, such as opt-125m, in place of MODEL.", show_default=False),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Length of the sequence.", show_default="the model's positions")
    ] = None,
    json: options.Json = False,
) -> None:
    """Count the simulating transformer's weights, piece by piece, without building it."""
    from surgery.tint.construction.counting import count as count_weights

    counted = count_weights(_one_of(model, config), tokens=tokens)
    if json:
        print_json(counted.content())
    else:
        _print(counted, f"{counted.name}: {counted.layout.describe()}")


@app.command()
def verify(
    model: Model,
    text: Annotated[
        Path | None, typer.Option(help="Take the tokens from this text.", show_default="random tokens")
    ] = None,
    tokens: Annotated[int, typer.Option(min=4, help="How many tokens.")] = 64,
    sweep: Annotated[bool, typer.Option(help="Also try other steps of the differences, in two precisions.")] = True,
    output: options.Output = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Hold every simulated piece against the model, and every update against autograd."""
    from surgery.files import check_output
    from surgery.tint.auxiliary import Auxiliary
    from surgery.tint.evaluation.texts import load_with_tokens
    from surgery.tint.evaluation.verification import outlook
    from surgery.tint.evaluation.verification import verify as verify_model

    if output is not None:
        check_output(output, overwrite=overwrite, inputs=[model, text])
    loaded, ids = load_with_tokens(model, text, tokens, seed=seed, device=device, dtype=dtype)
    auxiliary = Auxiliary.of(loaded)
    if auxiliary.shape.weights > _LARGE:
        seconds, needed = outlook(auxiliary, ids, sweep=sweep)
        hint = "; --no-sweep leaves out the most of it" if sweep else ""
        time = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
        say(f"About {time} and {size(needed)} of memory{hint}.", quiet=json)
    with progress_bar() as progress:
        verification = verify_model(loaded, ids, sweep=sweep, seed=seed, progress=progress)
    _finish(verification, output, overwrite=overwrite, json=json)


# Long: options, declared where Typer reads them.
@app.command()
def text(
    model: Model,
    text: Annotated[
        Path | None, typer.Argument(help="A text file. Required but for --dry-run.", show_default=False)
    ] = None,
    train_share: Annotated[
        list[float] | None,
        typer.Option(help="Share of each window to learn from; may be repeated.", show_default="0.5"),
    ] = None,
    lr: Rates = None,
    steps: Steps = 1,
    layers: LearningBlocks = "all",
    mode: Modes = None,
    window: Annotated[
        int | None,
        typer.Option(min=4, help="Tokens of a window of the text.", show_default="256, or the model's positions"),
    ] = None,
    windows: Annotated[
        int | None, typer.Option(min=1, help="How many windows to measure on.", show_default="all")
    ] = None,
    dev_windows: Annotated[int, typer.Option(min=1, help="How many windows before them choose the learning rate.")] = 4,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows at once, each with an update of its own.")] = 1,
    start_token: Annotated[
        bool | None,
        typer.Option(
            "--start-token/--no-start-token",
            help="Begin each window with the token that begins a text.",
            show_default="as the tokenizer does",
        ),
    ] = None,
    output: options.Output = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure a text's perplexity: the model as it is, dynamic evaluation, and TinT, which learns while it reads.

    Interrupted, the same command with -o goes on where it was.
    """
    from surgery.errors import OptionError
    from surgery.tint.evaluation.memory_need import text_need
    from surgery.tint.evaluation.perplexity import run_text

    shared: dict[str, Any] = {
        "shares": tuple(train_share or (0.5,)),
        "steps": steps,
        "layers": layers,
        "methods": ("frozen", "dynamic evaluation", *(f"TinT {name}" for name in mode or _DEFAULT_MODES)),
        "window": window,
        "batch_size": batch_size,
        "device": device,
        "dtype": dtype,
    }
    if dry_run:
        print_need(text_need(model, **shared), json)
        return
    if text is None:
        raise OptionError("the text is missing: surgery tint text MODEL FILE")
    with _state(output, [model, text], overwrite=overwrite) as state:
        with progress_bar() as progress:
            run = run_text(
                model,
                text,
                lr=lr,
                windows=windows,
                dev_windows=dev_windows,
                start_token=start_token,
                seed=seed,
                resume=state,
                progress=progress,
                **shared,
            )
        _finish(run, output, overwrite=overwrite, json=json)


# Long: options, declared where Typer reads them.
@app.command()
def task(
    model: Model,
    task: Annotated[str, typer.Argument(help=options.TASK_NAMES)],
    data: options.Train = None,
    test: Annotated[
        str | None,
        typer.Option(
            "--eval", help="Test examples, in any form that --data takes.", show_default="training examples left over"
        ),
    ] = None,
    dev: Annotated[
        str | None,
        typer.Option(
            help="Examples to choose the learning rate by, in any form that --data takes.",
            show_default="training examples left over",
        ),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Demonstrations in all.")] = 16,
    tests: Annotated[int | None, typer.Option(min=1, help="How many test examples.", show_default="all")] = None,
    loss: Annotated[str, typer.Option(help="Tokens of the demonstrations that are learnt: label or all.")] = "label",
    lr: Rates = None,
    steps: Steps = 1,
    layers: LearningBlocks = "all",
    mode: Modes = None,
    prompt: options.Prompt = None,
    word: options.Word = None,
    column: options.Column = None,
    max_length: options.MaxLength = 128,
    output: options.Output = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure accuracy on a task from demonstrations, zero-shot and few-shot, with and without learning from them.

    Interrupted, the same command with -o goes on where it was.
    """
    from surgery.tint.evaluation.in_context import run_task

    with _state(output, [model, data, test, dev], overwrite=overwrite) as state:
        loaded = options.load_task(
            task,
            train=data,
            dev=dev,
            test=test,
            seed=seed,
            prompt=prompt,
            word=word,
            column=column,
            max_length=max_length,
        )
        with progress_bar() as progress:
            run = run_task(
                model,
                loaded,
                shots=shots,
                lr=lr,
                steps=steps,
                layers=layers,
                modes=tuple(mode or _DEFAULT_MODES),
                loss=loss,
                tests=tests,
                seed=seed,
                device=device,
                dtype=dtype,
                resume=state,
                progress=progress,
            )
        _finish(run, output, overwrite=overwrite, json=json)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def run(context: Context) -> None:
    """Run `text` or `task`, which this command was split into: --text FILE and --task NAME say which."""
    from surgery.errors import OptionError

    given = [part for word in context.args for part in _split(word)]
    names = [name for name in ("text", "task") if f"--{name}" in given[:-1]]
    if len(names) != 1:
        raise OptionError(
            "type surgery tint text MODEL FILE for perplexity, or surgery tint task MODEL TASK for a task"
        )
    place = given.index(f"--{names[0]}")
    arguments = [*given[:place], *given[place + 2 :], given[place + 1]]  # MODEL comes before what was the option's
    print_error(f"`surgery tint run` is now: surgery tint {names[0]} {shlex.join(arguments)}")
    command = context.parent.command.commands[names[0]]  # type: ignore[union-attr]
    with command.make_context(names[0], arguments, parent=context.parent) as made:
        command.invoke(made)


def _split(word: str) -> Sequence[str]:
    """`--text=FILE` as two words."""
    return word.split("=", 1) if word.startswith(("--text=", "--task=")) else (word,)


@contextmanager
def _state(output: Path | None, inputs: Sequence[str | Path | None], *, overwrite: bool) -> Iterator[Path | None]:
    """Yield the folder for the state of long work, beside the output where one is given, which is checked first."""
    from surgery.files import check_output

    if output is None:
        yield None
        return
    check_output(output, overwrite=overwrite, inputs=inputs)
    with state_beside(output) as state:
        yield state


def _finish(result: "Run | Verification", output: Path | None, *, overwrite: bool, json: bool) -> None:
    if output is not None:
        result.save(output, overwrite=overwrite)
    if json:
        print_json(result.content)
    else:
        _print(result)
    if output is not None:
        say(f"Written to {output}; the report is {output / 'index.html'}", quiet=json)


def _print(result: "Result", title: str = "") -> None:
    """The table of a result, and below it the answer."""
    from surgery.reporting.page import cells

    columns, rows = result.table()
    print_table(title, columns, cells(rows))
    for line in result.summary:
        say(line)


def _one_of(model: str | None, config: str | None) -> str:
    from surgery.errors import OptionError

    if (model is None) == (config is None):
        raise OptionError("give either a model folder or --config with a well-known name, such as opt-125m")
    return model or config or ""
