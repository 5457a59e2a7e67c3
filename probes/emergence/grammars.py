"""Grammars of skills: one whose texts draw their skills independently, as the theory assumes, and one whose texts don't."""

from collections.abc import Iterator, Sequence

import numpy as np

from pcfg.errors import OptionError
from pcfg.grammars.grammar import Grammar
from probes.emergence.rules import rule_names

_SHARES = (0.6, 0.3, 0.1)  # of the words that may close a phrase
SKILL_RULES = "P* -> *"  # rules that are skills, by a pattern; the others put phrases together or spell words


def independent_skills(
    skills: int = 40, drawn: int = 6, *, words: int = 24, zipf: float = 1.0, seed: int = 0
) -> Grammar:
    """A grammar of texts that draw `drawn` skills independently of one another (Arora & Goyal 2023, section 5).

    A text is `drawn` phrases of two words. Skill s, the rule `P -> U<s> V<s>`, opens a phrase by a word of its own and closes
    it by one of three words that other skills share, so what stands at a mask depends on one skill and on nothing else.

    Args:
        skills: how many there are; the r-th most common is drawn with probability proportional to r to the power of -`zipf`.
        words: how many may close a phrase.
    """
    _check(skills, drawn, words)
    random, shares = np.random.default_rng(seed), _zipf(skills, zipf)
    lexical = dict(_phrases([f"{s}" for s in range(skills)], range(skills), words, random))
    phrases = {("P", f"U{s}", f"V{s}"): float(shares[s]) for s in range(skills)}
    return Grammar({f"T{drawn}": 1.0}, {**_chain("T", "P", drawn), **phrases}, lexical)


def tangled_skills(
    skills: int = 40, drawn: int = 6, *, topics: int = 5, words: int = 24, zipf: float = 1.0, seed: int = 0
) -> Grammar:
    """A grammar whose texts keep to a topic, which decides which skills they draw and what a skill means.

    Each skill belongs to two topics, and closes its phrases by other words in each: `P<topic> -> U<s> V<s>in<topic>`. So rules
    of a text are not drawn independently, and what stands at a mask depends on the text's other phrases.

    The other arguments are those of `independent_skills`.
    """
    _check(skills, drawn, words)
    if not 2 <= topics <= skills:
        raise OptionError(f"`topics` is {topics}: give 2 to {skills}, the number of skills")
    random, shares = np.random.default_rng(seed), _zipf(skills, zipf)
    members = {topic: [s for s in range(skills) if topic in (s % topics, (s + 1) % topics)] for topic in range(topics)}
    binary: dict[tuple[str, str, str], float] = {}
    lexical: dict[tuple[str, str], float] = {}
    for topic, own in members.items():
        binary |= _chain(f"T{topic}in", f"P{topic}", drawn)
        total = sum(shares[s] for s in own)
        binary |= {(f"P{topic}", f"U{s}", f"V{s}in{topic}"): float(shares[s] / total) for s in own}
        lexical |= dict(_phrases([f"{s}in{topic}" for s in own], own, words, random))
    return Grammar({f"T{topic}in{drawn}": 1 / topics for topic in range(topics)}, binary, lexical)


def without_rule(grammar: Grammar, name: str) -> Grammar:
    """A grammar without one of its rules, by its name in reports (`P -> U3 V3`); the symbol's other rules share its probability.

    All symbols and words stay, so a model that was trained on it can be held to the whole grammar.
    Raises OptionError for a rule that isn't there, or that is its symbol's only one.
    """
    names = rule_names(grammar)
    if name not in names:
        raise OptionError(f"the grammar has no rule {name!r}: give a name as in {names[0]!r}")
    number, binary = names.index(name), len(grammar.rule_probs)
    heads = np.append(grammar.parents, grammar.tags + len(grammar.nonterminals))
    kept = np.append(grammar.rule_probs, grammar.word_probs)
    own = heads == heads[number]
    left = 1 - kept[number]
    if own.sum() < 2 or left <= 0:
        raise OptionError(f"{name!r} is the only rule of its symbol: take one of several")
    kept[number] = 0.0
    kept[own] /= left
    return grammar.replaced(rule_probs=kept[:binary], word_probs=kept[binary:])


def _check(skills: int, drawn: int, words: int) -> None:
    for name, value, least in (("skills", skills, 2), ("drawn", drawn, 2), ("words", words, len(_SHARES))):
        if value < least:
            raise OptionError(f"`{name}` is {value}: give {least} or more")


def _zipf(count: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, count + 1) ** -float(exponent)
    return weights / weights.sum()


def _chain(text: str, phrase: str, drawn: int) -> dict[tuple[str, str, str], float]:
    """Rules that put `drawn` phrases one after another."""
    longer = {(f"{text}{n}", phrase, f"{text}{n - 1}"): 1.0 for n in range(3, drawn + 1)}
    return {**longer, (f"{text}2", phrase, phrase): 1.0}


def _phrases(
    names: Sequence[str], skills: Sequence[int], words: int, random: np.random.Generator
) -> Iterator[tuple[tuple[str, str], float]]:
    """The words of each skill: the one that opens its phrases, and those that close them."""
    for name, skill in zip(names, skills, strict=True):
        yield (f"U{skill}", f"open{skill}"), 1.0
        for word, share in zip(random.choice(words, len(_SHARES), replace=False).tolist(), _SHARES, strict=True):
            yield (f"V{name}", f"close{word}"), share
