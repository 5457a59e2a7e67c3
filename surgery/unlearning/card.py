"""The pages that lie beside a bottleneck and an eraser: what they are, and what they don't promise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surgery.reporting.markdown import code, inline
from surgery.reporting.plural import number_of
from surgery.unlearning.descriptions import Facts, edit_end, listed, promises, values_how, what

_METHOD = (
    "Method: Träuble et al., *Discrete Key-Value Bottleneck*, ICML 2023; "
    "Shah et al., *Unlearning via Sparse Representations*, 2023."
)


def bottleneck_card(b: Facts) -> str:
    """Markdown with the metadata block that model hubs read; the same bottleneck gives the same page."""
    top = f" (the {b.settings['top']} nearest keys of each)" if b.settings["top"] > 1 else ""
    lines = [
        *_head(["discrete-key-value-bottleneck", "unlearning", "model-editing"]),
        f"# Bottleneck: {len(b.classes)} classes",
        "",
        "A classifier on top of a frozen encoder, made so that what it learnt can be taken out again. Each codebook maps a "
        "row's features to a few dimensions, finds the nearest of its fixed keys, and answers with that key's values; the "
        f"scores of a class are averaged over the codebooks{top}. Nothing else is learnt.",
        "",
        f"- {number_of(b.codebooks, 'codebook')} of {b.keys:,} keys in {number_of(b.key_dim, 'dimension')}: {b.codebooks * b.keys:,} (codebook, key) pairs"
        + (f", {b.masked:,} of them masked" if b.masked else ""),
        f"- classes: {inline(listed(b.classes))}",
        f"- {_encoder(b)}",
        f"- keys placed by {b.placed_by}; {'random' if b.settings['projection'] == 'random' else 'disjoint segments as'} projections; seed {b.settings['seed']}",
        f"- values {values_how(b.settings)}",
        f"- training rows: {f'{b.rows:,}' if b.rows is not None else 'left out of this folder'}",
        "",
        "## What was forgotten",
        "",
        *(
            [f"{number}. {inline(what(edit))}{edit_end(edit)}" for number, edit in enumerate(b.history, 1)]
            or ["Nothing yet."]
        ),
        "",
        *(f"- {promise}" for promise in b.promises),
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
        _signed(b.version),
        "",
    ]
    return "\n".join(lines)


def eraser_card(report: Mapping[str, Any]) -> str:
    """Markdown for the owner of an edit; the same edit gives the same page.

    Args:
        report: the eraser's `report.json`.
    """
    edit, first = report["edit"], not report["previous"]
    lines = [
        *_head(["unlearning", "private"]),
        f"# Eraser: {inline(what(edit))}",
        "",
        f"**For the owner only: keep it private.** It holds what was taken out of a bottleneck: the {edit['rows']:,} forgotten rows "
        "(features, key ids, classes, hashes), the values of the pairs before the edit, and the list of these pairs. As long "
        "as it exists, or a copy of the bottleneck from before, whoever has it can bring back what was forgotten.",
        "",
        f"- {inline(what(edit))}{edit_end({**edit, 'hash': report['hash']})}",
        f"- pairs: {edit['pairs']:,} of {edit['of_pairs']:,}; the forgotten rows select {edit['active']:,}",
        *([f"- ranked by {edit['rank']}"] if edit["rank"] else []),
        *([f"- examples: {edit['examples']:,}"] if edit.get("examples") else []),
        *([f"- how many: {edit['rule']}"] if edit.get("rule") else []),
        f"- seed {edit['seed']}",
        f"- made for bottleneck `{report['bottleneck'][:16]}`",
        "- the first edit of its bottleneck" if first else f"- after edit `{report['previous'][:16]}`",
        "",
        *(f"- {promise}" for promise in promises([edit], first=first)),
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
        _signed(report.get("surgery", "")),
        "",
    ]
    return "\n".join(lines)


def _signed(version: str) -> str:
    return f"{_METHOD} Made by surgery {version}".rstrip() + "."


def _head(tags: Sequence[str]) -> list[str]:
    return ["---", "library_name: surgery", f"tags: [{', '.join(tags)}]", "---", ""]


def _encoder(b: Facts) -> str:
    if b.encoder is None:
        return f"fitted on features: {b.width:,} a row, made as those of its training rows were"
    source = str(b.encoder["source"])
    local = Path(source).is_absolute() or source.startswith(("~", "."))
    name = Path(source).name if local else source  # where it lay on the owner's disk is theirs
    return (
        f"encoder: {code(name)} ({b.encoder['kind']}, pooling {b.encoder['pooling']}, {b.encoder['width']:,} features), "
        f"fingerprint `{b.encoder['fingerprint'][:16]}`"
    )


def _input(b: Facts) -> str:
    if b.encoder is None:
        return f"features)  # an array or tensor [rows, {b.width}]"
    return '["a text", "another"])' if b.encoder["kind"] == "text" else '["image.png"])'


def _training_file(b: Facts) -> list[str]:
    if b.rows is None:
        return ["- `training.safetensors` is left out: it answers, but can't be edited, undone or refitted."]
    return [
        "- `training.safetensors`: the *remaining* training rows (features, key ids, classes, hashes), from which it is edited, "
        "undone and refitted. If these are private, delete the file before giving the folder away: it then still answers. "
        "Keep a copy with the file for yourself: erasers fit only that one."
    ]
