from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.evaluation.metrics import ndcg, rank, recall


def test_ndcg_by_hand() -> None:
    # hits at places 1 and 3 of 3: 1/log2(2) + 1/log2(4) = 1.5; ideal 1 + 1/log2(3)
    got = ndcg(np.array([7, 8, 9]), np.array([9, 7]), 3)
    assert got == pytest.approx(1.5 / (1 + 1 / math.log2(3)))


def test_a_perfect_list_has_ndcg_and_recall_of_one_even_where_targets_outnumber_k() -> None:
    ranked, targets = np.array([1, 2]), np.array([1, 2, 3, 4])
    assert ndcg(ranked, targets, 2) == pytest.approx(1)
    assert recall(ranked, targets, 2) == pytest.approx(1)


def test_a_list_shorter_than_k_counts_what_it_has() -> None:
    assert recall(np.array([5]), np.array([5, 6]), 20) == pytest.approx(0.5)
    assert ndcg(np.array([5]), np.array([5]), 100) == pytest.approx(1)


def test_a_user_without_targets_is_a_mistake_of_the_caller() -> None:
    for metric in (ndcg, recall):
        with pytest.raises(ValueError, match="must not be empty"):
            metric(np.array([1]), np.array([], dtype=np.int64), 5)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 15))
def test_rank_is_the_plain_sort_with_ties_by_column_and_without_excluded(values: list[int], k: int) -> None:
    scores = np.array([values], dtype=np.float32)
    scores[scores == -3] = -np.inf
    plain = sorted((i for i in range(len(values)) if values[i] > -3), key=lambda i: (-values[i], i))[:k]
    assert next(rank(scores, k)).tolist() == plain
