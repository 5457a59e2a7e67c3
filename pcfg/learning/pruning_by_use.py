"""Smaller grammars: the nonterminals used most, and what is left of the rules over them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64

from pcfg.devices import Device
from pcfg.errors import GrammarError, OptionError
from pcfg.grammars.branching import Branching
from pcfg.grammars.grammar import Grammar
from pcfg.inference.chart import inside_outside
from pcfg.learning.expectation_maximization import check_sentences, expected_counts
from pcfg.sampling.sampler import sample


def prune(
    grammar: Grammar,
    keep_nonterminals: int,
    sentences: Sequence[Sequence[str]] | None = None,
    *,
    engine: str = "auto",
    device: Device | None = None,
    workers: int = 1,
) -> Grammar:
    """A smaller grammar of the nonterminals used most: rules with any other go, the rest is renormalised.

    Of a grammar made from rules of any shape, these are symbols of its binary form: unary chains aren't known afterwards.

    Args:
        keep_nonterminals: how many to keep, at most, the likeliest root among them; fewer are left where some need what is gone.
        sentences: use is the expected number of nodes in their parses. None: in the sentences that the grammar makes;
            for a grammar read off trees without smoothing, that is as often as in those trees.

    Raises:
        OptionError: fewer than one to keep, or no sentences.
        GrammarError: what would be left derives no sentence.
    """
    if keep_nonterminals < 1:
        raise OptionError(f"{keep_nonterminals} nonterminals to keep were asked for: ask for 1 or more")
    if sentences is None:
        uses = expected_uses(grammar)
    else:
        check_sentences(grammar, sentences)
        counts = expected_counts(grammar, sentences, engine=engine, device=device, workers=workers)
        uses = counts.by_nonterminal(grammar)
    try:
        return _restricted(grammar, _most_used(grammar, uses, keep_nonterminals))
    except GrammarError:
        enough = next(
            (count for count in range(keep_nonterminals + 1, len(uses) + 1) if _derives(grammar, uses, count)), None
        )
        if enough is None:
            raise
        raise GrammarError(
            f"the {keep_nonterminals} nonterminals used most derive no sentence without the others: keep {enough} or more"
        ) from None


def _most_used(grammar: Grammar, uses: Float64[np.ndarray, " N"], count: int) -> Bool[np.ndarray, " S"]:
    """The preterminals and so many nonterminals, a root among them: without one there is no sentence."""
    kept = np.ones(len(grammar.start), bool)
    kept[: len(uses)] = False
    most = np.argsort(-uses, kind="stable")[:count]
    roots = grammar.start[: len(uses)]
    if roots.any() and not roots[most].any():
        most[-1] = roots.argmax()
    kept[most] = True
    return kept


def _derives(grammar: Grammar, uses: Float64[np.ndarray, " N"], count: int) -> bool:
    """Whether the nonterminals used most derive a sentence."""
    try:
        _restricted(grammar, _most_used(grammar, uses, count))
    except GrammarError:
        return False
    return True


def share_parsed(grammar: Grammar, whole: Grammar, *, max_length: int, count: int = 500, seed: int = 0) -> float:
    """Share of the sentences that one grammar draws, of `max_length` words or fewer, for which another has a tree."""
    drawn = [list(sentence) for sentence in sample(whole, count, seed=seed, max_length=max_length)]
    known = [sentence for sentence in drawn if set(sentence) <= grammar.word_numbers.keys()]
    found = np.isfinite(inside_outside(grammar, known).log_z.numpy()).sum() if known else 0
    return float(found) / len(drawn)


def expected_uses(grammar: Grammar) -> Float64[np.ndarray, " N"]:
    """Expected number of nodes of each nonterminal in a sentence that the grammar makes."""
    grammar.check_proper()
    reachable = grammar.branching.reachable(grammar.start)
    kept = np.flatnonzero(reachable[: len(grammar.nonterminals)])
    means = grammar.branching.matrix(reachable)
    uses = np.zeros(len(grammar.nonterminals))
    uses[kept] = np.linalg.solve(np.eye(len(kept)) - means.T, grammar.start[kept])
    return uses


def _restricted(grammar: Grammar, kept: Bool[np.ndarray, " S"]) -> Grammar:
    """The grammar over some symbols, all preterminals among them; those that then derive no words go too."""
    n = len(grammar.nonterminals)
    inner = kept[grammar.parents] & kept[grammar.left] & kept[grammar.right] & (grammar.rule_probs > 0)
    columns = (grammar.parents, grammar.left, grammar.right, grammar.rule_probs)
    kept = kept & Branching(n, len(kept), *(column[inner] for column in columns)).generating()
    inner &= kept[grammar.parents] & kept[grammar.left] & kept[grammar.right]
    parents, left, right, probs = (column[inner] for column in columns)
    start = grammar.start * kept
    if not start.sum():
        raise GrammarError("no root that derives a sentence is among the nonterminals kept: keep more")
    numbers = np.cumsum(kept) - 1
    return Grammar.of_arrays(
        nonterminals=(name for name, keep in zip(grammar.nonterminals, kept[:n], strict=True) if keep),
        preterminals=grammar.preterminals,
        words=grammar.words,
        start=(start / start.sum())[kept],
        parents=numbers[parents],
        left=numbers[left],
        right=numbers[right],
        rule_probs=probs / np.bincount(parents, probs, n)[parents],
        tags=grammar.tags,
        tokens=grammar.tokens,
        word_probs=grammar.word_probs,
        lexicon=grammar.lexicon,
        transformed=grammar.transformed,
    ).pruned()
