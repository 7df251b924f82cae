"""Norms against popularity, and what is shown, by hand and against the plain way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedstore.evaluation.norms import norms
from embedstore.runs.debias import debiased
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower, DenseTower, TowerInput, TowerLayer
from embedstore.runs.writer import write_run
from tests.builders import tiny_dataset, tiny_run


def biased_run(folder: Path, *, additive: bool) -> Run:
    """Return a run whose V_j is (log popularity, 0, bias), the bias the higher the fewer ratings."""
    dataset = tiny_dataset()
    popularity = dataset.popularity.astype(np.float32)
    vectors = np.stack([np.log(popularity + 1), 0 * popularity, 20 - popularity], axis=1).astype(np.float32)
    table = np.ones((len(vectors), 2), np.float32)
    table[0, 0] = 2
    tower = (
        AdditiveTower(np.concatenate([table, np.ones((len(table), 1), np.float32)], axis=1))
        if additive
        else DenseTower(
            [TowerInput("movies", table)], [TowerLayer(np.eye(2, dtype=np.float32))], constant=True
        )
    )
    path = write_run(
        folder / "runs", dataset=dataset, config={}, movie_vectors=vectors, tower=tower, metrics={}
    )
    return Run.load(path)


def test_deciles_hold_every_movie_once_the_least_popular_first(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, n=23)
    found = norms(run)
    assert sorted(part.n_movies for part in found.deciles) == [2] * 7 + [3] * 3
    assert [part.popularity for part in found.deciles] == sorted(part.popularity for part in found.deciles)
    lengths = np.linalg.norm(run.movie_vectors, axis=1)
    total = sum(part.norm * part.n_movies for part in found.deciles)
    assert total == pytest.approx(lengths.sum(), rel=1e-6)
    expected = np.corrcoef(np.log(lengths), np.log(run.popularity))[0, 1]
    assert found.correlation == pytest.approx(expected, rel=1e-6)
    assert found.correlation_without_bias is None
    assert found.deciles[0].bias is None


def test_what_is_shown_is_what_the_users_get(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    lists = []
    for user_id in run.users.values.tolist():
        scores = run.movie_vectors @ run.tower(run.history(user_id))
        order = np.argsort(-scores, kind="stable")
        lists.append(order[~np.isin(order, run.history(user_id))])
    lists = [ranked for ranked in lists if ranked.size]
    shown = norms(run).shown
    for k in (10, 100):
        times = np.bincount(np.concatenate([ranked[:k] for ranked in lists]), minlength=40)
        assert shown[f"coverage@{k}"] == pytest.approx((times > 0).mean())
        differences = np.abs(times[:, None] - times[None]).sum() / (
            2 * 40 * times.sum()
        )  # Gini, the plain way
        assert shown[f"gini@{k}"] == pytest.approx(differences)


@pytest.mark.parametrize("additive", [True, False])
def test_an_item_bias_is_told_apart(tmp_path: Path, additive: bool) -> None:
    found = norms(biased_run(tmp_path, additive=additive))
    assert found.correlation is not None
    assert found.correlation < 0  # by the bias alone
    assert found.correlation_without_bias == pytest.approx(1, abs=0.05)
    assert found.deciles[0].bias == pytest.approx(20 - found.deciles[0].popularity)


def test_debiased_by_one_all_norms_are_one(tmp_path: Path) -> None:
    found = norms(debiased(tiny_run(tmp_path), 1))
    assert [part.norm for part in found.deciles] == pytest.approx([1] * 10)


def test_without_users_nothing_is_shown(tmp_path: Path) -> None:
    from embedstore.stores.base import open_store
    from embedstore.sync import restore, sync

    with open_store(tmp_path / "store", create=True) as store:
        sync(tiny_run(tmp_path), store)
        report = restore(store, "movies", tmp_path / "restored")
    found = norms(Run.load(report.path))
    assert (found.n_users, found.shown) == (0, {})
    assert len(found.deciles) == 10


def test_one_movie_has_a_norm_and_no_correlation(tmp_path: Path) -> None:
    found = norms(tiny_run(tmp_path, n=1))
    assert (len(found.deciles), found.correlation) == (1, None)
