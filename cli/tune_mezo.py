"""`surgery tune --method mezo` and `surgery tune replay`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.render import figure, print_json, print_need, progress_bar, say, say_repeated
from cli.resuming import state_beside

if TYPE_CHECKING:
    from surgery.mezo.trajectory import MezoTuned
    from surgery.tasks.task import Task

_PANEL = "With --method mezo"
ObjectiveName = Annotated[
    str | None,
    typer.Option(help="What is to become better: loss, accuracy or f1.", show_default="loss", rich_help_panel=_PANEL),
]
Where = Annotated[
    str | None,
    typer.Option(
        help="Tune few weights: gradient:SHARE, by their gradients at the base, or random:SHARE.",
        show_default="all block weights",
        rich_help_panel=_PANEL,
    ),
]
Lora = Annotated[
    int | None,
    typer.Option(min=1, help="Tune low-rank factors of this rank.", show_default=False, rich_help_panel=_PANEL),
]
Directions = Annotated[
    int | None, typer.Option(min=1, help="Directions a step.", show_default="1", rich_help_panel=_PANEL)
]
NoiseKind = Annotated[
    str | None, typer.Option(help="rademacher or gaussian.", show_default="rademacher", rich_help_panel=_PANEL)
]
Eps = Annotated[
    float | None,
    typer.Option(
        help="By how much weights are moved to see what it does.", show_default="probed", rich_help_panel=_PANEL
    ),
]
Momentum = Annotated[
    float | None,
    typer.Option(help="Share of a step that the next repeats.", show_default="0", rich_help_panel=_PANEL),
]
Residual = Annotated[
    bool | None,
    typer.Option(
        "--residual/--no-residual",
        help="Keep eight more bits of each weight tuned in bfloat16.",
        show_default="residual",
        rich_help_panel=_PANEL,
    ),
]
Force = Annotated[
    bool | None,
    typer.Option(
        "--force", help="Tune bfloat16 weights without a residual.", show_default=False, rich_help_panel=_PANEL
    ),
]
_RECIPE = ("directions", "noise", "eps", "momentum", "rate", "steps", "batch_size", "accumulate")


def check_method(method: str, own: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuse another method, and options that the method doesn't have."""
    from surgery.errors import OptionError

    if method not in ("gradient", "mezo"):
        raise OptionError(f"`method` {method} isn't one of gradient, mezo")
    foreign = others if method == "mezo" else own
    if given := next((name for name, value in foreign.items() if value), None):
        raise OptionError(f"`{given}` isn't for --method {method}: leave it out")


def run(
    base: str,
    task: "Task",
    given: Mapping[str, Any],
    shared: Mapping[str, Any],
    seed: int,
    output: Path | None,
    *,
    dry_run: bool,
    overwrite: bool,
    json: bool,
) -> None:
    """Tune with forward passes, or say what memory that takes."""
    from surgery.mezo.memory_need import mezo_need
    from surgery.mezo.recipe import MezoRecipe
    from surgery.mezo.run import tune

    recipe = MezoRecipe(**{name: given[name] for name in _RECIPE if given[name] is not None})
    what = {
        name: given[name] for name in ("objective", "where", "lora", "residual", "force") if given[name] is not None
    }
    if dry_run:
        how = {name: value for name, value in what.items() if name in ("where", "lora", "residual")}
        print_need(mezo_need(base, task, recipe, **shared, **how), json)
        return
    folder = options.need_output(output)
    with state_beside(folder) as state:
        with progress_bar() as progress:
            tuned = tune(base, task, recipe, seed=seed, resume=state, progress=progress, **shared, **what)
        tuned.save(folder, overwrite=overwrite)
    _report(tuned, folder, json)


def replay(
    trajectory: Annotated[Path, typer.Argument(help="trajectory.safetensors of a tuning by --method mezo.")],
    base: Annotated[str, typer.Argument(help="Checkpoint that was tuned: a folder or a hub id.")],
    to: Annotated[int | None, typer.Option(min=0, help="Step to stop after.", show_default="the last")] = None,
    output: options.NeededOutput = None,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Make the checkpoint of any step of a tuning by MeZO again, bit for bit, without data."""
    from surgery.files import check_output
    from surgery.mezo.trajectory import Trajectory

    folder = options.need_output(output)
    check_output(folder, overwrite=overwrite, inputs=[base])
    tuned = Trajectory.load(trajectory).replay(base, to, device=device)
    tuned.save(folder, overwrite=overwrite)
    report = tuned.report
    if json:
        content = {"output": str(folder), "steps": tuned.trajectory.steps}
        print_json({**content, **{key: report[key] for key in ("moved", "movable")}})
        return
    say(
        f"{folder}: the weights after {tuned.trajectory.steps:,} steps; {report['moved']:,} of {report['movable']:,} weights moved"
    )


def _report(tuned: "MezoTuned", folder: Path, json: bool) -> None:
    report, pace = tuned.report, tuned.report["recipe"]
    recent = report["losses"][-20:]
    best = max((entry["value"] for entry in report["dev"]), default=None)
    told = {"steps": report["stopped_at"], "objective": sum(recent) / len(recent), "dev": best}
    if json:
        content = {"output": str(folder), "other_copies": list(tuned.base.other_copies), **told}
        content |= {key: report[key] for key in ("moved", "movable", "rounded_away", "seconds")}
        print_json({**content, "rate": pace["rate"], "eps": pace["eps"]})
        return
    say_repeated(report["examples"]["dev_in_train"], report["examples"]["dev"], "dev")
    if report["rounded_away"]:
        say(f"{report['rounded_away']:,} weights moved too little for the checkpoint's dtype and are as in the base")
    dev = f", best on dev {figure(best)}" if best is not None else ""
    say(f"rate {pace['rate']:.2g}, eps {pace['eps']:.2g}")
    say(
        f"{folder}: {told['steps']} steps in {report['seconds']:.0f} s, objective {told['objective']:.3f}{dev}; {report['moved']:,} of {report['movable']:,} weights moved"
    )
    if tuned.trajectory.region is not None:
        say(f"{folder / 'skill'}: the same as a skill")
