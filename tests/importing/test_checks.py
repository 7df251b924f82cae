"""What an import says of a model: its ids, its norms, its tower and its ranking."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedstore.data.dataset import Dataset, RatingColumns
from embedstore.data.features import Rows, Vocabulary
from embedstore.importing.checks import Checked, Finding, check, measure
from embedstore.importing.order import check_order
from embedstore.runs.tower import AdditiveTower
from embedstore.training import TrainConfig, fit
from embedstore.training.prepared import prepare
from tests.builders import tiny_dataset

Matrix = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def rated() -> Dataset:
    """400 users with tastes: each rates 20 of 120 movies, most of the three kinds that they like."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 12, 120)
    fame = rng.gumbel(size=120)
    users, movies = [], []
    for user in range(400):
        liked = rng.choice(12, 3, replace=False)
        wish = fame / 2 + 2.5 * np.isin(kind, liked) + rng.gumbel(size=120)
        movies.append(np.argsort(-wish)[:20] + 1)
        users.append(np.full(20, user))
    n = 400 * 20
    columns = RatingColumns(
        np.concatenate(users), np.concatenate(movies), np.full(n, 5, np.float32), rng.integers(1, 10**9, n)
    )
    return Dataset.of("tastes", columns)


@pytest.fixture(scope="module")
def model(rated: Dataset) -> tuple[Vocabulary, Matrix, Matrix]:
    """The movies, V and E of a linear model of rated."""
    config = TrainConfig.of("linear", {"embedding_dim": 16})
    data = prepare(rated, config)
    fitted = fit(data, config, learn_validation=True)
    assert isinstance(fitted.tower, AdditiveTower)
    return Vocabulary(rated.movies.values), fitted.movie_vectors, fitted.tower.history_vectors


Model = tuple[Vocabulary, Matrix, Matrix]


def only(found: Checked, name: str) -> Finding:
    finding, *more = [finding for finding in found.findings if finding.name == name]
    assert more == []
    return finding


def unit(vectors: Matrix) -> Matrix:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


# The order of the ids


@pytest.mark.parametrize("change", [np.asarray, unit, np.negative, lambda v: v + 5, lambda v: v * 1e-3])
def test_a_trained_model_is_in_order_whatever_its_norms(
    change: Callable[[Matrix], Matrix], model: Model, rated: Dataset
) -> None:
    movies, vectors, _ = model
    found = check_order(movies, change(vectors), rated)
    assert (found.name, found.serious) == ("order", False)
    assert "the ids match the rows of V" in found.text


@pytest.mark.parametrize("constant", [0, 7, 0.1])
def test_a_bias_that_outweighs_the_rest_hides_nothing(constant: float, model: Model, rated: Dataset) -> None:
    movies, vectors, _ = model
    bias = 100 * np.log(rated.popularity)
    biased = np.column_stack([vectors, bias, np.full(len(movies), constant)]).astype(np.float32)
    assert not check_order(movies, biased, rated).serious
    shifted = check_order(movies, np.roll(biased, 1, axis=0), rated)
    assert "shifted by one, each fits the id before its own" in shifted.text


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=26831)  # falling popularity fits better than it by chance, and not well
def test_a_random_order_is_an_alarm(seed: int, model: Model, rated: Dataset) -> None:
    movies, vectors, _ = model
    found = check_order(movies, vectors[np.random.default_rng(seed).permutation(len(vectors))], rated)
    assert (found.name, found.serious) == ("scrambled", True)
    assert "scrambled against the rows of V, or V was hardly trained" in found.text


def usual(name: str, movies: Vocabulary, rated: Dataset) -> Rows:
    """Return the place among movies of the movie of every row of V, where V is in the order name."""
    places = np.arange(len(movies))
    return {
        "shifted, each fits the id before": np.roll(places, 1),
        "shifted, each fits the id after": np.roll(places, -1),
        "sorted as text": np.argsort(movies.values.astype(str)),
        "descending ids": places[::-1],
        "falling popularity": np.argsort(-rated.popularity, kind="stable"),
        "first appearance in the ratings, user by user": np.argsort(
            np.unique(rated.movie_rows, return_index=True)[1]
        ),
    }[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "shifted, each fits the id before",
            r"shifted by one, each fits the id before its own; .* save V\[1:\]",
        ),
        ("shifted, each fits the id after", "shifted by one, each fits the id after its own"),
        ("sorted as text", r"ids sorted as text \(1, 10, 100, 2\); give the ids in that order"),
        ("descending ids", "in the order of descending ids"),
        ("falling popularity", "in the order of falling popularity"),
        ("first appearance in the ratings, user by user", "first appearance in the ratings, user by user"),
    ],
)
def test_a_usual_order_is_named(name: str, said: str, model: Model, rated: Dataset) -> None:
    movies, vectors, _ = model
    found = check_order(movies, vectors[usual(name, movies, rated)], rated)
    assert (found.name, found.serious) == ("scrambled", True)
    assert re.search(said, found.text), found.text


def test_ids_that_were_given_in_another_order_are_judged_in_it(model: Model, rated: Dataset) -> None:
    movies, vectors, _ = model
    given = np.random.default_rng(1).permutation(len(movies))  # the ids as given: movies.values[given]
    order = np.argsort(given)
    assert not check_order(movies, vectors, rated, order=order).serious
    shifted = np.roll(vectors[given], 1, axis=0)  # as given, with a row of padding in front
    found = check_order(movies, shifted[order], rated, order=order)
    assert "shifted by one, each fits the id before its own" in found.text
    ascending = vectors  # as they were given, though the ids are not ascending
    found = check_order(movies, ascending[order], rated, order=order)
    assert "in the order of ascending ids" in found.text


def test_ratings_without_taste_cannot_tell() -> None:
    dataset = tiny_dataset()
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    found = check_order(dataset.movies, vectors, dataset)
    assert (found.name, found.serious) == ("order", False)
    assert "too few to tell" in found.text


def test_vectors_that_are_all_the_same_are_told(rated: Dataset) -> None:
    assert check_order(rated.movies, np.ones((120, 3), np.float32), rated).serious


# Norms, twins, coverage


def test_normalised_vectors_have_no_popularity(model: Model, rated: Dataset) -> None:
    movies, vectors, _ = model
    text = only(check(movies, unit(vectors), None, rated), "norms").text
    assert "V is normalised: every vector has norm 1, so popularity cannot be in it" in text


@pytest.mark.parametrize(
    ("power", "said"),
    [
        (1, "correlation 1.00 to popularity (of the logarithms), which shows popular movies more"),
        (-1, "correlation -1.00 to popularity (of the logarithms), so rare movies have the long vectors"),
    ],
)
def test_norms_are_compared_with_popularity(power: int, said: str, model: Model, rated: Dataset) -> None:
    movies, vectors, _ = model
    grown = unit(vectors) * (rated.popularity[:, None].astype(np.float32) ** power)
    text = only(check(movies, grown, None, rated), "norms").text
    assert "V is not normalised: norms are" in text
    assert said in text


def test_a_bias_is_no_part_of_the_norms(model: Model, rated: Dataset) -> None:
    movies, vectors, _ = model
    biased = np.column_stack([unit(vectors), np.log(rated.popularity) - 9]).astype(np.float32)
    assert "so rare movies have the long vectors" in only(check(movies, biased, None, rated), "norms").text
    assert "V is normalised" in only(check(movies, biased, None, rated, bias=True), "norms").text


def test_zero_twin_and_constant_vectors_are_counted() -> None:
    ids = Vocabulary(np.array([2, 4, 6, 8, 10]))
    vectors = np.array([[1, 2, 7], [0, 0, 0], [1, 2, 7], [3, 1, 7], [0, 0, 0]], np.float32)
    found = check(ids, vectors)
    assert only(found, "zeros").text.startswith("2 vectors are zero (4, 10)")
    assert only(found, "duplicates").text.startswith("2 movies share their vector with another (2, 6)")
    vectors[[1, 4], 2] = 7
    found = check(ids, vectors)
    assert only(found, "constant").text.startswith(
        "1 of the 3 dimensions of V are the same for every movie (2,"
    )
    assert not any(finding.serious for finding in found.findings)


def test_without_ratings_the_norms_alone_are_told(model: Model) -> None:
    movies, vectors, history = model
    found = check(movies, vectors, AdditiveTower(history))
    assert [finding.name for finding in found.findings] == ["norms"]
    assert (found.metrics, found.config) == ({}, {})


def test_movies_that_vectors_and_ratings_do_not_share_are_counted(rated: Dataset) -> None:
    # ids 1 .. 120 are rated; V has 61 .. 130
    ids = Vocabulary(np.arange(61, 131))
    vectors = np.random.default_rng(0).normal(size=(70, 4)).astype(np.float32)
    found = only(check(ids, vectors, None, rated), "coverage")
    lost = rated.popularity[:60].sum() / rated.n_ratings
    assert found.text == (
        f"60 rated movies have no vector ({lost:.1%} of the ratings, left out), and 10 of the 70 vectors are "
        "of movies without ratings"
    )
    assert not found.serious


@pytest.mark.parametrize("ids", [np.arange(1000, 1003), np.array(["1", "2", "3"])])
def test_ids_that_the_ratings_do_not_know_are_serious(ids: npt.NDArray[np.generic], rated: Dataset) -> None:
    vectors = np.eye(3, dtype=np.float32)
    found = check(Vocabulary(ids), vectors, AdditiveTower(vectors), rated)
    assert only(found, "coverage").serious
    assert only(found, "coverage").text.startswith(
        "none of the 3 movie ids is among those of data set tastes"
    )
    assert found.metrics == {}


# The ranking, and the tower


def test_metrics_are_those_that_a_training_has(model: Model, rated: Dataset) -> None:
    from embedstore.training import train_model

    movies, vectors, history = model
    found = check(movies, vectors, AdditiveTower(history), rated)
    config = TrainConfig.of("linear", {"embedding_dim": 16})
    trained = train_model(rated, config).metrics
    assert found.metrics.keys() == trained.keys()
    for name in ("target", "popularity", "ease", "protocol"):
        assert found.metrics[name] == trained[name]
    assert found.metrics["users"] == {name: trained["users"][name] for name in ("test", "scored")}
    assert found.metrics["ndcg@100"] == pytest.approx(trained["ndcg@100"], abs=1e-6)
    assert found.config == {"target": 4.0, "split_seed": 0, "validation_share": 0.1, "test_share": 0.15}
    text = only(found, "metrics").text
    assert text.startswith(
        f"the model beats popularity: NDCG@100 is {trained['ndcg@100']:.3f}, popularity has"
    )
    assert "60 users whom the model may have seen in its training" in text
    assert [finding.name for finding in found.findings] == ["order", "norms", "metrics"]


def test_a_model_below_popularity_is_told(model: Model, rated: Dataset) -> None:
    movies, vectors, history = model
    found = measure(movies, -vectors, AdditiveTower(history), rated)
    assert "the model does not beat popularity" in only(found, "metrics").text


def test_a_scrambled_model_is_not_measured(model: Model, rated: Dataset) -> None:
    movies, vectors, history = model
    order = np.random.default_rng(0).permutation(len(movies))
    found = check(movies, vectors[order], AdditiveTower(history[order]), rated)
    assert only(found, "scrambled").serious
    assert found.metrics == {}


@pytest.mark.parametrize(("by", "side"), [(1, "after"), (-1, "before")])
def test_a_tower_that_is_shifted_against_v_is_told(by: int, side: str, model: Model, rated: Dataset) -> None:
    movies, vectors, history = model
    found = check(movies, vectors, AdditiveTower(np.roll(history, by, axis=0)), rated)
    assert only(found, "tower").serious
    assert "looks shifted by one" in only(found, "tower").text
    assert f"with the movie {side} each of the history" in only(found, "tower").text
    assert found.metrics["ndcg@100"] > 0


def test_a_tower_of_another_order_than_v_is_told(model: Model, rated: Dataset) -> None:
    movies, vectors, history = model
    order = np.random.default_rng(0).permutation(len(movies))
    found = only(check(movies, vectors, AdditiveTower(history[order]), rated), "tower")
    assert found.serious
    assert "psi of another user finds a user's movies as well" in found.text


def test_too_few_users_are_said_and_do_no_harm() -> None:
    dataset = tiny_dataset(n_users=6)
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    found = check(dataset.movies, vectors, AdditiveTower(vectors), dataset)
    assert "was not measured" in only(found, "metrics").text
    one = dataset.where(dataset.user_rows == 0)
    found = measure(one.movies, vectors, AdditiveTower(vectors), replace(one, catalog=[]))
    assert only(found, "metrics").text.startswith("the model was not measured: data set 'tiny' has 1 user")
