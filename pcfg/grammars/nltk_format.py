"""Grammars from NLTK and for NLTK."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pcfg.grammars.rules import Rule, Word

if TYPE_CHECKING:
    import nltk


def rules_of_nltk(grammar: "nltk.PCFG") -> tuple[list[Rule], str]:
    """Rules and start symbol of any `nltk.PCFG`."""
    rules = [
        Rule(
            str(rule.lhs()),
            tuple(Word(str(child)) if isinstance(child, str) else str(child) for child in rule.rhs()),
            float(rule.prob()),
        )
        for rule in grammar.productions()
    ]
    return rules, str(grammar.start())


def nltk_of_rules(rules: Sequence[Rule]) -> "nltk.PCFG":
    """An `nltk.PCFG` of rules, the start symbol's first."""
    from nltk import PCFG, Nonterminal, ProbabilisticProduction

    made = [
        ProbabilisticProduction(
            Nonterminal(rule.parent),
            [child.text if isinstance(child, Word) else Nonterminal(child) for child in rule.children],
            prob=rule.probability,
        )
        for rule in rules
    ]
    return PCFG(made[0].lhs(), made)
