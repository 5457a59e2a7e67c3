"""The pages that lie beside a bottleneck and an eraser: what they are, and what they don't promise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from surgery.reporting.markdown import code, inline
from surgery.unlearning.key_selection import MASKS, OPEN

if TYPE_CHECKING:
    from surgery.unlearning.bottleneck import Bottleneck
    from surgery.unlearning.eraser import Eraser

_PLACED = {"kmeans": "k-means", "ema": "moving averages", "sample": "drawing rows"}
_MOST = 30  # classes named
_METHOD = (
    "Method: Träuble et al., *Discrete Key-Value Bottleneck*, ICML 2023; "
    "Shah et al., *Unlearning via Sparse Representations*, 2023."
)


def bottleneck_card(b: "Bottleneck") -> str:
    """Markdown with the metadata block that model hubs read; the same bottleneck gives the same page."""
    codebooks, keys, d = b.selector.keys.shape
    closed = int((b.selector.states != OPEN).sum())
    top = f" (the {b.settings['top']} nearest keys of each)" if b.settings["top"] > 1 else ""
    lines = [
        *_head(["discrete-key-value-bottleneck", "unlearning", "model-editing"]),
        f"# Bottleneck: {len(b.classes)} classes",
        "",
        "A classifier on top of a frozen encoder, made so that what it learnt can be taken out again. Each codebook maps a "
        "row's features to a few dimensions, finds the nearest of its fixed keys, and answers with that key's values; the "
        f"scores of a class are averaged over the codebooks{top}. Nothing else is learnt.",
        "",
        f"- {codebooks:,} codebooks of {keys:,} keys in {d} dimensions: {codebooks * keys:,} (codebook, key) pairs"
        + (f", {closed:,} of them masked" if closed else ""),
        f"- classes: {inline(listed(b.classes))}",
        f"- {_encoder(b)}",
        f"- keys placed by {placed_by(b)}; {'random' if b.settings['projection'] == 'random' else 'disjoint segments as'} projections; seed {b.settings['seed']}",
        f"- values {values_how(b.settings)}",
        f"- training rows: {f'{len(b.training):,}' if b.training is not None else 'left out of this folder'}",
        "",
        "## What was forgotten",
        "",
        *(
            [f"{number}. {inline(what(edit))}{edit_end(edit)}" for number, edit in enumerate(b.history, 1)]
            or ["Nothing yet."]
        ),
        "",
        *(f"- {promise}" for promise in promises(b.history, counted=b.counted)),
        "- The encoder itself is as it was: what its features tell of a class, they still tell.",
        "",
        "## Use",
        "",
        "```python",
        "from surgery.unlearning import Bottleneck",
        "",
        'bottleneck = Bottleneck.load("THIS_FOLDER")',
        f"bottleneck.predict({_input(b)}",
        "```",
        "",
        "```sh",
        "surgery bottleneck show THIS_FOLDER",
        f"surgery bottleneck verify THIS_FOLDER {'--data test.jsonl' if b.encoder else '--features test.safetensors'} -o report/",
        "surgery unlearn THIS_FOLDER --forget CLASS -o forgot/",
        "```",
        "",
        "## Files",
        "",
        "- `model.safetensors`, `config.json`: the bottleneck; all that answering takes, with the encoder.",
        *_training_file(b),
        "- `report.json`: how it was fitted, to the last setting.",
        "",
        f"{_METHOD} Made by surgery {b.report.get('surgery', '')}".rstrip() + ".",
        "",
    ]
    return "\n".join(lines)


def eraser_card(e: "Eraser") -> str:
    """Markdown for the owner of an edit; the same edit gives the same page."""
    edit = e.edit
    lines = [
        *_head(["unlearning", "private"]),
        f"# Eraser: {inline(what(edit))}",
        "",
        f"**For the owner only: keep it private.** It holds what was taken out of a bottleneck: the {edit['rows']:,} forgotten rows "
        "(features, key ids, classes, hashes), the values of the pairs before the edit, and the list of these pairs. As long "
        "as it exists, or a copy of the bottleneck from before, whoever has it can bring back what was forgotten.",
        "",
        f"- {inline(what(edit))}{edit_end({**edit, 'hash': e.hash})}",
        f"- pairs: {edit['pairs']:,} of {edit['of_pairs']:,}; the forgotten rows select {edit['active']:,}",
        *([f"- ranked by {edit['rank']}"] if edit["rank"] else []),
        *([f"- examples: {edit['examples']:,}"] if edit.get("examples") else []),
        *([f"- how many: {edit['rule']}"] if edit.get("rule") else []),
        f"- seed {edit['seed']}",
        f"- made for bottleneck `{e.bottleneck[:16]}`",
        f"- after edit `{e.previous[:16]}`" if e.previous else "- the first edit of its bottleneck",
        "",
        *(f"- {promise}" for promise in promises([edit], first=not e.previous)),
        "",
        "Take the edit back, bit for bit; of several edits the last one first:",
        "",
        "```sh",
        "surgery bottleneck undo FORGOT --eraser THIS_FOLDER -o again/",
        "```",
        "",
        "```python",
        "from surgery.unlearning import Bottleneck, Eraser",
        "",
        'again = Eraser.load("THIS_FOLDER").undo(Bottleneck.load("FORGOT"))',
        "```",
        "",
        f"{_METHOD} Made by surgery {e.report.get('surgery', '')}".rstrip() + ".",
        "",
    ]
    return "\n".join(lines)


def what(edit: Mapping[str, Any]) -> str:
    """What an edit forgets: its classes, or how many single rows."""
    if edit["forget"]:
        return listed(edit["forget"])
    return f"{edit['rows']:,} single row{'s' if edit['rows'] > 1 else ''}"


def edit_line(edit: Mapping[str, Any]) -> str:
    """An edit in plain words; `edit` is an eraser's, or a bottleneck's note of it."""
    return what(edit) + edit_end(edit)


def edit_end(edit: Mapping[str, Any]) -> str:
    """What `edit_line` says after what was forgotten."""
    rows = f" ({edit['rows']:,} rows)" if edit["forget"] else ""
    return f"{rows}, forgotten {edit_how(edit)} (edit `{edit['hash'][:16]}`)"


def edit_how(edit: Mapping[str, Any]) -> str:
    """By which means."""
    if edit["via"] in MASKS:
        then = "the next-nearest key answers" if edit["answer"] == "next" else "their codebooks drop out"
        return f"by masking {edit['masked']:,} pairs, for which {then}"
    if edit["via"] == "refit":
        return "by fitting the values anew without these rows"
    return "by taking these rows out of the counts"


def promises(
    history: Sequence[Mapping[str, Any]], *, counted: bool = False, first: bool = True, identical: bool | None = None
) -> list[str]:
    """What edits keep and what they don't, one sentence or two each, for cards, reports and the command line.

    Args:
        counted: whether values are counted.
        first: whether no edit went before these; otherwise nothing is called exact.
        identical: whether values were found equal to refitted ones; None where nobody looked, and the procedure says it.
    """
    found = []
    masks = [edit for edit in history if edit["via"] in MASKS]
    # A refit makes all values anew from the rows that are left, whatever masks left in them before.
    kept = history[max((number for number, edit in enumerate(history, 1) if edit["via"] == "refit"), default=0) :]
    holding = [edit for edit in kept if edit["via"] in MASKS]
    if any(edit["masked"] for edit in masks):
        found.append(
            "A mask by itself betrays membership: whoever holds the folder sees which keys are closed, and rows nearest to "
            "closed keys were probably forgotten. Where that matters use refit, or counts with keys from other rows."
        )
    if any(edit["masked"] for edit in holding):
        found.append(
            "The values of open keys keep what the forgotten rows taught them"
            + ("; being counts, they give it away exactly to who holds the remaining rows too." if counted else ".")
        )
    if any(not edit["masked"] for edit in holding):
        found.append("No key needed masking: the rows are gone from the folder, but its values hold all of them still.")
    if saw := sum(edit["keys_saw_them"] for edit in history):
        found.append(
            f"The keys were placed by {saw:,} of the forgotten rows too: this is not exact unlearning, and some of the rows "
            "can be rebuilt from their keys. To give the folder away, fit with keys from other rows."
        )
    elif first and history and not masks and identical is not False:
        found.append(
            "Exact: the keys were placed by other rows, and the "
            + (
                "counts are, bit for bit, those without the forgotten rows."
                if all(edit["via"] == "counts" for edit in history)
                else "values are those that fitting without the forgotten rows gives."
            )
        )
    if identical is False and not masks:
        found.append("Not exact: the values differ from those refitted without the forgotten rows.")
    return found


def listed(classes: Sequence[Any]) -> str:
    """Class names in one line."""
    shown = ", ".join(" ".join(str(name).split()) for name in classes[:_MOST])
    return shown + (f" and {len(classes) - _MOST:,} more" if len(classes) > _MOST else "")


def values_how(settings: Mapping[str, Any]) -> str:
    """How values were fitted."""
    if settings["values"] == "counts":
        return "in closed form from the integer counts of classes at each key"
    sgd = settings["sgd"]
    return f"learnt by SGD (rate {sgd['rate']:g}, {sgd['epochs']} epochs, batches of {sgd['batch']}, label smoothing {sgd['smoothing']:g})"


def placed_by(b: "Bottleneck") -> str:
    """By what, and by which rows, the keys were placed."""
    how = f"{_PLACED[b.settings['key_init']]} on {'the training rows' if b.settings['keys_from'] == 'training rows' else 'other rows'}"
    if b.training is None or b.settings["keys_from"] == "training rows":
        return how
    shared = b.training.saw(np.arange(len(b.training)))
    return f"{how} ({len(b.training.placed):,}, of which {shared or 'none'} {'are' if shared != 1 else 'is'} in training too)"


def _head(tags: Sequence[str]) -> list[str]:
    return ["---", "library_name: surgery", f"tags: [{', '.join(tags)}]", "---", ""]


def _encoder(b: "Bottleneck") -> str:
    if b.encoder is None:
        return f"fitted on features: {len(b.selector.center):,} a row, made as those of its training rows were"
    source = str(b.encoder["source"])
    local = Path(source).is_absolute() or source.startswith(("~", "."))
    name = Path(source).name if local else source  # where it lay on the owner's disk is theirs
    return (
        f"encoder: {code(name)} ({b.encoder['kind']}, pooling {b.encoder['pooling']}, {b.encoder['width']:,} features), "
        f"fingerprint `{b.encoder['fingerprint'][:16]}`"
    )


def _input(b: "Bottleneck") -> str:
    if b.encoder is None:
        return f"features)  # an array or tensor [rows, {len(b.selector.center)}]"
    return '["a text", "another"])' if b.encoder["kind"] == "text" else '["image.png"])'


def _training_file(b: "Bottleneck") -> list[str]:
    if b.training is None:
        return ["- `training.safetensors` is left out: it answers, but can't be edited, undone or refitted."]
    return [
        "- `training.safetensors`: the *remaining* training rows (features, key ids, classes, hashes), from which it is edited, "
        "undone and refitted. If these are private, delete the file before giving the folder away: it then still answers. "
        "Keep a copy with the file for yourself: erasers fit only that one."
    ]
