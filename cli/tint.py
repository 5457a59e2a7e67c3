"""`surgery tint` and its commands."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.render import print_json, print_table, progress_bar, say, show_example, size
from cli.resuming import state_beside

if TYPE_CHECKING:
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

Model = Annotated[str | None, typer.Argument(help="Model folder or hub id.", show_default=False)]
Rates = Annotated[
    list[float] | None,
    typer.Option("--lr", help="Learning rate; several, to choose among on held-out data.", show_default="a grid"),
]
Steps = Annotated[int, typer.Option(min=1, help="Steps of the inner descent.")]
Layers = Annotated[str, typer.Option(help="Blocks that learn: all, or such as 0,2,8-11.")]
Modes = Annotated[
    list[str] | None,
    typer.Option("--mode", help="paper, exact or published; may be repeated.", show_default="paper and exact"),
]


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
    _print_run(run)
    say(f"Written to {folder}.  Next:  surgery tint verify {folder / 'model'}")
    say(f"       surgery tint run {folder / 'model'} --text {folder / 'text.txt'} --train-share 0.7")


@app.command()
def count(
    model: Model = None,
    config: Annotated[
        str | None,
        typer.Option(help="A well-known model's name, such as opt-125m, in place of MODEL.", show_default=False),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Length of the sequence.", show_default="the model's positions")
    ] = None,
    json: options.Json = False,
) -> None:
    """How big the simulating transformer is, piece by piece, without building it."""
    from surgery.tint.construction.counting import count as run

    found = run(_one_of(model, config), tokens=tokens)
    if json:
        print_json(found.content())
        return
    print_table(f"{found.name}: {found.layout.describe()}", *found.table())
    for line in found.summary:
        say(line)


@app.command()
def verify(
    model: Model = None,
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
    from surgery.tint.evaluation.perplexity import load_with_tokens
    from surgery.tint.evaluation.verification import outlook
    from surgery.tint.evaluation.verification import verify as run

    if output is not None:
        check_output(output, overwrite=overwrite, inputs=[_need(model), text])
    loaded, ids = load_with_tokens(_need(model), text, tokens, seed=seed, device=device, dtype=dtype)
    auxiliary = Auxiliary.of(loaded)
    if auxiliary.shape.weights > _LARGE:
        seconds, needed = outlook(auxiliary, ids, sweep=sweep)
        hint = "; --no-sweep leaves out the most of it" if sweep else ""
        time = f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
        say(f"About {time} and {size(needed)} of memory{hint}.", quiet=json)
    with progress_bar() as progress:
        found = run(loaded, ids, sweep=sweep, seed=seed, progress=progress)
    _finish(found, output, overwrite, json)


@app.command()
def run(
    model: Model = None,
    text: Annotated[Path | None, typer.Option(help="A text, for perplexity.", show_default=False)] = None,
    train_share: Annotated[
        list[float] | None,
        typer.Option(help="Share of each window to learn from; may be repeated.", show_default="0.5"),
    ] = None,
    lr: Rates = None,
    steps: Steps = 1,
    layers: Layers = "all",
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
    task: options.TaskName = None,
    data: options.Train = None,
    test: Annotated[
        str | None,
        typer.Option(
            "--eval",
            help="Test examples, likewise.",
            show_default="training examples left over",
            rich_help_panel="The task",
        ),
    ] = None,
    dev: Annotated[
        str | None,
        typer.Option(
            help="Examples to choose the learning rate by, likewise.",
            show_default="training examples left over",
            rich_help_panel="The task",
        ),
    ] = None,
    shots: Annotated[int, typer.Option(min=1, help="Demonstrations in all.", rich_help_panel="The task")] = 16,
    tests: Annotated[
        int | None, typer.Option(min=1, help="How many test examples.", show_default="all", rich_help_panel="The task")
    ] = None,
    loss: Annotated[
        str, typer.Option(help="What is learnt of demonstrations: label or all.", rich_help_panel="The task")
    ] = "label",
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
    """Perplexity of a text (--text), or accuracy on an in-context task (--task), with and without TinT.

    Interrupted, the same command with -o goes on where it was.
    """
    from surgery.errors import OptionError
    from surgery.files import check_output
    from surgery.tint.evaluation.in_context import run_task
    from surgery.tint.evaluation.perplexity import run_text

    if (text is None) == (task is None):
        raise OptionError("give either --text FILE, for perplexity, or --task NAME, for an in-context task")
    other: dict[str, Any] = {
        "--data": data,
        "--eval": test,
        "--dev": dev,
        "--tests": tests,
        "--prompt": prompt,
        "--word": word,
        "--column": column,
    }
    if task is not None:
        other = {"--train-share": train_share, "--window": window, "--windows": windows, "--start-token": start_token}
    if unused := [name for name, value in other.items() if value is not None]:
        raise OptionError(
            f"{unused[0]} goes with {'--text' if task else '--task'}, not with {'--task' if task else '--text'}: leave it out"
        )
    if output is not None:
        check_output(output, overwrite=overwrite, inputs=[_need(model), text, data, test, dev])
    modes = tuple(mode or ("paper", "exact"))
    with state_beside(output) if output else nullcontext(None) as state:
        with progress_bar() as progress:
            shared: dict[str, Any] = {
                "lr": lr,
                "steps": steps,
                "layers": layers,
                "seed": seed,
                "device": device,
                "dtype": dtype,
                "resume": state,
                "progress": progress,
            }
            if text is not None:
                found = run_text(
                    _need(model),
                    text,
                    shares=tuple(train_share or (0.5,)),
                    methods=("frozen", "dynamic evaluation", *(f"TinT {name}" for name in modes)),
                    window=window,
                    windows=windows,
                    dev_windows=dev_windows,
                    batch_size=batch_size,
                    start_token=start_token,
                    **shared,
                )
            else:
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
                found = run_task(_need(model), loaded, shots=shots, modes=modes, loss=loss, tests=tests, **shared)
        _finish(found, output, overwrite, json)


def _finish(found: "Run | Verification", output: Path | None, overwrite: bool, json: bool) -> None:
    from surgery.tint.evaluation.report import Run

    if output is not None:
        found.save(output, overwrite=overwrite)
    if json:
        print_json(found.content)
    elif isinstance(found, Run):
        _print_run(found)
    else:
        print_table("", *found.table())
        for line in (found.caption, *found.summary):
            say(line)
    if output is not None:
        say(f"Written to {output}", quiet=json)


def _print_run(found: "Run") -> None:
    print_table("", *found.table())
    say(found.caption)
    if found.differences()[1]:
        print_table("", *found.differences())
        say(found.differences_caption)


def _need(model: str | None) -> str:
    from surgery.errors import OptionError

    if model is None:
        raise OptionError("the model is missing: give a folder or a hub id")
    return model


def _one_of(model: str | None, config: str | None) -> str:
    from surgery.errors import OptionError

    if (model is None) == (config is None):
        raise OptionError("give either a model folder or --config with a well-known name, such as opt-125m")
    return model or config or ""
