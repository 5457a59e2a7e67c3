"""`surgery pcfg pretrain`: a masked language model trained on a grammar's sentences."""

from pathlib import Path
from typing import Annotated

import typer

from cli import grammars, options, workers
from cli.render import figure, print_json, print_need, progress_bar, say
from cli.resuming import state_beside


# Long: options, declared where Typer reads them.
def pretrain(
    grammar: grammars.GrammarFile,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the RoBERTa.")] = 6,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads in each layer.")] = 6,
    width: Annotated[int, typer.Option(min=1, help="Size of hidden states, a multiple of --heads.")] = 192,
    config: Annotated[
        Path | None,
        typer.Option(help="A RoBERTa config.json in place of --layers, --heads and --width.", show_default=False),
    ] = None,
    sentences: Annotated[str, typer.Option(help="Sentences to train on, each seen once; 1e6 will do.")] = "1e6",
    max_length: Annotated[int, typer.Option(min=2, help="Most words of a sentence.")] = 40,
    mask: Annotated[float, typer.Option(help="Share of the words that are masked.")] = 0.15,
    batch_size: Annotated[int, typer.Option(min=1, help="Sentences a step.")] = 64,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    evaluation: Annotated[int, typer.Option(min=10, help="Held-out sentences for the final excess loss.")] = 1000,
    keep: Annotated[
        int, typer.Option(min=0, help="Checkpoints on the way to keep, for `surgery emergence measure`.")
    ] = 0,
    sync: workers.SyncKind = None,
    budget: workers.Budget = None,
    alpha: workers.Alpha = None,
    h: workers.H = 4,
    h_max: workers.HMax = None,
    output: options.NeededOutput = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dry_run: options.DryRun = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Train a masked language model on a grammar's sentences, and hold it to the exact posterior of the masked words.

    A run that was stopped goes on where it was. Under torchrun several workers share the batches.
    """
    from pcfg.grammars.grammar import GRAMMAR_FILE
    from pcfg.learning.kept_weights import KEPT
    from pcfg.learning.pretraining import pretrain as run
    from pcfg.learning.pretraining_memory import pretrain_need
    from pcfg.learning.pretraining_recipe import PretrainRecipe, read_config
    from surgery.files import check_output

    recipe_of_workers = workers.recipe(sync, alpha, budget, h, h_max)
    inputs = [grammar] if config is None else [grammar, config]
    if not dry_run:
        check_output(options.need_output(output), overwrite=overwrite, replaces=GRAMMAR_FILE, inputs=inputs)
    recipe = PretrainRecipe(
        layers=layers,
        heads=heads,
        width=width,
        sentences=options.whole_number(sentences, "--sentences"),
        max_length=max_length,
        batch_size=batch_size,
        rate=rate,
        mask=mask,
        evaluation=evaluation,
    )
    settings = None if config is None else read_config(config)
    loaded = grammars.load_grammar(grammar)
    if dry_run:
        print_need(pretrain_need(loaded, recipe, config=settings, keep=keep, seed=seed, device=device), json)
        return
    folder = options.need_output(output)
    with workers.meet(recipe_of_workers) as crew, state_beside(folder, lambda: workers.is_first(crew)) as state:
        place = workers.device(device)
        with progress_bar() as progress:
            trained = run(
                loaded, recipe, config=settings, keep=keep, seed=seed, device=place, resume=state, workers=crew,
                sync=recipe_of_workers, progress=progress,
            )  # fmt: skip
        if not workers.is_first(crew):
            return
        trained.save(folder, overwrite=overwrite)
    report = trained.report
    if json:
        names = ("parameters", "steps", "words", "loss", "optimum", "excess", "by_position", "by_masks", "history")
        print_json({"output": str(folder), **{name: report[name] for name in names}, "seconds": report["seconds"]})
        return
    excess = report["excess"]
    say(
        f"{folder}: {report['parameters']:,} weights, {report['steps']:,} steps in {report['seconds']:.0f} s; loss {figure(report['loss'])}, optimum {figure(report['optimum'])}"
    )
    say(f"excess loss {figure(excess['value'])} nats [{figure(excess['low'])}, {figure(excess['high'])}]")
    groups = ", ".join(f"{entry['masks']}: {figure(entry['value'])}" for entry in report["by_masks"])
    say(f"by number of masks in the sentence  {groups}; by position in {folder / 'report.json'}")
    if keep:
        say(f"{keep} checkpoints on the way in {folder / KEPT}.  Next:  surgery emergence measure {folder} -o report/")
    say(f"Next:  surgery probe {folder} --grammar {grammar} -o report/")
