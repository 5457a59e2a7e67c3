"""`surgery eval` and its commands."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.render import print_json, print_table, progress_bar, say, show_example

if TYPE_CHECKING:
    from surgery.evaluating.evaluation import Evaluation

    Context = typer.Context
else:
    Context = typer.Context.__base__  # what Typer really passes

app = typer.Typer(
    help="Measure skills in what a model says, before and after surgery. Without a command: an embedded example.",
    invoke_without_command=True,
)

_MODEL = "A folder, a hub id, or openai:NAME@URL."
Model = Annotated[str | None, typer.Argument(help=_MODEL, show_default=False)]
Against = Annotated[
    str | None, typer.Option(help="Another model to hold it against, such as the base.", show_default=False)
]
Graders = Annotated[
    list[str] | None,
    typer.Option("--grader", help=f"Model that grades. {_MODEL} Required; may be repeated.", show_default=False),
]
Floor = Annotated[
    list[float] | None,
    typer.Option(
        help="Noise floor of --against: 0 asks it again, 0.05 damages its weights by that much; may be repeated.",
        show_default="none",
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        "--log",
        help="File of all calls, from which those that are known are taken.",
        show_default="calls.jsonl beside the output",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count the calls; make none.")]
Price = Annotated[
    str | None, typer.Option(help="Dollars for a million tokens read and written, such as 2.5,10.", show_default="none")
]
Parallel = Annotated[int, typer.Option(min=1, help="Calls to a server at once.")]
ContextSize = Annotated[
    int | None, typer.Option("--context", min=64, help="Tokens that a server's model takes.", show_default="not known")
]
Answers = Annotated[int, typer.Option("--batch-size", min=1, help="Answers written at once on a device.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Of the answers; 0 takes the likeliest words.")]


@app.callback()
def evaluate(
    context: Context,
    output: options.Output = None,
    device: options.Device = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure skills in what a model says, before and after surgery.

    Without a command: a small model is made on the spot and evaluated before and after it learns, within two minutes; the
    folder surgery-eval-example of an earlier run is replaced.
    """
    if context.invoked_subcommand is not None:
        return
    from surgery.evaluating.example import run_example

    formal, tutor, folder = show_example(run_example, output, overwrite=overwrite, device=device, seed=seed, quiet=json)
    if json:
        print_json({"output": str(folder), "formal": formal.content(), "tutor": tutor.content()})
        return
    _print(formal)
    say(
        f"Written to {folder}.  Next:  surgery eval formal {folder / 'after'} --against {folder / 'before'} -k 1 --items 40"
    )


# Long: options, declared where Typer reads them.
@app.command()
def formal(
    model: Model = None,
    against: Against = None,
    k: Annotated[
        list[int] | None, typer.Option("-k", help="Skills at a time, 1 to 4; may be repeated.", show_default="1 and 2")
    ] = None,
    items: Annotated[int, typer.Option(min=4, help="Items of each reading and k.")] = 300,
    reading: Annotated[
        list[str] | None,
        typer.Option(help="likelihood, which needs weights, or generation; may be repeated.", show_default="both"),
    ] = None,
    skill: Annotated[
        list[str] | None,
        typer.Option(help="Skill to draw from, such as question or sentences:3; may be repeated.", show_default="all"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a text that is written.")] = 96,
    temperature: Temperature = 0.7,
    floor: Floor = None,
    output: options.Output = None,
    log: LogFile = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    batch_size: Answers = 16,
    parallel: Parallel = 8,
    dry_run: DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure skills that a program checks, such as a text without the letter e; no grader.

    Interrupted, the same command goes on where it was.
    """
    from surgery.evaluating.formal.run import evaluate_formal

    shared: dict[str, Any] = {"against": against, "seed": seed, "floor": tuple(floor or ()), "dry_run": dry_run}
    shared |= {"device": device, "dtype": dtype, "batch_size": batch_size, "parallel": parallel}

    def run(**more: Any) -> "Evaluation":
        return evaluate_formal(
            _need(model), k=tuple(k or (1, 2)), items=items, readings=reading, skills=skill, max_tokens=max_tokens,
            temperature=temperature, **shared, **more,
        )  # fmt: skip

    _run(run, "formal", [model, against], output, log, dry_run=dry_run, overwrite=overwrite, json=json)


# Long: options, declared where Typer reads them.
@app.command()
def skillmix(
    model: Model = None,
    skills: Annotated[
        Path | None,
        typer.Option(help="CSV file with columns skill, definition, example. Required.", show_default=False),
    ] = None,
    topics: Annotated[
        Path | None, typer.Option(help="Text file, a topic a line. Required.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Skills at a time.")] = 2,
    grader: Graders = None,
    against: Against = None,
    combinations: Annotated[int, typer.Option(min=1, help="Combinations of skills and a topic.")] = 100,
    generations: Annotated[int, typer.Option(min=1, help="Texts of each combination, of which the best counts.")] = 3,
    gradings: Annotated[
        int, typer.Option(min=1, help="Gradings of each text by each grader, of which the majority counts.")
    ] = 3,
    no_names: Annotated[bool, typer.Option("--no-names", help="A text that names a skill doesn't show it.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 400,
    temperature: Temperature = 0.7,
    floor: Floor = None,
    price: Price = None,
    output: options.Output = None,
    log: LogFile = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    batch_size: Answers = 16,
    parallel: Parallel = 8,
    dry_run: DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure combinations of k skills and a topic, written in two turns and graded by a model (Skill-Mix).

    Interrupted, the same command goes on where it was.
    """
    from surgery.evaluating.skillmix import evaluate_skillmix

    files = (
        _needed_file(skills, "--skills", "a CSV file of skills"),
        _needed_file(topics, "--topics", "a text file of topics"),
    )
    shared: dict[str, Any] = {"against": against, "seed": seed, "floor": tuple(floor or ()), "dry_run": dry_run}
    shared |= {
        "device": device,
        "dtype": dtype,
        "batch_size": batch_size,
        "parallel": parallel,
        "prices": _prices(price),
    }

    def run(**more: Any) -> "Evaluation":
        return evaluate_skillmix(
            _need(model), skills=files[0], topics=files[1], graders=grader or (), k=k, combinations=combinations, generations=generations,
            gradings=gradings, no_names=no_names, max_tokens=max_tokens, temperature=temperature, **shared, **more,
        )  # fmt: skip

    _run(run, "skillmix", [model, against, *files], output, log, dry_run=dry_run, overwrite=overwrite, json=json)


# Long: options, declared where Typer reads them.
@app.command()
def tutor(
    model: Model = None,
    data: Annotated[
        str | None,
        typer.Option(help="Questions: .parquet, .jsonl, .csv, .tsv or a dataset id. Required.", show_default=False),
    ] = None,
    grader: Graders = None,
    closed_book: Annotated[
        bool, typer.Option("--closed-book", help="Leave out the chapter, and questions that need it.")
    ] = False,
    against: Against = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Only the first so many.", show_default="all")] = None,
    gradings: Annotated[
        int, typer.Option(min=1, help="Gradings of each answer by each grader, of which the mean counts.")
    ] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 800,
    context: ContextSize = None,
    floor: Floor = None,
    price: Price = None,
    output: options.Output = None,
    log: LogFile = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    batch_size: Answers = 16,
    parallel: Parallel = 8,
    dry_run: DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure answers to questions on a chapter, graded by a model against an expert's key points (TutorEval).

    Interrupted, the same command goes on where it was.
    """
    from surgery.errors import OptionError
    from surgery.evaluating.tutoring.run import evaluate_tutor

    if data is None:
        raise OptionError("--data is missing: give a file of questions or a dataset id")
    shared: dict[str, Any] = {"against": against, "seed": seed, "floor": tuple(floor or ()), "dry_run": dry_run}
    shared |= {"device": device, "dtype": dtype, "batch_size": batch_size, "parallel": parallel, "context": context}

    def run(**more: Any) -> "Evaluation":
        return evaluate_tutor(
            _need(model), data=data, graders=grader or (), closed_book=closed_book, questions=questions, gradings=gradings,
            max_tokens=max_tokens, prices=_prices(price), **shared, **more,
        )  # fmt: skip

    _run(run, "tutor", [model, against, data], output, log, dry_run=dry_run, overwrite=overwrite, json=json)


@app.command()
def regrade(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of gradings in the published form, or folders that hold them.", show_default=False),
    ] = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Compute the published metrics of Skill-Mix from files of gradings."""
    from surgery.errors import OptionError
    from surgery.evaluating.regrading import regrade as run
    from surgery.files import check_output

    if not files:
        raise OptionError("the file is missing: give a records.csv of gradings, or a folder of such files")
    if output is not None:
        check_output(output, overwrite=overwrite, inputs=files)
    _finish(run(files), output, overwrite=overwrite, json=json)


# Long: options, declared where Typer reads them.
@app.command()
def dialogue(
    book: Annotated[Path | None, typer.Option(help="Text file with a chapter. Required.", show_default=False)] = None,
    teacher: Annotated[str | None, typer.Option(help=f"Model. {_MODEL} Required.", show_default=False)] = None,
    student: Annotated[str | None, typer.Option(help=f"Model. {_MODEL} Required.", show_default=False)] = None,
    output: options.NeededOutput = None,
    count: Annotated[int, typer.Option(min=1, help="Dialogues.")] = 4,
    turns: Annotated[int, typer.Option(min=2, help="Turns of a dialogue, both sides together.")] = 6,
    mode: Annotated[str, typer.Option(help="openbook, closedbook or exam.")] = "openbook",
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a turn.")] = 200,
    temperature: Temperature = 0.9,
    price: Price = None,
    log: LogFile = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    batch_size: Answers = 16,
    parallel: Parallel = 8,
    dry_run: DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Have a teacher and a student talk about a chapter, as examples to train on with a loss mask (TutorChat)."""
    from surgery.errors import OptionError
    from surgery.evaluating.tutoring.dialogues import make_dialogues
    from surgery.files import check_output

    for name, value in (("--book", book), ("--teacher", teacher), ("--student", student)):
        if value is None:
            raise OptionError(f"{name} is missing: give --book a chapter, and two models, --teacher and --student")
    folder = options.need_output(output)
    if not dry_run:
        check_output(folder, overwrite=overwrite, inputs=[book, teacher, student])
    with progress_bar() as progress:
        made = make_dialogues(
            _need(book), _need(teacher), _need(student), count=count, turns=turns, mode=mode, max_tokens=max_tokens,
            temperature=temperature, seed=seed, log=log or folder.absolute().parent / "calls.jsonl", dry_run=dry_run, progress=progress,
            prices=_prices(price), device=device, dtype=dtype, batch_size=batch_size, parallel=parallel,
        )  # fmt: skip
    usage = {name: use.content() for name, use in made.usage.items()}
    if not dry_run:
        made.save(folder, overwrite=overwrite)
    if json:
        print_json({"output": str(folder), "dialogues": len(made.dialogues), "missing": made.missing, "usage": usage})
        return
    _print_usage(usage, dry_run)
    if not dry_run:
        say(
            f"{len(made.dialogues)} dialogues written to {folder / 'dialogues.jsonl'}; {made.missing} are missing, as a call had no answer"
        )


@app.command()
def show(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of an evaluation, or one that holds some.", show_default=False)
    ] = None,
    json: options.Json = False,
) -> None:
    """Show what evaluations found, and write their pages again."""
    from surgery.errors import OptionError
    from surgery.evaluating.gallery import show_folder

    if folder is None:
        raise OptionError("the folder is missing: give one that `surgery eval` wrote, or one that holds several")
    found, page = show_folder(folder)
    if json:
        print_json({"page": str(page), "evaluations": {str(place): each.content() for place, each in found.items()}})
        return
    for place, each in found.items():
        say(f"{place}:")
        _print(each)
    say(f"The page is {page}")


def _run(
    run: Callable[..., "Evaluation"], kind: str, inputs: Sequence[object], output: Path | None, log: Path | None,
    *, dry_run: bool, overwrite: bool, json: bool,
) -> None:  # fmt: skip
    """Run an evaluation into its folder, by default `runs/KIND`, with the log beside it."""
    from surgery.evaluating.opening import check_model
    from surgery.files import check_output

    check_model(inputs[0] or "")
    folder = output or Path("runs") / kind
    if not dry_run:
        check_output(folder, overwrite=overwrite, inputs=inputs)
    with progress_bar() as progress:
        found = run(log=log or folder.absolute().parent / "calls.jsonl", progress=progress)
    if dry_run:
        if json:
            print_json({"usage": found.usage})
        else:
            _print_usage(found.usage, dry_run)
        return
    _finish(found, folder, overwrite=overwrite, json=json)


def _finish(found: "Evaluation", output: Path | None, *, overwrite: bool, json: bool) -> None:
    if output is not None:
        found.save(output, overwrite=overwrite)
    if json:
        print_json(found.content())
        return
    _print(found)
    _print_usage(found.usage, False)
    if output is not None:
        say(f"Written to {output}; the report is {output / 'index.html'}")


def _print(found: "Evaluation") -> None:
    from surgery.reporting.page import cell

    columns, rows = found.table()
    print_table("", columns, [[cell(value) for value in row] for row in rows])
    for line in [*found.summary, *found.remarks]:
        say(line)


def _print_usage(usage: dict[str, Any], dry: bool) -> None:
    for name, use in usage.items():
        new = use["calls"] - use["known"]
        if dry:
            say(f"{name}: {use['calls']:,} calls, {use['known']:,} of them known from the log, {new:,} to make")
            continue
        cost = "" if use["cost"] is None else f", ${use['cost']:.4f}"
        missing = f", {use['missing']:,} without an answer" if use["missing"] else ""
        say(
            f"{name}: {new:,} calls made, {use['known']:,} known; {use['prompt_tokens']:,} tokens read, {use['tokens']:,} written{cost}{missing}"
        )


def _need(given: Any) -> Any:
    from surgery.errors import OptionError

    if given is None:
        raise OptionError("the model is missing: give a folder, a hub id, or openai:NAME@URL")
    return given


def _needed_file(given: Path | None, name: str, what: str) -> Path:
    from surgery.errors import OptionError

    if given is None:
        raise OptionError(f"{name} is missing: give {what}")
    return given


def _prices(text: str | None) -> tuple[float, float] | None:
    from surgery.errors import OptionError

    if text is None:
        return None
    try:
        read, written = (float(part) for part in text.split(","))
    except ValueError:
        read, written = -1.0, -1.0
    if read < 0 or written < 0:
        raise OptionError(
            f"--price {text} must be two numbers, such as 2.5,10: dollars for a million tokens read, and written"
        )
    return read, written
