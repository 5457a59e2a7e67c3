"""`surgery emergence measure|curves|simulate`: which rules and combinations of rules a model knows, beside the theory."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options, workers
from cli.grammars import load_grammar
from cli.render import print_json, print_table, progress_bar, say, show_example
from cli.resuming import state_beside

if TYPE_CHECKING:
    from probes.emergence.report import CompetenceReport
    from surgery.reporting.results import Result

    Context = typer.Context
else:
    Context = typer.Context.__base__  # what Typer really passes

_SHOWN = 15  # rules on screen

app = typer.Typer(
    help="Measure which rules of a grammar a model knows, and their combinations, beside the theory of emergence. Without a command: an embedded example, within two minutes; the folder surgery-emergence-example of an earlier run is replaced.",
    invoke_without_command=True,
)

Shares = Annotated[str, typer.Option(help="Share of skills that may be worse than the bound; several by commas.")]


@app.callback()
def emergence(
    context: Context,
    output: options.Output = None,
    device: options.Device = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure which rules of a grammar a model knows, and their combinations, beside the theory of emergence.

    Without a command: a small model is trained on texts without one skill, and measured, within two minutes; the folder
    surgery-emergence-example of an earlier run is replaced.
    """
    if context.invoked_subcommand is not None:
        return
    from probes.emergence.example import run_example

    report, folder = show_example(run_example, output, overwrite=overwrite, device=device, seed=seed, quiet=json)
    _show(report, folder / "report", json)
    say(
        f"Next:  surgery emergence measure {folder / 'mlm'} --grammar {folder / 'skills.pcfg.json'} -o measured/",
        quiet=json,
    )


# Long: options, declared where Typer reads them.
@app.command()
def measure(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Model folders or hub ids, in the order of training.", show_default=False),
    ] = None,
    grammar: Annotated[
        Path | None,
        typer.Option(help="Grammar to hold the models to.", show_default="the one in the last model's folder"),
    ] = None,
    sentences: Annotated[str, typer.Option(help="Sentences to draw from the grammar.")] = "2000",
    masks: Annotated[
        int | None, typer.Option(min=1, help="Words of a sentence to mask, one at a time.", show_default="all")
    ] = None,
    rules: Annotated[
        list[str] | None,
        typer.Option(help="Take only rules that fit this pattern, as 'NP -> *'; may be repeated.", show_default="all"),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Total variation above which a mask has failed.")] = 0.1,
    alpha: Annotated[float, typer.Option(help="Share of the rules that count as the worst.")] = 0.2,
    least: Annotated[int, typer.Option(min=2, help="Texts that must hold a rule for it to be ranked.")] = 20,
    tuples: Annotated[int, typer.Option(min=1, help="Largest tuples of rules to list.")] = 2,
    training: Annotated[
        bool | None,
        typer.Option(
            "--training/--no-training",
            help="Also the checkpoints on the way that pretraining kept.",
            show_default="if there are any",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Most words of a sentence.", show_default="what the model takes, 40 at most"),
    ] = None,
    output: options.NeededOutput = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Measure competence on each rule of a grammar and on pairs of rules, exactly, and write a report.

    Several models, or one that keeps checkpoints on the way: curves over training. A run that was stopped goes on. Under
    torchrun several workers share the sentences.
    """
    from probes.emergence.measuring import measure_competence
    from surgery.errors import OptionError
    from surgery.files import check_output

    if not models:
        raise OptionError("the model is missing: give one or more folders or hub ids")
    folder = options.need_output(output)
    check_output(folder, overwrite=overwrite, inputs=[*models, *([] if grammar is None else [grammar])])
    loaded = load_grammar(_grammar_of(models[-1]) if grammar is None else grammar)
    count = options.whole_number(sentences, "--sentences")
    with workers.by_rank(), state_beside(folder) as state:
        with progress_bar() as progress:
            report = measure_competence(
                models,
                loaded,
                count,
                masks=masks,
                rules=rules,
                threshold=threshold,
                alpha=alpha,
                least=least,
                tuples=tuples,
                training=training,
                max_length=max_length,
                seed=seed,
                device=workers.device(device),
                resume=state,
                progress=progress,
            )
        report.save(folder, overwrite=overwrite)
        _show(report, folder, json)


@app.command()
def curves(
    k: Annotated[str, typer.Option("-k", help="Skills that a text draws; several by commas.")] = "4,8,16",
    theta: Annotated[str, typer.Option(help="Share of texts that fail; several by commas.")] = "0.05",
    alpha: Shares = "0.2",
    tuples: Annotated[int, typer.Option(min=1, help="Also tuples of up to so many skills.")] = 4,
    output: options.Output = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Work out how much more than texts the worst skills can fail: the theorem, the exact worst case, tuples of skills."""
    from probes.emergence.bound_curves import curves as work_out
    from surgery.files import check_output

    if output is not None:
        check_output(output, overwrite=overwrite)
    found = work_out(
        _numbers(k, "-k", int),
        _numbers(theta, "--theta", float),
        _numbers(alpha, "--alpha", float),
        tuples=tuples,
        seed=seed,
    )
    _finish(found, output, overwrite=overwrite, json=json)


@app.command()
def simulate(
    skills: Annotated[int, typer.Option(help="Number of skills.")] = 1000,
    texts: Annotated[str, typer.Option(help="Number of texts.")] = "20000",
    k: Annotated[int, typer.Option("-k", help="Skills that a text draws.")] = 8,
    theta: Annotated[float, typer.Option(help="Share of texts that fail.")] = 0.05,
    alpha: Annotated[float, typer.Option(help="Share of skills that may be worse than the bound.")] = 0.2,
    zipf: Annotated[float, typer.Option(help="Exponent of the skills' frequencies by rank; 0: all alike.")] = 0.0,
    sets: Annotated[int, typer.Option(help="Random sets to take means over.")] = 20,
    output: options.Output = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Draw a graph of texts and skills, and fail texts at random and by an adversary."""
    from probes.emergence.simulating import simulate as draw
    from surgery.files import check_output

    if output is not None:
        check_output(output, overwrite=overwrite)
    with progress_bar() as progress:
        found = draw(
            skills,
            options.whole_number(texts, "--texts"),
            k,
            theta=theta,
            alpha=alpha,
            zipf=zipf,
            sets=sets,
            seed=seed,
            progress=progress,
        )
    _finish(found, output, overwrite=overwrite, json=json)


def _numbers(text: str, option: str, kind: Callable[[str], float]) -> list:
    """`4,8,16` as numbers."""
    from surgery.errors import OptionError

    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise OptionError(f"{option} {text} must be {what} separated by commas, such as 4,8,16") from None


def _grammar_of(model: str) -> Path:
    """The grammar beside a model that `surgery pcfg pretrain` made."""
    from pcfg.grammars.grammar import GRAMMAR_FILE
    from surgery.errors import OptionError

    found = Path(model).expanduser() / GRAMMAR_FILE
    if not found.parent.is_dir():
        raise OptionError(
            f"{model} isn't a folder here: name a model's folder, or a grammar too for a hub id (--grammar)"
        )
    if not found.exists():
        raise OptionError(f"{model} holds no {GRAMMAR_FILE}: name a grammar by --grammar")
    return found


def _show(report: "CompetenceReport", folder: Path, json: bool) -> None:
    from surgery.reporting.page import cell

    if json:
        last = report.last
        print_json(
            {
                "output": str(folder),
                "excess": last.excess.value,
                "failure": last.failure.value,
                "worst": [[rule.rules[0], rule.failure.value] for rule in report.rules[:_SHOWN]],
                "halves": last.halves,
                "comparisons": [[c.name, c.kind, c.failure, c.difference.value, c.verdict] for c in report.comparisons],
                "seconds": report.seconds,
            }
        )
        return
    columns, rows = report.table()
    title = f"{report.last.name}: the {min(_SHOWN, len(rows))} rules of {len(rows)} whose texts fail most"
    print_table(title, columns, [[cell(value) for value in row] for row in rows[:_SHOWN]])
    for line in (*report.summary, *report.notes):
        say(line)
    say(f"{folder / 'index.html'}: figures and all numbers, in {report.seconds:.0f} s")


def _finish(result: "Result", output: Path | None, *, overwrite: bool, json: bool) -> None:
    from dataclasses import asdict

    from surgery.reporting.page import cell

    if output is not None:
        result.save(output, overwrite=overwrite)
    if json:
        print_json(asdict(result))  # type: ignore[call-overload]
        return
    columns, rows = result.table()
    print_table("", columns, [[cell(value) for value in row] for row in rows])
    for line in result.summary:
        say(line)
    if output is not None:
        say(f"Written to {output}; the report is {output / 'index.html'}")
