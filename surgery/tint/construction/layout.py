"""Layout: how an auxiliary model's weights lie in prefixes, what a token's embedding holds, and how many weights that takes.

Sizes are said matrix by matrix, in the order in which `construction.layers` makes them; the tests count a built transformer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from surgery.errors import TintError
from surgery.tint.shape import Shape

SLOTS = 4  # vectors of the auxiliary model's width in a token: the signal, what was read off prefixes, keys, values
FLAGS = 2  # always one; the prefix that holds the bias


@dataclass(frozen=True)
class Layout:
    """The plan of the simulating transformer's embeddings.

    A matrix of the auxiliary model, padded to `width` x `width` and cut into such chunks where it is larger, lies in
    `prefixes` prefixes of `rows` consecutive rows each; its bias lies in the first of them, behind the rows. A prefix also
    holds which one it is, one-hot. Norms take one prefix.

    Attributes:
        shape: the auxiliary model's.
        rows: rows of a matrix that one prefix holds; each is read by a head of linear attention.
        prefixes: prefixes of a matrix.
        embedding: coordinates of every embedding, of prefixes and of tokens.
        chunks: square pieces that each of the feed-forward layer's matrices is cut into.
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
            plans = [cls._of(shape, n) for n in range(1, min(shape.width, 64) + 1) if shape.width % n == 0]
            return min(plans, key=lambda plan: shape.layers * set_weights(plan) + prefix_weights(plan))
        return cls._of(shape, rows)

    @classmethod
    def _of(cls, shape: Shape, rows: int) -> "Layout":
        prefixes = shape.width // rows
        embedding = max(SLOTS, rows + 1) * shape.width + prefixes + FLAGS
        return cls(shape, rows, prefixes, embedding, -(-shape.inner // shape.width))

    @property
    def code(self) -> int:
        """First coordinate of a prefix's one-hot number."""
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


@dataclass(frozen=True)
class Piece:
    """The size of one kind of layer in a block's set.

    Attributes:
        weights: allocated. `nonzero`: of those. `read`: those whose input isn't always zero.
        uses: how often one pass with one inner step runs it in a block, with the second forward pass.
    """

    name: str
    weights: int
    nonzero: int
    read: int
    uses: int

    @classmethod
    def of(cls, name: str, uses: int, *matrices: "Matrix") -> "Piece":
        """The layer that consists of these matrices."""
        weights, nonzero, read = map(sum, zip(*matrices, strict=True))
        return cls(name, weights, nonzero, read, uses)


Matrix = tuple[int, int, int]  # weights, nonzero and read of one of a layer's matrices, or of all its heads'


def pieces(layout: Layout) -> tuple[Piece, ...]:
    """The layers of one block's set, as `surgery.tint.construction.layers.LayerSet` allocates them."""
    d, s, k = layout.shape.width, layout.rows, layout.prefixes
    token, prefix, norm = _live(layout)
    linears, chunks = 4 + 2 * layout.chunks, layout.chunks  # matrices of a block
    learning = linears - 2  # in the paper's construction queries and keys neither learn nor pass a gradient on

    def reads(live: int, columns: int, heads: int = 1) -> Matrix:
        return _reads(layout, live, columns, heads)

    def writes(columns: int, heads: int = 1) -> Matrix:
        return _writes(layout, columns, heads)

    def bias(readers: int, holders: int) -> Iterable[Matrix]:
        """A head by which all that have one flag read a bias off those that have the other."""
        return reads(readers, 1), reads(holders, 1), reads(holders, d), writes(d)

    of_token, of_norm = _gate(layout, token, d), (reads(token, d), reads(norm, d), reads(norm, 1), writes(d))
    rows_into, rows_at = (writes(k, s), reads(token, k, s))  # a head for each row of a prefix
    pointwise = (reads(token, d), writes(d), of_token)
    by_difference = (reads(token, d), reads(token, d), writes(d, 2), of_token)  # f(x + g/N) and f(x)
    return (
        Piece.of(
            "linear, forward", 2 * linears,
            reads(token, d), reads(prefix, d, s), reads(prefix, k), rows_into, of_token, *bias(token, prefix),
        ),
        Piece.of(
            "linear, backward", learning, rows_at, reads(prefix, k), reads(prefix, d, s), writes(d), of_token
        ),
        Piece.of(
            "linear, descent", learning,
            reads(prefix, k), rows_at, reads(token, d), writes(d, s), _gate(layout, prefix, 0), *bias(prefix, token),
        ),
        Piece.of("norm weights, forward", 4, *of_norm, of_token, *bias(token, norm)),
        Piece.of("norm weights, backward", 2, *of_norm, of_token),
        Piece.of(
            "norm weights, descent", 2,
            reads(norm, 1), reads(token, d), reads(token, d), writes(d), _gate(layout, norm, 0), *bias(norm, token),
        ),
        Piece.of("attention", 3, *[reads(token, d)] * 3, writes(d), of_token),
        Piece.of("normalising, forward", 4, *pointwise),
        Piece.of("normalising, backward", 2, *by_difference),
        Piece.of("activation, forward", 2 * chunks, *pointwise),
        Piece.of("activation, backward", chunks, *by_difference),
        Piece.of("moves between slots", 9, reads(token, d), writes(d, 3), *[_mask(layout, token)] * SLOTS),
    )  # fmt: skip


def loss_piece(layout: Layout) -> Piece:
    """The attention to the vocabulary, once for the whole model: its keys and values are word embeddings, `width` wide."""
    d, token = layout.shape.width, _live(layout)[0]
    of_words = _reads(layout, d, d)
    return Piece.of(
        "loss and logits", 2, _reads(layout, token, d), of_words, of_words, _writes(layout, d), _gate(layout, token, d)
    )


def set_weights(layout: Layout) -> int:
    """Weights of one block's set of layers."""
    return sum(piece.weights for piece in pieces(layout))


def prefix_weights(layout: Layout) -> int:
    """Weights of the prefix embeddings: every block's matrices and norms, and the final norm."""
    a_block = len(layout.matrices) * layout.prefixes + 2
    return (layout.shape.layers * a_block + 1) * layout.embedding


def table_weights(shape: Shape) -> int:
    """Weights of word and position embeddings, and of a head that isn't tied."""
    return shape.weights - shape.block_weights - 2 * shape.width


def _live(layout: Layout) -> tuple[int, int, int]:
    """Coordinates that are ever other than zero: of a token, of a matrix's prefix, of a norm's prefix."""
    d = layout.shape.width
    # A token has slots and the flag that is always one; a norm's prefix holds two vectors and has no number.
    return SLOTS * d + 1, (layout.rows + 1) * d + layout.prefixes + FLAGS, 2 * d + FLAGS


def _reads(layout: Layout, live: int, columns: int, heads: int = 1) -> Matrix:
    """A matrix that picks so many coordinates off an embedding of which `live` are ever other than zero."""
    return heads * layout.embedding * columns, heads * columns, heads * live * columns


def _writes(layout: Layout, columns: int, heads: int = 1) -> Matrix:
    """A matrix that puts so many numbers into an embedding: all of them may be other than zero."""
    return heads * columns * layout.embedding, heads * columns, heads * columns * layout.embedding


def _gate(layout: Layout, live: int, replaced: int) -> Matrix:
    """A factor for each coordinate of the old embedding, zero where it is replaced."""
    return layout.embedding, layout.embedding - replaced, live


def _mask(layout: Layout, live: int) -> Matrix:
    """A factor for each coordinate, one in one slot."""
    return layout.embedding, layout.shape.width, live
