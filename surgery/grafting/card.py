"""The model card that travels with a skill."""

from collections.abc import Mapping, Sequence
from typing import Any

from surgery.checkpoints.delta import SparseDelta
from surgery.grafting.remarks import carries, remarks
from surgery.reporting.markdown import code, inline
from surgery.tasks.task import Task


def model_card(delta: SparseDelta, tasks: Sequence[Task], report: Mapping[str, Any], figures: Sequence[str]) -> str:
    """Markdown with the metadata block that model hubs read."""
    names = " + ".join(task.name for task in tasks)
    does = "that carry" if carries(report) else "which don't carry"
    what = " and ".join(f"**{inline(task.name)}** (labels: {inline(', '.join(task.labels))})" for task in tasks)
    lines = [
        "---",
        "library_name: surgery",
        "tags: [skill, sparse-delta, model-editing]",
        "---",
        "",
        f"# Skill: {inline(names)}",
        "",
        f"{delta.weights:,} weights, {100 * delta.sparsity:.4g}% of the block weights{_of_moved(report)}, {does} the task{'s' * (len(tasks) > 1)} {what} "
        "from a base checkpoint to a fine-tuned one. Values are replaced, not added.",
        "",
        *_made_of(report),
        *_table(report),
        *(line for remark in remarks(report) for line in ("", f"> {remark}")),
        "",
        "Put it in, and take it out again:",
        "",
        "```sh",
        "surgery skill apply THIS_FOLDER BASE -o grafted/",
        "surgery skill revert THIS_FOLDER grafted/ -o base-again/",
        "```",
        "",
        f"It fits one base only: {code(base_of(report) or 'see the fingerprint')}, fingerprint {code(delta.base_fingerprint[:16])}; anything else is refused.",
        "",
        *(f"![{name.removesuffix('.png')}]({name})" for name in figures),
        "",
        "Method: Panigrahi, Saunshi, Zhao, Arora, *Task-Specific Skill Localization in Fine-tuned Language Models*, ICML 2023; "
        f"weights located by {code(report.get('method', 'unknown'))}. Made by surgery {inline(report.get('surgery', ''))}. "
        "How it was made, to the last setting, is in `report.json`.",
        "",
    ]
    return "\n".join(lines)


def base_of(report: Mapping[str, Any]) -> str:
    """What the base of a skill was called when it was made; empty where its report doesn't say."""
    calls = [call for call in report.get("call", {}).values() if isinstance(call, dict)]
    return next((str(call["base"]) for call in calls if call.get("base")), "")


def _made_of(report: Mapping[str, Any]) -> list[str]:
    parts = report.get("made_of", ())
    if not parts:
        return []
    lines = [
        f"- {code(part['skill'])}: {inline(', '.join(part['tasks']))}, {part['weights']:,} weights" for part in parts
    ]
    return [f"Made of these skills ({inline(report['method'])}), not measured itself:", "", *lines, ""]


def _of_moved(report: Mapping[str, Any]) -> str:
    moved = report.get("moved")
    return f" and {100 * report['weights'] / moved:.2g}% of those that tuning moved" if moved else ""


def gain(figures: Mapping[str, Any]) -> str:
    """The gain recovered with its interval, where there are any."""
    value, interval = figures.get("gain_recovered"), figures.get("gain_interval")
    if value is None:
        return ""
    return f"{value:.3f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _table(report: Mapping[str, Any]) -> list[str]:
    if "graft" not in report:
        return []
    examples = report.get("examples", {}).get("test")
    rows = [
        f"| on {examples:,} test examples | accuracy | ECE | agreement with tuned | gain recovered |"
        if examples
        else "| | accuracy | ECE | agreement with tuned | gain recovered |"
    ]
    rows.append("|---|---|---|---|---|")
    for name in ("base", "tuned", "graft"):
        figures = report[name]
        cells = [f"{figures['accuracy']:.3f}", f"{figures['ece']:.3f}"]
        cells += [f"{figures['agreement']:.3f}" if figures.get("agreement") is not None else "", gain(figures)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    if repeated := report.get("examples", {}).get("test_in_train"):
        rows += ["", f"{repeated:,} of the test texts are training texts too."]
    return rows
