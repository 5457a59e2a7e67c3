"""`surgery skill ...`: look at a skill, apply it, take it out again."""

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.render import print_json, print_skill, print_table, progress_bar, say, size

app = typer.Typer(help="Look at a skill, apply it to its base, take it out again.", no_args_is_help=True)

SkillFolder = Annotated[Path, typer.Argument(help="Skill folder, or a hub id.")]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Patch the checkpoint's own files instead of writing a new folder.")
]


@app.command()
def show(skill: SkillFolder, json: options.Json = False) -> None:
    """What a skill is, how well it works, where it sits."""
    from surgery.grafting.figures import by_layer, layer_and_module
    from surgery.grafting.remarks import remarks
    from surgery.grafting.skill import Skill

    loaded = Skill.load(skill)
    delta, report = loaded.delta, loaded.report
    counts = [(extent.name, extent.weights) for extent in delta.extents]
    modules: dict[str, int] = {}
    for name, weights in counts:
        module = layer_and_module(name)[0]
        modules[module] = modules.get(module, 0) + weights
    if json:
        figures = {key: report[key] for key in ("base", "tuned", "graft") if key in report}
        content = {
            "task": loaded.task.name,
            "weights": delta.weights,
            "sparsity": delta.sparsity,
            "base_fingerprint": delta.base_fingerprint,
        }
        print_json({**content, **figures, "layers": by_layer(counts), "modules": modules, "tensors": dict(counts)})
        return
    say(
        f"{loaded.task.name}: {delta.weights:,} of {delta.movable:,} block weights ({delta.sparsity:.2e}), labels {', '.join(loaded.task.labels)}"
    )
    say(f"base {report.get('call', {}).get('graft', {}).get('base', '')} (fingerprint {delta.base_fingerprint[:16]})")
    if {"graft", "weights", "sparsity", "bytes", "task"} <= report.keys():
        print_skill(report)
    for remark in remarks(report):
        say(remark)
    print_table(
        "weights by layer", ["layer", "weights"], [[str(layer), f"{n:,}"] for layer, n in by_layer(counts).items()]
    )
    print_table(
        "weights by module",
        ["module", "weights"],
        [[module, f"{n:,}"] for module, n in sorted(modules.items(), key=lambda item: -item[1])],
    )


@app.command()
def apply(
    skill: SkillFolder,
    base: Annotated[str, typer.Argument(help="The skill's base: a folder or a hub id.")],
    output: options.Output = None,
    in_place: InPlace = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Graft a skill into its base."""
    _write("apply", skill, base, output, in_place, overwrite, json)


@app.command()
def revert(
    skill: SkillFolder,
    grafted: Annotated[str, typer.Argument(help="A checkpoint that holds the skill.")],
    output: options.Output = None,
    in_place: InPlace = False,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Take a skill out again: gives back its base, bit for bit."""
    _write("revert", skill, grafted, output, in_place, overwrite, json)


@app.command()
def overlap(first: SkillFolder, second: SkillFolder, json: options.Json = False) -> None:
    """How many of each skill's weights the other touches too."""
    from surgery.grafting.skill import Skill

    one, two = Skill.load(first).delta, Skill.load(second).delta
    found = {"of_first": two.overlap(one), "of_second": one.overlap(two)}
    if json:
        print_json(found)
        return
    say(
        f"{100 * found['of_first']:.1f}% of {first}'s {one.weights:,} weights lie in {second}; {100 * found['of_second']:.1f}% of its {two.weights:,} lie in {first}"
    )


def _write(
    verb: str, skill: Path, checkpoint: str, output: Path | None, in_place: bool, overwrite: bool, json: bool
) -> None:
    import time

    from surgery.checkpoints.applying import unchecked
    from surgery.checkpoints.checkpoint import Checkpoint
    from surgery.grafting.skill import Skill, check_place

    loaded = Skill.load(skill)
    check_place(checkpoint, output, in_place)
    opened = Checkpoint(checkpoint, half_patched=in_place)
    changes = loaded.delta.changes(opened, revert=verb == "revert")
    began = time.monotonic()
    with progress_bar() as progress:
        run = loaded.apply if verb == "apply" else loaded.revert
        folder = run(opened, output, in_place=in_place, overwrite=overwrite, progress=progress)
    seconds = round(time.monotonic() - began, 3)
    copies, blind = opened.other_copies, unchecked(loaded.delta, opened)
    if json:
        content = {"output": str(folder), "weights": loaded.delta.weights, "changed": changes, "seconds": seconds}
        print_json({**content, "other_copies": list(copies), "unchecked": blind or None})
        return
    done = "applied to" if verb == "apply" else "taken out of"
    found = f"{loaded.delta.weights:,} weights ({size(len(loaded.delta_bytes()))}) {done} {checkpoint}"
    if not changes:
        state = "held the skill already" if verb == "apply" else "didn't hold the skill"
        found = f"{checkpoint} {state}: no weight was changed"
    say(f"{folder}: {found} in {seconds:.2f} s")
    if copies:
        state = "left as they were" if in_place else "left out"
        say(f"{state}: {', '.join(copies)}: further copies of the weights, which the skill doesn't reach")
    if blind:
        say(f"not checked: {blind}")
