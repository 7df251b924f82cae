from __future__ import annotations

import builtins
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.data.dataset import Dataset, RatingColumns
from embedstore.data.features import Bags
from embedstore.data.splits import HeldOut
from embedstore.errors import DataError, NotFoundError
from embedstore.evaluation.baselines import (
    BASELINES,
    LARGEST_EASE,
    Batch,
    Examples,
    Scorer,
    batches,
    ease,
    hand_back,
    ials,
    itemknn,
    popularity,
    recommend,
    userknn,
)
from embedstore.evaluation.protocols import Question, question
from embedstore.evaluation.serving import evaluate, vector_scorer
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import prepare

N_MOVIES = 7
histories = st.lists(
    st.lists(st.integers(0, N_MOVIES - 1), unique=True, max_size=N_MOVIES), min_size=1, max_size=9
)
some = settings(max_examples=25, deadline=None)


def batch(known: Sequence[Sequence[int]], ratings: Sequence[float] | None = None) -> Batch:
    """Return a batch of users who liked all that they know."""
    bags = Bags.of(known)
    return Batch(bags, bags, None if ratings is None else np.array(ratings, dtype=np.float32))


def two_worlds(n_users: int = 200) -> Dataset:
    """Return users who like the movies of their own half of the catalog, all with the same popularity."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(n_users), 20)
    movies = rng.integers(0, 30, users.size) + 30 * ((users + (rng.random(users.size) < 0.2)) % 2)
    own = movies // 30 == users % 2
    ratings = np.where(own, 5, rng.integers(1, 3, users.size))
    return Dataset.of(
        "worlds", RatingColumns(users, movies, ratings.astype(np.float32), rng.integers(0, 10**6, users.size))
    )


def test_popularity_counts_likes() -> None:
    score = popularity(Bags.of([[0, 1], [1], [1, 2]]), 4)
    assert score(batch([[3], [0]])).tolist() == [[1, 3, 1, 0]] * 2


@some
@given(liked=histories, asked=histories, neighbours=st.integers(1, 9), shrink=st.sampled_from([0.0, 2.5]))
def test_itemknn_sums_the_shrunk_cosines_of_the_nearest_movies(
    liked: list[list[int]], asked: list[list[int]], neighbours: int, shrink: float
) -> None:
    x = np.array([[j in bag for j in range(N_MOVIES)] for bag in liked], dtype=float)
    together, count = x.T @ x, x.sum(axis=0)
    similar = [
        [
            0.0 if i == j or not together[i, j] else together[i, j] / ((count[i] * count[j]) ** 0.5 + shrink)
            for i in range(N_MOVIES)
        ]
        for j in range(N_MOVIES)
    ]
    got = itemknn(Bags.of(liked), N_MOVIES, neighbours=neighbours, shrink=shrink)(
        batch([[j] for j in range(N_MOVIES)])
    )
    for j in range(N_MOVIES):  # which of equally similar movies are neighbours is open, how similar is not
        nearest = sorted(similar[j], reverse=True)[:neighbours]
        np.testing.assert_allclose(sorted(got[:, j])[::-1][: len(nearest)], nearest, rtol=1e-5)
        kept = got[:, j] > 0
        np.testing.assert_allclose(got[kept, j], np.array(similar[j])[kept], rtol=1e-5)
        assert kept.sum() <= neighbours
    total = itemknn(Bags.of(liked), N_MOVIES, neighbours=neighbours, shrink=shrink)(batch(asked))
    expected = [got[bag].sum(axis=0) for bag in asked]
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-4), (np.float64, 1e-10)])
def test_ease_is_the_ridge_regression_of_each_movie_on_the_others(dtype: type, rtol: float) -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((50, 6)) < 0.4).astype(np.float64)
    score = ease(Bags.of([np.flatnonzero(row) for row in x]), 6, lam=3.0, dtype=dtype)
    weights = score(batch([[j] for j in range(6)]))  # row j: what watching j adds
    assert weights.dtype == dtype
    for j in range(6):
        others = [i for i in range(6) if i != j]
        a = x[:, others]
        expected = np.linalg.solve(a.T @ a + 3 * np.eye(5), a.T @ x[:, j])
        np.testing.assert_allclose(weights[others, j], expected, rtol=rtol, atol=rtol / 100)
        assert weights[j, j] == 0


def test_ease_of_a_matrix_that_cannot_be_inverted_says_so() -> None:
    with pytest.raises(ValueError, match="lam must be large enough"):
        ease(Bags.of([[0, 1]]), 3, lam=0)


def test_ials_solves_its_normal_equations_and_folds_users_in() -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((30, N_MOVIES)) < 0.4).astype(float)
    x[0] = 0  # a user who liked nothing
    bags = Bags.of([np.flatnonzero(row) for row in x])
    alpha, regularization = 4.0, 2.0
    score = ials(
        bags, N_MOVIES, factors=3, alpha=alpha, regularization=regularization, iterations=200, n_threads=1
    )
    scores = score(batch([np.flatnonzero(row).tolist() for row in x]))  # (30, n_movies), of rank 3
    u, s, vt = np.linalg.svd(scores)
    assert s[3:].max(initial=0) < 1e-4 * s[0]
    assert not scores[0].any()
    # At the fixed point of ALS the gradient of the loss by each factor is 0. In a basis in which the
    # scores are balanced, X'X = Y'Y, it is: W(S - x) Y + lambda X = 0, and the same with the sides changed.
    users, movies = u[:, :3] * np.sqrt(s[:3]), vt[:3].T * np.sqrt(s[:3])
    residual = np.where(x > 0, alpha, 1.0) * (scores - x)
    np.testing.assert_allclose(residual @ movies + regularization * users, 0, atol=2e-3)
    np.testing.assert_allclose(residual.T @ users + regularization * movies, 0, atol=2e-3)


def test_ials_is_the_same_for_the_same_seed_and_on_two_threads() -> None:
    bags = Bags.of([[user % 5, 5 + user % 2] for user in range(40)])
    first, again = (ials(bags, 7, seed=3, n_threads=n, factors=4)(batch([[0], [5, 1]])) for n in (1, 2))
    np.testing.assert_allclose(first, again, rtol=1e-5, atol=1e-7)


def test_ials_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("implicit"):
            raise ModuleNotFoundError(name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(NotFoundError, match=r"pip install '\.\[evaluate\]'`, or leave ials out"):
        ials(Bags.of([[0]]), 1)


@some
@given(
    rated=st.lists(st.dictionaries(st.integers(0, N_MOVIES - 1), st.integers(1, 5)), min_size=2, max_size=9),
    asked=st.dictionaries(st.integers(0, N_MOVIES - 1), st.integers(1, 5), min_size=1),
    neighbours=st.integers(1, 10),
)
def test_userknn_is_the_recipe_of_the_tutorial(
    rated: list[dict[int, int]], asked: dict[int, int], neighbours: int
) -> None:
    values = np.array([value for user in rated for value in user.values()], dtype=np.float64)
    if np.unique(values).size < 2:
        return
    mean, deviation = values.mean(), values.std(ddof=1)  # pandas' std
    products = [
        sum((user[j] - mean) * (asked[j] - mean) for j in user.keys() & asked.keys()) / deviation**2
        for user in rated
    ]
    found = sorted((product for product in products if abs(product) > 1e-6), reverse=True)
    if len(found) > neighbours and np.isclose(found[neighbours - 1], found[neighbours]):
        return  # which of two equally near users is the last neighbour is open
    scores: dict[int, float] = defaultdict(float)
    for product, user in zip(products, rated, strict=True):
        if product in found[:neighbours]:
            for j in user:
                scores[j] += product
    bags = Bags.of([list(user) for user in rated])
    score = userknn(bags, values.astype(np.float32), N_MOVIES, neighbours=neighbours)
    got = score(batch([list(asked)], list(asked.values())))
    np.testing.assert_allclose(got[0], [scores[j] for j in range(N_MOVIES)], rtol=1e-4, atol=1e-4)


def test_userknn_on_equal_ratings_counts_the_movies_that_two_users_share() -> None:
    # the asking user shares 2 movies with the first and 1 with the second, none with the third
    bags = Bags.of([[0, 1, 2], [1, 3], [4]])
    score = userknn(bags, np.full(6, 3.3, dtype=np.float32), 5)
    assert score(batch([[0, 1]], [3.3, 3.3])).tolist() == [[2, 3, 2, 1, 0]]


def test_nobody_is_their_own_neighbour() -> None:
    bags = Bags.of([[0, 1], [1, 2]])
    asked = Batch(Bags.of([[0, 1]]), Bags.of([[0, 1]]), np.ones(2, np.float32), np.array([0]))
    assert userknn(bags, np.ones(4, np.float32), 3)(asked).tolist() == [[0, 1, 1]]


def test_userknn_of_a_batch_without_ratings_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="needs the ratings"):
        userknn(Bags.of([[0]]), np.ones(1, np.float32), 1)(batch([[0]]))


def test_recommend_is_the_mean_of_the_liked_vectors_times_every_vector() -> None:
    vectors = np.array([[1, 0], [0, 2], [1, 1]], dtype=np.float32)
    asked = Batch(Bags.of([[0, 1, 2], [0]]), Bags.of([[0, 1], []]))
    assert recommend(vectors)(asked).tolist() == [[0.5, 2, 1.5], [0, 0, 0]]  # mean (.5, 1); nothing liked


def test_hand_back_gives_what_is_known() -> None:
    assert hand_back(4)(batch([[2, 0], [3]])).tolist() == [[1, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("name", BASELINES)
def test_a_scorer_gives_a_user_the_same_scores_in_any_batch(name: str) -> None:
    data = prepare(two_worlds(60), TrainConfig(test_share=0.3))
    asked = question(data, "serving")
    vectors = np.random.default_rng(1).normal(size=(data.n_movies, 4)).astype(np.float32)
    score = BASELINES[name].fit(asked.examples(vectors))
    whole = np.concatenate([score(part) for part in asked.batches()])
    alone = np.concatenate([score(part) for part in asked.batches(1)])
    assert whole.shape == (len(asked.held_out), data.n_movies)
    np.testing.assert_allclose(whole, alone, rtol=1e-4, atol=1e-5)
    assert score(batch([], [])).shape == (0, data.n_movies)


@pytest.mark.parametrize("name", ["itemknn", "ease", "ials", "userknn"])
def test_the_own_half_of_the_catalog_is_found_where_popularity_cannot(name: str) -> None:
    asked = question(prepare(two_worlds(), TrainConfig()), "serving")
    examples = asked.examples()
    popular, own = (own_above_others(BASELINES[which].fit(examples), asked) for which in ("popularity", name))
    assert popular < 0.6
    assert own > 0.9


def own_above_others(score: Scorer, asked: Question) -> float:
    """Return how often a target is above an unknown movie of the other half, the mean over users."""
    shares: list[float] = []
    for part in asked.batches():
        assert part.users is not None
        for user, scores in zip(part.users.tolist(), score(part), strict=True):
            place = len(shares)
            targets = asked.held_out.targets.part(place, place + 1).rows
            known = asked.held_out.known.part(place, place + 1).rows
            others = np.setdiff1d(np.arange(30) + 30 * ((user + 1) % 2), known)
            shares.append(float(np.mean(scores[targets][:, None] > scores[others][None])))
    return float(np.mean(shares))


def test_a_baseline_that_cannot_be_had_says_why_in_a_sentence() -> None:
    empty = Examples(Bags.of([]), np.zeros(0, bool), np.zeros(0, np.float32), LARGEST_EASE + 1)
    with pytest.raises(DataError, match="ease is left out: it solves 10,001 x 10,001 numbers"):
        BASELINES["ease"].fit(empty)
    with pytest.raises(DataError, match="recommend needs the movie vectors of a run"):
        BASELINES["recommend"].fit(empty)


def test_ratings_of_a_held_out_that_does_not_know_their_places_are_refused() -> None:
    held = HeldOut(np.array([0]), Bags.of([[0, 1]]), Bags.of([[1]]), Bags.of([[3]]))
    with pytest.raises(ValueError, match="known_at"):
        next(batches(held, ratings=np.ones(2, np.float32)))


def test_known_movies_are_never_ranked_and_disliked_hidden_ones_stay_candidates() -> None:
    # scores fall with the row; known 0 and 1, target 3: the first place goes to 2, the second to 3
    held = HeldOut(np.array([0]), Bags.of([[0, 1]]), Bags.of([[1]]), Bags.of([[3]]))
    seen: list[tuple[list[int], list[int]]] = []

    def score(batch: Batch) -> np.ndarray:
        seen.append((batch.known.rows.tolist(), batch.liked.rows.tolist()))
        return -np.arange(5, dtype=np.float32)[None]

    assert evaluate(score, held).ndcg.tolist() == [1 / np.log2(3)]
    assert seen == [([0, 1], [1])]


def test_a_vector_scorer_is_the_dot_product() -> None:
    vectors = np.array([[1, 0], [0, 2], [1, 1]], dtype=np.float32)
    score = vector_scorer(lambda bags: np.array([[3, 1]] * len(bags), dtype=np.float32), vectors)
    assert score(batch([[0]])).tolist() == [[3, 2, 4]]
