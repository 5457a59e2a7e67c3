"""Which of the two engines suits a grammar, and how many numbers its charts hold."""

from pcfg.grammars.grammar import Grammar

ENGINES = ("auto", "dense", "sparse")
# The dense chart costs about n^3 N^2 / 3 + n^2 N S^2 a sentence, whatever the number of rules; the sparse one walks over
# rules, some hundred times as slowly an operation. Beyond these sizes the dense tables alone are too large.
_DENSE_SYMBOLS, _DENSE_SHARE = 400, 0.02


def pick_engine(grammar: Grammar, wanted: str = "auto") -> str:
    """`dense` for a small grammar, or one with a good part of all the rules that its symbols allow; else `sparse`."""
    symbols, nonterminals = len(grammar.start), len(grammar.nonterminals)
    if not nonterminals:
        return "sparse"  # sentences of one word: there is nothing for the dense engine to multiply
    if wanted != "auto":
        return wanted
    if symbols > _DENSE_SYMBOLS:
        return "sparse"
    return "dense" if len(grammar.parents) >= _DENSE_SHARE * nonterminals * symbols**2 or symbols <= 100 else "sparse"


def chart_numbers(grammar: Grammar, n: int) -> int:
    """About how many numbers the chart of a sentence of n words holds at once."""
    inner, symbols = len(grammar.nonterminals), len(grammar.start)
    if pick_engine(grammar) == "sparse":
        return n * n * symbols
    tags = symbols - inner
    # Charts inside and outside by first word and by end, words with their rules, pairs of children, the best of a word's.
    by_word = 7 * (n + 1) * inner + 2 * inner * (symbols + inner) + 2 * inner * inner + 2 * tags
    return n * by_word + inner * tags * symbols
