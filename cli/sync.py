"""`surgery sync plan`: when workers average their weights, without a run."""

from typing import Annotated, Any

import typer

from cli import options
from cli.render import print_json, print_table, say

app = typer.Typer(help="Plan when the workers of a training average their weights.", no_args_is_help=True)


@app.callback()
def _sync() -> None:
    """Plan when the workers of a training average their weights."""


# Long: options, declared where Typer reads them.
@app.command()
def plan(
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the training. Required.", show_default=False)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate. Required.", show_default=False)] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Steps over which the rate rises from 0.")] = 0,
    end_rate: Annotated[float, typer.Option(help="Rate at the end.")] = 1e-6,
    decay: Annotated[str, typer.Option(help="How the rate falls: cosine, linear or constant.")] = "cosine",
    kind: Annotated[str, typer.Option("--sync", help="When to average: qsr, cubic, constant or post-local.")] = "qsr",
    alpha: Annotated[
        float | None,
        typer.Option(help="H is (alpha / rate)^2, with cubic ^3. Required, or --budget.", show_default=False),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Share of data parallel's bytes: alpha, or H, follows from it.", show_default=False),
    ] = None,
    h: Annotated[int, typer.Option("--h", min=1, help="H in warm-up and the least after it; of constant, always.")] = 4,
    h_max: Annotated[int | None, typer.Option(min=1, help="Most steps of a round.", show_default="no limit")] = None,
    switch: Annotated[
        int | None,
        typer.Option(min=0, help="Step from which post-local averages seldom.", show_default="half way"),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights that are averaged, to count bytes by; 86e6 will do.", show_default=False)
    ] = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Count rounds, bytes and the longest round of a schedule, beside constant H and data parallel; nothing is run."""
    from surgery.errors import OptionError
    from surgery.files import check_output
    from surgery.sync.planning import plan as find
    from surgery.sync.planning import warmed_up

    if steps is None or rate is None:
        raise OptionError(
            f"--{'steps' if steps is None else 'rate'} is missing: give steps and peak rate of a training"
        )
    if alpha is not None and budget is not None:
        raise OptionError("--alpha and --budget are two ways to say one thing: give one of them")
    if output is not None:
        check_output(output, overwrite=overwrite)
    given: dict[str, Any] = {"kind": kind, "h_base": h, "h_max": h_max, "switch": switch, "warmup": warmup}
    if alpha is not None:
        given["alpha"] = alpha
    if switch is None:
        del given["switch"]
    count = None if weights is None else options.whole_number(weights, "--weights")
    rates = warmed_up(steps, rate, warmup=warmup, end_rate=end_rate, decay=decay)
    found = find(rates, budget=budget, weights=count, **given)
    if output is not None:
        found.save(output, overwrite=overwrite)
    if json:
        print_json({"output": str(output) if output else None, **found.content()})
        return
    from surgery.reporting.page import cells

    columns, rows = found.table()
    print_table("", columns, cells(rows))
    for line in found.summary:
        say(line)
    if budget is not None:
        say(f"alpha {found.schedule.alpha:.4g}" if found.schedule.driven else f"H {found.schedule.h_base}")
    if output is not None:
        say(f"Written to {output}; the report is {output / 'index.html'}")
