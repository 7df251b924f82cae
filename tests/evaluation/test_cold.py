from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from embedstore.data.features import Bags
from embedstore.evaluation.cold import METRICS, evaluate_cold, random_order
from embedstore.evaluation.metrics import measure


@pytest.mark.parametrize("targets", [[[0]], [[1, 4]], [[0, 1, 2, 3, 4, 5]], [[2], [0, 3, 5]]])
def test_a_random_order_is_the_mean_of_all_orders(targets: list[list[int]]) -> None:
    orders = np.array(list(permutations(range(6))))
    ranked = np.pad(orders, ((0, 0), (0, 14)), constant_values=-1)
    means = [measure(ranked, Bags.of([wanted] * len(orders)), METRICS).overall for wanted in targets]
    found = random_order(Bags.of(targets), 6)
    for name in METRICS:
        assert found[name] == pytest.approx(np.mean([mean[name] for mean in means]), abs=1e-12)


def test_the_movies_of_the_highest_scores_are_ranked_first() -> None:
    vectors = np.eye(30, dtype=np.float32)
    psi = np.stack([np.arange(30), -np.arange(30)]).astype(np.float32)
    scores = evaluate_cold(psi, vectors, Bags.of([[29, 28], [29]]))
    assert scores.found == {"ndcg@10": 0.5, "recall@20": 0.5}  # the first finds all, the second nothing
    assert scores.to_dict()["users"] == 2
    assert scores.to_dict()["held_out"] == 30
    assert scores.random["recall@20"] == pytest.approx(20 / 30)
