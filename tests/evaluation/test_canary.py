"""compare_live: against lists made by hand, and against the plain formula on what `query` answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.data.features import MovieId
from embedstore.errors import NotFoundError, UsageError
from embedstore.evaluation.canary import MovieChange, RankShift, Share, compare_live
from embedstore.query.recommend import Person, recommend
from embedstore.runs.debias import debiased
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower
from embedstore.runs.writer import write_run
from embedstore.stores.base import Store
from embedstore.sync import restore, sync
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_dataset, tiny_run

OLD, NEW = "20260101t000000-000a", "20260102t000000-000b"
GENRES = {1: ("Drama",), 2: ("Comedy",), 3: ("Drama", "War"), 4: ("Comedy",), 5: (), 6: ("War",), 7: ()}


@pytest.fixture(params=EVERY_BACKEND)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with BACKENDS[request.param](tmp_path) as opened:
        yield opened


def ranked(folder: Path, run_id: str, order: Sequence[int]) -> Run:
    """Return a run that ranks movies in order for everybody: psi is 1. Users 1 to 4 watched movie 1 alone.

    User 9 watched all of them.
    """
    users = [1, 2, 3, 4, *[9] * (len(order) + 1)]
    movies = [1, 1, 1, 1, 1, *order]
    columns = RatingColumns(
        np.array(users),
        np.array(movies),
        np.full(len(users), 5, np.float32),
        np.arange(len(users), dtype=np.int64),
    )
    dataset = Dataset.of("ranked", columns, {m: Movie(f"T{m}", 1990, GENRES[m]) for m in movies})
    place = {movie: len(order) - at for at, movie in enumerate(order)}
    scores = [[place.get(movie, 0)] for movie in dataset.movies.values.tolist()]
    path = write_run(
        folder / "runs",
        dataset=dataset,
        config={"preset": "ranked"},
        movie_vectors=np.array(scores, np.float32),
        tower=AdditiveTower(np.ones((len(scores), 1), np.float32)),
        metrics={},
        run_id=run_id,
    )
    return Run.load(path)


def parts(shares: Sequence[Share]) -> dict[str, tuple[int, int]]:
    """Return shares in sixths, rounded, by label."""
    return {share.label: (round(6 * share.live), round(6 * share.candidate)) for share in shares}


def test_two_rankings_by_hand(tmp_path: Path, store: Store) -> None:
    sync(ranked(tmp_path, OLD, [2, 3, 4, 5, 6]), store)
    found = compare_live(ranked(tmp_path, NEW, [3, 2, 6, 5, 7]), store, k=3)
    # everybody but user 9: 2 3 4 -> 3 2 6
    assert (found.live, found.candidate, found.collection) == (OLD, NEW, None)
    assert (found.n_users, found.n_left_out, found.n_same, found.n_disjoint) == (4, 1, 0, 0)
    assert found.overlap == pytest.approx(2 / 3)
    assert found.overlap_deciles == pytest.approx([2 / 3] * 9)
    assert found.shift == RankShift(pairs=8, places=1.0, up=0.5, down=0.5, same=0.0)
    assert (found.movies_live, found.movies_candidate) == (3, 3)
    assert found.appears == (MovieChange(6, "T6", live=0, candidate=4, new=False, gone=False),)
    assert found.vanishes == (MovieChange(4, "T4", live=4, candidate=0, new=False, gone=True),)
    assert parts(found.genres) == {"Comedy": (4, 2), "War": (2, 4), "Drama": (2, 2)}
    # Movie 1 has five ratings and each other one, so of the six of the candidate 1 2 3 are the first half.
    assert parts(found.popularity) == {
        "the most rated 1%": (0, 0),
        "1% to 10%": (0, 0),
        "10% to 50%": (4, 4),
        "the other half": (0, 2),
        "not in the candidate": (2, 0),
    }


def test_a_run_of_the_same_vectors_changes_nothing(tmp_path: Path, store: Store) -> None:
    sync(tiny_run(tmp_path, run_id=OLD), store)
    new = tiny_run(tmp_path, run_id=NEW)
    sync(new, store, promote=False)
    found = compare_live(new, store, k=5)
    assert found.collection == f"movies__{NEW}"
    assert (found.overlap, found.n_same, found.n_users) == (1.0, 11, 11)
    assert (found.appears, found.vanishes) == ((), ())
    assert found.shift == RankShift(pairs=55, places=0.0, up=0.0, down=0.0, same=1.0)


@pytest.mark.parametrize("text_ids", [False, True])
def test_it_is_what_query_answers(tmp_path: Path, store: Store, text_ids: bool) -> None:
    old = tiny_run(tmp_path, run_id=OLD, text_ids=text_ids)
    sync(old, store)
    data = tiny_dataset(text_ids=text_ids)
    new = tiny_run(tmp_path, run_id=NEW, seed=3, dataset=data, additive=False)
    sync(new, store, promote=False)
    found = compare_live(new, store, k=7)
    pairs: list[tuple[list[MovieId], list[MovieId]]] = []
    for user_id in new.users.ids(np.arange(1, len(new.users))):  # the first one has watched everything
        before, after = (
            [m.movie_id for m in recommend(run, store, user_id=user_id, k=7).recommendations]
            for run in (old, new)
        )
        pairs.append((before, after))
    overlaps = [len(set(before) & set(after)) / 7 for before, after in pairs]
    moves = [b.index(m) - a.index(m) for b, a in pairs for m in a if m in b]
    assert (found.n_users, found.n_left_out) == (len(pairs), 1)
    assert found.overlap == pytest.approx(np.mean(overlaps))
    assert found.n_disjoint == overlaps.count(0)
    assert found.shift.pairs == len(moves)
    assert found.shift.places == pytest.approx(np.mean(np.abs(moves)))
    assert found.shift.up == pytest.approx(np.mean(np.array(moves) > 0))
    for movie in (*found.appears, *found.vanishes):
        assert movie.live == sum(movie.movie_id in before for before, _ in pairs)
        assert movie.candidate == sum(movie.movie_id in after for _, after in pairs)
    assert sum(share.candidate for share in found.popularity) == pytest.approx(1)


def test_its_own_vectors_answer_as_its_collection_does(tmp_path: Path, store: Store) -> None:
    sync(tiny_run(tmp_path, run_id=OLD), store)
    for new in (
        tiny_run(tmp_path, run_id=NEW, seed=3, dataset=tiny_dataset()),
        debiased(tiny_run(tmp_path, run_id="20260103t000000-000c", seed=4, dataset=tiny_dataset()), 0.5),
    ):
        brute = compare_live(new, store, k=9)
        sync(new, store, promote=False)
        served = compare_live(new, store, k=9)
        assert (brute.collection, served.collection) == (None, f"movies__{new.reference}")
        assert brute == replace(served, collection=None)


def test_a_live_run_whose_folder_is_elsewhere_answers_by_its_collection(tmp_path: Path, store: Store) -> None:
    old = tiny_run(tmp_path, run_id=OLD)
    sync(old, store)
    new = tiny_run(tmp_path, run_id=NEW, seed=3, dataset=tiny_dataset())
    whole = compare_live(new, store)
    shutil.rmtree(old.path)
    assert compare_live(new, store) == whole
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [NEW]


def test_a_live_dense_run_whose_folder_is_elsewhere_cannot_answer(tmp_path: Path, store: Store) -> None:
    old = tiny_run(tmp_path, run_id=OLD, additive=False)
    sync(old, store)
    shutil.rmtree(old.path)
    with pytest.raises(NotFoundError, match=f"run {OLD} is not in .* is in its folder alone"):
        compare_live(tiny_run(tmp_path, run_id=NEW), store)


def test_movies_that_one_run_does_not_know_are_new_or_gone(tmp_path: Path, store: Store) -> None:
    few, many = tiny_dataset(n=30), tiny_dataset(n=40)
    sync(tiny_run(tmp_path, run_id=OLD, dataset=few), store)
    larger = tiny_run(tmp_path, run_id=NEW, dataset=many)
    people = [Person(history=[1, 2, 35]), Person(history=[3])]
    found = compare_live(larger, store, people=people, k=30)
    assert found.n_users == 2
    assert {movie.movie_id for movie in found.appears if movie.new} <= set(range(31, 41))
    assert sum(movie.new for movie in found.appears) > 0
    assert not any(movie.gone for movie in found.appears + found.vanishes)

    sync(larger, store)
    found = compare_live(tiny_run(tmp_path, run_id="20260103t000000-000c", dataset=few), store, people=people)
    assert any(movie.gone for movie in found.vanishes)
    assert found.popularity[-1].label == "not in the candidate"
    assert found.popularity[-1].candidate == 0 < found.popularity[-1].live


def test_who_is_unknown_to_one_of_them_is_left_out(tmp_path: Path, store: Store) -> None:
    sync(tiny_run(tmp_path, run_id=OLD, dataset=tiny_dataset(n=30)), store)
    new = tiny_run(tmp_path, run_id=NEW, dataset=tiny_dataset(n=40))
    people = [Person(history=[5, 5, 6]), Person(history=[35, 36]), Person(history=[900])]
    found = compare_live(new, store, people=people)
    assert (found.n_users, found.n_left_out) == (1, 2)
    for nobody in (people[1:], []):
        with pytest.raises(UsageError, match=f"none of {len(nobody)} people can be answered by both runs"):
            compare_live(new, store, people=nobody)


def test_a_sample_is_the_same_every_time(tmp_path: Path, store: Store) -> None:
    sync(tiny_run(tmp_path, run_id=OLD), store)
    new = tiny_run(tmp_path, run_id=NEW, seed=3, dataset=tiny_dataset())
    found = compare_live(new, store, sample=5)
    assert found == compare_live(new, store, sample=5)
    assert found.n_users + found.n_left_out == 5


def test_what_cannot_be_compared_is_said(tmp_path: Path, store: Store) -> None:
    run = tiny_run(tmp_path, run_id=OLD)
    with pytest.raises(NotFoundError, match="alias 'movies' is not in the store"):
        compare_live(run, store)
    sync(run, store)
    with pytest.raises(UsageError, match="different data sets, one with numbers and one with text"):
        compare_live(tiny_run(tmp_path, run_id=NEW, text_ids=True), store)
    with pytest.raises(UsageError, match="expected 1 or more"):
        compare_live(run, store, k=0)
    nobody = Run.load(restore(store, "movies", tmp_path / "elsewhere").path)
    with pytest.raises(UsageError, match="knows no users; say who is asked with --users-file"):
        compare_live(nobody, store)
