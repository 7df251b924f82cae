"""How far a mean over users can be trusted: bootstrap intervals (Efron 1979), of differences too.

Users are drawn with replacement, as many as there are; the interval is that of the percentiles of
the means. The same seed draws the same users, so intervals are repeatable, and two scorers that
are compared on the same users are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Interval", "interval", "intervals", "paired"]

Values = npt.NDArray[np.float64]

_BLOCK = 1 << 21  # users that are drawn at once: 16 MB in each of two arrays


@dataclass(frozen=True)
class Interval:
    """A mean over n_users and the interval that holds it at the level asked for; NaN without users."""

    mean: float
    low: float
    high: float
    n_users: int

    @property
    def wider_than_mean(self) -> bool:
        """Whether the interval is wider than the mean is far from 0: of a difference, too few users."""
        return self.high - self.low > abs(self.mean)


def interval(values: Values, *, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Return the mean of values, shape (n_users,), and its interval; NaN values are left out."""
    return intervals({"": values}, seed=seed, resamples=resamples, level=level)[""]


def paired(a: Values, b: Values, *, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Return the interval of the mean of a - b, two values of each user; users with a NaN are left out.

    Raises ValueError where a and b are not of the same users.
    """
    if a.shape != b.shape:
        raise ValueError(f"a and b must be of the same users, received shapes {a.shape} and {b.shape}")
    return interval(a - b, seed=seed, resamples=resamples, level=level)


def intervals(
    columns: Mapping[str, Values], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> dict[str, Interval]:
    """Return interval() of every column, in a fraction of the time: users are drawn once for all of them."""
    by_users: dict[bytes, list[str]] = {}  # columns with values for the same users
    for name, values in columns.items():
        by_users.setdefault(np.isnan(values).tobytes(), []).append(name)
    found: dict[str, Interval] = {}
    for names in by_users.values():
        table = np.stack([columns[name][~np.isnan(columns[name])] for name in names], axis=1)
        if not len(table):
            found |= dict.fromkeys(names, Interval(np.nan, np.nan, np.nan, 0))
            continue
        tail = (1 - level) / 2
        low, high = np.quantile(_resampled_means(table, seed, resamples), [tail, 1 - tail], axis=0)
        ends = zip(table.mean(axis=0).tolist(), low.tolist(), high.tolist(), strict=True)
        found |= {name: Interval(*end, len(table)) for name, end in zip(names, ends, strict=True)}
    return {name: found[name] for name in columns}


def _resampled_means(table: Values, seed: int, resamples: int) -> Values:
    """Return the column means of users drawn from table (n_users, n_columns): (resamples, n_columns)."""
    n_users = len(table)
    rng = np.random.default_rng([seed, 3])
    means = np.empty((resamples, table.shape[1]))
    step = max(1, _BLOCK // n_users)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(n_users, size=(size, n_users))
        drawn += np.arange(size)[:, None] * n_users
        times = np.bincount(drawn.ravel(), minlength=size * n_users).reshape(size, n_users)
        means[start : start + size] = times.astype(np.float64) @ table / n_users
    return means
