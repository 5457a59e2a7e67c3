"""`surgery skill study`."""

from typing import Annotated

import typer

from cli import options
from cli.render import print_json, print_table, progress_bar, say


# Long: options, declared where Typer reads them.
def study(
    base: Annotated[str, typer.Argument(help="Checkpoint that all skills are of: a folder or a hub id.")],
    tasks: options.TaskNames = None,
    data_root: options.DataRoot = None,
    output: options.NeededOutput = None,
    shots: Annotated[int, typer.Option(min=1, help="Training examples of each label.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds: 0, 1 and so on.")] = 1,
    sparsity: Annotated[float, typer.Option(help="Share of the block weights that a skill has.")] = 1e-4,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of tuning on one task.", show_default="by the number of examples")
    ] = None,
    test: Annotated[int, typer.Option(min=1, help="Test examples of a task at most.")] = 500,
    held: Annotated[
        int, typer.Option(min=1, help="Training examples kept from training, on which scales and rules are chosen.")
    ] = 200,
    max_length: options.MaxLength = 128,
    device: options.Device = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the stages, which are done and about how long the rest takes.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Study the skills of several tasks: regions, transfer, one task after another, unions and rival merges.

    The output is written as it goes; the same command goes on where it stopped and skips what is done.
    """
    from surgery.checkpoints.checkpoint import open_checkpoint
    from surgery.grafting.study.running import check_same, identity, left, plan, run_study, tuning_seconds
    from surgery.grafting.study.settings import Settings, cost
    from surgery.reporting.page import cell

    folder = options.need_output(output)
    names, root = options.split_tasks(tasks, data_root)
    settings = Settings(tuple(names), shots, seeds, sparsity, steps, test, held, max_length)
    if dry_run:
        check_same(folder.absolute(), identity(open_checkpoint(base), root, settings))
        planned = plan(settings, root)
        todo = left(folder.absolute(), planned)
        tunings = sum(cost(stage, settings) for stage in todo)
        minutes = tunings * tuning_seconds(open_checkpoint(base), root, settings, device) / 60 if todo else 0.0
        if json:
            waiting = [stage.name for stage in todo]
            print_json({"stages": [stage.name for stage in planned], "left": waiting, "minutes": round(minutes, 1)})
            return
        print_table("", ["stage", "done"], [[stage.name, "" if stage in todo else "yes"] for stage in planned])
        say(
            f"{len(todo)} of {len(planned)} stages are left: about {minutes:.0f} minutes, judged by four steps just now"
        )
        return
    with progress_bar() as progress:
        found = run_study(base, root, settings, folder, device=device, progress=progress)
    if json:
        print_json({"output": str(folder), "done": found.done, "planned": found.planned, "summary": found.summary})
        return
    for sentence in found.summary:
        say(sentence)
    columns, rows = found.table()
    print_table("", columns, [[cell(value) for value in row] for row in rows])
    say(f"{folder}: report.json, figures and the page index.html")
