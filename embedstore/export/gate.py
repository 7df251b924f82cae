"""The gate of an export: its psi against the tower of the run, on histories that hold every movie."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from embedstore.data.features import Bags, Rows
from embedstore.errors import VerificationError
from embedstore.export.tables import Psi
from embedstore.runs.tower import UserTower, largest_difference

__all__ = ["LONGEST", "TOLERANCE", "check", "padded", "random_histories"]

TOLERANCE = 1e-6
LONGEST = 2000
_FEWEST = 50
_BATCH_FLOATS = 1 << 22  # gathered values of one call, 32 MB in float64


def random_histories(n_movies: int) -> Bags:
    """Return 50 histories or more of 1 to 2,000 movies, shortest first; every movie is in one of them.

    Drawn from a fixed seed; a history may hold a movie twice.
    """
    rng = np.random.default_rng(0)
    sizes = [1, LONGEST]
    while sum(sizes) < n_movies or len(sizes) < _FEWEST:
        sizes += (LONGEST ** rng.random(_FEWEST)).astype(int).tolist()
    total = sum(sizes)
    rows = np.concatenate([np.arange(n_movies), rng.integers(n_movies, size=total - n_movies)])
    return Bags(rng.permutation(rows), np.concatenate([[0], np.cumsum(sorted(sizes))]))


def padded(bags: Bags) -> Rows:
    """Return the histories as one array, shape (n_users, longest), padded with -1 at the end."""
    rows = np.full((len(bags), int(bags.sizes.max())), -1, dtype=np.int64)
    rows[np.arange(rows.shape[1]) < bags.sizes[:, None]] = bags.rows
    return rows


def check(what: str, psi: Psi, tower: UserTower, histories: Bags, *, width: int) -> float:
    """Return the largest difference of psi from tower, relative to the largest value of its dimension.

    histories: shortest first. width: of the pooled inputs; bounds the memory of a call.

    Raises VerificationError where the difference exceeds TOLERANCE or is not a number.
    """
    batches = list(_batches(histories, _BATCH_FLOATS // width))
    found = np.concatenate([psi(padded(bags)) for bags in batches])
    expected = np.concatenate([tower.batch(bags) for bags in batches])
    difference = largest_difference(found, expected)
    if not difference <= TOLERANCE:
        raise VerificationError(
            f"psi of {what} differs from the run's tower by {difference:.1e} of its largest value on "
            f"{len(histories)} random histories, allowed is {TOLERANCE:.0e}; "
            "nothing was written, export another format"
        )
    return difference


def _batches(histories: Bags, most_rows: int) -> Iterator[Bags]:
    """Yield histories, shortest first, so many at a time that they have most_rows rows when padded."""
    sizes, offsets, start = histories.sizes, histories.offsets, 0
    for stop in range(1, len(histories) + 1):
        if stop == len(histories) or (stop + 1 - start) * sizes[stop] > most_rows:
            bounds = offsets[start : stop + 1]
            yield Bags(histories.rows[bounds[0] : bounds[-1]], bounds - bounds[0])
            start = stop
