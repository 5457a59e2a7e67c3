"""Labelled rows of features: out of a features file, from arrays, or made of texts and images by a frozen encoder."""

import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Float32, UInt64
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from surgery.errors import OptionError, TaskError
from surgery.jsonfile import parse_loose
from surgery.progress import Progress, silent
from surgery.reporting.plural import number_of
from surgery.reporting.results import Shown
from surgery.tasks.examples import Columns, read_examples
from surgery.unlearning.features.encoders import Encoder, cached_features
from surgery.unlearning.features.extractors import text_digests
from surgery.unlearning.features.inputs import (
    Inputs,
    Label,
    as_input,
    given_labels,
    inputs_of,
    label_tuple,
    read_inputs,
)

FEATURE_FILES = (".safetensors", ".npz")
_FEATURES, _LABELS = ("features", "pixels", "X"), ("label", "labels", "y")
_LARGEST = 1e15


@dataclass(frozen=True, eq=False)
class Rows(Shown):
    """Feature rows that are finite, at least one, with or without labels. Their file is the features file they come from.

    Attributes:
        features: one row an example.
        labels: all integers or all strings; None where there are none.
        digests: a hash of each row's content (xxh3-64), by which the same text, image file or raw feature row is found
            again elsewhere.
    """

    features: Float32[np.ndarray, "N D"]
    labels: tuple[Label, ...] | None
    digests: UInt64[np.ndarray, " N"]

    def __post_init__(self) -> None:
        _check(self.features)
        for what, values in (("labels", self.labels), ("digests", self.digests)):
            if values is not None and len(values) != len(self):
                raise TaskError(f"there are {len(self)} feature rows and {len(values)} {what}: give one for each row")

    @property
    def summary(self) -> list[str]:
        """How many rows and classes there are."""
        classes = number_of(len(set(self.labels)), "class", "classes") if self.labels else "without labels"
        return [f"{number_of(len(self), 'row')} of {number_of(self.features.shape[1], 'feature')}, {classes}."]

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Classes, and how many rows of each there are."""
        return ["class", "rows"], [[name, count] for name, count in sorted(Counter(self.labels or ()).items())]

    def __len__(self) -> int:
        return len(self.features)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> "Rows":
        """The rows of these indices, in their order."""
        numbers = np.asarray(indices, np.int64)
        labels = None if self.labels is None else tuple(self.labels[number] for number in numbers)
        return Rows(self.features[numbers], labels, self.digests[numbers])

    @classmethod
    def of(cls, X: Any, y: Any = None) -> "Rows":  # noqa: N803 (as scikit-learn calls them)
        """Rows from arrays.

        Args:
            X: numbers [rows, ...] as a numpy array or a torch tensor; what follows the first axis is flattened, and
                nothing is scaled: pixels stay 0 to 255.
            y: integers or strings, one a row; an array, a tensor or a list.

        Raises:
            TaskError: numbers that aren't finite, labels of another type, lengths that differ.
        """
        features, raw = _flat(X)
        digests = np.array([xxhash.xxh3_64_intdigest(row.data) for row in raw], np.uint64)
        return cls(features, None if y is None else label_tuple(y), digests)


def plain_features(X: Any) -> Float32[np.ndarray, "N D"]:  # noqa: N803
    """The features that `Rows.of` makes of X, checked likewise, without the cost of digests."""
    features = _flat(X)[0]
    _check(features)
    return features


def _flat(X: Any) -> tuple[Float32[np.ndarray, "N D"], NDArray]:  # noqa: N803
    """Rows as float32, and as the bytes that were given."""
    try:
        given = X.detach().to_dense().cpu() if isinstance(X, Tensor) else np.asarray(X)
    except ValueError:  # numpy's, of rows that aren't equally long
        raise TaskError("features aren't rows of one length: give an array [rows, features]") from None
    if given.ndim < 2 or 0 in given.shape:
        raise TaskError(f"features of shape {tuple(given.shape)} aren't rows: give two axes or more, and one row")
    flat: Any = given.reshape(len(given), -1)
    if isinstance(flat, Tensor):
        raw = flat.contiguous().view(torch.uint8).numpy()  # bfloat16 has bytes in numpy, but no type
        flat = flat.float().numpy() if flat.is_floating_point() else flat.numpy()
    else:
        raw = flat = np.ascontiguousarray(flat)
    if flat.dtype.kind not in "iuf":
        raise TaskError(f"features of type {flat.dtype} aren't numbers: give integers or floats")
    with np.errstate(over="ignore"):  # it becomes infinity, which is refused by row
        features = flat.astype(np.float32)
    return features, raw


def _check(features: Float32[np.ndarray, "N D"]) -> None:
    """Refuse what can't be rows."""
    if not features.size:
        raise TaskError(f"features of shape {features.shape} hold no rows: give at least one")
    # Two passes where all is well: NaN is less than nothing.
    if features.min() >= -_LARGEST and features.max() <= _LARGEST:
        return
    if (largest := float(np.abs(features).max(initial=0, where=np.isfinite(features)))) > _LARGEST:
        raise TaskError(f"features reach {largest:.1e}, whose squares float32 can't hold: scale them down")
    finite = np.isfinite(features).all(1)
    if not finite.all():
        row = int(finite.argmin())
        wrong = "NaN" if np.isnan(features[row]).any() else "infinity"
        raise TaskError(f"feature row {row}, counted from 0, holds {wrong}: leave it out or make it again")


def read_rows(
    source: str | Path,
    *,
    encoder: Encoder | None = None,
    features: str | None = None,
    features_file: str | Path | None = None,
    columns: Columns | None = None,
    labels_needed: bool = True,
    progress: Progress = silent,
) -> Rows:
    """Read rows from a features file, or encode examples.

    Args:
        source: a .safetensors or .npz file with a tensor of features and one of labels (`label`, `labels` or `y`; integers
            become names where a classes.json, a list of them, lies beside the file). Or examples, as `read_examples`
            reads them. For an image encoder, a folder with one folder of images a class, or a file whose column `image`
            holds paths, relative to the file.
        encoder: makes features of examples; they are kept in the cache.
        features: the tensor of a features file; default `features`, `pixels`, `X`, or the only one that fits.
        features_file: take features from this file, row by row for the examples of `source`, in place of an encoder; of
            these it takes no more than labels then.
        columns: which columns of examples hold what; `text` names that of the images too.
        labels_needed: refuse rows without labels; otherwise they are None unless every row has one.

    Raises:
        TaskError: data that can't be read, or don't fit together.
        OptionError: arguments that don't go together.
    """
    if encoder is not None and (features_file is not None or Path(source).suffix.lower() in FEATURE_FILES):
        raise OptionError(f"{features_file or source} holds features already: leave out `encoder`")
    if features is not None and features_file is None and Path(source).suffix.lower() not in FEATURE_FILES:
        raise OptionError(f"{source} is no features file that could hold a tensor {features}: leave that name out")
    if Path(source).suffix.lower() in FEATURE_FILES:
        if features_file is not None or columns is not None:
            raise OptionError(f"{source} is a features file: give no other one and no columns with it")
        return _from_file(Path(source).expanduser(), features, labels_needed)
    if features_file is not None:
        path = Path(features_file).expanduser()
        examples = read_examples(source, columns, labelled=labels_needed, worded=bool(columns and columns.text))
        rows = _rows(path, _pick_features(path, _arrays(path), features), None)
        if len(rows) != len(examples):
            raise TaskError(
                f"{path} holds {len(rows)} feature rows, but {source} has {len(examples)} examples: the k-th row must be that of the k-th example"
            )
        labels = given_labels([example.label for example in examples])
        worded = [bool(example.text) for example in examples]
        if not any(worded):
            return Rows(rows.features, labels, rows.digests)
        if not all(worded):
            raise TaskError(
                f"{source}: example {worded.index(False)}, counted from 0, has no text, and others do: give all, or none"
            )
        return Rows(rows.features, labels, text_digests([as_input(example) for example in examples]))
    if encoder is None:
        if Path(source).suffix and not Path(source).expanduser().exists():
            raise TaskError(f"{source}: there is no such file")
        raise OptionError(f"{source} holds no features: give `encoder`, or a .safetensors or .npz file of features")
    return encoded(encoder, read_inputs(source, encoder.kind, columns, labels_needed=labels_needed), progress)


def encode_rows(
    encoder: Encoder, examples: Sequence[Mapping[str, Any]], *, labels_needed: bool = True, progress: Progress = silent
) -> Rows:
    """Rows from examples in memory: tables with `text` (and `text_pair`) or `image`, and `label`."""
    return encoded(encoder, inputs_of(examples, encoder.kind, labels_needed=labels_needed), progress)


def encoded(encoder: Encoder, inputs: Inputs, progress: Progress = silent) -> Rows:
    """Rows of what was read, by way of the cache."""
    return Rows(cached_features(encoder, inputs.items, progress), inputs.labels, inputs.digests)


def placed_by(rows: Rows, others: Rows | None) -> UInt64[np.ndarray, " M"]:
    """Digests of the rows that place the keys, sorted, each once: the training rows themselves, or others.

    One of the others that is a training row in other clothes, text here and features there, has that row's digest: else
    forgetting it would pass for exact.
    """
    if others is None:
        return np.unique(rows.digests)
    known = dict(zip(feature_digests(rows.features).tolist(), rows.digests.tolist(), strict=True))
    own = feature_digests(others.features).tolist()
    same = [known.get(one, given) for one, given in zip(own, others.digests.tolist(), strict=True)]
    return np.unique(np.array(same, np.uint64))


def feature_digests(features: Float32[np.ndarray, "N D"]) -> UInt64[np.ndarray, " N"]:
    """A hash of each row's features (xxh3-64), whatever type they came in."""
    return np.array([xxhash.xxh3_64_intdigest(row.data) for row in np.ascontiguousarray(features)], np.uint64)


def _from_file(path: Path, features: str | None, labels_needed: bool) -> Rows:
    arrays = _arrays(path)
    named = next((name for name in _LABELS if name in arrays), None)
    if named is None and labels_needed:
        raise TaskError(f"{path} holds no labels, only {_listed(arrays)}: call them label, labels or y")
    rows = _rows(path, _pick_features(path, arrays, features), None if named is None else arrays[named])
    classes = path.parent / "classes.json"
    if rows.labels is None or isinstance(rows.labels[0], str) or not classes.exists():
        return rows
    return Rows(rows.features, _names(path, rows.labels, classes), rows.digests)


def _rows(path: Path, features: Any, labels: Any) -> Rows:
    try:
        return Rows.of(features, labels)
    except TaskError as error:
        raise TaskError(f"{path}: {error}") from None


def _names(path: Path, labels: Sequence[Any], classes: Path) -> tuple[Label, ...]:
    try:
        names = parse_loose(classes.read_bytes())
    except (OSError, ValueError) as error:
        raise TaskError(f"{classes} isn't readable JSON ({error}): give a list of names, or remove it") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TaskError(f"{classes} isn't a list of names: give one, or remove it")
    if strange := [label for label in labels if not 0 <= label < len(names)]:
        raise TaskError(
            f"{path} holds the label {strange[0]}, but {classes} names only 0 to {len(names) - 1}: mend one"
        )
    return tuple(names[label] for label in labels)


def _arrays(path: Path) -> dict[str, Any]:
    """All of a features file by name; nothing pickled is read."""
    if not path.is_file():
        raise TaskError(f"{path}: there is no such file")
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, "pt") as opened:  # torch knows bfloat16, numpy doesn't
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it isn't a mapping)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, SafetensorError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TaskError(f"{path} can't be read as a features file ({error})") from error


def _pick_features(path: Path, arrays: Mapping[str, Any], named: str | None) -> Any:
    fits = [name for name, array in arrays.items() if array.ndim > 1 and _is_float_or_byte(array)]
    if named is None:
        named = next((name for name in _FEATURES if name in arrays), fits[0] if len(fits) == 1 else None)
    if named is None:
        raise TaskError(f"{path} holds {_listed(arrays)}, and no name says which is the features: name it")
    if named not in arrays:
        raise TaskError(f"{path} holds no tensor {named}, only {_listed(arrays)}: name another")
    return arrays[named]


def _is_float_or_byte(array: Any) -> bool:
    if isinstance(array, Tensor):
        return array.is_floating_point() or array.dtype == torch.uint8
    return array.dtype.kind == "f" or array.dtype == np.uint8


def _listed(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items()) or "nothing"
