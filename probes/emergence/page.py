"""The page of a competence report."""

from collections.abc import Sequence

from probes.emergence.combining import KINDS
from probes.emergence.competence import Competence
from probes.emergence.scores import Rate, Score
from surgery.reporting.page import Figure, Heading, Page, Part, Table, Text

_SHOWN = 40  # of tuples and coefficients


def competence_page(report: Competence, figures: Sequence[Figure]) -> Page:
    """The answer, figures, rules, tuples, what explains failures, training, theory, how to read it and where it comes from."""
    settings = report.settings
    parts: list[Part] = [
        Text(
            f"Measured: {settings['sentences']:,} sentences, {report.masks:,} words masked one at a time; a mask fails where total variation is above {settings['threshold']:g}. Total variation above sqrt(KL / 2): at {report.pinsker_violations} masks."
        ),
        *map(Text, report.notes),
        Heading("Figures"),
        *figures,
        Heading("Rules"),
        Table(f"{len(report.rules)} rules, those whose texts fail most first.", *report.table(), _LEGEND),
        *_tuples(report),
        *_rare(report),
        Heading("What explains failures"),
        _explanations(report),
        _coefficients(report),
        *_training(report),
        Heading("Beside the theory"),
        _theory(report),
        Heading("How to read this"),
        Text(_READING),
        Heading("Where it comes from"),
        _origin(report),
    ]
    return Page(f"Competence of {report.last.name}", report.summary, parts)


_LEGEND = {
    "texts": "that use the rule, or all rules of the tuple.",
    "uses": "of the rule in all texts.",
    "failure": "mean over these texts of the share of masks that fail; competence is 1 less this.",
    "low": "lower end of the 95% interval, by resampling texts.",
    "high": "upper end of it.",
    "total variation": "the soft version: mean total variation between the exact posterior and the model's.",
    "excess": "mean KL of the model from the exact posterior at the masks of these texts, in nats.",
    "beyond": "failure less that of its rule that fails most: what only the combination brings.",
}
_READING = (
    "A text's failure is shared by all its rules, so a common rule's is near the mean and a rule stands out where its texts fail more "
    "than others. The regression takes that apart: a coefficient is what one more use of a rule adds, the others held. Ranked "
    "rules stand in enough texts; the others are listed. After Arora & Goyal 2023, with the exact excess loss of every mask in "
    "place of cloze questions."
)


def _tuples(report: Competence) -> list[Part]:
    if not report.tuples:
        return [Text("No two rules stand together in enough texts.")]
    alone = {rule.rules[0]: rule.failure.value for rule in report.rules}
    columns = ["rules", "texts", "failure", "low", "high", "beyond", "excess"]
    parts: list[Part] = []
    for size in sorted({len(found.rules) for found in report.tuples}):
        own = [found for found in report.tuples if len(found.rules) == size]
        rows = [_tuple_row(found, alone) for found in own[:_SHOWN]]
        cut = "; the least common ones are left out" if report.tuples_left_out else ""
        what = "pairs" if size == 2 else f"tuples of {size}"
        parts.append(Table(f"The {len(rows)} {what} that fail most, of {len(own):,}{cut}.", columns, rows, _LEGEND))
    return parts


def _tuple_row(found: Score, alone: dict[str, float]) -> list[object]:
    beyond = found.failure.value - max(alone[rule] for rule in found.rules)
    return [" + ".join(found.rules), found.texts, *_ends(found.failure), beyond, found.excess.value]


def _rare(report: Competence) -> list[Part]:
    if not report.rare:
        return []
    caption = f"Rules in fewer than {report.settings['least']} texts, not ranked."
    return [Table(caption, ["rule", "texts"], [list(row) for row in report.rare], folded=True)]


def _explanations(report: Competence) -> Table:
    rows = [
        [e.target, _interval(e.r2), _interval(e.count_r2), f"{e.nonzero} of {e.rules}", f"{e.train:,} / {e.test:,}"]
        for e in report.last.explanations
    ]
    return Table(
        "How well the rules of a text explain its failures, on held-out texts.",
        ["of a text", "R2, rules", "R2, number of rules", "rules with a coefficient", "texts: trained / held out"],
        rows,
        {
            "R2, rules": "of a lasso on how often each ranked rule is used, its penalty chosen by cross-validation.",
            "R2, number of rules": "of a straight line on how many rules the tree has.",
        },
    )


def _coefficients(report: Competence) -> Table:
    first = report.last.explanations[0]
    rows = [[name, value] for name, value in first.coefficients[:_SHOWN]]
    return Table(f"{first.target} that one use of a rule adds.".capitalize(), ["rule", "added"], rows, folded=True)


def _training(report: Competence) -> list[Part]:
    if len(report.measured) < 2:
        return []
    rows = [
        [m.name, _interval(m.excess), *(_interval(rate) for rate in _padded(m.tuple_failures)), m.halves]
        for m in report.measured
    ]
    parts: list[Part] = [
        Heading("Over training"),
        Table(
            "Mean failure of single rules, pairs and larger tuples that stand in one text.",
            ["checkpoint", "excess", "1 rule", "2", "3", "4", "halves"],
            rows,
            {
                "excess": "mean over masks of KL(exact || model), in nats.",
                "halves": "Spearman's correlation of the rules' failures between two halves of the texts.",
            },
            folded=False,
        ),
    ]
    compared = [
        [
            c.name,
            f"{KINDS[c.kind]}, {c.failure}",
            c.excess.value,
            _interval(c.before),
            _interval(c.pairs),
            _interval(c.difference),
            c.verdict,
        ]
        for c in report.comparisons
    ]
    if compared:
        parts.append(
            Table(
                "Pairs against single rules at twice the excess loss.",
                ["checkpoint", "failure", "excess", "single rules before", "pairs", "difference", "pairs are"],
                compared,
                {
                    "single rules before": "at twice the excess loss, on the line between the two checkpoints nearest to it.",
                    "pairs are": "better where the difference's interval lies below 0, worse where it lies above.",
                },
            )
        )
    return parts


def _padded(rates: Sequence[Rate]) -> list[Rate | None]:
    return [*rates, *[None] * (4 - len(rates))]


def _theory(report: Competence) -> Table | Text:
    theory = report.theory
    if not theory.points:
        return Text("No text fails, or every mask of every text does: there is nothing to compare with the theory.")
    rows = [[p.alpha, p.model, p.worst, p.worst_bound, p.bound_by, p.independent, p.theorem] for p in theory.points]
    return Table(
        f"Beta, by how much the worst rules fail more than texts, at theta {theory.theta:.3f}: {theory.texts:,} texts of {theory.k:.1f} different rules of {theory.rules}.",
        ["alpha", "model", "worst found", "no more than", "by", "independent", "theorem"],
        rows,
        {
            "alpha": "share of the rules (as they are used) that are counted as the worst.",
            "model": "of the model's failures.",
            "worst found": "of as many failed texts, chosen against these rules on the same graph.",
            "no more than": "no choice of texts has more.",
            "independent": "the most there could be were each text's rules drawn independently: the conditional value at risk of a binomial.",
            "theorem": "the bound of the paper for independent draws; empty where it gives none.",
        },
        folded=False,
    )


def _origin(report: Competence) -> Table:
    origin = report.provenance
    rows = [
        ["surgery", f"{origin['surgery']} {(origin['commit'] or '')[:12]}"],
        ["libraries", ", ".join(f"{name} {version}" for name, version in origin["libraries"].items())],
        ["inputs", ", ".join(f"{name} {value[:16]}" for name, value in origin["inputs"].items())],
        ["seed", str(origin["seed"])],
        ["made", f"{origin['made']}, in {report.seconds:.0f} s"],
    ]
    return Table("Versions, and fingerprints of what went in.", ["", ""], rows)


def _ends(rate: Rate) -> list[float]:
    return [rate.value, rate.low, rate.high]


def _interval(rate: Rate | None) -> str:
    return "" if rate is None else f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
