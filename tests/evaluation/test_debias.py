"""The trade between NDCG and coverage: every amount is scored as its debiased run would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embedstore.data.dataset import Dataset
from embedstore.errors import UsageError
from embedstore.evaluation.compare import compare_runs
from embedstore.evaluation.debias import METRICS, trade_of_run
from embedstore.evaluation.report import RUN, evaluate_run
from embedstore.runs.debias import debiased
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.sync import sync
from embedstore.training import TrainConfig, train
from tests.builders import tiny_dataset, tiny_run


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return tiny_dataset(n_users=40, n=120)


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = TrainConfig(preset="linear", embedding_dim=8, test_share=0.4)
    return Run.load(train(dataset, config, runs_dir=tmp_path_factory.mktemp("runs")))


def test_every_amount_is_scored_as_its_run(run: Run, dataset: Dataset) -> None:
    (scores,) = trade_of_run(run, dataset, amounts=(0, 0.25, 1)).scores
    assert list(scores.models) == ["A = 0.00", "A = 0.25", "A = 1.00"]
    for view, found in zip([run, debiased(run, 0.25), debiased(run, 1)], scores.models.values(), strict=True):
        evaluation = evaluate_run(view, dataset, protocols=["serving"], metrics=METRICS, baselines=[])
        assert evaluation.run_id == view.reference
        own = evaluation.scores[0].models[RUN]
        assert found.overall == pytest.approx(own.overall, rel=1e-9)
        np.testing.assert_allclose(found.per_user["ndcg@100"], own.per_user["ndcg@100"])
    assert scores.models["A = 0.00"].overall != scores.models["A = 1.00"].overall


def test_what_the_store_answers_is_what_the_run_scores(run: Run, dataset: Dataset, tmp_path: Path) -> None:
    view = debiased(run, 0.5)
    with open_store(tmp_path / "store", create=True) as store:
        name = sync(view, store).collection
        found = evaluate_run(view, dataset, protocols=["serving"], baselines=[], through=(store, name))
        undone = evaluate_run(run, dataset, protocols=["serving"], baselines=[], through=(store, name))
    (scores,), (others,) = found.scores, undone.scores
    assert scores.stored is not None
    assert others.stored is not None
    assert scores.stored.n_same == len(scores.question.held_out)
    assert others.stored.n_same < scores.stored.n_same


def test_a_run_is_compared_with_itself_debiased(run: Run, dataset: Dataset) -> None:
    found = compare_runs(run, debiased(run, 0.5), dataset, metrics=["mean_popularity@10"])
    assert found.names == (run.run_id, f"{run.run_id}_debias0.50")
    assert found.changes["mean_popularity@10"].b < found.changes["mean_popularity@10"].a


def test_global_time_trains_again_and_debiases(run: Run, dataset: Dataset) -> None:
    means = {
        evaluation.run_id: evaluation.scores[0].models[RUN].overall["mean_popularity@10"]
        for evaluation in (
            evaluate_run(
                each, dataset, protocols=["global-time"], metrics=["mean_popularity@10"], baselines=[]
            )
            for each in (run, debiased(run, 1))
        )
    }
    assert means[f"{run.run_id}_debias1.00"] < means[run.run_id]


def test_what_cannot_be_traded_is_refused(run: Run, dataset: Dataset) -> None:
    with pytest.raises(UsageError, match=r"_debias0\.50 is debiased already"):
        trade_of_run(debiased(run, 0.5), dataset)
    with pytest.raises(UsageError, match="global-time trains again"):
        trade_of_run(run, dataset, protocols=["serving", "global-time"])
    with pytest.raises(UsageError, match="was trained on tiny"):
        trade_of_run(run, tiny_dataset(n_users=40, n=120, seed=1))


def test_a_small_catalog_is_traded_on_lists_that_it_can_fill(tmp_path: Path) -> None:
    small = tiny_dataset(n_users=100)
    found = trade_of_run(tiny_run(tmp_path, dataset=small), small, any_data=True)
    assert found.scores[0].metrics == ("ndcg@100", "coverage@10", "gini@10", "mean_popularity@10")
