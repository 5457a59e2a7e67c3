"""`surgery skill ...`: look at skills, compare and merge them, apply them, take them out again."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from cli import options
from cli.render import print_json, print_skill, print_table, progress_bar, say, size
from surgery.reporting.plural import number_of

if TYPE_CHECKING:
    from surgery.checkpoints.applying import Direction
    from surgery.checkpoints.checkpoint import Checkpoint
    from surgery.checkpoints.delta import SparseDelta
    from surgery.grafting.skill import Skill
    from surgery.grafting.stack import Stack

app = typer.Typer(
    help="Look at skills, apply them to their base, take them out again, combine them.", no_args_is_help=True
)

SkillFolder = Annotated[Path, typer.Argument(help="Skill folder, or a hub id.")]
SkillFolders = Annotated[list[Path], typer.Argument(help="Skill folders, or hub ids.")]
_RULES = "What stands where several skills touch one weight"
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Patch the checkpoint's own files instead of writing a new folder.")
]


@app.command()
def show(skill: SkillFolder, json: options.Json = False) -> None:
    """Show what a skill is, how well it works and where it sits; of a checkpoint with a stack, the skills that it holds."""
    from surgery.grafting.card import base_of
    from surgery.grafting.figures import by_layer, layer_and_module
    from surgery.grafting.products import WHAT
    from surgery.grafting.remarks import remarks
    from surgery.grafting.skill import Skill
    from surgery.grafting.stack import Stack

    if (stack := Stack.load(skill)) is not None:
        _show_stack(skill, stack, json)
        return
    loaded = Skill.load(skill)
    delta, report, counts = loaded.delta, loaded.report, loaded.counts
    low_rank = loaded.factors is not None
    held = sum(count for _, count in counts)
    share, unit = held / delta.movable if delta.movable else 0.0, "numbers" if low_rank else "weights"
    modules: dict[str, int] = {}
    for name, weights in counts:
        module = layer_and_module(name)[0]
        modules[module] = modules.get(module, 0) + weights
    if json:
        figures = {key: report[key] for key in ("base", "tuned", "graft", "control") if key in report}
        content = {
            "task": loaded.task.name,
            **({"tasks": [task.name for task in loaded.tasks]} if loaded.further else {}),
            "weights": held,
            "sparsity": share,
            "values": report.get("values", "tuned"),
            "base_fingerprint": delta.base_fingerprint,
        }
        print_json({**content, **figures, "layers": by_layer(counts), "modules": modules, "tensors": dict(counts)})
        return
    labels = "; ".join(", ".join(task.labels) for task in loaded.tasks)
    of = "for" if low_rank else "of"
    say(
        f"{loaded.name}: {held:,} {unit + ' ' if low_rank else ''}{of} {delta.movable:,} block weights ({share:.2e}), labels {labels}"
    )
    if what := WHAT.get(report.get("values", delta.metadata.get("values", ""))):
        say(what)
    say(f"base {base_of(report)} (fingerprint {delta.base_fingerprint[:16]})")
    if parts := report.get("made_of"):
        say(f"{report['method']}, of {', '.join(part['skill'] for part in parts)}")
    if {"graft", "weights", "sparsity", "bytes", "task"} <= report.keys():
        print_skill(report)
    for remark in remarks(report):
        say(remark)
    print_table(f"{unit} by layer", ["layer", unit], [[str(layer), f"{n:,}"] for layer, n in by_layer(counts).items()])
    print_table(
        f"{unit} by module",
        ["module", unit],
        [[module, f"{n:,}"] for module, n in sorted(modules.items(), key=lambda item: -item[1])],
    )


def _show_stack(folder: Path, stack: "Stack", json: bool) -> None:
    layers = [{"skill": layer.name, "id": layer.id, "weights": layer.delta.weights} for layer in stack.layers]
    if json:
        print_json({"stack": layers, "rule": stack.rule})
        return
    say(
        f"{folder} holds {len(layers)} skills, from the lowest to the topmost; where several touch a weight: {stack.rule}"
    )
    print_table("", ["skill", "weights", "id"], [[str(e["skill"]), f"{e['weights']:,}", str(e["id"])] for e in layers])


@app.command()
def apply(
    skill: Annotated[list[Path], typer.Argument(help="Skill folders, or hub ids; the lowest first.")],
    base: Annotated[str, typer.Argument(help="The skills' base, or a checkpoint that holds skills of it.")],
    output: options.PatchedOutput = None,
    in_place: InPlace = False,
    rule: Annotated[
        str | None,
        typer.Option(
            help=f"{_RULES}: last (the topmost skill's value), first, mean, sum, or error.", show_default="last"
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Graft one skill into its base, or several as a stack, of which `revert` takes off any."""
    _write("apply", skill, base, {"output": output, "in_place": in_place, "overwrite": overwrite}, json, rule)


@app.command()
def revert(
    skill: SkillFolders,
    grafted: Annotated[str, typer.Argument(help="A checkpoint that holds the skills.")],
    output: options.PatchedOutput = None,
    in_place: InPlace = False,
    base: Annotated[
        str | None,
        typer.Option(help="The skill's base, which one of low rank needs to be taken out.", show_default=False),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Take skills out again, whatever lies on top of them: gives back what was there without them, bit for bit."""
    place = {"output": output, "in_place": in_place, "overwrite": overwrite}
    _write("revert", skill, grafted, place, json, base=base)


@app.command()
def merge(
    skill: SkillFolders,
    output: options.NeededOutput = None,
    rule: Annotated[str, typer.Option(help=f"{_RULES}: mean, sum, first, last, or error.")] = "mean",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Make one skill of several, which carries all their tasks."""
    from surgery.grafting.merging import merge_skills

    folder = _check_output(output, overwrite, skill)
    _save(merge_skills(_load(skill), rule), folder, overwrite, json)


@app.command()
def subtract(
    skill: Annotated[list[Path], typer.Argument(help="The skill, then those to take from it: folders, or hub ids.")],
    output: options.NeededOutput = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
) -> None:
    """Make a skill of those weights of the first that no other touches."""
    from surgery.grafting.merging import subtract_skill

    folder = _check_output(output, overwrite, skill)
    _save(subtract_skill(_load(skill)), folder, overwrite, json)


@app.command()
def compare(
    skill: SkillFolders, output: options.Output = None, overwrite: options.Overwrite = False, json: options.Json = False
) -> None:
    """Compare which weights skills touch: both ways, by layer, against chance, and whether they move them alike."""
    from surgery.grafting.comparison import compare as run
    from surgery.reporting.page import cells

    if output:
        _check_output(output, overwrite, skill)
    comparison = run(_load(skill))
    if output:
        comparison.save(output, overwrite=overwrite)
    if json:
        columns, rows = comparison.table()
        pairs = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json({"pairs": pairs, "summary": comparison.summary, "output": output and str(output)})
        return
    for sentence in comparison.summary:
        say(sentence)
    columns, rows = comparison.short_table()
    print_table("", columns, cells(rows))
    if output:
        say(f"{output}: report.json, overlap.png, layers.png and the page index.html")


@app.command()
def overlap(first: SkillFolder, second: SkillFolder, json: options.Json = False) -> None:
    """Count how many of each skill's weights the other touches too; `compare` says more."""
    from surgery.grafting.skill import Skill

    one, two = (Skill.load(folder).layer.delta for folder in (first, second))
    shares = {"of_first": two.overlap(one), "of_second": one.overlap(two)}
    if json:
        print_json(shares)
        return
    say(
        f"{100 * shares['of_first']:.1f}% of {first}'s {one.weights:,} weights lie in {second}; {100 * shares['of_second']:.1f}% of its {two.weights:,} lie in {first}"
    )


def _load(folders: list[Path]) -> dict[str, "Skill"]:
    """Skills by their folders' names, or by the whole path where two folders have one name."""
    from surgery.errors import OptionError
    from surgery.grafting.skill import Skill

    if again := next((folder for number, folder in enumerate(folders) if folder in folders[:number]), None):
        raise OptionError(f"{again} is given twice: name each skill once")
    short = [folder.resolve().name for folder in folders]
    names = short if len(set(short)) == len(short) else map(str, folders)
    return {name: Skill.load(folder) for name, folder in zip(names, folders, strict=True)}


def _check_output(output: Path | None, overwrite: bool, inputs: list[Path]) -> Path:
    from surgery.files import check_output

    folder = options.need_output(output)
    check_output(folder, overwrite=overwrite, inputs=inputs)
    return folder


def _save(skill: "Skill", folder: Path, overwrite: bool, json: bool) -> None:
    skill.save(folder, overwrite=overwrite)
    report = skill.report
    if json:
        keys = ("method", "made_of", "weights", "sparsity", "bytes")
        print_json({"output": str(folder), "tasks": [t.name for t in skill.tasks], **{k: report[k] for k in keys}})
        return
    rows = [[part["skill"], ", ".join(part["tasks"]), f"{part['weights']:,}"] for part in report["made_of"]]
    print_table("", ["skill", "tasks", "weights"], [*rows, [str(folder), skill.name, f"{skill.delta.weights:,}"]])
    say(f"{folder}: {report['method']}, {skill.delta.sparsity:.2e} of the block weights")


def _write(
    verb: "Direction",
    skills: list[Path],
    checkpoint: str,
    place: dict[str, Any],
    json: bool,
    rule: str | None = None,
    base: str | None = None,
) -> None:
    from surgery.checkpoints.applying import check_place
    from surgery.checkpoints.checkpoint import Checkpoint
    from surgery.grafting.stack import is_stacked

    check_place(checkpoint, place["output"], place["in_place"])
    loaded = _load(skills)
    opened = Checkpoint(checkpoint, half_patched=place["in_place"])
    first = next(iter(loaded.values()))
    if len(loaded) == 1 and (first.factors is not None or base):
        _write_factors(verb, first, opened, place, base, rule, json)
        return
    stacked = len(loaded) > 1 or rule is not None or is_stacked(opened.folder, first.delta)
    began = time.monotonic()
    with progress_bar() as progress:
        if stacked:
            written = _write_stack(verb, loaded, opened, rule, place | {"progress": progress})
        else:
            written = _write_one(verb, first, opened, place | {"progress": progress})
    _say_written(written, opened, place["in_place"], round(time.monotonic() - began, 3), json)


class _Written(NamedTuple):
    """What was written: the delta, how many weights changed, a sentence on that, and the rest of the JSON."""

    folder: Path
    delta: "SparseDelta"
    changed: int
    sentence: str
    more: dict[str, Any]


def _write_factors(
    verb: "Direction",
    skill: "Skill",
    opened: "Checkpoint",
    place: dict[str, Any],
    base: str | None,
    rule: str | None,
    json: bool,
) -> None:
    """Apply or take out a skill of low rank, which holds no weights to count or to stack."""
    from surgery.errors import OptionError

    if rule is not None:
        raise OptionError("--rule is for stacks, and a skill of low rank can't be in one: leave it out")
    began = time.monotonic()
    folder = skill.apply(opened, **place) if verb == "apply" else skill.revert(opened, base=base, **place)
    seconds, factors = round(time.monotonic() - began, 3), skill.factors
    assert factors is not None
    if json:
        content = {"output": str(folder), "numbers": factors.numbers, "tensors": len(factors.factors)}
        print_json({**content, "rank": factors.rank, "seconds": seconds})
        return
    done = "added to" if verb == "apply" else "taken out of"
    say(
        f"{folder}: {factors.rank:,} components of {len(factors.factors):,} tensors ({size(len(skill.delta_bytes()))}) {done} {opened} in {seconds:.2f} s"
    )


def _write_one(verb: "Direction", skill: "Skill", opened: "Checkpoint", place: dict[str, Any]) -> _Written:
    changed = skill.delta.changes(opened, revert=verb == "revert")
    folder = (skill.apply if verb == "apply" else skill.revert)(opened, **place)
    done = "applied to" if verb == "apply" else "taken out of"
    sentence = f"{number_of(skill.delta.weights, 'weight')} ({size(len(skill.delta_bytes()))}) {done} {opened}"
    if not changed:
        state = "held the skill already" if verb == "apply" else "didn't hold the skill"
        sentence = f"{opened} {state}: no weight was changed"
    return _Written(folder, skill.delta, changed, sentence, {})


def _write_stack(
    verb: "Direction", skills: dict[str, "Skill"], opened: "Checkpoint", rule: str | None, place: dict[str, Any]
) -> _Written:
    from surgery.grafting.stack import restack

    layers = [replace(skill.layer, name=name) for name, skill in skills.items()]
    folder, before, after, changed, everything = restack(verb, layers, opened, rule=rule, **place)
    sentence = f"{before.names} -> {after.names}, {number_of(changed, 'weight')} of {opened} changed"
    if not changed:
        sentence = f"{opened} held that already ({after.names}): no weight was changed"
    elif shared := sum(layer.delta.weights for layer in after.layers) - after.union(everything).weights:
        sentence += f" (where skills share weights, {shared:,} times, the rule is {after.rule})"
    stack = {"stack": [layer.name for layer in after.layers], "rule": after.rule}
    return _Written(folder, everything, changed, sentence, stack)


def _say_written(written: _Written, opened: "Checkpoint", in_place: bool, seconds: float, json: bool) -> None:
    from surgery.checkpoints.applying import unchecked

    copies, blind = opened.other_copies, unchecked(written.delta, opened)
    if json:
        content = {"output": str(written.folder), "weights": written.delta.weights, "changed": written.changed}
        more = {"seconds": seconds, "other_copies": list(copies), "unchecked": blind or None}
        print_json(content | written.more | more)
        return
    say(f"{written.folder}: {written.sentence} in {seconds:.2f} s")
    if copies:
        state = "left as they were" if in_place else "left out"
        say(f"{state}: {', '.join(copies)}: further copies of the weights, which the skill doesn't reach")
    if blind:
        say(f"not checked: {blind}")
