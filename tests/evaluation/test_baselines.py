from __future__ import annotations

import numpy as np

from embedstore.data.features import Bags
from embedstore.data.splits import HeldOut
from embedstore.evaluation.baselines import Batch, ease, popularity
from embedstore.evaluation.serving import evaluate, vector_scorer


def batch(known: list[list[int]]) -> Batch:
    """Return a batch of users who liked all that they know."""
    return Batch(Bags.of(known), Bags.of(known))


def test_popularity_counts_likes() -> None:
    score = popularity(Bags.of([[0, 1], [1], [1, 2]]), 4)
    assert score(batch([[3], [0]])).tolist() == [[1, 3, 1, 0]] * 2


def test_ease_is_the_ridge_regression_of_each_movie_on_the_others() -> None:
    rng = np.random.default_rng(0)
    x = (rng.random((50, 6)) < 0.4).astype(np.float64)
    score = ease(Bags.of([np.flatnonzero(row) for row in x]), 6, lam=3.0)
    weights = score(batch([[j] for j in range(6)]))  # row j: what watching j adds
    for j in range(6):
        others = [i for i in range(6) if i != j]
        a = x[:, others]
        expected = np.linalg.solve(a.T @ a + 3 * np.eye(5), a.T @ x[:, j])
        np.testing.assert_allclose(weights[others, j], expected, rtol=1e-4, atol=1e-6)
        assert weights[j, j] == 0


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
