"""Two or more additive models joined in one dot product.

psi = [psi_1, w psi_2] and V = [V_1, V_2] score as score_1 + w score_2, exactly. Every part is first
scaled to scores of one spread; then the weights are chosen on validation users, part by part. The
joined pair is compressed to embedding_dim: with S the scores of the training users, V = the top right
singular vectors of S and E = (E V_joined') V, the best approximation of S at that width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags
from embedstore.data.splits import SPLIT
from embedstore.errors import UsageError
from embedstore.evaluation.serving import evaluate, vector_scorer
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower
from embedstore.training.config import PRESETS, TrainConfig
from embedstore.training.linear import pooled_tower
from embedstore.training.prepared import Fitted, Prepared, Progress

__all__ = ["compress", "fit", "join"]

Matrix = npt.NDArray[np.float32]

_SHARES = (0.0, 0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0)  # of a part among those before it
_SAMPLE = 500  # users whose scores tell how far those of a part spread


@dataclass(frozen=True)
class _Part:
    """E and V, each (n_movies, width) float32, scaled to scores with a standard deviation of 1."""

    name: str
    history: Matrix
    movies: Matrix


def fit(
    data: Prepared,
    config: TrainConfig,
    progress: Progress | None = None,
    *,
    learn_validation: bool = False,
    runs_dir: Path | None = None,
) -> Fitted:
    """Return the blend of config.parts: presets, trained now, or additive runs of runs_dir.

    Where learn_validation, linear parts are fitted again with the validation users after the weights
    were chosen; others stay. A run has met these users in its training, so its share beside a preset
    comes out larger than it should. Raises UsageError where a part is not additive, or is a run of other
    data or of another split of the users.
    """
    names = [name for name in config.parts.split(",") if name]
    if len(names) < 2:
        raise UsageError(f"parts is {config.parts!r}; expected two or more presets or runs with commas")
    parts = [_part(name, data, config, progress, runs_dir) for name in names]
    weights = _weights(parts, data)
    if learn_validation:
        parts = [
            _part("linear", data, config, progress, runs_dir, learn_validation=True)
            if part.name == "linear"
            else part
            for part in parts
        ]
    history, movies = join([(part.history, part.movies) for part in parts], weights)
    learned_from = data.split.untested if learn_validation else data.split.train
    history, movies = compress(history, movies, data.bags_of(learned_from), data.embedding_dim(config))
    best = {"parts": dict(zip(names, (round(weight, 4) for weight in weights), strict=True))}
    return Fitted(None, movies, pooled_tower(history, config.half_life), [], best)


def join(parts: Sequence[tuple[Matrix, Matrix]], weights: Sequence[float]) -> tuple[Matrix, Matrix]:
    """Return E and V whose scores are the weighted sum of the parts' scores.

    parts: E and V of each, (n_movies, its width) float32.
    """
    history = np.concatenate([weight * e for (e, _), weight in zip(parts, weights, strict=True)], axis=1)
    return history.astype(np.float32), np.concatenate([v for _, v in parts], axis=1)


def compress(history: Matrix, movies: Matrix, bags: Bags, width: int) -> tuple[Matrix, Matrix]:
    """Return E and V of that width whose scores for bags are nearest to those of history and movies.

    Nearest in the sum of squares over users and movies. They come back as they are where they are
    not wider, with columns of zeros.
    """
    missing = width - movies.shape[1]
    if missing >= 0:
        return np.pad(history, ((0, 0), (0, missing))), np.pad(movies, ((0, 0), (0, missing)))
    basis, triangle = np.linalg.qr(movies.astype(np.float64))  # movies = basis @ triangle
    turned = history @ triangle.T  # E in that basis: scores = psi(turned) @ basis.T
    psi = AdditiveTower(turned.astype(np.float32)).batch(bags).astype(np.float64)
    rotation = np.linalg.eigh(psi.T @ psi)[1][:, ::-1][:, :width]
    return (turned @ rotation).astype(np.float32), (basis @ rotation).astype(np.float32)


def _part(
    name: str,
    data: Prepared,
    config: TrainConfig,
    progress: Progress | None,
    runs_dir: Path | None,
    *,
    learn_validation: bool = False,
) -> _Part:
    if name in PRESETS:
        from embedstore.training import fit as fit_preset

        own = TrainConfig.of(name, {"seed": config.seed})  # who is held out, and what is liked, data says
        part = fit_preset(data, own, progress=progress, learn_validation=learn_validation)
        tower, movies = part.tower, part.movie_vectors
        history = tower.history_vectors if isinstance(tower, AdditiveTower) else None
    else:
        run = _run(name, data, config, runs_dir)
        history, movies = run.history_vectors, run.movie_vectors
        if history is not None and run.cold.any():  # the blend predicts its own
            history, movies = history[~run.cold], movies[~run.cold]
    if history is None:
        raise UsageError(f"part {name} is not additive; only additive models can be joined and compressed")
    spread = _scores(history, movies, data.bags_of(data.split.train[:_SAMPLE])).std()
    return _Part(name, np.asarray(history / max(float(spread), 1e-12), np.float32), np.asarray(movies))


def _run(name: str, data: Prepared, config: TrainConfig, runs_dir: Path | None) -> Run:
    from embedstore.runs.registry import find_run

    if runs_dir is None:
        raise UsageError(f"part {name!r} is not a preset; expected some of {', '.join(PRESETS)}")
    run = find_run(runs_dir, name)
    if run.manifest.dataset.get("sha256") != data.dataset.sha256:
        raise UsageError(f"part {run.run_id} was trained on other data; blend runs of one data set")
    for key in SPLIT:  # so that no part saw a test user
        made = run.manifest.config.get(key)
        if made != getattr(config, key):
            raise UsageError(
                f"part {run.run_id} was trained with {key}={made}, the blend has {getattr(config, key)}; "
                "it may have learned from the users that the blend is measured on"
            )
    return run


def _weights(parts: Sequence[_Part], data: Prepared) -> list[float]:
    """Return the weight of every part: each joins those before it with the share that validates best.

    Equal weights where there are no validation users.
    """
    if not len(data.validation):
        return [1 / len(parts)] * len(parts)
    weights = [1.0]
    for n_joined in range(2, len(parts) + 1):
        joined = [(part.history, part.movies) for part in parts[:n_joined]]
        mixes = [[*((1 - share) * weight for weight in weights), share] for share in _SHARES]
        ndcgs = [_ndcg(*join(joined, mix), data) for mix in mixes]
        weights = mixes[int(np.argmax(ndcgs))]
    return weights


def _ndcg(history: Matrix, movies: Matrix, data: Prepared) -> float:
    scorer = vector_scorer(AdditiveTower(history).batch, movies)
    return float(evaluate(scorer, data.validation).ndcg.mean())


def _scores(history: Matrix, movies: Matrix, bags: Bags) -> Matrix:
    return AdditiveTower(np.asarray(history)).batch(bags) @ movies.T
