"""count: the size of the simulating transformer, piece by piece, by arithmetic alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta

from surgery.errors import TintError
from surgery.reporting.page import Figure, Page, Table, Text
from surgery.reporting.results import Result
from surgery.tint.construction.layout import Layout, Piece, loss_piece, pieces, prefix_weights, table_weights
from surgery.tint.reports import load_report, save_report
from surgery.tint.shape import Shape

_FORMAT = "surgery tint count 1"
_LEGEND = {
    "layer": "Kind of layer of the simulating transformer; every block of the auxiliary model has a set of them.",
    "weights": "Allocated in one such layer.",
    "non-zero": "Of these, those that aren't zero.",
    "read": "Of these, those whose input isn't always zero.",
    "uses": "How often one pass runs it in a block: forward, backward and descent of one inner step, and the second forward pass.",
}


class _Content(TypedDict):
    """What `report.json` holds, as far as it is read."""

    name: str
    shape: Shape
    layout: dict[str, int]
    pieces: Annotated[list[Piece], Meta(min_length=2)]
    prefixes: int
    tables: int


@dataclass(frozen=True)
class Count(Result):
    """The size of the transformer that simulates a model.

    Attributes:
        pieces: the layers of one block's set; every block of the auxiliary model has a set of its own, which its matrices
            share and which both forward passes run.
        prefixes: weights of the prefix embeddings that hold the auxiliary model. `tables`: of word and position embeddings.
    """

    name: str
    shape: Shape
    layout: Layout
    pieces: tuple[Piece, ...]
    loss: Piece
    prefixes: int
    tables: int

    @property
    def set_weights(self) -> int:
        """Weights of one block's set of layers."""
        return sum(piece.weights for piece in self.pieces)

    @property
    def total(self) -> int:
        """All weights, forward layers re-used by the second pass, layers shared by the matrices of a block."""
        return self.layer_weights + self.prefixes + self.tables

    @property
    def layer_weights(self) -> int:
        """Weights of all layers: every block's set, and the loss."""
        return self.shape.layers * self.set_weights + self.loss.weights

    @property
    def nonzero(self) -> int:
        """Weights of the layers that aren't zero."""
        return self.shape.layers * sum(piece.nonzero for piece in self.pieces) + self.loss.nonzero

    @property
    def read(self) -> int:
        """Weights of the layers whose input isn't always zero."""
        return self.shape.layers * sum(piece.read for piece in self.pieces) + self.loss.read

    @property
    def shared_by_all(self) -> int:
        """All weights if every block used one and the same set: nothing in it depends on the auxiliary model."""
        return self.set_weights + self.loss.weights + self.prefixes + self.tables

    @property
    def unshared(self) -> int:
        """All weights if every matrix and both forward passes had layers of their own."""
        each = self.shape.layers * sum(piece.weights * piece.uses for piece in self.pieces)
        return each + self.loss.weights + self.prefixes + self.tables

    @property
    def dense(self) -> int:
        """The same with each layer a plain transformer's: four square matrices of the embedding's size."""
        runs = self.shape.layers * sum(piece.uses for piece in self.pieces) + 1
        return 4 * runs * self.layout.embedding**2 + self.prefixes + self.tables

    @property
    def one_prefix(self) -> int:
        """A whole matrix in one prefix: one layer's query matrix alone over embeddings of width squared."""
        return self.shape.width**4

    @property
    def ratio(self) -> float:
        """The total over the auxiliary model's weights."""
        return self.total / self.shape.weights

    @property
    def summary(self) -> list[str]:
        """The size, what of it is zero or never read, and what sharing and re-use save."""
        layers, own = self.layer_weights, self.shape
        return [
            f"The simulating transformer has {self.total:,} weights, {self.ratio:.1f} times the auxiliary model's "
            f"{own.weights:,} ({own.block_weights:,} of these in blocks): {layers:,} in layers, {self.prefixes:,} in prefixes "
            f"and {self.tables:,} in embeddings.",
            f"Of the layers' weights {self.nonzero / layers:.2%} are non-zero and {self.read / layers:.0%} are ever read.",
            f"One set of layers for all blocks would make it {self.shared_by_all:,}; no sharing and no re-use {self.unshared:,}; "
            f"and that with dense square layers {self.dense:,}.",
        ]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows, for one block's set."""
        rows: list[list[Any]] = [[p.name, p.weights, p.nonzero, p.read, p.uses] for p in self.pieces]
        total = [sum(getattr(p, key) for p in self.pieces) for key in ("weights", "nonzero", "read", "uses")]
        return list(_LEGEND), [*rows, ["a block's set", *total]]

    def page(self, figures: Sequence[Figure] = ()) -> Page:
        """The report for people."""
        plan = Text(f"{self.name}, by this layout: {self.layout.describe()}.")
        table = Table("The layers of one block's set.", *self.table(), legend=_LEGEND)
        return Page("The size of the simulating transformer", self.summary, [*figures, table, plan])

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `report.json`, and the page as `index.html` and `README.md`."""
        content = {**self.content(), "shape": vars(self.shape)}
        return save_report(folder, _FORMAT, content, draw=lambda staged: [], page=self.page, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> "Count":
        """Read a saved one; raises TintError for anything else."""

        def make(content: dict[str, Any]) -> Count:
            shape = Shape(**content["shape"])
            *pieces, loss = (Piece(**piece) for piece in content["pieces"])
            layout = Layout(shape, **content["layout"])
            return cls(content["name"], shape, layout, tuple(pieces), loss, content["prefixes"], content["tables"])

        return load_report(folder, _FORMAT, _Content, make, Count.page)

    def content(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "name": self.name,
            "auxiliary": self.shape.weights,
            "total": self.total,
            "ratio": self.ratio,
            "layers": self.layer_weights,
            "nonzero": self.nonzero,
            "read": self.read,
            "prefixes": self.prefixes,
            "tables": self.tables,
            "shared_by_all": self.shared_by_all,
            "unshared": self.unshared,
            "dense": self.dense,
            "one_prefix_per_matrix": self.one_prefix,
            "layout": {k: getattr(self.layout, k) for k in ("rows", "prefixes", "embedding", "chunks")},
            "pieces": [vars(piece) for piece in (*self.pieces, self.loss)],
        }


def count(model: Any, *, tokens: int | None = None, rows: int | None = None) -> Count:
    """Count the weights of the transformer that simulates a model.

    Args:
        model: a well-known name such as `opt-125m`, a model folder or hub id, a config, a Hugging Face model, or a Shape.
        tokens: length of the sequence; only checked against the model's positions.
        rows: rows of a matrix in one prefix; default as makes the transformer smallest.

    Raises:
        TintError: a name that isn't known, or a model that can't be simulated, by name.
    """
    name, shape = _shape(model)
    if tokens is not None and tokens > shape.positions:
        raise TintError(
            f"a sequence of {tokens} tokens is longer than the {shape.positions} positions of {name}: lower `tokens`"
        )
    layout = Layout.plan(shape, rows)
    return Count(name, shape, layout, pieces(layout), loss_piece(layout), prefix_weights(layout), table_weights(shape))


def _shape(model: Any) -> tuple[str, Shape]:
    if isinstance(model, Shape):
        return model.family, model
    if isinstance(model, str | Path):
        folder = Path(model).expanduser()
        if not folder.exists():
            try:
                return str(model), Shape.named(str(model))
            except TintError:
                if "/" not in str(model):
                    raise
        from surgery.checkpoints.checkpoint import Checkpoint

        checkpoint = Checkpoint(model)
        return str(model), Shape.of_config(checkpoint.config, str(model))
    config = getattr(getattr(model, "module", model), "config", model)
    table = config if isinstance(config, dict) else config.to_dict()
    return type(model).__name__, Shape.of_config(table, type(model).__name__)
