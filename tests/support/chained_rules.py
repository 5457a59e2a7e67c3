"""Rules of any shape with unary chains, written and drawn."""

from hypothesis import strategies as st

from pcfg.grammars.rules import Rule, Word
from pcfg.grammars.text_format import read_rules

COMPETING = """
S -> A B [0.5] | C D [0.5]
A -> X [0.1] | Y [0.1] | Z [0.1] | 'q' [0.7]
X -> 'a' [1.0]
Y -> 'a' [1.0]
Z -> 'a' [1.0]
B -> 'b' [1.0]
C -> 'a' [0.2] | 'r' [0.8]
D -> 'b' [1.0]
"""
# Chains over phrases and words, a word beside others, a long rule, a distribution over roots.
MANY = """
ROOT -> S [0.75] | NP [0.25]
S -> NP VP [0.5] | VP [0.25] | NP VP NP [0.25]
NP -> N [0.5] | N N [0.25] | NP 'and' NP [0.125] | VP [0.125]
VP -> V [0.5] | V NP [0.25] | N [0.25]
N -> 'a' [0.5] | 'b' [0.5]
V -> 'a' [0.25] | 'b' [0.75]
"""
ENGINES = ["dense", "sparse"]


@st.composite
def chained(draw):
    """Proper rules of any shape over three symbols, with three unary rules, circles among them; each symbol can end."""
    child = st.sampled_from(["A", "B", "C", Word("a"), Word("b")])
    unary = draw(
        st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from("ABC")), min_size=1, max_size=3, unique=True)
    )
    rules = []
    for parent in "ABC":
        shapes = {(below,): draw(st.integers(0, 2)) for above, below in unary if above == parent}
        if pair := draw(st.none() | st.tuples(child, child)):
            shapes[pair] = draw(st.integers(1, 3))
        shapes |= {(Word("a"),): draw(st.integers(1, 6)), (Word("b"),): draw(st.integers(0, 2))}
        total = sum(shapes.values())
        rules += [Rule(parent, shape, w / total) for shape, w in shapes.items()]
    return rules


def probabilities(grammar):
    return {(rule.parent, rule.children): rule.probability for rule in read_rules(grammar.to_text())[0]}
