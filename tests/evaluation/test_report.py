from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.data.dataset import Dataset
from embedstore.errors import DataError, RunError, UsageError
from embedstore.evaluation.baselines import Batch, popularity
from embedstore.evaluation.metrics import METRICS, parse_metric
from embedstore.evaluation.protocols import Question, question
from embedstore.evaluation.report import (
    RUN,
    evaluate_models,
    evaluate_run,
    evaluate_scorer,
    fit_baselines,
    metrics_of,
    score_table,
)
from embedstore.evaluation.serving import evaluate, vector_scorer
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.sync import sync
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import prepare
from tests.builders import tiny_dataset, tiny_run

CONFIG = TrainConfig(test_share=0.4).to_dict()
FAST = ("ease", "popularity")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return tiny_dataset(n_users=40, n=120)


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("run"), dataset=dataset, config=CONFIG)


@pytest.fixture(scope="module")
def asked(dataset: Dataset) -> Question:
    return question(prepare(dataset, TrainConfig(test_share=0.4)), "serving")


def oracle(asked: Question) -> np.ndarray:
    """Return the targets of every user as scores, (n_users of the data set, n_movies)."""
    held_out = asked.held_out
    table = np.zeros((len(asked.data.histories), asked.data.n_movies))
    table[np.repeat(held_out.users, held_out.targets.sizes), held_out.targets.rows] = 1
    return table


def test_any_scorer_stands_in_the_same_table(asked: Question) -> None:
    answers = oracle(asked)

    def mine(batch: Batch) -> np.ndarray:
        return answers[batch.users]

    scores = evaluate_scorer(mine, asked, name="mine", metrics=["recall@20", "mrr@20"], baselines=FAST)
    assert list(scores.models) == ["mine", *FAST]
    assert list(scores.models["mine"].overall.values()) == [1, 1, 1]  # ndcg@100 is the protocol's headline
    header, rows = score_table(scores)
    assert header == ["model", "ndcg@100", "95% interval", "mine - it", "95% interval", "recall@20", "mrr@20"]
    assert rows[0] == ["mine", "1.0000", "1.0000 to 1.0000", "", "", "1.0000", "1.0000"]
    assert [row[0] for row in rows] == ["mine", "EASE", "popularity"]


def test_a_run_is_measured_as_its_training_measured_it(run: Run, dataset: Dataset) -> None:
    found = evaluate_run(run, dataset, protocols=["serving"], baselines=FAST).scores[0]
    data = prepare(dataset, TrainConfig.of("softmax", {"test_share": 0.4}))
    expected = evaluate(vector_scorer(run.tower.batch, run.movie_vectors), data.test).means()
    assert found.models[RUN].overall == pytest.approx(expected, abs=1e-12)
    liked = data.bags_of(data.split.untested, liked_only=True)
    expected = evaluate(popularity(liked, data.n_movies), data.test).means()
    assert found.models["popularity"].overall == pytest.approx(expected, abs=1e-12)


def test_the_entry_has_the_names_of_a_runs_metrics_with_intervals_counts_and_what_was_measured(
    run: Run, dataset: Dataset
) -> None:
    found = evaluate_run(run, dataset, protocols=["strong"], metrics=["coverage@20"], baselines=FAST)
    entry = json.loads(json.dumps(found.entries()["strong"], allow_nan=False))
    assert entry["headline"] == "ndcg@100"
    assert (entry["dataset"]["sha256"], entry["target"], entry["split_seed"]) == (dataset.sha256, 4.0, 0)
    users = entry["users"]
    assert users["asked"] == users["scored"] + sum(users["left_out"].values()) == 16
    low, high = entry["intervals"]["ndcg@100"]
    assert low < entry["ndcg@100"] < high
    assert "coverage@20" in entry
    assert "coverage@20" not in entry["intervals"]  # of all lists together
    lead = entry["ndcg@100"] - entry["ease"]["ndcg@100"]
    assert entry["ease"]["lead"]["ndcg@100"] == pytest.approx(lead)


def test_what_the_data_do_not_allow_is_left_out_unless_it_was_asked_for(
    run: Run, dataset: Dataset, tmp_path: Path
) -> None:
    from dataclasses import replace

    timeless = replace(dataset, timestamps=np.zeros_like(dataset.timestamps))
    run = tiny_run(tmp_path, dataset=timeless, config=CONFIG)
    found = evaluate_run(run, timeless, baselines=[])
    assert [scores.question.protocol.name for scores in found.scores] == ["serving", "strong"]
    assert "needs times" in found.left_out["next-session"]
    with pytest.raises(DataError, match="needs times"):
        evaluate_run(run, timeless, protocols=["next-session"])


def test_a_baseline_that_cannot_be_had_is_left_out_and_said(
    asked: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    fitted, left_out = fit_baselines(asked, ["ials", "recommend", "popularity"])
    assert list(fitted) == ["popularity"]
    assert "not installed" in left_out["ials"]
    assert "needs the movie vectors" in left_out["recommend"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"protocols": ["serve"]}, "unknown protocol 'serve'; expected one of serving, strong"),
        ({"metrics": ["ndgc@10"]}, "unknown metric 'ndgc@10'"),
        ({"metrics": ["ndcg@121"]}, "k is 121 and the catalog has 120 movies"),
        ({"baselines": ["eaze"]}, "unknown baseline 'eaze'; expected one of popularity, itemknn, ease"),
    ],
)
def test_what_cannot_be_meant_is_said(
    run: Run, dataset: Dataset, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        evaluate_run(run, dataset, **options)


def test_the_breakdown_by_gap_is_of_all_users(dataset: Dataset) -> None:
    asked = question(prepare(dataset, TrainConfig(test_share=0.4)), "leave-last-one-out")
    assert asked.held_out.gaps is not None
    asked.held_out.gaps[:] = np.arange(len(asked.held_out)) * 50  # 0 s, 50 s, 100 s, ...
    scores = evaluate_models({"popular": lambda batch: np.tile(np.arange(120.0), (len(batch), 1))}, asked)
    bands = scores.by_gap()
    assert [(name, n) for name, n, _ in bands[:2]] == [("same second", 1), ("under a minute", 1)]
    assert sum(n for _, n, _ in bands) == len(asked.held_out)
    mean = sum(n * means["popular"] for _, n, means in bands) / len(asked.held_out)
    assert mean == pytest.approx(scores.models["popular"].overall[scores.headline])


def test_through_the_store_is_the_same_as_from_the_run(run: Run, dataset: Dataset, tmp_path: Path) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        through = store, sync(run, store).collection
        found = evaluate_run(run, dataset, protocols=["strong"], baselines=[], through=through).scores[0]
    assert found.stored is not None
    assert found.stored.n_same == len(found.question.held_out)
    assert found.stored.measured.overall == found.models[RUN].overall


def test_other_data_are_measured_under_a_name_of_their_own(run: Run) -> None:
    other = tiny_dataset(n=60, n_users=40, seed=3)
    found = evaluate_run(run, other, protocols=["serving"], metrics=["hr@20"], baselines=FAST, any_data=True)
    assert list(found.entries()) == ["serving on tiny"]


def test_a_recipe_that_is_unknown_is_not_trained_again(run: Run, dataset: Dataset) -> None:
    with pytest.raises(RunError, match="cannot be trained again: unknown preset 'tiny'"):
        evaluate_run(
            _with_config(run, {**CONFIG, "preset": "tiny"}), dataset, protocols=["global-time"], baselines=[]
        )


def _with_config(run: Run, config: dict[str, object]) -> Run:
    from dataclasses import replace

    return Run(run.path, replace(run.manifest, config=config))


@pytest.mark.tf
def test_global_time_trains_the_recipe_again_on_the_past_and_leaves_the_run_alone(
    run: Run, dataset: Dataset
) -> None:
    config = {**CONFIG, "epochs": 1, "embedding_dim": 8}
    before = run.manifest.to_json()
    found = evaluate_run(
        _with_config(run, config), dataset, protocols=["global-time"], baselines=FAST
    ).scores[0]
    assert found.retrained
    timestamps = dataset.timestamps
    assert timestamps[found.question.learn].max() < timestamps[~found.question.learn].min()
    assert list(found.models) == [RUN, *FAST]
    run.verify()
    assert run.manifest.to_json() == before


def test_the_example_of_the_docs_runs(dataset: Dataset) -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"dataset": dataset}
    exec(text.split("```python\n")[1].split("```")[0], names)  # noqa: S102
    assert [row[0] for row in names["rows"]] == ["mine", "EASE", "popularity"]


def test_all_metrics_are_every_family_at_the_k_of_the_headline(asked: Question) -> None:
    names = metrics_of(asked, ["hr@5", "all"])
    assert names[:3] == ("ndcg@100", "hr@5", "recall@100")
    assert {parse_metric(name).family for name in names} == set(METRICS)
