from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.evaluation import bootstrap
from embedstore.evaluation.bootstrap import Interval, interval, intervals, paired


def test_scipy_draws_the_same_interval() -> None:
    from scipy.stats import bootstrap as scipy_bootstrap

    values = np.random.default_rng(5).gamma(1, size=37)
    got = interval(values, seed=4, resamples=500, level=0.9)
    theirs = scipy_bootstrap(
        (values,),
        np.mean,
        n_resamples=500,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng([4, 3]),
    ).confidence_interval
    assert (got.low, got.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert got.mean == pytest.approx(values.mean())
    assert got.n_users == 37


def test_95_of_100_intervals_hold_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    samples = rng.exponential(2, size=(400, 120))  # true mean 2, skewed
    found = [interval(sample, seed=seed, resamples=400) for seed, sample in enumerate(samples)]
    held = np.mean([one.low <= 2 <= one.high for one in found])
    assert 0.90 <= held <= 0.97


def test_the_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(3, 2, size=2000)
    got = interval(values)
    assert got.high - got.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.1)
    assert got.low < got.mean < got.high


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    values = np.random.default_rng(2).random(50)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_the_bound_on_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(41)
    whole = interval(values, resamples=101)
    for block in (1, 41 * 7, 41 * 101):
        monkeypatch.setattr(bootstrap, "_BLOCK", block)
        got = interval(values, resamples=101)
        assert (got.low, got.high) == pytest.approx((whole.low, whole.high), abs=1e-15)


def test_many_columns_at_once_are_each_as_if_alone() -> None:
    rng = np.random.default_rng(4)
    columns = {"a": rng.random(30), "b": rng.random(30), "c": rng.random(30)}
    columns["b"][[3, 7]] = np.nan
    found = intervals(columns, resamples=200)
    assert list(found) == ["a", "b", "c"]
    for name, values in columns.items():
        alone = interval(values[~np.isnan(values)], resamples=200)
        got = found[name]
        assert (got.low, got.high) == pytest.approx((alone.low, alone.high), abs=1e-15)
        assert got.n_users == (28 if name == "b" else 30)


def test_without_users_there_is_no_interval() -> None:
    for values in (np.array([]), np.array([np.nan, np.nan])):
        got = interval(values)
        assert got.n_users == 0
        assert np.isnan([got.mean, got.low, got.high]).all()
        assert not got.wider_than_mean


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.integers(0, 3))
def test_an_interval_lies_among_the_values(numbers: list[float], seed: int) -> None:
    got = interval(np.array(numbers), seed=seed, resamples=50)
    assert min(numbers) - 1e-12 <= got.low <= got.high <= max(numbers) + 1e-12


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_a_difference_seen_from_the_other_side_is_its_mirror(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    one, other = paired(a, b, resamples=50), paired(b, a, resamples=50)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low), abs=1e-12)


def test_a_small_difference_of_the_same_users_is_seen_where_two_intervals_overlap() -> None:
    rng = np.random.default_rng(6)
    a = rng.random(300)
    b = a - 0.02 + rng.normal(0, 0.01, 300)  # better for nearly everyone
    assert interval(b).high > interval(a).low
    difference = paired(a, b)
    assert difference.low > 0.018
    assert difference.mean == pytest.approx((a - b).mean())
    assert not difference.wider_than_mean


def test_a_user_who_misses_in_one_of_both_is_left_out_of_the_difference() -> None:
    got = paired(np.array([1, np.nan, 3]), np.array([0, 1, np.nan]))
    assert (got.mean, got.n_users) == (1, 1)


def test_values_of_other_users_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"of the same users, received shapes \(2,\) and \(3,\)"):
        paired(np.ones(2), np.ones(3))


def test_an_interval_is_wide_where_it_is_wider_than_the_difference() -> None:
    assert not Interval(0.01, 0.006, 0.014, 90).wider_than_mean
    assert Interval(-0.01, -0.02, 0.003, 90).wider_than_mean
