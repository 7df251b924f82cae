"""A run with scaled movie vectors: the formula, its name and its fingerprint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedstore.errors import NotFoundError, RunError, UsageError
from embedstore.runs.debias import debiased, norms_of, scale_of
from embedstore.runs.registry import find_run
from embedstore.runs.run import Run
from tests.builders import tiny_run, with_value


@pytest.mark.parametrize(
    ("amount", "expected"),
    [(0.0, [3, 4]), (0.5, [3 / 5**0.5, 4 / 5**0.5]), (1.0, [0.6, 0.8])],  # the norm of (3, 4) is 5
)
def test_a_vector_is_divided_by_a_power_of_its_norm(amount: float, expected: list[float]) -> None:
    vectors = np.array([[3, 4], [0, 0], [1e-39, 0]], np.float32)
    scaled = vectors * scale_of(norms_of(vectors), amount)[:, None]
    np.testing.assert_allclose(scaled[0], expected, rtol=1e-7)
    assert np.array_equal(scaled[1:], vectors[1:])  # zero, or as good as it, stays


@pytest.mark.parametrize("additive", [True, False])
def test_all_but_the_vectors_is_that_of_the_run(
    tmp_path: Path, additive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedstore.runs.debias._BLOCK", 7)  # several blocks, the last one shorter
    run = tiny_run(tmp_path, additive=additive)
    view = debiased(run, 0.25)
    norms = np.linalg.norm(run.movie_vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(view.movie_vectors, run.movie_vectors / norms**0.25, rtol=1e-6)
    assert view.movie_vectors.dtype == np.float32
    assert (view.run_id, view.embedding_dim, view.additive) == (run.run_id, run.embedding_dim, additive)
    history = run.history(1)
    assert np.array_equal(view.tower(history), run.tower(history))
    view.release()
    assert view.movie_vectors.tobytes() == debiased(run, 0.25).movie_vectors.tobytes()
    view.verify()


def test_reference_and_fingerprint_tell_the_amount(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    views = [debiased(run, amount) for amount in (0.25, 0.5, 1)]
    assert [view.reference for view in views] == [
        f"{run.run_id}_debias{text}" for text in ("0.25", "0.50", "1.00")
    ]
    assert len({view.fingerprint for view in [run, *views]}) == 4
    assert debiased(Run.load(run.path), 0.5).fingerprint == views[1].fingerprint


def test_unit_vectors_stay_and_are_another_collection_still(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, n=2, dim=1)
    for row in range(2):
        run = with_value(run, "movie_vectors.npy", (row, 0), 1)
    view = debiased(run, 0.5)
    assert view.movie_vectors.tobytes() == run.movie_vectors.tobytes()
    assert view.fingerprint != run.fingerprint


@pytest.mark.parametrize("amount", [0, -0.5, 1.01, 0.333, float("nan"), float("inf")])
def test_other_amounts_are_refused(tmp_path: Path, amount: float) -> None:
    with pytest.raises(UsageError, match=r"expected more than 0 and at most 1, with two decimals"):
        debiased(tiny_run(tmp_path), amount)


def test_a_run_is_debiased_once(tmp_path: Path) -> None:
    view = debiased(tiny_run(tmp_path), 0.5)
    with pytest.raises(UsageError, match=r"_debias0\.50 is debiased already; give the run \S+ itself"):
        debiased(view, 0.5)


def test_a_run_without_vectors_is_named(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    (run.path / "movie_vectors.npy").unlink()
    view = debiased(Run.load(run.path), 0.5)
    for read in (lambda: view.movie_vectors, lambda: view.fingerprint):
        with pytest.raises(RunError, match=r"movie_vectors\.npy is missing"):
            read()


def test_find_run_takes_the_reference(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, run_id="20240101t000000-aaaa")
    runs = run.path.parent
    wanted = "20240101t000000-aaaa_debias0.50"
    asked = [wanted, "latest_debias0.50", "2024_debias0.5"]
    assert {find_run(runs, text).reference for text in asked} == {wanted}
    with pytest.raises(UsageError, match="debias is 2"):
        find_run(runs, "latest_debias2")
    with pytest.raises(NotFoundError, match="no run 'movies__20240101t000000-aaaa'"):
        find_run(runs, "movies__20240101t000000-aaaa_debias0.50")
