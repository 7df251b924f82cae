from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.data.features import Bags
from embedstore.runs.tower import AdditiveTower, DenseTower, MovieFeature, TowerInput, TowerLayer
from tests.export.towers import FORMS, tower_of


def f32(*rows: object) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def test_dense_tower_worked_by_hand() -> None:
    tower = DenseTower(
        inputs=[TowerInput("movies", f32([1, 2], [3, 6], [0, 1]), "mean")],
        layers=[
            TowerLayer(f32([1, -1], [1, 0.25]), None, "relu"),
            TowerLayer(f32([2], [10]), np.array([1], np.float32)),
        ],
        constant=True,
    )
    # mean of rows 0 and 1: (2, 4); kernel: (6, -1); relu (6, 0); out 12 + 1 = 13; constant 1
    np.testing.assert_array_equal(tower([0, 1]), [13, 1])


@pytest.mark.parametrize(("pooling", "expected"), [("mean", 4), ("sum", 16), ("l2", 8)])
def test_poolings_worked_by_hand(pooling: str, expected: float) -> None:
    tower = DenseTower([TowerInput("movies", f32([1], [3], [5], [7]), pooling)])  # type: ignore[arg-type]
    np.testing.assert_allclose(tower([0, 1, 2, 3]), [expected])  # 16 / 4, 16, 16 / sqrt(4)


def test_newest_pools_the_newest_movies_of_a_longer_history() -> None:
    tower = DenseTower(
        [TowerInput("movies", f32([1], [2], [4]), newest=2)], [TowerLayer(f32([10]), f32(3)[0])]
    )
    assert tower([0]).tolist() == [13]
    assert tower([0, 1, 2]).tolist() == [33]  # mean of 2 and 4
    assert tower.batch(Bags.of([[2, 0, 1], [1], [0, 2]])).ravel().tolist() == [18, 23, 28]
    values, exact = tower.terms([0, 1, 2])
    assert exact
    assert values.ravel().tolist() == [1, 11, 21]  # a third of the bias each; the oldest adds nothing else
    with pytest.raises(ValueError, match="newest is for movies"):
        TowerInput("genres", f32([1]), newest=2)


def test_recency_halves_the_weight_of_a_movie_per_half_life_places() -> None:
    tower = DenseTower([TowerInput("movies", f32([1], [2], [4]), half_life=1)])
    np.testing.assert_allclose(tower([0, 1, 2]), [(1 / 4 + 2 / 2 + 4) / (1 / 4 + 1 / 2 + 1)])
    batch = tower.batch(Bags.of([[0, 1, 2], [2, 1], [0]]))  # each history has a newest movie of its own
    np.testing.assert_allclose(batch, [tower([0, 1, 2]), tower([2, 1]), tower([0])])


@pytest.mark.parametrize(("feature", "pooling"), [("movies", "l2"), ("genres", "mean")])
def test_recency_of_anything_but_a_mean_of_movies_is_refused(feature: str, pooling: str) -> None:
    with pytest.raises(ValueError, match="half_life is for the mean of movies"):
        TowerInput(feature, f32([1]), pooling, half_life=3)  # type: ignore[arg-type]


def test_side_features_pool_over_every_value_of_every_movie() -> None:
    # movie 0 has genres 0 and 1, movie 1 has none, movie 2 has genre 1
    genres = MovieFeature("genres", np.array([0, 2, 2, 3]), np.array([0, 1, 1]))
    tower = DenseTower(
        [TowerInput("genres", f32([3], [9])), TowerInput("movies", f32([1], [2], [3]))],
        features={"genres": genres},
    )
    np.testing.assert_allclose(tower([0, 2]), [(3 + 9 + 9) / 3, 2])
    np.testing.assert_allclose(tower([1]), [0, 2])  # an empty bag pools to zero


@pytest.mark.parametrize("rows", [[], [[1, 2]]])
def test_a_history_that_is_not_a_list_of_rows_is_refused(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="non-empty sequence of movie rows"):
        AdditiveTower(f32([1], [2], [3]))(rows)


def test_an_empty_history_in_a_batch_is_refused_by_its_position() -> None:
    with pytest.raises(ValueError, match="history 1 of the batch is empty"):
        AdditiveTower(f32([1], [2])).batch(Bags.of([[0], [], [1]]))


@given(
    histories=st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=30), min_size=1, max_size=12),
    seed=st.integers(0, 5),
)
def test_batch_equals_one_by_one(histories: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(20, 5)).astype(np.float32)
    kernel = rng.normal(size=(5, 3)).astype(np.float32)
    for tower in (
        AdditiveTower(table),
        DenseTower([TowerInput("movies", table, "l2")], [TowerLayer(kernel, None, "tanh")], True),
    ):
        batch = tower.batch(Bags.of(histories))
        single = np.stack([tower(history) for history in histories])
        assert batch.dtype == single.dtype == np.float32
        np.testing.assert_allclose(batch, single, rtol=1e-6, atol=1e-7)


def test_batches_larger_than_the_bound_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = AdditiveTower(np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32))
    bags = Bags.of(np.random.default_rng(1).integers(0, 50, size=(33, 7)))
    whole = tower.batch(bags)
    monkeypatch.setattr("embedstore.runs.tower._BATCH_FLOATS", 40)  # 5 users at a time
    np.testing.assert_allclose(tower.batch(bags), whole, rtol=1e-6)


def test_terms_worked_by_hand() -> None:
    additive = AdditiveTower(f32([4, 1], [8, 1], [0, 1])).terms([0, 1])
    np.testing.assert_array_equal(additive.values, [[2, 0.5], [4, 0.5]])
    # row 0 is (1, 2), row 1 (3, 6); halved, kernel: (1.5, -0.25), (4.5, -0.75); halves of bias and 1
    layer = TowerLayer(f32([1, -1], [1, 0.25]), np.array([2, 0], np.float32))
    linear = DenseTower([TowerInput("movies", f32([1, 2], [3, 6]))], [layer], constant=True).terms([0, 1])
    np.testing.assert_array_equal(linear.values, [[2.5, -0.25, 0.5], [5.5, -0.75, 0.5]])
    # sum 3 of rows 1 and 2, relu 3; without row 1 it is 2, without row 2 it is 1
    relu = TowerLayer(f32([1]), None, "relu")
    deep = DenseTower([TowerInput("movies", f32([-9], [1], [2]), "sum")], [relu], constant=True).terms([1, 2])
    np.testing.assert_array_equal(deep.values, [[1, 0], [2, 0]])
    assert (additive.exact, linear.exact, deep.exact) == (True, True, False)


@pytest.mark.parametrize("form", FORMS)
def test_terms_add_up_to_psi_or_are_what_psi_loses_without_the_movie(form: str) -> None:
    tower = tower_of(form)
    history = np.array([3, 0, 17, 21, 6, 33])
    terms = tower.terms(history)
    if terms.exact:
        expected = tower(history)
        np.testing.assert_allclose(terms.values.sum(axis=0), expected, rtol=1e-6, atol=1e-6)
    else:
        without = tower.batch(Bags.of([np.delete(history, at) for at in range(history.size)]))
        np.testing.assert_allclose(terms.values, tower(history) - without, atol=2e-6)
    np.testing.assert_allclose(tower.terms([5]).values, tower([5])[None], atol=1e-6)
    with pytest.raises(ValueError, match="non-empty sequence"):
        tower.terms([])


def test_only_a_tower_that_bends_is_estimated() -> None:
    assert {form: tower_of(form).terms([1, 2]).exact for form in FORMS} == {
        "additive": True,
        "recency": True,
        "recency tanh": False,
        "newest": True,
        "l2 tanh constant": False,
        "sum relu": False,
        "colab": True,
    }
