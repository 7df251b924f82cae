"""From a data set and a configuration to a sealed run.

TensorFlow is imported when a training starts, by softmax.py and colab.py alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.data.features import Bags
from embedstore.errors import DataError, UsageError
from embedstore.evaluation.baselines import LARGEST_EASE, Scorer, ease, popularity
from embedstore.evaluation.serving import evaluate, vector_scorer
from embedstore.runs.writer import write_run
from embedstore.training import cold
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import Fitted, Prepared, Progress, TrainProgress, prepare

__all__ = [
    "Progress",
    "TrainConfig",
    "TrainProgress",
    "Trained",
    "fit",
    "keras_psi",
    "metrics_of",
    "train",
    "train_model",
]


@dataclass(frozen=True)
class Trained:
    """A trained model before it is written: the data, the fitted model and the run's metrics."""

    data: Prepared
    fitted: Fitted
    metrics: dict[str, Any]


def train(
    dataset: Dataset,
    config: TrainConfig | None = None,
    *,
    runs_dir: Path,
    progress: Progress | None = None,
    run_id: str | None = None,
) -> Path:
    """Train a model on dataset, write it as a sealed run into runs_dir and return its folder.

    Where config.cold, a second model is trained without a tenth of the movies, to measure how well
    cold ones are ranked; the other metrics are those of the rated movies alone.

    Nothing is written before the training has ended; an interrupt leaves no run behind. Where
    TensorFlow trains, the seeds of Keras, Python and NumPy are set and its deterministic operations
    turned on for the process. Two trainings with one seed on one machine give vectors equal to 1e-5.

    Raises DataError where the data are too few to learn from or a half-life is asked for without
    times, RunError where a vector is not finite or the run cannot be written.
    """
    config = config or TrainConfig()
    _refuse_recency_without_times(dataset, config)
    if config.cold:
        cold.known_traits(dataset)  # before the training, whose work would be lost
    trained = train_model(dataset, config, progress=progress, runs_dir=Path(runs_dir))
    if config.cold:
        trained = _with_cold(trained, config, progress)
    return write_run(
        Path(runs_dir),
        dataset=dataset,
        config=config.to_dict(),
        movie_vectors=trained.fitted.movie_vectors,
        tower=trained.fitted.tower,
        metrics=trained.metrics,
        log=trained.fitted.log,
        cold=trained.fitted.cold,
        run_id=run_id,
    )


def train_model(
    dataset: Dataset, config: TrainConfig, *, progress: Progress | None = None, runs_dir: Path | None = None
) -> Trained:
    """Train and measure a model without writing it; see train."""
    data = prepare(dataset, config)
    fitted = fit(data, config, progress=progress, learn_validation=True, runs_dir=runs_dir)
    scorer = vector_scorer(fitted.tower.batch, fitted.movie_vectors)
    return Trained(data, fitted, metrics_of(data, scorer, best=fitted.best))


def fit(
    data: Prepared,
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    learn_validation: bool = False,
    runs_dir: Path | None = None,
) -> Fitted:
    """Train the model of config on prepared data, as train does, and measure nothing.

    learn_validation: all presets but colab learn from the validation users as well (softmax after
    they have said when to stop).
    runs_dir: where a blend finds the runs that it names.
    """
    if config.preset == "linear":
        from embedstore.training import linear

        return linear.fit(data, config, data.split.untested if learn_validation else data.split.train)
    if config.preset == "blend":
        from embedstore.training import blend

        return blend.fit(data, config, progress, learn_validation=learn_validation, runs_dir=runs_dir)
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    if config.preset == "colab":
        from embedstore.training import colab

        return colab.fit(data, config, progress)
    from embedstore.training import softmax

    return softmax.fit(data, config, progress, learn_validation=learn_validation)


def keras_psi(model: Any, bags: Bags) -> npt.NDArray[np.float32]:
    """Return what the Keras model says psi is, (n_users, embedding_dim): the reference of the tower."""
    from embedstore.training.softmax import multi_hot

    n_movies = int(model.movie_vectors().shape[0])
    half_life = getattr(model, "half_life", None)  # colab's has none
    return np.asarray(model(multi_hot(bags, n_movies, half_life)).numpy())


def _refuse_recency_without_times(dataset: Dataset, config: TrainConfig) -> None:
    given = [name for name in ("half_life", "target_half_life") if getattr(config, name) is not None]
    if given and np.ptp(dataset.timestamps) == 0:
        raise DataError(
            f"setting {given[0]} needs times, and all {dataset.n_ratings:,} ratings of data set "
            f"{dataset.name!r} have the same; leave it out"
        )


def _with_cold(trained: Trained, config: TrainConfig, progress: Progress | None) -> Trained:
    """Return trained with rows for the movies that nobody rated, and their measure among the metrics."""
    dataset = trained.data.dataset
    fitted = cold.with_cold(trained.data, trained.fitted)
    n_unrated = int(np.count_nonzero(dataset.popularity == 0))
    try:
        known = cold.hold_out(dataset, seed=config.split_seed)
        rest = prepare(known, replace(config, target=trained.data.target))
        again = fit(rest, config, progress=progress, learn_validation=True)
        measured = cold.measure_cold(trained.data, rest, cold.with_cold(rest, again))
    except (DataError, UsageError):  # too little is left, or parts of a blend are runs, which know the movies
        measured = None
    metrics = {
        "n": int(fitted.cold.size),
        "n_untold": n_unrated - int(fitted.cold.size),
        "measured": None if measured is None else measured.to_dict(),
    }
    return Trained(trained.data, fitted, {**trained.metrics, "cold": metrics})


def metrics_of(data: Prepared, scorer: Scorer, *, best: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a run's metrics on the test users, beside those of popularity and EASE; best: see Fitted.

    Both baselines learn from all users that are not tested, validation users too. EASE is left out
    (None) above 10,000 movies. Without a test user there are counts only.
    """
    metrics: dict[str, Any] = {
        "protocol": "serving",
        "target": data.target,
        "users": {
            "train": int(data.split.train.size),
            "validation": int(data.split.validation.size),
            "test": int(data.split.test.size),
            "scored": len(data.test),
        },
        "best": dict(best or {}),
    }
    if not len(data.test):
        return metrics
    metrics.update(evaluate(scorer, data.test).means())
    liked = data.bags_of(data.split.untested, liked_only=True)
    metrics["popularity"] = evaluate(popularity(liked, data.n_movies), data.test).means()
    metrics["ease"] = None
    if data.n_movies <= LARGEST_EASE:
        metrics["ease"] = evaluate(ease(liked, data.n_movies), data.test).means()
    return metrics
