"""compare_live: a run and the one that an alias serves answer the same people, before the alias moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, MovieId, Rows, Vocabulary
from embedstore.errors import NotFoundError, UsageError
from embedstore.evaluation.serving import rank_unknown
from embedstore.query.recommend import Person, embed_batch, recommend_batch
from embedstore.query.resolve import resolve
from embedstore.runs.run import Run
from embedstore.runs.writer import ids_of
from embedstore.stores.base import Store
from embedstore.stores.contract import collection_name
from embedstore.stores.restore import rebuilt

__all__ = ["SAMPLE", "LiveComparison", "MovieChange", "RankShift", "Share", "compare_live"]

SAMPLE = 500  # users, where nobody says who is asked: the mean overlap to .01 or so
_MOST = 10  # movies that appear, and that vanish, most
_PEOPLE = 256  # asked at a time
_SCORES = 1 << 22  # held at a time: 16 MB in float32
_PAIRS = 1 << 22  # places of two lists that are held against each other at a time
_TENTHS = tuple(tenth / 10 for tenth in range(1, 10))
_POPULARITY = (  # the share of the catalog, most rated movies first, up to which a bucket goes
    ("the most rated 1%", 0.01),
    ("1% to 10%", 0.1),
    ("10% to 50%", 0.5),
    ("the other half", 1.0),
)
_GONE = "not in the candidate"

History = Sequence[MovieId]
Ask = Callable[[Sequence[History]], list[History]]  # from histories to what each is recommended
Lists = npt.NDArray[np.int64]  # (n, k) rows of movies, best first, -1 where a list is shorter


@dataclass(frozen=True)
class RankShift:
    """How the movies that are in both lists of a user move. up, down and same are shares of pairs.

    pairs: of users and such movies. places: how many one moves on average. None where there are no pairs.
    """

    pairs: int
    places: float | None
    up: float | None
    down: float | None
    same: float | None


@dataclass(frozen=True)
class MovieChange:
    """In how many lists a movie is. new: the live run does not know it; gone: the candidate does not."""

    movie_id: MovieId
    title: str | None
    live: int
    candidate: int
    new: bool
    gone: bool


@dataclass(frozen=True)
class Share:
    """The share of the places of all lists that movies of one genre, or popularity, have."""

    label: str
    live: float
    candidate: float


@dataclass(frozen=True)
class LiveComparison:
    """What an alias would show in place of what it shows: the lists of two runs for the same histories.

    collection: that of the candidate, None where its own vectors answered, since the store does not have
    it. n_left_out: people of whose history a run knows no movie, or for whom one has none left.
    overlap: the mean, over users, of the share of a list that is in the other. overlap_deciles: what 10%,
    20% ... 90% of the users have at most. n_same: users whose lists are equal, order too; n_disjoint: who
    keep nothing. movies_live, movies_candidate: how many different ones are shown. appears, vanishes: the
    ten movies whose number of lists grows and falls most. genres: by change, the largest first; a movie
    counts in each of its genres.
    """

    alias: str
    candidate: str
    live: str
    collection: str | None
    live_collection: str
    k: int
    n_users: int
    n_left_out: int
    overlap: float
    overlap_deciles: tuple[float, ...]
    n_same: int
    n_disjoint: int
    shift: RankShift
    movies_live: int
    movies_candidate: int
    appears: tuple[MovieChange, ...]
    vanishes: tuple[MovieChange, ...]
    genres: tuple[Share, ...]
    popularity: tuple[Share, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare_live(
    run: Run,
    store: Store,
    *,
    alias: str = "movies",
    runs_dir: Path | None = None,
    people: Iterable[Person] | None = None,
    k: int = 10,
    sample: int = SAMPLE,
) -> LiveComparison:
    """Return how the lists of run differ from those of the run that alias serves; writes nothing.

    Both get the same histories, by movie id: those of people, by default of a fixed sample of the users
    whom run knows, and leave out what was watched. The live run answers by its collection, and run by its
    own where it is in the store. The tower of the live run is that of its folder in runs_dir (by default
    the folder of run), else that of its collection, but for a dense tower.

    Raises NotFoundError where nothing is live or the live run's tower is not at hand, UsageError where
    nobody is left to be asked, and what recommend raises.
    """
    if k < 1 or sample < 1:
        raise UsageError(f"k is {k} and the sample {sample} users; expected 1 or more of both")
    live, live_name = _live(store, alias, runs_dir or run.path.parent)
    name = collection_name(alias, run.reference)
    collection = name if _serves(run, store, name) else None
    movies = _both(run, live)
    who = _sample(run, sample) if people is None else people
    histories = (_history(run, person) for person in who)
    ask = _by_vectors(run, k) if collection is None else _by_store(run, store, collection, k)
    asked = [(live, _by_store(live, store, live_name, k)), (run, ask)]
    (before, after), n_left_out = _ask(histories, movies, asked, min(k, len(movies)))
    if not len(after):
        raise UsageError(f"none of {n_left_out:,} people can be answered by both runs; ask others")
    return LiveComparison(
        alias=alias,
        candidate=run.reference,
        live=live.reference,
        collection=collection,
        live_collection=live_name,
        k=k,
        n_users=len(after),
        n_left_out=n_left_out,
        **_overlap(before, after),
        **_movies(run, live, movies, before, after),
    )


def _serves(run: Run, store: Store, name: str) -> bool:
    """Whether the collection name is finished and of the content of run."""
    try:
        metadata = store.metadata(name)
    except NotFoundError:
        return False
    return metadata.state == "sealed" and metadata.fingerprint == run.fingerprint


def _live(store: Store, alias: str, runs_dir: Path) -> tuple[Run, str]:
    """Return the run that alias serves, rebuilt for now where its folder is not here, and its collection."""
    try:
        return resolve(store, runs_dir, alias=alias)
    except NotFoundError:  # says how to bring the run, if any
        name = store.live(alias).collection
        metadata = store.metadata(name)
        if metadata.tower == "dense":
            raise
        return rebuilt(store, name, metadata), name


def _both(run: Run, live: Run) -> Vocabulary:
    """Return the movies that either run knows. Raises UsageError where their ids are of different kinds."""
    if run.movies.integer != live.movies.integer:
        raise UsageError(
            f"runs {run.reference} and {live.reference} are of different data sets, one with numbers and one "
            "with text for movie ids; compare runs of one"
        )
    return Vocabulary(ids_of(sorted({*run.movies.values.tolist(), *live.movies.values.tolist()})))


def _sample(run: Run, size: int) -> Iterator[Person]:
    """Yield users of run, the same ones every time. Raises UsageError where it knows none."""
    if not len(run.users):
        raise UsageError(f"run {run.reference} knows no users; say who is asked with --users-file")
    chosen = np.random.default_rng(0).permutation(len(run.users))[:size]
    for user_id in run.users.ids(np.sort(chosen)):
        yield Person(user_id=user_id)


def _history(run: Run, person: Person) -> History:
    if person.user_id is None:
        return list(dict.fromkeys(person.history or ()))
    return run.movies.ids(run.history(person.user_id))


def _by_store(run: Run, store: Store, collection: str, k: int) -> Ask:
    """Return what asks a collection for the k best movies of every history."""

    def ask(histories: Sequence[History]) -> list[History]:
        people = (Person(history=history) for history in histories)
        answers = recommend_batch(run, store, people, k=k, collection=collection)
        return [[movie.movie_id for movie in answer.recommendations] for answer in answers]

    return ask


def _by_vectors(run: Run, k: int) -> Ask:
    """Return what ranks all movies of run by its vectors, as a collection would."""
    step = max(1, _SCORES // len(run.movies))

    def ask(histories: Sequence[History]) -> list[History]:
        found: list[History] = []
        for start in range(0, len(histories), step):
            part = histories[start : start + step]
            people = (Person(history=history) for history in part)
            psi = np.stack([answer.user_embedding for answer in embed_batch(run, people)])
            rows = Bags.of(run.movies.rows(history) for history in part)
            ranked = rank_unknown(psi @ run.movie_vectors.T, rows.where(rows.rows >= 0), k)
            found += [run.movies.ids(row[row >= 0]) for row in ranked]
        return found

    return ask


def _ask(
    histories: Iterator[History], movies: Vocabulary, asked: Sequence[tuple[Run, Ask]], width: int
) -> tuple[list[Lists], int]:
    """Return the lists of everyone asked, in rows of movies, (n, width), and how many people are left out.

    Only histories of which every run knows a movie go to them.
    """
    parts: list[list[Lists]] = [[np.zeros((0, width), np.int64)] for _ in asked]
    n_left_out = 0
    while batch := list(islice(histories, _PEOPLE)):
        known = [[_answers(run, history) for run, _ in asked] for history in batch]
        kept = [history for history, by in zip(batch, known, strict=True) if all(by)]
        answers = [ask(kept) for _, ask in asked]
        some = [row for row in range(len(kept)) if all(answer[row] for answer in answers)]
        n_left_out += len(batch) - len(some)
        for part, answer in zip(parts, answers, strict=True):
            lists = np.full((len(some), width), -1, dtype=np.int64)
            for to, row in zip(lists, some, strict=True):
                to[: len(answer[row])] = movies.rows(answer[row])
            part.append(lists)
    return [np.concatenate(part) for part in parts], n_left_out


def _answers(run: Run, history: History) -> bool:
    """Whether psi of run can be made of a history."""
    rows = run.movies.rows(history)
    return bool(run.tower.knows(Bags.of([rows[rows >= 0]]))[0])


def _overlap(before: Lists, after: Lists) -> dict[str, Any]:
    """Return what LiveComparison says of lists as such; both have shape (n, k)."""
    n, width = after.shape
    lengths = np.maximum((before >= 0).sum(axis=1), (after >= 0).sum(axis=1))
    shared = np.zeros(n, dtype=np.int64)
    moves = []
    step = max(1, _PAIRS // width**2)
    for start in range(0, n, step):
        old, new = before[start : start + step], after[start : start + step]
        same = (new[:, :, None] == old[:, None, :]) & (new >= 0)[:, :, None]  # (users, k after, k before)
        shared[start : start + step] = same.sum(axis=(1, 2))
        _, now, then = np.nonzero(same)
        moves.append(then - now)  # places up
    moved = np.concatenate(moves)
    overlap = shared / lengths
    return {
        "overlap": float(overlap.mean()),
        "overlap_deciles": tuple(np.quantile(overlap, _TENTHS, method="inverted_cdf").tolist()),
        "n_same": int((before == after).all(axis=1).sum()),
        "n_disjoint": int((shared == 0).sum()),
        "shift": RankShift(
            pairs=int(moved.size),
            places=float(np.abs(moved).mean()) if moved.size else None,
            up=float((moved > 0).mean()) if moved.size else None,
            down=float((moved < 0).mean()) if moved.size else None,
            same=float((moved == 0).mean()) if moved.size else None,
        ),
    }


def _movies(run: Run, live: Run, movies: Vocabulary, before: Lists, after: Lists) -> dict[str, Any]:
    """Return what LiveComparison says of the movies that are shown."""
    shown = np.stack([np.bincount(lists[lists >= 0], minlength=len(movies)) for lists in (before, after)])
    rows = np.flatnonzero(shown.any(axis=0))
    shown, ids = shown[:, rows], movies.ids(rows)  # (2, n_shown): the lists that a movie is in
    here, there = run.movies.rows(ids), live.movies.rows(ids)
    catalog = _catalog(run, live, here, there)
    by_genre: dict[str, Rows] = {}
    for at, movie in enumerate(catalog):
        for genre in dict.fromkeys(movie["genres"]):
            by_genre[genre] = by_genre.get(genre, 0) + shown[:, at]
    places = shown.sum(axis=1)

    def share(label: str, of: Rows) -> Share:
        return Share(label, *(of / places).tolist())

    def changes(order: Rows) -> tuple[MovieChange, ...]:
        return tuple(
            MovieChange(
                movie_id=ids[at],
                title=catalog[at]["title"],
                live=int(shown[0, at]),
                candidate=int(shown[1, at]),
                new=bool(there[at] < 0),
                gone=bool(here[at] < 0),
            )
            for at in order[:_MOST].tolist()
        )

    gain = shown[1] - shown[0]
    rising, falling = np.argsort(-gain, kind="stable"), np.argsort(gain, kind="stable")
    genres = [share(genre, of) for genre, of in sorted(by_genre.items())]
    return {
        "movies_live": int(np.count_nonzero(shown[0])),
        "movies_candidate": int(np.count_nonzero(shown[1])),
        "appears": changes(rising[gain[rising] > 0]),
        "vanishes": changes(falling[gain[falling] < 0]),
        "genres": tuple(sorted(genres, key=lambda genre: -abs(genre.candidate - genre.live))),
        "popularity": tuple(
            share(label, shown[:, inside].sum(axis=1)) for label, inside in _by_popularity(run, here)
        ),
    }


def _catalog(run: Run, live: Run, here: Rows, there: Rows) -> list[dict[str, Any]]:
    """Return what run says of the movies at its rows here; where that is -1, live, of its rows there."""
    known = here >= 0
    lines: list[dict[str, Any]] = [{}] * here.size
    for one, rows, inside in ((run, here, known), (live, there, ~known)):
        if inside.any():
            for at, line in zip(np.flatnonzero(inside), one.catalog.lines(rows[inside]), strict=True):
                lines[at] = line
    return lines


def _by_popularity(run: Run, rows: Rows) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Yield which of the movies at rows of run are in each bucket of popularity, and which it has not."""
    n = len(run.movies)
    place = np.empty(n, dtype=np.int64)
    place[np.argsort(-run.popularity, kind="stable")] = np.arange(n)
    found = np.where(rows >= 0, place[rows], n)
    start = 0
    for label, share in _POPULARITY:
        end = max(start, round(share * n))
        yield label, (found >= start) & (found < end)
        start = end
    if (rows < 0).any():
        yield _GONE, rows < 0
