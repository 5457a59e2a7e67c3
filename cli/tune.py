"""`surgery tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options, workers
from cli import tune_mezo as mezo
from cli.render import figure, print_json, print_need, progress_bar, say, say_repeated
from cli.resuming import state_beside
from surgery.reporting.plural import number_of

if TYPE_CHECKING:
    from surgery.tasks.task import Task
    from surgery.tasks.texts import Texts
    from surgery.tuning.finetuning import Tuned


# Long: options, declared where Typer reads them.
def tune(
    base: Annotated[str, typer.Argument(help="Checkpoint to tune: a folder or a hub id.")],
    task: options.NeededTaskName = None,
    data: options.NeededTrain = None,
    tasks: options.TaskNames = None,
    data_root: options.DataRoot = None,
    texts: Annotated[
        str | None,
        typer.Option(
            help="Instead of a task, for a language model: rows of prompt and completion, messages, or text and label; a file or dataset id.",
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="With --texts, what is learnt: answer, or text for all of it.", show_default="answer"),
    ] = None,
    dev: options.Dev = None,
    output: options.NeededOutput = None,
    shots: options.Shots = None,
    prompt: options.Prompt = None,
    word: options.Word = None,
    phrase: options.Phrase = None,
    column: options.Column = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Tokens that a prompt or text may have; longer ones are cut.",
            show_default="128; 1024 with --texts",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="gradient, or mezo: forward passes alone, in the memory of inference.")
    ] = "gradient",
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="Optimizer: sgd-l1, sgd, adamw or adamw-l1; only the first leaves a skill in few weights.",
            show_default="sgd-l1",
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default="by optimizer and model; mezo probes it")
    ] = None,
    l1: Annotated[
        float | None, typer.Option(help="Strength of the pull towards the base.", show_default="by recipe")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps.", show_default="by the number of examples; mezo 1000")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 16,
    accumulate: Annotated[int, typer.Option(help="Split a step's batch into this many pieces, to save memory.")] = 1,
    include: options.Include = None,
    exclude: options.Exclude = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Train nothing but this skill's weights; may be repeated.", show_default=False),
    ] = None,
    outside: Annotated[
        list[str] | None, typer.Option(help="Train all but this skill's weights; may be repeated.", show_default=False)
    ] = None,
    objective: mezo.ObjectiveName = None,
    where: mezo.Where = None,
    lora: mezo.Lora = None,
    directions: mezo.Directions = None,
    noise: mezo.NoiseKind = None,
    eps: mezo.Eps = None,
    momentum: mezo.Momentum = None,
    residual: mezo.Residual = None,
    force: mezo.Force = None,
    shard: workers.Shard = False,
    sync: workers.SyncKind = None,
    budget: workers.Budget = None,
    alpha: workers.Alpha = None,
    h: workers.H = 4,
    h_max: workers.HMax = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Precision: float32, or bfloat16 for mixed precision.", show_default="bfloat16 where CUDA has it"
        ),
    ] = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Fine-tune a checkpoint on a task, or a language model on texts; head and embeddings stay frozen.

    Interrupted, the same command goes on where it stopped. Under torchrun several workers share the batches.
    """

    from surgery.files import check_output

    own = {"objective": objective, "where": where, "lora": lora, "directions": directions, "noise": noise, "eps": eps}
    own |= {"momentum": momentum, "residual": residual, "force": force}
    recipe_of_workers = workers.recipe(sync, alpha, budget, h, h_max, shard)
    mezo.check_method(
        method, own, {"optimizer": optimizer, "l1": l1, "outside": outside, "sync": sync, "shard": shard or None}
    )
    if not dry_run:
        check_output(
            options.need_output(output),
            overwrite=overwrite,
            inputs=[base, data, texts, dev, data_root, *(only or ()), *(outside or ())],
        )
    paced: dict[str, Any] = {"rate": rate, "steps": steps, "batch_size": batch_size, "accumulate": accumulate}
    asked: dict[str, Any] = {"prompt": prompt, "word": word, "phrase": phrase, "column": column}
    drawn: dict[str, Any] = {"shots": shots, "seed": seed, "max_length": max_length or 128}
    if texts or loss:
        given = {"method": method == "mezo", "task": task, "data": data, "tasks": tasks, "data-root": data_root}
        loaded: Any = _texts(texts, dev, loss, max_length, {**given, "shots": shots, **asked})
    elif tasks or data_root:
        given = {"method": method == "mezo", "task": task, "data": data, "dev": dev, **asked}
        loaded = _several(tasks, data_root, given, drawn)
    else:
        loaded = options.load_task(task, train=data, dev=dev, **drawn, **asked)
    shared: dict[str, Any] = {"include": include or (), "exclude": exclude or (), "device": device, "dtype": dtype}
    shared["only"] = only or None
    if method == "mezo":
        workers.alone("tune --method mezo")
        mezo.run(base, loaded, {**paced, **own}, shared, seed, output, dry_run=dry_run, overwrite=overwrite, json=json)
        return
    from surgery.tuning.finetuning import tune as run
    from surgery.tuning.memory_need import tune_need
    from surgery.tuning.recipe import Recipe

    shared["outside"] = outside or None
    recipe = Recipe(optimizer=optimizer or "sgd-l1", l1=l1, **paced)
    if dry_run:
        print_need(tune_need(base, loaded, recipe, **shared), json)
        return
    folder = options.need_output(output)
    with workers.meet(recipe_of_workers) as crew, state_beside(folder, lambda: workers.is_first(crew)) as state:
        shared["device"] = workers.device(device)
        with progress_bar() as progress:
            tuned = run(
                base, loaded, recipe, seed=seed, resume=state, progress=progress, workers=crew, sync=recipe_of_workers, **shared
            )  # fmt: skip
        if not workers.is_first(crew):
            return
        tuned.save(folder, overwrite=overwrite)
    _report(tuned, folder, json)


def _texts(
    source: str | None, dev: str | None, loss: str | None, max_length: int | None, given: dict[str, Any]
) -> "Texts":
    from surgery.errors import OptionError
    from surgery.tasks.texts import Texts

    if source is None:
        raise OptionError("--loss goes with --texts: name the file of rows")
    if other := next((name for name, value in given.items() if value), None):
        raise OptionError(f"--{other} goes with a task: leave it out, or --texts")
    more = {} if max_length is None else {"max_length": max_length}
    return Texts.load(source, dev, loss=loss or "answer", **more)


def _several(tasks: str | None, root: Path | None, given: dict[str, Any], shared: dict[str, Any]) -> list["Task"]:
    from surgery.errors import OptionError

    if other := next((name for name, value in given.items() if value), None):
        raise OptionError(f"--{other} goes with one task: leave it out, or --tasks")
    return options.load_tasks(tasks, root, splits=("train", "dev"), **shared)


def _report(tuned: "Tuned", folder: Path, json: bool) -> None:
    report, copies = tuned.report, tuned.base.other_copies
    loss = sum(report["losses"][-20:]) / len(report["losses"][-20:])
    best = max((entry["value"] for entry in report["dev"]), default=None)
    if json:
        content = {"output": str(folder), "other_copies": list(copies), "steps": report["stopped_at"], "loss": loss}
        content |= {"dev": best, "dev_in_train": report["examples"]["dev_in_train"]}
        print_json({**content, **{key: report[key] for key in ("moved", "movable", "seconds")}})
        return
    if cut := report.get("answers_cut"):
        say(f"{number_of(cut, 'row')} of {report['examples']['train']:,} lost a part of the answer: raise --max-length")
    say_repeated(report["examples"]["dev_in_train"], report["examples"]["dev"], "dev")
    dev_line = f", best on dev {figure(best)}" if best is not None else ""
    if report["rounded_away"]:
        say(
            f"{number_of(report['rounded_away'], 'weight')} moved too little for the checkpoint's dtype and stayed as in the base"
        )
    say(
        f"{folder}: {number_of(report['stopped_at'], 'step')} in {report['seconds']:.0f} s, loss {loss:.3f}{dev_line}; {report['moved']:,} of {report['movable']:,} weights moved"
    )
    if copies:
        say(f"left out: {', '.join(copies)}: further copies of the base's weights")
