"""Which heads a compiled transformer's answer depends on, by its circuit alone: what circuit discovery is scored against."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from pcfg.compiled.model import InsideOutsideTransformer
from pcfg.errors import OptionError

OUTPUTS = ("log_z", "logits")
_Widths = Bool[np.ndarray, "S widths"]  # [C, w]: whether it is so of symbol C over w words


def used_heads(model: InsideOutsideTransformer, words: int, output: str = "log_z") -> Bool[np.ndarray, "layers heads"]:
    """Whether each head of each layer has a part in an output for sentences of so many words, [2 (L - 1), 2 S].

    A layer replaces what the one before wrote, so a head counts only where what it writes is read again: with T inside layers,
    log Z depends on the whole sentence's score after layer T, on its children's after layer T - 1, and so on: layer T - d
    counts by the heads of right children of symbols d levels below the root. Everything earlier is computed anew later.

    By rules and widths alone: a sentence whose words rule out some trees uses fewer heads.

    Args:
        output: "log_z", or "logits": the preterminals' outside scores, from which those are read.

    Raises:
        OptionError: another output, or a number of words that the model doesn't take.
    """
    if output not in OUTPUTS:
        raise OptionError(f"`output` is {output!r}: ask for {' or '.join(OUTPUTS)}")
    if not 1 <= words <= model.slots.length:
        raise OptionError(f"`words` is {words}: the model takes sentences of 1 to {model.slots.length}")
    tree = _Trees.of(model.rules.detach().cpu().numpy() > 0, model.roots.detach().cpu().numpy() > 0, words)
    symbols, half = len(model.slots.symbols), model.slots.length - 1
    found = np.zeros((2 * half, 2 * symbols), bool)
    inside = np.zeros_like(tree.derived)
    if output == "log_z":
        inside[:, words] = tree.occurring[:, words]
    else:
        outside = np.zeros_like(inside)
        outside[len(tree.rules) :, 1] = tree.occurring[len(tree.rules) :, 1]
        for layer in reversed(range(half, 2 * half)):
            found[layer], outside, read = tree.above(outside)
            inside |= read
    for layer in reversed(range(half)):
        found[layer, :symbols], inside = tree.below(inside)
    return found


@dataclass(frozen=True, eq=False)
class _Trees:
    """What rules allow in trees of n words.

    Attributes:
        rules: [A, B, C]: whether A -> B C is one.
        derived: whether the symbol derives so many words; `occurring`: and does so somewhere in a tree of n words.
    """

    rules: Bool[np.ndarray, "N S S"]
    derived: _Widths
    occurring: _Widths

    @classmethod
    def of(cls, rules: Bool[np.ndarray, "N S S"], roots: Bool[np.ndarray, " S"], words: int) -> "_Trees":
        inner, symbols = rules.shape[:2]
        derived = np.zeros((symbols, words + 1), bool)
        derived[inner:, 1] = True
        for width in range(2, words + 1):
            for left in range(1, width):
                pairs = derived[:, left, None] & derived[None, :, width - left]
                derived[:inner, width] |= (rules & pairs).any((1, 2))
        occurring = np.zeros_like(derived)
        occurring[:, words] = roots & derived[:, words]
        found = cls(rules, derived, occurring)
        for _ in range(words):
            occurring |= found.below(occurring)[1]
        return found

    def below(self, needed: _Widths) -> tuple[Bool[np.ndarray, " S"], _Widths]:
        """Right children in rules for what is needed, and the children, of which scores are read."""
        heads, children = np.zeros(len(needed), bool), np.zeros_like(needed)
        for width, left in self._splits():
            pairs: Bool[np.ndarray, "S S"] = np.asarray(self._rules(needed, width, left).any(0))
            heads |= pairs.any(0)
            children[:, left] |= pairs.any(1)
            children[:, width - left] |= pairs.any(0)
        return heads, children

    def above(self, needed: _Widths) -> tuple[Bool[np.ndarray, " H"], _Widths, _Widths]:
        """Heads for the outside scores needed, the parents whose outside scores they read, and siblings by inside scores."""
        symbols = len(needed)
        heads, parents, siblings = np.zeros(2 * symbols, bool), np.zeros_like(needed), np.zeros_like(needed)
        for width, left in self._splits():
            rules = self._rules(self.occurring, width, left)
            right_needed, left_needed = rules & needed[:, width - left], rules & needed[:, left, None]
            heads[:symbols] |= right_needed.any((0, 1))
            heads[symbols:] |= left_needed.any((0, 1))
            parents[: len(rules), width] |= (right_needed | left_needed).any((1, 2))
            siblings[:, left] |= right_needed.any((0, 2))
            siblings[:, width - left] |= left_needed.any((0, 1))
        return heads, parents, siblings

    def _splits(self) -> list[tuple[int, int]]:
        words = self.derived.shape[1] - 1
        return [(width, left) for width in range(2, words + 1) for left in range(1, width)]

    def _rules(self, parents: _Widths, width: int, left: int) -> Bool[np.ndarray, "N S S"]:
        """Rules of those parents over `width` words that can split after `left`."""
        pairs = self.derived[:, left, None] & self.derived[None, :, width - left]
        return self.rules & pairs & parents[: len(self.rules), width, None, None]
