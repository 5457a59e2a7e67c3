"""Stack: several skills in one checkpoint, any of which comes off again, bit for bit, whatever the order.

A checkpoint with several skills has a folder `surgery-stack/` beside its weights: `stack.json` names the skills from the
lowest to the topmost and the rule for weights that several touch, and each skill's delta lies beside it. The weights are
always the base with the union of the deltas by that rule, so taking one skill off is writing the union of the others. With
one skill or none there is no such folder: that is a plain graft, or the base.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch

from surgery.checkpoints.applying import (
    Direction,
    Patch,
    check_place,
    delta_name,
    hold_checkpoint,
    patch_held,
    read_journal,
    write_patch,
)
from surgery.checkpoints.checkpoint import Checkpoint, open_checkpoint
from surgery.checkpoints.copies import STACK
from surgery.checkpoints.delta import SparseDelta, as_integers
from surgery.checkpoints.patching import Edit, bits
from surgery.errors import OptionError, SkillError
from surgery.files import discard, recover
from surgery.grafting.algebra import aligned, check_one_base, merge
from surgery.jsonfile import JsonError, conform, load_json
from surgery.progress import Progress, silent

SCHEMA = 1
_TABLE = f"{STACK}/stack.json"


@dataclass(frozen=True, eq=False)
class Layer:
    """One skill in a stack.

    Attributes:
        name: what to call it, such as its task.
        delta: its weights.
        readouts: the files that go beside a checkpoint with it, by name.
    """

    name: str
    delta: SparseDelta
    readouts: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Sixteen hex digits that tell it from every other skill."""
        return delta_name(self.delta)


@dataclass(frozen=True, eq=False)
class Stack:
    """Skills in a checkpoint, from the lowest to the topmost, and the rule (`algebra.merge`) where several touch a weight."""

    layers: tuple[Layer, ...] = ()
    rule: str = "last"

    @property
    def ids(self) -> list[str]:
        """The layers' ids, from the lowest to the topmost."""
        return [layer.id for layer in self.layers]

    @property
    def names(self) -> str:
        """The layers' names for people."""
        return ", ".join(layer.name for layer in self.layers) or "no skill"

    @property
    def is_kept(self) -> bool:
        """Whether a checkpoint with it keeps it; one skill alone is a plain graft."""
        return len(self.layers) > 1

    @classmethod
    def load(cls, folder: Path) -> "Stack | None":
        """The stack that a checkpoint's folder says it holds; None where it has none. Raises SkillError for a damaged one."""
        if not (folder / STACK).exists():
            return None
        try:
            table = load_json(folder / _TABLE, _Table)
        except (OSError, JsonError) as error:
            raise SkillError(f"{folder / _TABLE} can't be read ({error}): {_REMEDY}") from None
        if table["schema"] != SCHEMA:
            raise SkillError(
                f"{folder / _TABLE} has schema {table['schema']}, this version reads {SCHEMA}: install the version that wrote it"
            )
        return cls(tuple(_stored(folder, about) for about in table["layers"]), table["rule"])

    def files(self) -> dict[str, bytes]:
        """What keeps the stack beside the weights, by path."""
        table = {"schema": SCHEMA, "rule": self.rule, "layers": [_about(layer) for layer in self.layers]}
        files = {_delta_file(layer.id): layer.delta.to_bytes() for layer in self.layers}
        return {**files, _TABLE: (json.dumps(table, indent=2) + "\n").encode()}

    def readouts(self) -> dict[str, bytes]:
        """The files that go beside the checkpoint; raises SkillError where two skills want one file otherwise."""
        files: dict[str, tuple[str, bytes]] = {}
        for layer in self.layers:
            for name, content in layer.readouts.items():
                other, held = files.setdefault(name, (layer.name, content))
                if held != content:
                    raise SkillError(f"{other} and {layer.name} bring different files {name}: apply one of them")
        return {name: content for name, (_, content) in files.items()}

    def with_layers(self, layers: Sequence[Layer], rule: str | None) -> "Stack":
        """The stack with further skills on top; one that is in it already stays where it is."""
        return Stack((*self.layers, *(layer for layer in layers if layer.id not in self.ids)), rule or self.rule)

    def without(self, layers: Sequence[Layer], where: object) -> "Stack":
        """The stack without some of its skills; raises SkillError for one that isn't in it."""
        if lost := [layer.name for layer in layers if layer.id not in self.ids]:
            raise SkillError(f"{where} doesn't hold the skill {lost[0]}, but {self.names}: name one that it holds")
        gone = {layer.id for layer in layers}
        return Stack(tuple(layer for layer in self.layers if layer.id not in gone), self.rule)

    def union(self, everything: SparseDelta) -> SparseDelta:
        """What the stack writes, as one delta; `everything` gives the base of an empty one."""
        if not self.layers:
            return everything.keep(torch.zeros(everything.weights, dtype=torch.bool))
        return merge([layer.delta for layer in self.layers], self.rule, [layer.name for layer in self.layers])


class Restacked(NamedTuple):
    """What `restack` did: where, from which stack to which, how many weights changed, and the deltas of both in one."""

    folder: Path
    before: Stack
    after: Stack
    changed: int
    everything: SparseDelta


def restack(
    direction: Direction,
    layers: Sequence[Layer],
    checkpoint: str | Path | Checkpoint,
    output: str | Path | None = None,
    *,
    in_place: bool = False,
    overwrite: bool = False,
    rule: str | None = None,
    progress: Progress = silent,
) -> Restacked:
    """Put skills on top of a checkpoint's stack, or take any of its skills off: into a new folder, or in place.

    A run in place that is killed can be completed by the same call, or undone by the opposite one, as with one skill
    (`surgery.checkpoints.applying.patch_folder`).

    Args:
        layers: the skills, the lowest first; `Skill.layer` gives a skill's.
        checkpoint: the skills' base, or a checkpoint that holds some of them.
        rule: what stands where several skills touch a weight (`algebra.merge`); by default the stack's, else `last`: the
            topmost skill's value.

    Raises:
        SkillError: skills of different bases, a checkpoint of another base or with other weights than its stack says, a
            skill to take off that isn't in the stack, a damaged stack.
        OptionError: a skill given twice, no place to write to, or two.
        BusyError: another run writes there.
    """
    check_place(checkpoint, output, in_place)
    if not layers:
        raise OptionError("no skill is given: name one or more")
    if (most := Counter(layer.id for layer in layers).most_common(1)[0])[1] > 1:
        name = next(layer.name for layer in layers if layer.id == most[0])
        raise OptionError(f"the skill {name} is given twice: name each skill once")
    if not in_place:
        opened = open_checkpoint(checkpoint)
        planned = _Plan.of(direction, layers, opened, rule)
        patch = planned.patch if planned.after.is_kept else replace(planned.patch, own={})
        assert output is not None
        write_patch(patch, opened, output, overwrite=overwrite, progress=progress)
        return planned.outcome(Path(output))
    folder = checkpoint.folder if isinstance(checkpoint, Checkpoint) else Path(checkpoint)
    with hold_checkpoint(folder):
        recover(folder / STACK)
        planned = _Plan.of(direction, layers, Checkpoint(folder, half_patched=True), rule)
        patch_held(planned.patch, folder)
        if not planned.after.is_kept:  # but it was as long as a kill would have needed it
            discard(folder / STACK)
        return planned.outcome(folder)


def is_stacked(folder: Path, delta: SparseDelta) -> bool:
    """Whether a checkpoint's folder holds a stack on the delta's base, or is half way to or from any.

    A skill that was found in what a stack made has another base: the weights with the stack in them.
    """
    if "before" in (read_journal(folder) or {}):
        return True
    stack = Stack.load(folder) or Stack()
    return any(layer.delta.base_fingerprint == delta.base_fingerprint for layer in stack.layers)


class _Plan(NamedTuple):
    """From one stack to another."""

    before: Stack
    after: Stack
    changed: int
    patch: Patch

    @classmethod
    def of(cls, direction: Direction, layers: Sequence[Layer], checkpoint: Checkpoint, rule: str | None) -> "_Plan":
        begun = read_journal(checkpoint.folder)
        if begun:
            before, after = _resumed(begun, direction, layers, checkpoint.folder)
        else:
            before = Stack.load(checkpoint.folder) or _plain(layers, checkpoint)
            after = (
                before.with_layers(layers, rule) if direction == "apply" else before.without(layers, checkpoint.folder)
            )
        involved = {layer.id: layer for stack in (before, after) for layer in stack.layers}
        deltas, names = zip(*((layer.delta, layer.name) for layer in involved.values()), strict=True)
        check_one_base(deltas, names)
        everything = merge(deltas, "last")
        edits = _edits(everything, before.union(everything), after.union(everything))
        readouts, own = after.readouts(), after.files()
        gone = {name: content for name, content in before.readouts().items() if name not in readouts}
        # Whatever a stack file that is left over holds, it is ours.
        stale = dict.fromkeys(before.files().keys() - own.keys())
        states = [{"layers": stack.ids, "rule": stack.rule} for stack in (before, after)]
        journal = {
            "skills": [layer.id for layer in layers],
            "before": states[0],
            "after": states[1],
            "layers": [_about(layer) for layer in involved.values()],
        }
        name = hashlib.sha256("".join(sorted(map(json.dumps, states))).encode()).hexdigest()[:16]
        drop = {**gone, **stale}
        settled = states[0] == states[1]
        patch = Patch(everything, edits, direction, name, journal, readouts, own, drop, settled)
        return cls(before, after, everything.changes(checkpoint, edits=edits), patch)

    def outcome(self, folder: Path) -> Restacked:
        return Restacked(folder, self.before, self.after, self.changed, self.patch.delta)


def _plain(layers: Sequence[Layer], checkpoint: Checkpoint) -> Stack:
    """The stack of a checkpoint that says nothing of one: the given skill that it holds by itself, if it holds one."""
    held = [layer for layer in layers if layer.delta.weights and not layer.delta.changes(checkpoint)]
    return Stack((max(held, key=lambda layer: layer.delta.weights),) if held else ())


def _resumed(
    begun: Mapping[str, Any], direction: Direction, layers: Sequence[Layer], folder: Path
) -> tuple[Stack, Stack]:
    """From which stack to which a run in place was going that was killed; turned round for the opposite direction."""
    try:
        conform(begun, _Journal)
    except JsonError:
        begun = {"skills": (), "direction": begun.get("direction")}  # one skill's, or no journal of ours
    if set(begun["skills"]) != {layer.id for layer in layers}:
        names = ", ".join(about["name"] for about in begun.get("layers", ()) if about["id"] in begun["skills"])
        raise SkillError(
            f"{folder} is half patched: an in-place run ({begun['direction']} {names or 'of one skill'}) was interrupted; "
            "run that again, or its opposite, first"
        )
    given = {layer.id: layer for layer in layers}
    pool = given | {a["id"]: _stored(folder, a) for a in begun["layers"] if a["id"] not in given}
    before, after = (
        Stack(tuple(pool[id] for id in begun[side]["layers"]), begun[side]["rule"]) for side in ("before", "after")
    )
    return (before, after) if direction == begun["direction"] else (after, before)


def _edits(everything: SparseDelta, before: SparseDelta, after: SparseDelta) -> dict[str, Edit]:
    edits = {}
    for a in aligned((everything, before, after)):
        raw = [as_integers(values).numpy().view(bits(values.dtype.itemsize)) for values in (a.base, *a.values[1:])]
        edits[a.extent.name] = Edit(a.indices.numpy(), *raw)
    return edits


# -- on disk ---------------------------------------------------------------------------------------------------------

_REMEDY = "write the checkpoint again from its base, by `surgery skill apply SKILL... BASE`"


class _AboutLayer(TypedDict):
    id: str
    name: str
    readouts: list[str]


class _Table(TypedDict):
    schema: int
    rule: str
    layers: list[_AboutLayer]


class _State(TypedDict):
    layers: list[str]
    rule: str


class _Journal(TypedDict):
    direction: Direction
    skills: list[str]
    before: _State
    after: _State
    layers: list[_AboutLayer]


def _about(layer: Layer) -> _AboutLayer:
    return {"id": layer.id, "name": layer.name, "readouts": sorted(layer.readouts)}


def _delta_file(id: str) -> str:
    return f"{STACK}/{id}.safetensors"


def _stored(folder: Path, about: _AboutLayer) -> Layer:
    """A layer as it lies beside the weights; raises SkillError where it isn't the one that the stack says."""
    names = [about["id"], *about["readouts"]]
    if any(Path(name).name != name for name in names):
        raise SkillError(f"{folder / STACK} names files elsewhere ({names}): {_REMEDY}")
    try:
        delta = SparseDelta.load(folder / _delta_file(about["id"]))
    except SkillError as error:
        raise SkillError(f"{folder}: the skill {about['name']} of its stack can't be read ({error})") from None
    readouts = {name: (folder / name).read_bytes() for name in about["readouts"] if (folder / name).exists()}
    layer = Layer(about["name"], delta, readouts)
    if layer.id != about["id"]:
        raise SkillError(f"{folder / _delta_file(about['id'])} isn't the skill {about['name']} of its stack: {_REMEDY}")
    return layer
