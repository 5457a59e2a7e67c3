"""The grammar of binary trees by counting: relative frequencies, which are the most likely probabilities for them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pcfg.errors import OptionError, TreebankError
from pcfg.grammars.grammar import Grammar
from pcfg.learning.expectation_maximization import check_smoothing
from pcfg.treebanks.trees import Tree

_MOST_RULES = 10_000_000


def from_trees(trees: Sequence[Tree], *, smoothing: float = 0.0) -> Grammar:
    """Relative frequencies of trees whose nodes have two children or one word: the most likely grammar for them.

    Treebanks are another matter: see `Grammar.from_trees`, which makes their trees so.

    Args:
        smoothing: added to the count of every rule that the symbols and words of the trees allow, seen or not.

    Raises:
        TreebankError: no trees, or one with a node of another shape.
        OptionError: a smoothing below 0, or so many possible rules that no grammar should hold them.
    """
    check_smoothing(smoothing)
    if not trees:
        raise TreebankError("there are no trees to read a grammar from")
    roots, rules, lexical = Counter[str](), Counter[tuple[str, str, str]](), Counter[tuple[str, str]]()
    for number, tree in enumerate(trees):
        roots[tree.label] += 1
        for node in tree.nodes():
            if node.is_preterminal:
                lexical[node.label, str(node.children[0])] += 1
                continue
            labels = [child.label for child in node.children if isinstance(child, Tree)]
            if len(labels) != 2 or len(node.children) != 2:
                raise TreebankError(
                    f"tree {number + 1} has a node {node.label} of {len(node.children)} children, where two are needed: "
                    "use Grammar.from_trees, or pcfg.treebanks.transforms.transform first"
                )
            rules[node.label, labels[0], labels[1]] += 1
    if smoothing:
        _smooth(roots, rules, lexical)
    return Grammar(_shares(roots, smoothing), _shares(rules, smoothing), _shares(lexical, smoothing))


def _smooth(roots: Counter[str], rules: Counter[tuple[str, str, str]], lexical: Counter[tuple[str, str]]) -> None:
    """Add every rule that the symbols and words allow, with a count of 0."""
    parents, tags, words = ({key[place] for key in table} for table, place in ((rules, 0), (lexical, 0), (lexical, 1)))
    symbols = sorted(parents) + sorted(tags)
    possible = len(parents) * len(symbols) ** 2 + len(tags) * len(words)
    if possible > _MOST_RULES:
        raise OptionError(
            f"smoothing would give weight to {possible:,} rules: use it for smaller grammars, or smooth by 0"
        )
    roots.update(dict.fromkeys(symbols, 0))
    rules.update({(a, b, c): 0 for a in sorted(parents) for b in symbols for c in symbols})
    lexical.update({(tag, word): 0 for tag in sorted(tags) for word in sorted(words)})


def _shares(counts: Counter[Any], smoothing: float) -> dict[Any, float]:
    """Each count as a share of those with the same parent; a root's, of all roots."""
    parents = {key: key[0] if isinstance(key, tuple) else "" for key in counts}
    totals: Counter[str] = Counter()
    for key, count in counts.items():
        totals[parents[key]] += count + smoothing  # type: ignore[assignment]
    return {key: (count + smoothing) / totals[parents[key]] for key, count in counts.items()}
