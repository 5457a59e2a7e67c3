"""Linear probes on pairs of words, fitted by scikit-learn, and the scaling of features that all probes share."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

# scikit-learn's exact solver takes rows x width^2; more rows than this change little.
MOST_ROWS = 40_000
_MOST_LABELLED = 20_000
_SHRINKAGE, _FEWEST = 0.1, 5  # a class of fewer has no spread to speak of
_MOST_SCALED = 20_000


@dataclass(frozen=True, eq=False)
class Scale:
    """Mean and spread of each feature, so that probes see numbers of one size whatever the layer."""

    mean: Float32[np.ndarray, " width"]
    spread: Float32[np.ndarray, " width"]

    @classmethod
    def fit(cls, features: np.ndarray, rows: Int64[np.ndarray, " rows"]) -> "Scale":
        """Fit to some rows; a feature that never changes becomes 0, and yes-or-no features (int8) stay as they are."""
        if features.dtype == np.int8:
            return cls(np.zeros(features.shape[1], np.float32), np.ones(features.shape[1], np.float32))
        rows = np.sort(rows)[:: max(1, len(rows) // _MOST_SCALED)]
        some = np.asarray(features[rows], np.float32)
        mean, spread = some.mean(0), some.std(0)
        varies = spread > 1e-6 * np.abs(mean)  # small numbers may vary as large ones do
        return cls(mean, np.where(varies, spread, np.inf).astype(np.float32))

    def __call__(self, some: np.ndarray) -> np.ndarray:
        """Return scaled rows, float32."""
        return ((some - self.mean) / self.spread).astype(np.float32)


@dataclass(frozen=True, eq=False)
class PairRegression:
    """Ridge regression on the states of two words: value = left . a + right . b + c.

    Attributes:
        left, right: [width, outputs], over scaled states; `bias` [outputs].
    """

    scale: Scale
    left: Float64[np.ndarray, "width outputs"]
    right: Float64[np.ndarray, "width outputs"]
    bias: Float64[np.ndarray, " outputs"]

    @classmethod
    def fit(
        cls,
        features: np.ndarray,
        left: Int64[np.ndarray, " rows"],
        right: Int64[np.ndarray, " rows"],
        targets: np.ndarray,
        *,
        seed: int,
        penalty: float = 10.0,
    ) -> "PairRegression":
        """Fit to pairs of rows of `features` and a row of targets for each; at most `MOST_ROWS` pairs, drawn by the seed."""
        from sklearn.linear_model import Ridge

        random = np.random.default_rng(seed)
        some = np.sort(random.choice(len(left), min(len(left), MOST_ROWS), replace=False))
        scale = Scale.fit(features, np.unique(left[some]))
        columns = np.concatenate([scale(features[left[some]]), scale(features[right[some]])], 1)
        fitted = Ridge(alpha=penalty, solver="cholesky").fit(columns, targets[some])
        weights = np.atleast_2d(fitted.coef_).T.astype(np.float64)
        width = len(weights) // 2
        return cls(scale, weights[:width], weights[width:], np.atleast_1d(np.asarray(fitted.intercept_, np.float64)))

    def __call__(
        self, features: np.ndarray, left: Int64[np.ndarray, " rows"], right: Int64[np.ndarray, " rows"]
    ) -> Float64[np.ndarray, "rows outputs"]:
        """Predict values for pairs of rows."""
        rows, places = np.unique(np.concatenate([left, right]), return_inverse=True)
        states = self.scale(features[rows])
        return (states @ self.left)[places[: len(left)]] + (states @ self.right)[places[len(left) :]] + self.bias


@dataclass(frozen=True, eq=False)
class PairClassifier:
    """Linear discriminant analysis of the states of two neighbouring words."""

    scale: Scale
    weights: Float64[np.ndarray, "classes width2"]
    bias: Float64[np.ndarray, " classes"]
    classes: Int64[np.ndarray, " classes"]

    @classmethod
    def fit(
        cls, features: np.ndarray, left: Int64[np.ndarray, " rows"], classes: Int64[np.ndarray, " rows"], *, seed: int
    ) -> "PairClassifier":
        """Fit to rows of first words (the second word is the next row) and their classes."""
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        random = np.random.default_rng(seed)
        some = np.sort(random.choice(len(left), min(len(left), _MOST_LABELLED), replace=False))
        names, counts = np.unique(classes[some], return_counts=True)
        some = some[np.isin(classes[some], names[counts >= min(_FEWEST, counts.max())])]
        scale = Scale.fit(features, left[some])
        columns = np.concatenate([scale(features[left[some]]), scale(features[left[some] + 1])], 1)
        if len(np.unique(classes[some])) == 1:
            nothing = np.zeros((1, columns.shape[1]))
            return cls(scale, nothing, np.zeros(1), np.unique(classes[some]))
        fitted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=_SHRINKAGE).fit(columns, classes[some])
        weights, bias = fitted.coef_.astype(np.float64), fitted.intercept_.astype(np.float64)
        if len(fitted.classes_) == 2:
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        return cls(scale, weights, bias, np.asarray(fitted.classes_, np.int64))

    def __call__(self, features: np.ndarray, left: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Predict the likeliest class of each pair."""
        columns = np.concatenate([self.scale(features[left]), self.scale(features[left + 1])], 1)
        return self.classes[(columns @ self.weights.T + self.bias).argmax(1)]
