"""The page of a probe report: its parts, from which `surgery.reporting.page` makes HTML and Markdown."""

from collections.abc import Sequence

from probes.catalog import METRICS, PROBES
from probes.figures.drawing import Drawing
from probes.findings import Findings, interval, written
from surgery.reporting.page import Figure, Heading, Page, Part, Table, Text
from surgery.reporting.plural import number_of


def report_page(findings: Findings, drawings: Sequence[Drawing]) -> Page:
    """The answer, figures, the table by layer, comparisons with controls, labels, how to read it and where it comes from."""
    figures = [Figure(f"{d.name}.png", d.caption, d.alt) for d in drawings]
    parts: list[Part] = [
        Text(_about(findings)),
        *map(Text, findings.remarks),
        Heading("Figures"),
        *figures,
        Heading("By layer, and the controls"),
        _layers_table(findings),
        Heading("Against the controls"),
        _verdicts_table(findings),
        Heading("By label"),
        _labels_table(findings),
        *_calibration_parts(findings),
        Heading("How to read this"),
        Text(_READING),
        Heading("Where it comes from"),
        _origin_table(findings),
    ]
    return Page(f"Probes of {findings.model['name']}", findings.summary, parts)


def _about(findings: Findings) -> str:
    what = "exact span marginals of a grammar" if findings.exact else "spans of a treebank's trees"
    call = next(iter(findings.provenance["call"].values()))
    model, counts = findings.model, findings.counts
    return (
        f"Probed: a model of {number_of(model['layers'], 'layer')}, {number_of(model['heads'], 'head')} and width {model['width']}, for {what}; "
        f"{counts['train']:,} training and {counts['test']:,} test sentences; {number_of(call['seeds'], 'seed')} of every probe."
    )


_SOURCES = (
    "what a row's numbers are read from. layer N: the model's states after N blocks (0: the embeddings), * at the best layer; "
    "untrained N: the same of a model with random weights; word identity, position: the same probes on which word it is, or on "
    "where it stands; length: the mean marginal of the training spans of that length; left, right, random: branching and random "
    "trees; ceiling: the minimum-risk trees by the exact marginals (by the true spans, for a treebank)."
)


def _layers_table(findings: Findings) -> Table:
    columns, rows = findings.table()
    legend = {metric.column: metric.meaning for _, metric in METRICS if metric.column}
    caption = "Each probe on each layer and on each control: means over seeds, on test sentences."
    return Table(caption, columns, written(rows), {"source": _SOURCES, **legend}, folded=False)


def _verdicts_table(findings: Findings) -> Table:
    labels = {probe.name: probe.label for probe in PROBES}
    rows = [
        [f"{labels[v.probe]}: {v.metric}", interval(v.value), v.control, interval(v.against), v.beats]
        for v in findings.verdicts
    ]
    won = sum(verdict.beats for verdict in findings.verdicts)
    return Table(
        f"Controls beaten: {won} of {len(rows)}.",
        ["probe: metric", "of the model", "control", "of the control", "beaten"],
        rows,
        {
            "of the model": "the number at the layer that the probe is judged at (the best; for masked words the last), with its 95% interval over sentences.",
            "control": "the rows of the table above; control task: the same probe trained on random targets that depend on the words alone (Hewitt & Liang 2019).",
            "of the control": "the control's number, at the layer where it is best.",
            "beaten": "whether the model's number is the better one and the two intervals don't touch.",
        },
        folded=True,
    )


def _labels_table(findings: Findings) -> Table:
    measures = [
        m
        for m in findings.measures
        if (m.probe, m.source, m.layer, m.metric) == ("span-two-layer", "model", findings.best_layer, "r2")
        and m.group
        and not m.group[0].isdigit()
    ]
    return Table(
        "Span marginals of each label, at the best layer.",
        ["label", "R2, two-layer"],
        [[m.group, interval(m)] for m in measures],
        {"R2, two-layer": "R squared of the marginals of spans of that label, with its 95% interval over sentences."},
    )


def _calibration_parts(findings: Findings) -> list[Part]:
    """For a compiled grammar: what probes and ablations find where it is known what is there."""
    found = findings.calibration
    if found is None:
        return []
    columns = ["words", "complete after layer", *(f"layer {layer}" for layer in found.layers)]
    rows = [[w.words, w.complete, *("" if r2 is None else f"{r2:.4f}" for r2 in w.r2)] for w in found.widths]
    heads = [[h.symbol, h.needing, h.zeroed, h.others, h.random_zeroed] for h in found.heads]
    return [
        Heading("Against what is known"),
        Table(
            "Linear probes of inside scores over the first words of sentences, from the state of the last of those words: R squared on "
            "test sentences, the lowest over nonterminals.",
            columns,
            rows,
            {
                "complete after layer": "from this layer on the scores lie in the state as they are, and R squared should be 1; empty "
                "where the training sentences are too few to determine a probe."
            },
        ),
        Table(
            "A right child's head taken out of every inside layer: spans and labels whose inside score it sets to 0.",
            ["right child", "spans that need it", "of those 0", "others 0", "0 by another head"],
            heads,
            {
                "spans that need it": "they have a score, and none by the grammar's rules without that right child.",
                "0 by another head": "of the spans that need it, those that another head, drawn at random, sets to 0.",
            },
        ),
    ]


_READING = (
    "The best layer is the one whose states describe the training spans in the fewest bits, so the test has no say in it. F1 is "
    "unlabelled, a mean over sentences, trivial spans left out; for treebanks punctuation is dropped. Intervals are 95%, "
    "bootstrapped over test sentences. Probes of span marginals after Zhao et al. 2023, section 5."
)


def _origin_table(findings: Findings) -> Table:
    origin = findings.provenance
    rows = [
        ["surgery", f"{origin['surgery']} {(origin['commit'] or '')[:12]}"],
        ["libraries", ", ".join(f"{name} {version}" for name, version in origin["libraries"].items())],
        ["inputs", ", ".join(f"{name} {value[:16]}" for name, value in origin["inputs"].items())],
        ["seed", str(origin["seed"])],
        ["made", f"{origin['made']}, in {findings.seconds:.0f} s"],
    ]
    return Table("Versions, and fingerprints of what went in.", ["", ""], rows)
