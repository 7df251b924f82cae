"""Ratings and movies in one canonical order."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Ids, Vocabulary
from embedstore.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Dataset", "Movie", "MovieTable", "RatingColumns", "labels_of"]

_TIE_BITS = 16


@dataclass(frozen=True)
class Movie:
    """What is known of a movie; title and year may be missing, genres may be empty.

    cold: in the catalog of a run, whether its vectors are predicted, since nobody rated it.
    """

    title: str | None = None
    year: int | None = None
    genres: tuple[str, ...] = ()
    cold: bool = False


MovieTable = Mapping[Any, Movie]  # by movie id; Mapping[MovieId, ...] would refuse a dict[int, Movie]


def labels_of(feature: str, movie: Movie) -> Sequence[str]:
    """Return what a movie has of the feature genres or years of a tower."""
    if feature == "genres":
        return movie.genres
    return [] if movie.year is None else [str(movie.year)]


@dataclass(frozen=True)
class RatingColumns:
    """Ratings as they stand in a file, any order, one array per column, all of one length.

    user_ids, movie_ids: int64, uint64 or str. ratings: float32. timestamps: int64, seconds since
    1970, UTC (all zero where the file has none).
    """

    user_ids: Ids
    movie_ids: Ids
    ratings: npt.NDArray[np.float32]
    timestamps: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """The ratings of all users and the catalog, in canonical order.

    Ratings are sorted by user, then time; ratings of one second stand in a random order drawn
    from tie_seed, never in the order of the file or of the ids. One rating per user and movie:
    the newest; the number of older ones is n_duplicates. The catalog holds every rated movie and
    every movie with metadata.

    user_rows, movie_rows: int32, rows of users and movies. ratings: float32. timestamps: int64,
    seconds since 1970, UTC. All have shape (n_ratings,).
    """

    name: str
    users: Vocabulary
    movies: Vocabulary
    catalog: Sequence[Movie]  # one per row of movies
    user_rows: npt.NDArray[np.int32]
    movie_rows: npt.NDArray[np.int32]
    ratings: npt.NDArray[np.float32]
    timestamps: npt.NDArray[np.int64]
    n_duplicates: int = 0
    tie_seed: int = 0
    source: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        columns: RatingColumns,
        movies: MovieTable | None = None,
        *,
        tie_seed: int = 0,
        source: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """Return the canonical data set of the columns of a file and its movies.

        Raises DataError where there is no rating, a rating is not finite, or the ids of ratings
        and movies are of different kinds (integers and strings).
        """
        movies = movies or {}
        n = columns.ratings.size
        if n == 0:
            raise DataError(f"data set {name!r} has no rating; expected at least one line of ratings")
        finite = np.isfinite(columns.ratings)
        if not finite.all():
            raise DataError(
                f"rating {int(np.argmin(finite)) + 1} of data set {name!r} is not a finite number; "
                "run `embedstore data validate` to list every problem"
            )
        users, user_rows = _factorize(columns.user_ids)
        rated, rated_rows = _factorize(columns.movie_ids)
        catalog_ids = _join(rated, movies)
        movie_rows = (
            rated_rows if catalog_ids.size == rated.size else np.searchsorted(catalog_ids, rated)[rated_rows]
        )
        order = _canonical_order(user_rows, movie_rows, columns.timestamps, tie_seed)
        kept = order[_newest_of_each(user_rows[order], movie_rows[order])]
        known = [movies.get(movie_id, Movie()) for movie_id in catalog_ids.tolist()]
        return cls(
            name=name,
            users=Vocabulary(users),
            movies=Vocabulary(catalog_ids),
            catalog=known,
            user_rows=user_rows[kept].astype(np.int32),
            movie_rows=movie_rows[kept].astype(np.int32),
            ratings=columns.ratings[kept].astype(np.float32),
            timestamps=columns.timestamps[kept].astype(np.int64),
            n_duplicates=int(n - kept.size),
            tie_seed=tie_seed,
            source=dict(source or {}),
        )

    @classmethod
    def from_frames(
        cls, name: str, ratings: pd.DataFrame, movies: pd.DataFrame | None = None, *, tie_seed: int = 0
    ) -> Dataset:
        """Return the data set of two pandas frames.

        ratings: columns user_id, movie_id and, if there, rating (else 1.0) and timestamp (else 0).
        movies: columns movie_id and, if there, title, year and genres (a sequence, or str split at '|').
        """
        n = len(ratings)
        columns = RatingColumns(
            user_ids=_ids_of(ratings["user_id"].to_numpy()),
            movie_ids=_ids_of(ratings["movie_id"].to_numpy()),
            ratings=ratings["rating"].to_numpy(np.float32) if "rating" in ratings else np.ones(n, np.float32),
            timestamps=ratings["timestamp"].to_numpy(np.int64)
            if "timestamp" in ratings
            else np.zeros(n, np.int64),
        )
        table = (
            {} if movies is None else {row["movie_id"]: _movie_of(row) for row in movies.to_dict("records")}
        )
        return cls.of(name, columns, table, tie_seed=tie_seed)

    def to_frame(self) -> pd.DataFrame:
        """Return the ratings as a pandas frame: user_id, movie_id, rating, timestamp."""
        import pandas as pd

        return pd.DataFrame(
            {
                "user_id": self.users.values[self.user_rows],
                "movie_id": self.movies.values[self.movie_rows],
                "rating": self.ratings,
                "timestamp": self.timestamps,
            }
        )

    def where(self, kept: npt.NDArray[np.bool_]) -> Dataset:
        """Return the data set of some of the ratings, kept: (n_ratings,).

        Users without any are left out, the catalog stays whole. Raises DataError where none is kept.
        """
        if not kept.any():
            raise DataError(f"no rating of data set {self.name!r} is kept; expected at least one")
        users, user_rows = np.unique(self.user_rows[kept], return_inverse=True)
        return replace(
            self,
            users=Vocabulary(self.users.values[users]),
            user_rows=user_rows.astype(np.int32),
            movie_rows=self.movie_rows[kept],
            ratings=self.ratings[kept],
            timestamps=self.timestamps[kept],
        )

    @property
    def n_ratings(self) -> int:
        return int(self.ratings.size)

    @cached_property
    def offsets(self) -> npt.NDArray[np.int64]:
        """Where each user's ratings start, shape (n_users + 1,)."""
        counts = np.bincount(self.user_rows, minlength=len(self.users))
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @property
    def histories(self) -> Bags:
        """Every user's history, oldest first: all that they rated, whatever the rating."""
        return Bags(self.movie_rows.astype(np.int64), self.offsets)

    @cached_property
    def popularity(self) -> npt.NDArray[np.int64]:
        """The number of ratings of every movie, shape (n_movies,)."""
        return np.bincount(self.movie_rows, minlength=len(self.movies)).astype(np.int64)

    @cached_property
    def sha256(self) -> str:
        """The digest of the ratings and the catalog, whatever file they came from."""
        digest = hashlib.sha256()
        for ids in (self.users.values, self.movies.values):
            digest.update(
                np.ascontiguousarray(ids).tobytes()
                if ids.dtype.kind != "U"
                else "\0".join(ids.tolist()).encode()
            )
        for array in (self.user_rows, self.movie_rows, self.ratings, self.timestamps):
            digest.update(np.ascontiguousarray(array).tobytes())
        for movie in self.catalog:
            digest.update(repr((movie.title, movie.year, movie.genres)).encode())
        return digest.hexdigest()


def _factorize(ids: Ids) -> tuple[Ids, npt.NDArray[np.int64]]:
    """Return the distinct ids in ascending order and the position of every id among them."""
    if ids.dtype.kind in "iu" and ids.size and int(ids.min()) >= 0 and int(ids.max()) < 4 * ids.size + 1000:
        seen = np.zeros(
            int(ids.max()) + 1, dtype=bool
        )  # a table is 20x faster than a sort where ids are dense
        seen[ids] = True
        return np.flatnonzero(seen).astype(ids.dtype), (np.cumsum(seen) - 1)[ids]
    values, rows = np.unique(ids, return_inverse=True)
    return values, rows.astype(np.int64)


def _join(rated: Ids, movies: MovieTable) -> Ids:
    if not movies:
        return rated
    listed = _ids_of(list(movies))
    if (listed.dtype.kind == "U") != (rated.dtype.kind == "U"):
        raise DataError(
            f"movie ids are {_kind(rated)} in the ratings and {_kind(listed)} in the movies; "
            "expected one kind, check the column mapping"
        )
    if listed.dtype != rated.dtype and listed.dtype.kind != "U":
        both = np.concatenate([listed.astype(np.uint64), rated.astype(np.uint64)])
        return np.unique(both)
    return np.unique(np.concatenate([listed, rated]))


def _kind(ids: Ids) -> str:
    return "strings" if ids.dtype.kind == "U" else "integers"


def _ids_of(values: Any) -> Ids:
    """Return values as int64, uint64 where needed, or str."""
    array = np.asarray(values, dtype=object if isinstance(values, list) else None)
    if array.dtype.kind in "iu":
        return array if array.dtype == np.uint64 else array.astype(np.int64)
    listed = array.tolist() if array.dtype.kind != "f" else None
    if listed is not None and all(isinstance(value, int | np.integer) for value in listed):
        return np.asarray(
            listed, dtype=np.uint64 if max(listed, default=0) > np.iinfo(np.int64).max else np.int64
        )
    if listed is None:
        raise DataError("ids are decimal numbers; expected integers or text, check for missing values")
    return np.asarray([str(value) for value in listed], dtype=np.str_)


def _canonical_order(
    user_rows: npt.NDArray[np.int64],
    movie_rows: npt.NDArray[np.int64],
    timestamps: npt.NDArray[np.int64],
    tie_seed: int,
) -> npt.NDArray[np.int64]:
    """Sort by user and time, ties by a random key that depends on tie_seed, user and movie alone.

    Ratings that agree in all of these (the same user, movie and second) stay in the file's order.
    """
    tie = _tie_keys(user_rows, movie_rows, tie_seed)
    start = int(timestamps.min())
    time_bits = (int(timestamps.max()) - start).bit_length()
    if int(user_rows.max()).bit_length() + time_bits + _TIE_BITS > 64:
        slow: npt.NDArray[np.int64] = np.lexsort((movie_rows, tie, timestamps, user_rows))
        return slow
    # One sort of packed keys is five times faster than a lexsort; the few equal keys are sorted after it.
    packed = user_rows.astype(np.uint64) << np.uint64(time_bits + _TIE_BITS)
    packed |= (timestamps - start).astype(np.uint64) << np.uint64(_TIE_BITS)
    packed |= tie >> np.uint64(64 - _TIE_BITS)
    order = np.argsort(packed)
    ranked = packed[order]
    equal = ranked[1:] == ranked[:-1]
    if equal.any():
        again = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        part = order[again]
        order[again] = part[np.lexsort((part, movie_rows[part], tie[part], packed[part]))]
    return order


def _tie_keys(
    user_rows: npt.NDArray[np.int64], movie_rows: npt.NDArray[np.int64], tie_seed: int
) -> npt.NDArray[np.uint64]:
    key = np.random.default_rng(tie_seed).integers(1, 2**63, dtype=np.uint64, size=2) | np.uint64(1)
    mixed: npt.NDArray[np.uint64] = user_rows.astype(np.uint64) * key[0]
    mixed ^= (movie_rows.astype(np.uint64) + np.uint64(1)) * key[1]
    mixed ^= mixed >> np.uint64(31)  # splitmix64's finaliser (Steele et al. 2014)
    mixed *= np.uint64(0x7FB5D329728EA185)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x81DADEF4BC2DD44D)
    mixed ^= mixed >> np.uint64(33)
    return mixed


def _newest_of_each(
    user_rows: npt.NDArray[np.int64], movie_rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the positions, ascending, of the last rating of every pair of user and movie."""
    pair = user_rows * (int(movie_rows.max()) + 1) + movie_rows
    ranked = np.sort(pair)  # most files have no duplicate, and a plain sort tells
    if not (ranked[1:] == ranked[:-1]).any():
        return np.arange(pair.size)
    by_pair = np.argsort(pair, kind="stable")
    last = np.append(pair[by_pair][1:] != pair[by_pair][:-1], True)
    return np.sort(by_pair[last])


def _movie_of(row: Mapping[Any, Any]) -> Movie:
    title, year, genres = row.get("title"), row.get("year"), row.get("genres")
    if isinstance(genres, str):
        genres = [part for part in genres.split("|") if part]
    missing_year = year is None or (isinstance(year, float) and math.isnan(year))
    return Movie(
        title=title if isinstance(title, str) else None,
        year=None if missing_year else int(str(year).split(".")[0]),
        genres=tuple(genres) if isinstance(genres, list | tuple) else (),
    )
