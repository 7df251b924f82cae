"""How the length of V_j goes with popularity, and what of the catalog the users of a run are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows
from embedstore.evaluation.metrics import CatalogFacts, measure
from embedstore.evaluation.serving import rank_unknown
from embedstore.runs.debias import norms_of
from embedstore.runs.run import Run
from embedstore.runs.served import ServedTower
from embedstore.runs.tower import AdditiveTower, DenseTower

__all__ = ["Decile", "Norms", "correlation", "norms"]

SHOWN = ("coverage@10", "gini@10", "coverage@100", "gini@100")

_MOST_USERS = 10_000
_LONGEST = 100
_PARTS = 10
_BATCH_FLOATS = 1 << 22  # scores of one batch of users, 16 MB in float32


@dataclass(frozen=True)
class Decile:
    """A tenth of the movies by popularity, and the means of what they have.

    bias: the last number of V_j, where psi is constant there; else None.
    """

    n_movies: int
    popularity: float
    norm: float
    bias: float | None


@dataclass(frozen=True)
class Norms:
    """Norms of V_j against popularity, the number of ratings; deciles from the least popular on.

    correlation: of log norm with log popularity, of the movies that have both; None where it is not
    defined. correlation_without_bias: the same without the last dimension, where that is an item bias.
    n_users: whose first 10 and 100 movies, without what they watched, shown is of; 0 where the run
    knows no users or has no tower.
    """

    reference: str
    n_movies: int
    correlation: float | None
    correlation_without_bias: float | None
    deciles: Sequence[Decile]
    n_users: int
    shown: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def norms(run: Run) -> Norms:
    """Return the norms of run, and what its users are shown: all of them, or 10,000 spread over them.

    Raises RunError where the run is damaged.
    """
    vectors, popularity = run.movie_vectors, run.popularity
    lengths = norms_of(vectors)
    biased = _has_bias(run)
    order = np.argsort(popularity, kind="stable")
    lists = np.concatenate([np.zeros((0, _LONGEST), np.int64), *_lists(run)])
    nothing = Bags(np.zeros(0, np.int64), np.zeros(len(lists) + 1, np.int64))
    facts = CatalogFacts(popularity / max(len(run.users), 1))
    return Norms(
        reference=run.reference,
        n_movies=len(run.movies),
        correlation=correlation(lengths, popularity),
        correlation_without_bias=correlation(norms_of(vectors[:, :-1]), popularity) if biased else None,
        deciles=[
            Decile(
                n_movies=int(part.size),
                popularity=float(popularity[part].mean()),
                norm=float(lengths[part].mean()),
                bias=float(vectors[part, -1].mean(dtype=np.float64)) if biased else None,
            )
            for part in np.array_split(order, min(_PARTS, order.size) or 1)
            if part.size
        ],
        n_users=len(lists),
        shown=measure(lists, nothing, SHOWN, facts=facts).overall if len(lists) else {},
    )


def _has_bias(run: Run) -> bool:
    """Whether the last dimension of psi is the same for every history."""
    if run.manifest.tower == "none":
        return False
    tower = run.tower
    if isinstance(tower, AdditiveTower):
        return bool(np.ptp(tower.history_vectors[:, -1]) == 0)
    return isinstance(tower, DenseTower | ServedTower) and tower.constant


def correlation(lengths: npt.NDArray[np.float64], popularity: Rows) -> float | None:
    """Return the correlation of the logarithms, where both are positive; None where it is not defined."""
    some = (lengths > 0) & (popularity > 0)
    x, y = np.log(lengths[some]), np.log(popularity[some])
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _lists(run: Run) -> Iterator[Rows]:
    """Yield what some users are shown, (n_users, _LONGEST): their best movies but for the watched ones."""
    if run.manifest.tower == "none" or not len(run.users):
        return
    picked = np.linspace(0, len(run.users) - 1, min(_MOST_USERS, len(run.users))).astype(np.int64)
    step = max(1, _BATCH_FLOATS // len(run.movies))
    for start in range(0, picked.size, step):
        histories = [run.history(user_id) for user_id in run.users.ids(picked[start : start + step])]
        bags = Bags.of(histories)
        bags = bags.of_users(run.tower.knows(bags))
        if len(bags):
            yield rank_unknown(run.tower.batch(bags) @ run.movie_vectors.T, bags, _LONGEST)
