"""Layout: how an auxiliary model's weights lie in prefixes, and what a token's embedding holds."""

from dataclasses import dataclass

from surgery.errors import TintError
from surgery.tint.shape import Shape

SLOTS = 4  # vectors of the auxiliary model's width that a token has at hand
FLAGS = 2  # always one; the prefix that holds the bias


@dataclass(frozen=True)
class Layout:
    """The plan of the simulating transformer's embeddings.

    A matrix of the auxiliary model, padded to `width` x `width` and cut into such chunks where it is larger, lies in
    `prefixes` prefixes of `rows` consecutive rows each; its bias lies in the first of them, behind the rows. A prefix also
    holds which one it is, one-hot. Norms take one prefix.

    Attributes:
        shape: the auxiliary model's.
        rows: of a matrix in one prefix, a head of linear attention each.
        embedding: coordinates of every embedding, of prefixes and of tokens.
        chunks: the feed-forward layer's matrices are cut in so many.
    """

    shape: Shape
    rows: int
    prefixes: int
    embedding: int
    chunks: int

    @classmethod
    def plan(cls, shape: Shape, rows: int | None = None) -> "Layout":
        """The layout with the fewest weights, or the one with so many rows a prefix.

        Raises:
            TintError: a family without a construction, or rows that don't divide the width.
        """
        if shape.family == "llama":
            raise TintError(
                "rotary positions and gated feed-forward layers have no construction as a transformer here: the fast path runs them, layout and count know gpt2 and opt"
            )
        if not (shape.attention_bias and shape.mlp_bias):
            raise TintError("a model without biases has no layout here: gpt2 and opt with biases have")
        if rows is not None and (rows < 1 or shape.width % rows):
            raise TintError(f"{rows} rows a prefix don't divide the width {shape.width} evenly: choose a divisor")
        if rows is None:
            from surgery.tint.construction.counting import module_weights, prefix_weights

            plans = [cls._of(shape, n) for n in range(1, min(shape.width, 64) + 1) if shape.width % n == 0]
            return min(plans, key=lambda plan: module_weights(plan) + prefix_weights(plan))
        return cls._of(shape, rows)

    @classmethod
    def _of(cls, shape: Shape, rows: int) -> "Layout":
        prefixes = shape.width // rows
        embedding = max(SLOTS, rows + 1) * shape.width + prefixes + FLAGS
        return cls(shape, rows, prefixes, embedding, -(-shape.inner // shape.width))

    @property
    def code(self) -> int:
        """Where a prefix's one-hot number starts."""
        return self.embedding - FLAGS - self.prefixes

    @property
    def one(self) -> int:
        """The coordinate that is always one."""
        return self.embedding - FLAGS

    @property
    def first(self) -> int:
        """The coordinate that is one in the prefix that holds a bias."""
        return self.embedding - FLAGS + 1

    @property
    def matrices(self) -> tuple[str, ...]:
        """A block's matrices as they lie in prefixes."""
        chunks = range(self.chunks)
        return ("q", "k", "v", "o", *(f"up{c}" for c in chunks), *(f"down{c}" for c in chunks))

    def describe(self) -> str:
        """The plan in a line."""
        return (
            f"{self.prefixes} prefixes of {self.rows} rows for each of {len(self.matrices)} matrices a block, "
            f"embeddings of {self.embedding}, {self.rows} heads, {SLOTS} slots"
        )
