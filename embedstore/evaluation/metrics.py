"""Metrics of ranked lists, for all users at once: how good, how varied and how popular what is shown is.

Relevance is binary: a movie is a target or not. A list of fewer than k movies counts as it is: an
empty place is a miss and shows nothing. A metric is NaN for a user for whom it is not defined (no
targets, an empty list, no genres); means leave such users out. How other libraries differ stands
in docs/evaluation.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows
from embedstore.errors import UsageError
from embedstore.runs.tower import MovieFeature

__all__ = [
    "METRICS",
    "CatalogFacts",
    "Measured",
    "MetricInfo",
    "MetricName",
    "check_k",
    "measure",
    "parse_metric",
    "top_k",
]

Values = npt.NDArray[np.float64]

SMOOTHING = 0.01  # Steck's alpha: the share of the history that is mixed into the list

_BLOCK = 1 << 21  # scores that are ranked at once: 8 MB in float32


def top_k(scores: npt.NDArray[np.floating], k: int) -> Rows:
    """Return the columns of the k highest scores of every row of scores (n_users, n_movies), best first.

    Shape (n_users, k). Equal scores are ordered by column; -inf and NaN are never ranked, and a
    list that is shorter than k ends in -1.
    """
    n_users, n_movies = scores.shape
    width = min(k, n_movies)
    ranked = np.full((n_users, k), -1, dtype=np.int64)
    if width:
        step = max(1, _BLOCK // n_movies)
        for start in range(0, n_users, step):
            ranked[start : start + step, :width] = _best(scores[start : start + step], width)
    return ranked


def _best(scores: npt.NDArray[np.floating], k: int) -> Rows:
    n_users, n_movies = scores.shape
    falling = -scores
    falling.partition(k - 1, axis=1)  # NaN last
    threshold = -np.fmin(falling[:, k - 1 : k], np.finfo(scores.dtype).max)  # (n_users, 1), above -inf
    kept = scores >= threshold
    surplus = np.count_nonzero(kept, axis=1) - k
    crowded = np.flatnonzero(surplus > 0)
    if crowded.size:  # more movies are equal to the k-th than fit: the last columns of them go
        tied = scores[crowded] == threshold[crowded]
        place = np.cumsum(tied, axis=1)
        kept[crowded] &= ~tied | (place <= place[:, -1:] - surplus[crowded, None])
    users, movies = np.divmod(np.flatnonzero(kept), n_movies)
    counts = np.bincount(users, minlength=n_users)
    places = np.arange(users.size) - np.repeat(np.cumsum(counts) - counts, counts)
    by_column = np.full((n_users, k), -1, dtype=np.int64)
    by_column[users, places] = movies
    falling = np.full((n_users, k), np.inf, dtype=scores.dtype)
    falling[users, places] = -scores[users, movies]
    return np.take_along_axis(by_column, np.argsort(falling, axis=1, kind="stable"), axis=1)


@dataclass(frozen=True)
class CatalogFacts:
    """What the metrics beyond accuracy know of the movies.

    popularity: share of the users who rated each movie, shape (n_movies,). genres: of each movie,
    None where the data set has none.
    """

    popularity: Values
    genres: MovieFeature | None = None

    @classmethod
    def of(cls, histories: Bags, genres: Sequence[Iterable[str]]) -> CatalogFacts:
        """Return the facts of the movies with these genres, one entry per movie, as rated in histories."""
        counts = np.bincount(histories.rows, minlength=len(genres))
        labels = sorted({label for movie in genres for label in movie})
        bags = Bags.of([np.searchsorted(labels, sorted(set(movie))) for movie in genres])
        return cls(counts / max(len(histories), 1), MovieFeature("genres", bags.offsets, bags.rows, labels))


@dataclass(frozen=True)
class _Lists:
    """What the metrics of one measurement share. ranked: (n_users, width), ends in -1."""

    ranked: Rows
    targets: Bags
    known_facts: CatalogFacts | None
    known_histories: Bags | None

    @property
    def facts(self) -> CatalogFacts:
        if self.known_facts is None:
            raise ValueError("facts must be given: this metric needs the popularity of the movies")
        return self.known_facts

    @property
    def histories(self) -> Bags:
        if self.known_histories is None:
            raise ValueError("histories must be given: calibration compares lists with them")
        return self.known_histories

    @cached_property
    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether each place holds a target, shape (n_users, width)."""
        n_rows = 1 + max(int(self.ranked.max(initial=-1)), int(self.targets.rows.max(initial=-1)))
        user = np.arange(len(self.ranked))
        wanted = np.sort(np.repeat(user, self.targets.sizes) * n_rows + self.targets.rows)
        asked = self.ranked + user[:, None] * n_rows
        hits: npt.NDArray[np.bool_] = np.append(wanted, -1)[np.searchsorted(wanted, asked)] == asked
        return hits & (self.ranked >= 0)  # np.isin takes three times as long

    @cached_property
    def n_targets(self) -> Rows:
        return self.targets.sizes

    def n_findable(self, k: int) -> Rows:
        """Return how many targets a list of k can hold, shape (n_users,)."""
        return np.minimum(self.n_targets, k)

    def mean_shown(self, values: Values, k: int) -> Values:
        """Return the mean of values (n_movies,) over the first k of each list, shape (n_users,)."""
        ranked = self.ranked[:, :k]
        shown = ranked >= 0
        return _ratio(np.where(shown, values[ranked], 0).sum(axis=1), shown.sum(axis=1))

    def times_shown(self, k: int) -> Rows:
        """Return in how many lists each movie is, shape (n_movies,)."""
        ranked = self.ranked[:, :k]
        return np.bincount(ranked[ranked >= 0], minlength=self.facts.popularity.size)

    def genre_shares(self, bags: Bags) -> Values:
        """Return the share of each genre in every bag, shape (n_users, n_genres); a movie counts as 1."""
        from scipy.sparse import csr_array

        genres = self.facts.genres
        if genres is None:
            return np.zeros((len(bags), 0))
        sizes = np.diff(genres.offsets)
        shares = np.repeat(1 / np.maximum(sizes, 1), sizes)  # p(g|j)
        per_movie = csr_array(
            (shares, genres.values, genres.offsets), shape=(sizes.size, len(genres.labels))
        ).toarray()
        watched = csr_array((np.ones(bags.rows.size), bags.rows, bags.offsets), shape=(len(bags), sizes.size))
        total: Values = watched @ per_movie
        return _ratio(total, total.sum(axis=1, keepdims=True))


def _ratio(numerator: npt.NDArray[np.number], denominator: npt.NDArray[np.number]) -> Values:
    """Return numerator / denominator, NaN where the denominator is 0."""
    ratio = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio


def _ndcg(lists: _Lists, k: int) -> Values:
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0], np.cumsum(discounts)])
    return _ratio(lists.hits[:, :k] @ discounts, ideal[lists.n_findable(k)])


def _recall(lists: _Lists, k: int) -> Values:
    return _ratio(lists.hits[:, :k].sum(axis=1), lists.n_findable(k))


def _plain_recall(lists: _Lists, k: int) -> Values:
    return _ratio(lists.hits[:, :k].sum(axis=1), lists.n_targets)


def _hit_rate(lists: _Lists, k: int) -> Values:
    return np.where(lists.n_targets > 0, lists.hits[:, :k].any(axis=1), np.nan)


def _reciprocal_rank(lists: _Lists, k: int) -> Values:
    first: Values = _hit_rate(lists, k) / (1 + lists.hits[:, :k].argmax(axis=1))
    return first


def _average_precision(lists: _Lists, k: int) -> Values:
    hits = lists.hits[:, :k]
    precision = np.cumsum(hits, axis=1) / np.arange(1, k + 1)
    return _ratio((precision * hits).sum(axis=1), lists.n_findable(k))


def _coverage(lists: _Lists, k: int) -> Values:
    covered: Values = np.mean(lists.times_shown(k) > 0, keepdims=True)
    return covered


def _gini(lists: _Lists, k: int) -> Values:
    shown = np.sort(lists.times_shown(k))
    n = shown.size
    weights = 2 * np.arange(1, n + 1) - n - 1
    return _ratio(np.array([weights @ shown]), np.array([n * shown.sum()]))


def _novelty(lists: _Lists, k: int) -> Values:
    popularity = lists.facts.popularity
    least = popularity.min(initial=1, where=popularity > 0)
    return lists.mean_shown(-np.log2(np.maximum(popularity, least)), k)


def _mean_popularity(lists: _Lists, k: int) -> Values:
    return lists.mean_shown(lists.facts.popularity, k)


def _calibration(lists: _Lists, k: int) -> Values:
    from scipy.special import rel_entr

    ranked = lists.ranked[:, :k]
    shown = ranked >= 0
    bounds = np.concatenate([[0], np.cumsum(shown.sum(axis=1))]).astype(np.int64)
    p = lists.genre_shares(lists.histories)
    q = lists.genre_shares(Bags(ranked[shown], bounds))
    if not p.shape[1]:
        return np.full(len(ranked), np.nan)
    divergence: Values = rel_entr(p, (1 - SMOOTHING) * q + SMOOTHING * p).sum(axis=1)
    return np.maximum(divergence, 0)  # a rounding error below 0 where p = q


@dataclass(frozen=True)
class MetricInfo:
    """One family of metrics; n in formula is the number of targets.

    of: from the lists and k to one value per user, shape (n_users,), else one of all lists, (1,).
    """

    name: str
    text: str
    formula: str
    source: str
    of: Callable[[_Lists, int], Values] = field(repr=False)
    higher_is_better: bool = True
    per_user: bool = True


METRICS: Mapping[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo(
            "ndcg",
            "targets found, those on top counting more",
            "sum of 1 / log2(i + 1) over the places i <= k of targets / the same sum over i <= min(k, n)",
            "Järvelin & Kekäläinen 2002, gain 1 per target",
            _ndcg,
        ),
        MetricInfo(
            "recall",
            "share of the targets found, of those that fit into the list",
            "targets among the first k / min(k, n)",
            "Liang et al. 2018",
            _recall,
        ),
        MetricInfo(
            "plain_recall",
            "share of the targets found",
            "targets among the first k / n",
            "Manning, Raghavan & Schütze 2008, chapter 8",
            _plain_recall,
        ),
        MetricInfo(
            "hr",
            "share of the users who find any target",
            "1 where a target is among the first k, else 0",
            "Deshpande & Karypis 2004",
            _hit_rate,
        ),
        MetricInfo(
            "mrr",
            "how far up the first target is",
            "1 / place of the first target among the first k, else 0",
            "Voorhees 1999",
            _reciprocal_rank,
        ),
        MetricInfo(
            "map",
            "precision at the places of the targets",
            "sum of (targets among the first i) / i over the places i <= k of targets / min(k, n)",
            "Manning, Raghavan & Schütze 2008, chapter 8, cut at k",
            _average_precision,
        ),
        MetricInfo(
            "coverage",
            "share of the catalog that is in any list",
            "distinct movies among the first k of all lists / movies",
            "Ge, Delgado-Battenfeld & Jannach 2010",
            _coverage,
            per_user=False,
        ),
        MetricInfo(
            "gini",
            "how unequally the movies are shown: 0 all alike, near 1 always the same few",
            "sum of (2 r - m - 1) x_r / (m sum of x_r), x_r how often each of m movies is shown, ascending",
            "Gini 1912, over the whole catalog as in Castells, Hurley & Vargas 2015",
            _gini,
            higher_is_better=False,
            per_user=False,
        ),
        MetricInfo(
            "novelty",
            "how little known what is shown is, in bits",
            "mean of -log2(share of the users who rated the movie) over the first k",
            "mean self-information, Zhou et al. 2010",
            _novelty,
        ),
        MetricInfo(
            "mean_popularity",
            "how well known what is shown is",
            "mean of the share of the users who rated the movie over the first k",
            "average recommendation popularity, Abdollahpouri et al. 2019",
            _mean_popularity,
            higher_is_better=False,
        ),
        MetricInfo(
            "calibration",
            "how far the genres of the list are from those of the user's history, in nats",
            "sum of p log(p / (.99 q + .01 p)) over genres, p their shares in the history, q in the first k",
            "KL divergence of Steck 2018, alpha .01, every movie of weight 1",
            _calibration,
            higher_is_better=False,
        ),
    )
}


class MetricName(NamedTuple):
    """A metric at a list length, written family@k."""

    family: str
    k: int

    def __str__(self) -> str:
        return f"{self.family}@{self.k}"


def parse_metric(text: str) -> MetricName:
    """Return the metric that text names, as in "ndcg@10".

    Raises UsageError where the family is unknown, k missing or below 1.
    """
    found = re.fullmatch(r"([a-z_]+)@([0-9]+)", text)
    if not found or found[1] not in METRICS:
        raise UsageError(
            f"unknown metric {text!r}; write NAME@K, as in ndcg@10, with NAME one of {', '.join(METRICS)}"
        )
    if int(found[2]) < 1:
        raise UsageError(f"metric {text!r} is of an empty list; K must be at least 1")
    return MetricName(found[1], int(found[2]))


def check_k(k: int, n_movies: int) -> None:
    """Raise UsageError where no list of k movies can be made of a catalog of n_movies."""
    if not 1 <= k <= n_movies:
        raise UsageError(f"k is {k} and the catalog has {n_movies} movies; choose k from 1 to {n_movies}")


@dataclass(frozen=True)
class Measured:
    """Values by metric. per_user: shape (n_users,), NaN where not defined. overall: of all users.

    overall holds every metric: the mean over the users for whom it is defined, or the one value of
    all lists; NaN where there is none.
    """

    per_user: dict[str, Values]
    overall: dict[str, float]


def measure(
    ranked: Rows,
    targets: Bags,
    names: Iterable[str],
    *,
    facts: CatalogFacts | None = None,
    histories: Bags | None = None,
) -> Measured:
    """Return the metrics called names ("ndcg@100") of the lists ranked, shape (n_users, width), as of top_k.

    facts: for coverage, gini, novelty, mean_popularity and calibration. histories: for calibration,
    what each user is known to have watched.

    Raises UsageError where a name is unknown, ValueError where the lists are shorter than its k,
    where targets or histories are of other users, or where facts or histories are needed and not given.
    """
    for name, bags in (("targets", targets), ("histories", histories)):
        if bags is not None and len(bags) != len(ranked):
            raise ValueError(f"{name} must be of {len(ranked)} users as ranked is, received {len(bags)}")
    lists = _Lists(ranked, targets, facts, histories)
    measured = Measured({}, {})
    for metric in map(parse_metric, names):
        if metric.k > ranked.shape[1]:
            raise ValueError(f"{metric} needs lists of {metric.k}, ranked has {ranked.shape[1]} columns")
        info = METRICS[metric.family]
        values = info.of(lists, metric.k)
        if info.per_user:
            measured.per_user[str(metric)] = values
        defined = values[~np.isnan(values)]
        measured.overall[str(metric)] = float(defined.mean()) if defined.size else float("nan")
    return measured
