"""The pages of a report: Markdown for a terminal or a repository, HTML for a browser, from the same parts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from probes.report import Example, ProbeReport, interval, summary
from surgery.reporting.markdown import inline, table

Part = tuple[str, Any]
_CAPTIONS = {
    "f1": "F1 of decoded trees by layer, as a share of the ceiling. Bands are 95% intervals over sentences.",
    "marginals": "Span marginals at the best layer, by span length.",
    "selectivity": "The real task against a control task that holds nothing but the words, and the description length.",
    "loss": "Loss at masked words above the optimum, and how well the exact posterior can be read off the mask's state.",
    "causal": "What masked prediction loses when directions are removed from the states after a layer.",
    "heads": "Attention within the smallest constituent around a word, above that within spans of the same length. Bold: the 95% interval leaves 0 out.",
}


def write_pages(report: ProbeReport, figures: Sequence[Path]) -> dict[str, str]:
    """`README.md` and `index.html`, by name."""
    parts = _parts(report, figures)
    return {"README.md": _markdown(parts), "index.html": _html(parts)}


def _parts(report: ProbeReport, figures: Sequence[Path]) -> list[Part]:
    counts, model = report.counts, report.model
    what = "exact span marginals of a grammar" if report.exact else "spans of a treebank's trees"
    parts: list[Part] = [
        ("title", f"Probes of {model['name']}"),
        (
            "text",
            f"{model['layers']} layers of {model['heads']} heads, width {model['width']}; {what}; {counts['train']:,} training and "
            f"{counts['test']:,} test sentences; {report.provenance['call'][_call(report)]['seeds']} seeds of every probe.",
        ),
        *(("text", line) for line in summary(report)),
        *(("text", f"Note: {note}.") for note in report.notes),
        ("heading", "By layer, and the controls"),
        ("table", report.rows()),
        ("heading", "Against the controls"),
        ("table", _verdicts(report)),
        ("heading", "Figures"),
    ]
    for file in figures:
        caption = _CAPTIONS.get(
            file.stem, "Marginals of a test sentence, exact and predicted, each with its minimum-risk tree."
        )
        parts.append(("image", (file.name, caption)))
    labels = [
        m
        for m in report.measures
        if (m.probe, m.source, m.layer, m.metric) == ("span-two-layer", "model", report.best_layer, "r2")
        and m.group
        and not m.group[0].isdigit()
    ]
    parts += [
        ("heading", "By label"),
        ("table", (("label", "R2, two-layer"), [(m.group, interval(m)) for m in labels])),
        ("heading", "How to read this"),
        ("text", _READING),
        ("heading", "Where it comes from"),
        ("table", (("", ""), _origin(report))),
    ]
    return parts


_READING = (
    "R2, F1 and the like are means over seeds on test sentences. The best layer is the one whose states describe the training "
    "spans in the fewest bits, so the test has no say in it. F1 is unlabelled, a mean over sentences, trivial spans left out; "
    "for treebanks punctuation is dropped. The ceiling is the minimum-risk tree by the exact marginals (by the true spans, for a "
    "treebank). KL is the divergence of a predicted masked-word posterior from the exact one, in nats; 0 is best. A control is "
    "beaten when the two 95% intervals, each over sentences, don't touch; controls are taken at their own best layer."
)


def _verdicts(report: ProbeReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = [
        (f"{v.probe}, {v.metric}", interval(v.value), v.control, interval(v.against), "yes" if v.beats else "no")
        for v in report.verdicts
    ]
    return ("probe", "of the model", "control", "of the control", "beaten"), rows


def _origin(report: ProbeReport) -> list[tuple[str, ...]]:
    origin = report.provenance
    libraries = ", ".join(f"{name} {version}" for name, version in origin["libraries"].items())
    inputs = ", ".join(f"{name} {value[:16]}" for name, value in origin["inputs"].items())
    return [
        ("surgery", f"{origin['surgery']} {(origin['commit'] or '')[:12]}"),
        ("libraries", libraries),
        ("inputs", inputs),
        ("seed", str(origin["seed"])),
        ("made", f"{origin['made']}, in {report.seconds:.0f} s"),
    ]


def _call(report: ProbeReport) -> str:
    return next(iter(report.provenance["call"]))


def text_example(example: Example) -> str:
    """A sentence's marginals for a terminal, exact above predicted: darker is likelier, brackets are the minimum-risk tree."""
    lines = []
    for name, marginals, tree in (
        ("exact", example.exact, example.exact_tree),
        ("predicted", example.predicted, example.predicted_tree),
    ):
        lines.append(f"{name}: {_brackets(example.words, tree)}")
        for start, row in enumerate(marginals):
            shades = "".join(
                _SHADES[min(4, int(5 * value))] * 2 if end > start else "  " for end, value in enumerate(row)
            )
            lines.append(f"  {shades}  {example.words[start]}")
    return "\n".join(lines)


def _brackets(words: Sequence[str], tree: Sequence[tuple[int, int]]) -> str:
    found = []
    for place, word in enumerate(words):
        opened, closed = (sum(span[side] == place + side for span in tree) for side in (0, 1))
        found.append("(" * opened + word + ")" * closed)
    return " ".join(found)


_SHADES = "·░▒▓█"


def _markdown(parts: Sequence[Part]) -> str:
    lines: list[str] = []
    for kind, content in parts:
        if kind == "table":
            head, rows = content
            lines += table(head, rows)
        elif kind == "image":
            name, caption = content
            lines.append(f"![{caption}]({name})\n\n{caption}")
        else:
            lines.append(
                {"title": "# ", "heading": "## ", "text": ""}[kind] + (inline(content) if kind == "title" else content)
            )
        lines.append("")
    return "\n".join(lines)


def _html(parts: Sequence[Part]) -> str:
    lines = [_HEAD.format(title=escape(str(parts[0][1])))]
    for kind, content in parts:
        if kind == "table":
            head, rows = content
            lines.append("<div><table><tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>")
            lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
            lines.append("</table></div>")
        elif kind == "image":
            name, caption = content
            lines.append(
                f'<figure><img src="{escape(name)}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
            )
        else:
            tag = {"title": "h1", "heading": "h2", "text": "p"}[kind]
            lines.append(f"<{tag}>{escape(str(content))}</{tag}>")
    return "\n".join([*lines, "</body></html>", ""])


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
div {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: 13px; }}
td, th {{ padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }}
td:first-child, th:first-child {{ text-align: left; }}
figure {{ margin: 1.5rem 0; }} img {{ max-width: 100%; }} figcaption {{ color: #555; font-size: 13px; }}
</style></head><body>"""
