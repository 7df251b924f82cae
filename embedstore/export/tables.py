"""psi as tables: one row per movie and input, whatever the tower of the run.

psi(X) = layers(concat_i(sum of rows_i[j] over the history / divisor(sum of counts_i[j]))), then a 1
where constant; divisor is max(n, 1) for mean, sqrt(max(n, 1)) for l2 and 1 for sum. Every format
computes this in float64 and rounds once, to float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Rows
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower, DenseTower, Pooling, TowerInput, TowerLayer

__all__ = ["MovieTable", "Psi", "TowerTables", "tables_of"]

Psi = Callable[[Rows], npt.NDArray[np.float32]]
"""Movie rows (n_users, length) int64, padded with -1, to user embeddings (n_users, embedding_dim)."""


@dataclass(frozen=True)
class MovieTable:
    """What every movie adds to one pooled input.

    rows: (n_movies, width), float32 where a movie has one row of the tower's table, float64 where
    it is a sum of several. counts: (n_movies,) int32, of how many. half_life, newest: see TowerInput.
    """

    feature: str
    pooling: Pooling
    rows: npt.NDArray[Any]
    counts: npt.NDArray[np.int32]
    half_life: float | None = None
    newest: int | None = None


@dataclass(frozen=True)
class TowerTables:
    """The user tower of a run, for every format to write."""

    run_id: str
    inputs: Sequence[MovieTable]
    layers: Sequence[TowerLayer] = ()
    constant: bool = False

    @property
    def width(self) -> int:
        """The width of all inputs side by side."""
        return sum(int(part.rows.shape[1]) for part in self.inputs)

    @property
    def embedding_dim(self) -> int:
        width = int(self.layers[-1].kernel.shape[1]) if self.layers else self.width
        return width + int(self.constant)

    @property
    def nbytes(self) -> int:
        """The size of the movie tables in bytes."""
        return sum(part.rows.nbytes + part.counts.nbytes for part in self.inputs)


def tables_of(run: Run) -> TowerTables:
    """Return the tower of run as tables. Raises RunError where the run has none."""
    tower = run.tower
    if isinstance(tower, AdditiveTower):
        return TowerTables(run.run_id, [_own_rows(TowerInput("movies", tower.history_vectors))])
    if not isinstance(tower, DenseTower):
        raise TypeError(f"no tables for a tower of type {type(tower).__name__}")
    inputs = [_own_rows(part) if part.feature == "movies" else _summed(part, tower) for part in tower.inputs]
    return TowerTables(run.run_id, inputs, tower.layers, tower.constant)


def _own_rows(part: TowerInput) -> MovieTable:
    ones = np.ones(len(part.table), np.int32)
    return MovieTable(part.feature, part.pooling, part.table, ones, part.half_life, part.newest)


def _summed(part: TowerInput, tower: DenseTower) -> MovieTable:
    feature = tower.features[part.feature]
    counts = np.diff(feature.offsets)
    rows = np.zeros((counts.size, part.table.shape[1]))
    np.add.at(rows, np.repeat(np.arange(counts.size), counts), part.table[feature.values])
    return MovieTable(part.feature, part.pooling, rows, counts.astype(np.int32))
