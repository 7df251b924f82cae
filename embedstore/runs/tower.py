"""The user tower psi in NumPy: from the movie rows of a history to the user embedding.

A tower is described by data alone (tower.json and .npy files), in a small closed vocabulary:
inputs (a feature, its table, a pooling), dense layers with an activation, and a constant
dimension. An additive tower is the mean of one row per movie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows

__all__ = [
    "AdditiveTower",
    "DenseTower",
    "MovieFeature",
    "Terms",
    "TowerInput",
    "TowerLayer",
    "UserTower",
    "largest_difference",
    "one_history",
    "recency",
]

Matrix = npt.NDArray[np.float32]
Feature = Literal["movies", "genres", "years"]
Pooling = Literal["mean", "l2", "sum"]
Activation = Literal["linear", "tanh", "relu"]

_NOISE = 1e-6  # of the largest value of all: what is smaller may be nothing but cancellation
_BATCH_FLOATS = 1 << 22  # pooled values of one thread: 32 MB in float64
_THREADED_RATINGS = 100_000  # below, a second thread costs more than it gives

_ACTIVATIONS: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}


class Terms(NamedTuple):
    """What every movie of a history adds to psi. values: shape (n_history, embedding_dim), float64.

    exact: the values add up to psi, and what does not depend on the history (a bias, the constant
    dimension) is in all of them in equal parts. Else a value is psi less psi without the movie, all
    else as it was, and they need not add up to anything.
    """

    values: npt.NDArray[np.float64]
    exact: bool


class UserTower(Protocol):
    """psi: from the movie rows of a history to the user embedding."""

    @property
    def embedding_dim(self) -> int: ...

    def __call__(self, rows: Sequence[int] | Rows) -> npt.NDArray[np.float32]:
        """Return the user embedding, shape (embedding_dim,), of one history of movie rows.

        Raises ValueError where the history is empty.
        """

    def batch(self, bags: Bags) -> Matrix:
        """Return the user embeddings, shape (n_users, embedding_dim), of many histories."""

    def knows(self, bags: Bags) -> npt.NDArray[np.bool_]:
        """Return whether there is a psi of each history, shape (n_users,): whether it knows a movie."""

    def terms(self, rows: Sequence[int] | Rows) -> Terms:
        """Return what every movie of one history adds to psi.

        Raises ValueError where the history is empty.
        """


@dataclass(frozen=True)
class MovieFeature:
    """A many-valued feature of the movies in CSR form.

    offsets: shape (n_movies + 1,). values: rows of the feature's table. labels: what they stand for.
    """

    name: str
    offsets: Rows
    values: Rows
    labels: Sequence[str] = ()

    def bags(self, bags: Bags) -> Bags:
        """Return, for every history, the values of all its movies, with repetition."""
        starts = self.offsets[bags.rows]
        sizes = self.offsets[bags.rows + 1] - starts
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if ends.size else 0
        shift = np.repeat(starts - (ends - sizes), sizes)
        values = self.values[np.arange(total, dtype=np.int64) + shift]
        bounds = np.concatenate([[0], ends]).astype(np.int64)
        return Bags(values, bounds[bags.offsets])


@dataclass(frozen=True)
class TowerInput:
    """One bag of the input. table: (n_values, width) float32; an empty bag pools to zeros.

    mean = sum / n; l2 = sum / sqrt(n), the L2-normalised bag of ones; sum = the plain sum.
    half_life: recency, of a mean over the movies: a movie weighs half of the one that is half_life
    places newer, and the mean is weighted. Raises ValueError for another pooling or feature.
    newest: how many movies are pooled, of a longer history the newest; None for all. For movies alone.
    """

    feature: Feature
    table: Matrix
    pooling: Pooling = "mean"
    half_life: float | None = None
    newest: int | None = None

    def __post_init__(self) -> None:
        if self.newest is not None and (self.feature != "movies" or self.half_life is not None):
            raise ValueError("newest is for movies without half_life")
        if self.half_life is not None and (self.feature, self.pooling) != ("movies", "mean"):
            raise ValueError(
                f"half_life is for the mean of movies, received {self.pooling} of {self.feature}"
            )


@dataclass(frozen=True)
class TowerLayer:
    """activation(x kernel + bias). kernel: (width_in, width_out); bias: (width_out,) or None."""

    kernel: Matrix
    bias: Matrix | None = None
    activation: Activation = "linear"


@dataclass(frozen=True)
class AdditiveTower:
    """psi(X) = the mean, over the history X, of one row per movie.

    history_vectors: (n_movies, embedding_dim) float32.
    """

    history_vectors: Matrix

    @property
    def embedding_dim(self) -> int:
        return int(self.history_vectors.shape[1])

    def __call__(self, rows: Sequence[int] | Rows) -> npt.NDArray[np.float32]:
        picked = self.history_vectors.take(one_history(rows), axis=0)  # (n, embedding_dim)
        mean: npt.NDArray[np.float32] = (
            np.add.reduce(picked, axis=0, dtype=np.float64) / len(picked)
        ).astype(np.float32)
        return mean

    def batch(self, bags: Bags) -> Matrix:
        _no_empty(bags)
        return _in_batches(bags, self.embedding_dim, lambda part: _pool(self.history_vectors, part, "mean"))

    def knows(self, bags: Bags) -> npt.NDArray[np.bool_]:
        return bags.sizes > 0

    def terms(self, rows: Sequence[int] | Rows) -> Terms:
        picked = self.history_vectors.take(one_history(rows), axis=0).astype(np.float64)
        return Terms(picked / len(picked), exact=True)


@dataclass(frozen=True)
class DenseTower:
    """Pooled inputs side by side, then dense layers, then (constant) a last dimension of 1."""

    inputs: Sequence[TowerInput]
    layers: Sequence[TowerLayer] = ()
    constant: bool = False
    features: Mapping[str, MovieFeature] = field(default_factory=dict)

    @property
    def embedding_dim(self) -> int:
        width = self.layers[-1].kernel.shape[1] if self.layers else sum(i.table.shape[1] for i in self.inputs)
        return int(width) + int(self.constant)

    def __call__(self, rows: Sequence[int] | Rows) -> npt.NDArray[np.float32]:
        history = one_history(rows)
        psi: npt.NDArray[np.float32] = self.batch(Bags(history, np.array([0, history.size])))[0]
        return psi

    def batch(self, bags: Bags) -> Matrix:
        _no_empty(bags)
        return _in_batches(bags, self._widest, self._forward)

    def knows(self, bags: Bags) -> npt.NDArray[np.bool_]:
        return bags.sizes > 0

    def terms(self, rows: Sequence[int] | Rows) -> Terms:
        history = one_history(rows)
        exact = all(layer.activation == "linear" for layer in self.layers)
        alone = Bags(history, np.arange(history.size + 1))  # every movie a history of its own
        pooled = []
        for part in self.inputs:
            bags = self._bag(part, alone)
            added, sizes = _pool(part.table, bags, "sum"), bags.sizes.astype(np.float64)[:, None]
            if part.newest is not None:
                added[: -part.newest] = sizes[: -part.newest] = 0
            growth = 0.0  # of the weight of the older movies where one is left out
            if part.half_life is not None:
                sizes = recency(np.array([history.size]), part.half_life)[:, None]
                added *= sizes
                growth = 2 ** (1 / part.half_life) - 1
            if exact:
                pooled.append(added / _divisor(sizes.sum(keepdims=True), part.pooling))
            else:
                pooled.append(_without(added, growth) / _divisor(_without(sizes, growth), part.pooling))
        x = np.concatenate(pooled, axis=1)
        if exact:
            return Terms(self._layered(x, share=1 / history.size), exact)
        psi = self(history).astype(np.float64)
        # A history of nothing has no psi: its only movie adds all of it.
        return Terms(psi - self._layered(x) if history.size > 1 else psi[None], exact)

    @cached_property
    def _widest(self) -> int:
        pooled = sum(int(part.table.shape[1]) for part in self.inputs)
        return max([pooled, *(int(layer.kernel.shape[1]) for layer in self.layers)])

    @cached_property
    def _wide_layers(self) -> list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None, str]]:
        # float64 inside, so that the result is the true value rounded once to float32
        return [
            (
                layer.kernel.astype(np.float64),
                None if layer.bias is None else layer.bias.astype(np.float64),
                layer.activation,
            )
            for layer in self.layers
        ]

    def _forward(self, bags: Bags) -> npt.NDArray[np.float64]:
        pooled = [
            _pool(part.table, self._bag(part, bags), part.pooling, part.half_life) for part in self.inputs
        ]
        x = np.concatenate(pooled, axis=1) if len(pooled) > 1 else pooled[0]  # (n_users, width)
        return self._layered(x)

    def _layered(self, x: npt.NDArray[np.float64], share: float = 1.0) -> npt.NDArray[np.float64]:
        """Return the output for pooled inputs, shape (n, width); biases and the constant weigh share."""
        for kernel, bias, activation in self._wide_layers:
            x = x @ kernel
            if bias is not None:
                x += share * bias
            x = _ACTIVATIONS[activation](x)
        return np.concatenate([x, np.full((len(x), 1), share)], axis=1) if self.constant else x

    def _bag(self, part: TowerInput, bags: Bags) -> Bags:
        if part.newest is not None:
            return bags.newest(part.newest)
        return bags if part.feature == "movies" else self.features[part.feature].bags(bags)


def one_history(rows: Sequence[int] | Rows) -> Rows:
    """Return the rows of one history as an array. Raises ValueError where they are none, or empty."""
    history = np.asarray(rows, dtype=np.int64)
    if history.ndim != 1 or not history.size:
        raise ValueError(
            f"a history must be a non-empty sequence of movie rows, received shape {history.shape}"
        )
    return history


def _no_empty(bags: Bags) -> None:
    if len(bags) and int(bags.sizes.min()) == 0:
        raise ValueError(f"history {int(np.argmin(bags.sizes))} of the batch is empty; leave such users out")


def largest_difference(found: Matrix, expected: Matrix) -> float:
    """Return the largest difference of user embeddings, relative to the largest value of its dimension."""
    largest = np.abs(expected).max(axis=0)  # (embedding_dim,)
    scale = np.maximum(largest, _NOISE * largest.max()).astype(np.float64)
    differences = np.abs(found.astype(np.float64) - expected) / np.where(scale > 0, scale, 1)
    return float(differences.max())


def recency(sizes: Rows, half_life: float) -> npt.NDArray[np.float64]:
    """Return the weight of every movie of histories of these sizes, oldest first, shape (sum of sizes,).

    1 for the newest of each history, half of that half_life places before it.
    """
    ends = np.cumsum(sizes)
    age = np.repeat(ends, sizes) - 1 - np.arange(int(ends[-1]) if ends.size else 0)
    weights: npt.NDArray[np.float64] = 0.5 ** (age / half_life)
    return weights


def _pool(
    table: Matrix, bags: Bags, pooling: Pooling, half_life: float | None = None
) -> npt.NDArray[np.float64]:
    """Return the pooled rows of table for every bag, shape (n_users, width), in float64."""
    weights = None if half_life is None else recency(bags.sizes, half_life)
    total: npt.NDArray[np.float64]
    if len(bags) == 1:
        picked = table.take(bags.rows, axis=0)
        total = (np.add.reduce(picked, axis=0, dtype=np.float64) if weights is None else weights @ picked)[
            None
        ]
    else:
        from scipy.sparse import csr_array  # costs 60 ms to import, which one user need not pay

        rows = bags.rows
        if len(table) > 4 * rows.size:  # a few users of a large catalog: convert only what they watched
            used, rows = np.unique(rows, return_inverse=True)
            table = table[used]
        values = np.ones(rows.size) if weights is None else weights
        counts = csr_array((values, rows, bags.offsets), shape=(len(bags), len(table)))
        total = counts @ table.astype(np.float64)
    if pooling == "sum":
        return total
    sizes = bags.sizes if weights is None else np.add.reduceat(weights, bags.offsets[:-1])
    return total / _divisor(sizes.astype(np.float64)[:, None], pooling)


def _without(added: npt.NDArray[np.float64], growth: float) -> npt.NDArray[np.float64]:
    """Return, for every row, the sum of the others, of which the earlier ones grow; shape as added."""
    others: npt.NDArray[np.float64] = added.sum(axis=0) - added + growth * (np.cumsum(added, axis=0) - added)
    return others


def _divisor(sizes: npt.NDArray[np.float64], pooling: Pooling) -> npt.NDArray[np.float64]:
    """Return what the sums of bags of these sizes, (n, 1), are divided by."""
    if pooling == "sum":
        return np.ones_like(sizes)
    divisor: npt.NDArray[np.float64] = np.where(sizes > 0, sizes, 1) ** (0.5 if pooling == "l2" else 1)
    return divisor


def _in_batches(bags: Bags, width: int, forward: Callable[[Bags], npt.NDArray[np.float64]]) -> Matrix:
    """Return forward of all users as float32, a bounded number of users at a time, on two threads."""
    step = max(1, _BATCH_FLOATS // width)
    if bags.rows.size >= _THREADED_RATINGS:
        step = min(step, -(-len(bags) // 2))
    if len(bags) <= step:
        return forward(bags).astype(np.float32)
    from concurrent.futures import ThreadPoolExecutor  # NumPy and SciPy release the GIL where it counts

    with ThreadPoolExecutor(max_workers=2) as threads:
        parts = (bags.part(start, start + step) for start in range(0, len(bags), step))
        return np.concatenate(list(threads.map(lambda part: forward(part).astype(np.float32), parts)))
