"""`surgery graft`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, workers
from cli.render import print_json, print_need, print_skill, progress_bar, say, show_example
from cli.resuming import state_beside
from surgery.reporting.plural import number_of

if TYPE_CHECKING:
    from surgery.grafting.skill import Skill


_USAGE = "surgery graft BASE TUNED --task NAME --data FILE --eval FILE -o FOLDER"


# Long: options, declared where Typer reads them.
def graft(
    base: Annotated[
        str | None, typer.Argument(help="Base checkpoint: a folder or a hub id.", show_default=False)
    ] = None,
    tuned: Annotated[
        str | None, typer.Argument(help="Tuned checkpoint: the base after fine-tuning.", show_default=False)
    ] = None,
    task: options.ExampleTaskName = None,
    data: options.ExampleTrain = None,
    evaluate: options.ExampleTest = None,
    dev: Annotated[
        str | None,
        typer.Option(
            "--dev",
            help="Examples that --target-gain is judged on: a file or dataset id, as for --data.",
            show_default="--data",
            rich_help_panel="The task",
        ),
    ] = None,
    output: options.ExampleOutput = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the block weights to take.", show_default="1e-4")
    ] = None,
    weights: Annotated[
        int | None, typer.Option(help="Number of weights to take, instead of --sparsity.", show_default=False)
    ] = None,
    target_gain: Annotated[
        float | None,
        typer.Option(
            help="Instead of --sparsity: the smallest number of weights found to recover this share of tuning's gain, by bisection, on --dev or else on --data.",
            show_default=False,
        ),
    ] = None,
    values: Annotated[
        str,
        typer.Option(
            help="Values of the weights: tuned; rescaled (drawn at random and moved further); refitted (then fitted to TUNED's predictions)."
        ),
    ] = "tuned",
    low_rank: Annotated[
        bool,
        typer.Option(
            "--low-rank",
            help="Take components of each matrix's change instead of weights, as many as hold that many numbers.",
        ),
    ] = False,
    method: Annotated[
        str, typer.Option(help="Way to choose the weights: dual-averaging, sigmoid (as published) or movement.")
    ] = "dual-averaging",
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs of --method sigmoid.", show_default="chosen on held-out training examples"),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(help="More sparsities to try: 1e-5:1e-2, or a list with commas.", show_default=False)
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines", help="Score top movement, random weights, biases and norms, and zeroing outside too."
        ),
    ] = False,
    control: Annotated[
        bool | None,
        typer.Option(
            help="Set the agreement beside that of as many weights of the base tuned anew; takes a tuning and a locating more.",
            show_default="where at least half of the weights moved",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help="Head of the base. tuned: write it with the tuned checkpoint's head first, as FOLDER-base beside -o FOLDER.",
            show_default="the base's",
        ),
    ] = None,
    shots: options.Shots = None,
    prompt: options.Prompt = None,
    word: options.Word = None,
    phrase: options.Phrase = None,
    column: options.Column = None,
    max_length: options.MaxLength = 128,
    include: options.Include = None,
    exclude: options.Exclude = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 32,
    shard: workers.Shard = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Find the few weights that carry a skill from a base to a tuned checkpoint.

    Without arguments: the embedded example, start to finish, in about a minute; an earlier run's folder is replaced.
    """
    from cli.flags import all_flags
    from surgery.errors import OptionError
    from surgery.files import check_output
    from surgery.grafting.budget import parse_sweep
    from surgery.grafting.localization import graft as run
    from surgery.grafting.memory_need import graft_need
    from surgery.grafting.products import check_product
    from surgery.grafting.targets import check_target

    recipe = workers.recipe(None, None, None, 4, None, shard)
    if recipe and not shard:
        workers.alone("graft without --shard")
        recipe = None
    if shard and head:
        raise OptionError(
            "--head writes a folder, by one process: make it by `surgery graft --head tuned` without --shard first"
        )
    if base is None:
        given: list[Any] = [task, data, evaluate, dev, sparsity, weights, target_gain, epochs, sweep, head, shots]
        given += [
            low_rank or None,
            control,
            None if values == "tuned" else values,
            prompt,
            word,
            phrase,
            column,
            include,
            exclude,
            dtype,
            shard or None,
        ]
        if dry_run or any(value is not None for value in given):
            raise OptionError(f"the base checkpoint is missing: {_USAGE}")
        _example(output, device, seed, overwrite, json)
        return
    if tuned is None:
        raise OptionError(f"the tuned checkpoint is missing: {_USAGE}")
    folder, headed = Path() if dry_run else options.need_output(output), None
    if not dry_run:
        headed = _headed(folder, head)
        check_output(folder, overwrite=overwrite, inputs=[base, tuned, data, dev, evaluate])
        if headed and not _made_before(headed, base, tuned):
            check_output(headed, overwrite=overwrite, inputs=[base, tuned, data, dev, evaluate])
    check_product(values, low_rank, method, baselines)
    check_target(target_gain, sparsity, weights, sweep)
    if dev and target_gain is None:
        raise OptionError("--dev is what --target-gain is judged on: give --target-gain, or leave --dev out")
    loaded = options.load_task(
        task,
        train=data,
        dev=dev,
        test=evaluate,
        shots=shots,
        seed=seed,
        prompt=prompt,
        word=word,
        phrase=phrase,
        column=column,
        max_length=max_length,
    )
    shared: dict[str, Any] = {"sparsity": sparsity, "weights": weights, "sweep": parse_sweep(sweep) if sweep else ()}
    shared |= {"method": method, "include": include or (), "exclude": exclude or (), "device": device}
    shared |= {"dtype": dtype, "batch_size": batch_size}
    shared |= {"values": values, "low_rank": low_rank, "target_gain": target_gain}
    if dry_run:
        print_need(graft_need(base, loaded, **shared), json)
        return
    with (
        _with_head(base, tuned, headed, overwrite),
        workers.meet(recipe) as crew,
        state_beside(folder, lambda: workers.is_first(crew)) as state,
        progress_bar() as progress,
    ):
        shared["device"] = workers.device(device)
        asked: dict[str, Any] = {
            "epochs": epochs,
            "baselines": baselines,
            "control": control,
            "seed": seed,
            "resume": state,
            "workers": crew,
        }
        asked["say"] = lambda line: say(all_flags(line), quiet=json)
        skill = run(headed or base, tuned, loaded, progress=progress, **asked, **shared)
        if not workers.is_first(crew):
            return
        skill.save(folder, overwrite=overwrite)
    _report(skill, folder, json)
    if headed:
        say(
            f"{headed}: {base} with the head of {tuned}, the skill's base: surgery skill apply {folder} {headed} -o grafted/",
            quiet=json,
        )


def _headed(folder: Path, head: str | None) -> Path | None:
    """Where the base with the tuned one's head goes, when one is asked for."""
    from surgery.errors import OptionError

    if head not in (None, "tuned"):
        raise OptionError(f"--head {head} can't be given: only tuned, the tuned checkpoint's head")
    return folder.with_name(f"{folder.name}-base") if head else None


def _made_before(headed: Path, base: str, tuned: str) -> bool:
    """Whether a run that was killed left the base with this head there: then it is taken, not made again."""
    import json

    from surgery.checkpoints.checkpoint import Checkpoint

    try:
        inputs = json.loads((headed / "report.json").read_text(encoding="utf-8"))["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return inputs == {"base": Checkpoint(base).fingerprint, "tuned": Checkpoint(tuned).fingerprint}


@contextmanager
def _with_head(base: str, tuned: str, headed: Path | None, overwrite: bool) -> Iterator[None]:
    """Make the base with the tuned one's head, and take it away again if what follows fails."""
    if headed is None:
        yield
        return
    from surgery.grafting.heads import with_tuned_head

    if not _made_before(headed, base, tuned):
        with_tuned_head(base, tuned, headed, overwrite=overwrite)
    try:
        yield
    except BaseException:
        shutil.rmtree(headed)
        raise


def _example(output: Path | None, device: str | None, seed: int, overwrite: bool, json: bool) -> None:
    from surgery.grafting.example import run_example

    skill, folder, base = show_example(run_example, output, overwrite=overwrite, device=device, seed=seed, quiet=json)
    _report(skill, folder, json)
    say(f"Next:  surgery skill show {folder}\n       surgery skill apply {folder} {base} -o grafted/", quiet=json)


def _report(skill: "Skill", folder: Path, json: bool) -> None:
    from surgery.grafting.products import WHAT
    from surgery.grafting.remarks import remarks

    report = skill.report
    if not json:
        print_skill(report)
        if what := WHAT.get(report["values"]):
            say(what)
        if target := report.get("target"):
            say(
                f"{target['weights']:,} is the smallest number found to recover {target['gain']:g} of tuning's gain on --{'dev' if target['judged_on'] == 'dev' else 'data'}, of {len(target['points'])} tried"
            )
        if report["left_out"]:
            say(
                f"{len(report['left_out'])} tensors outside the movable ones differ too ({report['left_out'][0]} first): "
                "the graft has them as in the base (--include '*' lets them move too)"
            )
        for remark in remarks(report):
            say(remark)
        say(
            f"{folder}: {'low-rank' if report['values'] == 'low-rank' else 'skill'}.safetensors, report.json, README.md and {number_of(len(list(folder.glob('*.png'))), 'figure')}, in {report['seconds']:.0f} s"
        )
        return
    pick: dict[str, Any] = {
        name: {key: report[name][key] for key in ("accuracy", "ece")} for name in ("base", "tuned", "graft")
    }
    pick["graft"] |= {key: report["graft"][key] for key in ("agreement", "gain_recovered")}
    more = {"points": report["points"]} if len(report["points"]) > 1 else {}
    more |= {key: report[key] for key in ("values", "prospects", "target", "control") if key in report}
    print_json(
        {
            **pick,
            "examples": report["examples"],
            "weights": report["weights"],
            "sparsity": report["sparsity"],
            "bytes": report["bytes"],
            "remarks": remarks(report),
            "output": str(folder),
            "seconds": report["seconds"],
            **more,
        }
    )
