"""Trees of any shape whose labels hold the signs of transformed labels."""

import math

from hypothesis import strategies as st

from pcfg.treebanks.trees import Tree

ORDERS = [(v, h) for v in (1, 2) for h in (0, 1, 2, math.inf)]
labels = st.text(st.sampled_from("AB+^|\\-"), min_size=1, max_size=4)
odd_trees = st.recursive(
    st.builds(lambda tag, word: Tree(tag, (word,)), labels, st.sampled_from(["a", "b", "+", "c|d"])),
    lambda inner: st.builds(
        lambda label, children: Tree(label, tuple(children)), labels, st.lists(inner, min_size=1, max_size=5)
    ),
    max_leaves=15,
)
