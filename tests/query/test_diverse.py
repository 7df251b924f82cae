"""Maximal marginal relevance, against the formula and on real stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.errors import UsageError
from embedstore.query.diverse import candidates_for, mmr
from embedstore.query.filters import parse_filters
from embedstore.query.recommend import Person, recommend, recommend_batch
from embedstore.runs.run import Run
from embedstore.stores.base import Store
from embedstore.sync import sync
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("served"), n=150, dim=5)


@pytest.fixture(scope="module")
def store(run: Run) -> Iterator[Store]:
    with BACKENDS["edge"](run.path.parent) as opened:
        sync(run, opened)
        yield opened


def plain_mmr(
    scores: npt.NDArray[np.float64], vectors: npt.NDArray[np.float32], k: int, diverse: float
) -> list[int]:
    def cosine(i: int, j: int) -> float:
        lengths = np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j])
        return float(vectors[i] @ vectors[j] / lengths) if lengths else 0.0

    span = scores.max() - scores.min() or 1.0
    chosen: list[int] = []
    while len(chosen) < min(k, len(scores)):
        value = {
            j: (1 - diverse) * (scores[j] - scores.min()) / span
            - diverse * max((cosine(i, j) for i in chosen), default=0.0)
            for j in range(len(scores))
            if j not in chosen
        }
        best = max(value.values())
        chosen.append(next(j for j, found in value.items() if found >= best - 1e-12))
    return chosen


def test_worked_by_hand() -> None:
    # scores scaled: 1, .9, .5, 0; the second by .9 / 2 - 1 / 2, .5 / 2 - 0, or 0 + 1 / 2
    scores, vectors = np.array([20.0, 19, 15, 10]), np.array([[1, 0], [2, 0], [0, 3], [-1, 0]], np.float32)
    assert mmr(scores, vectors, 4, 0.5).tolist() == [0, 3, 2, 1]
    assert mmr(scores, vectors, 4, 0.0).tolist() == [0, 1, 2, 3]
    assert mmr(scores, vectors, 2, 0.3).tolist() == [0, 2]  # .35 against .63 - .3 and .3


@given(
    scores=st.lists(st.integers(-5, 5), min_size=1, max_size=12),
    k=st.integers(1, 15),
    diverse=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
def test_is_the_formula(scores: list[int], k: int, diverse: float, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(len(scores), 3)).astype(np.float32)
    vectors[seed % len(scores)] = 0
    descending = np.array(sorted(scores, reverse=True), np.float64)
    assert mmr(descending, vectors, k, diverse).tolist() == plain_mmr(descending, vectors, k, diverse)


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_every_store_gives_the_list_of_the_formula_with_true_scores(
    tmp_path: Path, run: Run, backend: str
) -> None:
    history = [3, 50, 77]
    rows = run.movies.rows(history)
    scores = (run.movie_vectors @ run.tower(rows)).astype(np.float64)
    left = np.delete(np.arange(150), rows)
    candidates = left[np.argsort(-scores[left])[: candidates_for(8)]]
    with BACKENDS[backend](tmp_path) as store:
        sync(run, store)
        for diverse in (0.3, 1.0):
            expected = candidates[plain_mmr(scores[candidates], run.movie_vectors[candidates], 8, diverse)]
            answer = recommend(run, store, history=history, k=8, diverse=diverse)
            assert [movie.movie_id for movie in answer.recommendations] == run.movies.ids(expected)
            assert [movie.rank for movie in answer.recommendations] == list(range(1, 9))
            np.testing.assert_allclose(
                [movie.score for movie in answer.recommendations], scores[expected], atol=1e-5
            )
            assert answer.to_dict()["diverse"] == diverse


def test_zero_is_the_plain_ranking(store: Store, run: Run) -> None:
    plain = recommend(run, store, user_id=3)
    zero = recommend(run, store, user_id=3, diverse=0)
    assert zero.recommendations == plain.recommendations
    assert zero.to_dict()["diverse"] == 0
    assert "diverse" not in plain.to_dict()


def test_filters_exclusions_and_the_end_of_the_catalog_hold(store: Store, run: Run) -> None:
    filters = parse_filters(["genre=Comedy", "year<1990"])
    plain = recommend(run, store, history=[1, 999], k=1000, filters=filters, exclude=[2])
    diverse = recommend(run, store, history=[1, 999], k=1000, filters=filters, exclude=[2], diverse=0.7)
    assert sorted(m.movie_id for m in diverse.recommendations) == sorted(
        m.movie_id for m in plain.recommendations
    )
    assert diverse.unknown_movies == [999]
    seen = recommend(run, store, history=[1], k=1000, include_seen=True, diverse=0.7)
    assert len(seen.recommendations) == 150
    nothing = recommend(run, store, history=[1], filters=parse_filters(["genre=Western"]), diverse=0.7)
    assert nothing.recommendations == []


def test_many_people_get_what_each_gets_alone(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedstore.query.recommend._BATCH_VECTORS", 300)  # three at a time
    people = [Person(user_id=user) for user in range(1, 8)]
    answers = list(recommend_batch(run, store, people, k=3, diverse=0.6))
    alone = [recommend(run, store, user_id=person.user_id, k=3, diverse=0.6) for person in people]
    assert [[m.movie_id for m in answer.recommendations] for answer in answers] == [
        [m.movie_id for m in answer.recommendations] for answer in alone
    ]


@pytest.mark.parametrize("diverse", [-0.1, 1.1, float("nan")])
def test_a_share_outside_of_0_to_1_is_refused(store: Store, run: Run, diverse: float) -> None:
    with pytest.raises(UsageError, match=r"diverse is .*; expected 0 \(by score alone\) to 1"):
        recommend(run, store, history=[1], diverse=diverse)
