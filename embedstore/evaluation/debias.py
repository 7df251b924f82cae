"""What scaling V_j by norm(V_j)^-A costs in NDCG, and gains in how much of the catalog is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.errors import UsageError
from embedstore.evaluation.baselines import Batch, Scorer
from embedstore.evaluation.metrics import parse_metric
from embedstore.evaluation.protocols import Question, question
from embedstore.evaluation.report import Evaluation, ProtocolScores, evaluate_models
from embedstore.evaluation.scoring import data_of, model_of, movies_of, scorer_of, vectors_over
from embedstore.runs.debias import norms_of, refuse_debiased, scale_of
from embedstore.runs.run import Run

__all__ = ["AMOUNTS", "METRICS", "trade", "trade_of_run"]

AMOUNTS = tuple(round(0.1 * step, 1) for step in range(11))
METRICS = ("ndcg@100", "coverage@10", "coverage@100", "gini@10", "gini@100", "mean_popularity@10")


def trade(
    scorer: Scorer,
    movie_vectors: npt.NDArray[np.float32],
    asked: Question,
    amounts: Sequence[float] = AMOUNTS,
) -> ProtocolScores:
    """Return what every amount A reaches on the users of a question, by "A = 0.50".

    scorer gives psi(X) . V_j over the rows of movie_vectors, (n_movies, embedding_dim), as trained; its
    scores are multiplied by norm(V_j)^-A. The first of amounts, 0 by default, is what the others are
    compared with. Metrics of lists longer than the catalog are left out. Raises what evaluate_models
    raises.
    """
    norms = norms_of(movie_vectors)

    def scaled(amount: float) -> Scorer:
        scale = scale_of(norms, amount)

        def score(batch: Batch) -> npt.NDArray[np.float32]:
            scores: npt.NDArray[np.float32] = scorer(batch) * scale
            return scores

        return score

    models = {f"A = {amount:.2f}": scaled(amount) for amount in amounts}
    metrics = [name for name in METRICS if parse_metric(name).k <= asked.data.n_movies]
    return evaluate_models(models, asked, metrics=metrics)


def trade_of_run(
    run: Run,
    dataset: Dataset,
    *,
    protocols: Sequence[str] = ("serving",),
    amounts: Sequence[float] = AMOUNTS,
    any_data: bool = False,
) -> Evaluation:
    """Return trade of a run for the users whom its training held out; see evaluate_run.

    Raises UsageError where run is debiased already or a protocol trains again, and what evaluate_run
    raises.
    """
    refuse_debiased(run)
    data = data_of(run, dataset, any_data=any_data)
    questions = [question(data, protocol) for protocol in dict.fromkeys(protocols)]
    if again := [asked.protocol.name for asked in questions if asked.protocol.retrain]:
        raise UsageError(
            f"{again[0]} trains again, and what is debiased is a sealed run; choose another protocol"
        )
    model, movies = model_of(run), movies_of(data)
    scorer, vectors = scorer_of(model, movies), vectors_over(model, movies)
    scores = tuple(trade(scorer, vectors, asked, amounts) for asked in questions)
    return Evaluation(run.reference, scores, {}, run.manifest.dataset.get("sha256") == dataset.sha256)
