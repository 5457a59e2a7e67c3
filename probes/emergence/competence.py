"""Competence: what models know of a grammar, rule by rule, apart from files and pages; and what the numbers say."""

from dataclasses import dataclass
from typing import Any

from probes.emergence.combining import Comparison
from probes.emergence.explaining import Explanation
from probes.emergence.scores import Rate, Score
from surgery.reporting.plural import number_of


@dataclass(frozen=True)
class Measured:
    """One model, or one checkpoint of its training.

    Attributes:
        step: of training; None for a model that was named.
        failure: mean share of a text's masks whose total variation is above the threshold: the theory's theta.
        soft: mean total variation of a text's masks.
        excess: mean KL(exact || model) of a mask, in nats.
        tuple_failures: mean failure over all tuples of 1, 2, ... ranked rules that stand in one text; `tuple_softs`: soft.
        rules: those used in enough texts, the worst first.
        halves: Spearman's correlation of the rules' failures between two halves of the texts.
    """

    name: str
    step: int | None
    failure: Rate
    soft: Rate
    excess: Rate
    tuple_failures: tuple[Rate, ...]
    tuple_softs: tuple[Rate, ...]
    rules: tuple[Score, ...]
    halves: float | None
    explanations: tuple[Explanation, ...]


@dataclass(frozen=True)
class TheoryPoint:
    """How much more the worst share alpha of rules fail than texts do: beta, measured and at most.

    Attributes:
        model: of the model's failures. `worst`: of the worst failures found on the same texts and rules, with as many texts;
            `worst_bound`: no failures have more, which `bound_by` tells why.
        independent: at most, were rules drawn independently (as many a text as there are). `theorem`: the paper's bound
            for that; None where it says nothing.
    """

    alpha: float
    model: float
    worst: float
    worst_bound: float
    bound_by: str
    independent: float
    theorem: float | None


@dataclass(frozen=True)
class Theory:
    """The graph of texts and ranked rules, and beta on it for some alphas.

    Attributes:
        theta: share of texts that the last model fails.
        k: mean number of different ranked rules of a text.
    """

    theta: float
    k: float
    texts: int
    rules: int
    points: tuple[TheoryPoint, ...]


@dataclass(frozen=True)
class Competence:
    """All numbers of `measure_competence`.

    Attributes:
        measured: the models in the order of training; the last is what the report is about.
        tuples: pairs, and larger tuples if asked for, that stand together in enough texts: of each size the worst first.
        tuples_left_out: whether there were so many that the least common ones were left out.
        rare: rules seen in too few texts to be ranked, and in how many.
        comparisons: single rules against pairs over training (Corollary 13).
        masks: masked words in all. `optimum`: mean entropy of the exact posterior at a mask, in nats.
        pinsker_violations: masks whose total variation is above sqrt(KL / 2): none, or something is wrong.
    """

    provenance: dict[str, Any]
    settings: dict[str, Any]
    measured: tuple[Measured, ...]
    tuples: tuple[Score, ...]
    tuples_left_out: bool
    rare: tuple[tuple[str, int], ...]
    theory: Theory
    comparisons: tuple[Comparison, ...]
    masks: int
    optimum: float
    pinsker_violations: int
    notes: tuple[str, ...]
    seconds: float

    @property
    def last(self) -> Measured:
        """The model that the report is about."""
        return self.measured[-1]

    @property
    def rules(self) -> tuple[Score, ...]:
        """Its rules, the worst first."""
        return self.last.rules

    @property
    def pairs(self) -> tuple[Score, ...]:
        """Its pairs of rules, the worst first."""
        return tuple(found for found in self.tuples if len(found.rules) == 2)

    @property
    def summary(self) -> list[str]:
        """How far the model is from the optimum, which rules it knows least, and what combinations do."""
        last, worst = self.last, self.rules[:3]
        named = "; ".join(f"{found.rules[0]} ({_brief(found.failure)})" for found in worst)
        ranked = f"The rules whose texts fail most, of {len(self.rules)}: {named}."
        level = [found for found in self.rules if found.failure.value == self.rules[0].failure.value] if worst else []
        if len(level) > len(worst):
            ranked = f"The texts of {len(level)} of {len(self.rules)} rules fail most and alike ({worst[0].failure.value:.3g}), the first by total variation: {'; '.join(found.rules[0] for found in worst)}. Another `threshold` may tell them apart."
        lines = [
            f"Masked words are predicted {_brief(last.excess)} nats above the optimum of {self.optimum:.3f}, and a share of {_brief(last.failure)} of a text's masks fails.",
            ranked,
        ]
        if self.comparisons:
            lines.append(
                f"By total variation, pairs in one text fail less than single rules did at twice the excess loss at {self._better('mean')}; pairs from two texts, of which either may fail, at {self._better('apart')}."
            )
        return lines

    def _better(self, kind: str) -> str:
        """At how many checkpoints pairs fail less than single rules did when the excess loss was twice as large."""
        asked = [c for c in self.comparisons if (c.kind, c.failure) == (kind, "soft")]
        better, worse = (sum(c.verdict == verdict for c in asked) for verdict in ("better", "worse"))
        return f"{better} of {number_of(len(asked), 'checkpoint')} and more at {worse}"

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """A row a rule, the worst first."""
        columns = ["rule", "texts", "uses", "failure", "low", "high", "total variation", "excess"]
        rows = [[r.rules[0], r.texts, r.uses, *_ends(r.failure), r.soft.value, r.excess.value] for r in self.rules]
        return columns, rows


def _ends(rate: Rate) -> list[float]:
    return [rate.value, rate.low, rate.high]


def _brief(rate: Rate) -> str:
    return f"{rate.value:.3g} [{rate.low:.3g}, {rate.high:.3g}]"
