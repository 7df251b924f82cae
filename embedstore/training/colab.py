"""The seed of this project: the softmax DNN of Google's recommendation course, kept faithful.

Features genre (3), movie_id (35) and year (2), each the mean of an embedding column that starts
from truncated normal(1 / sqrt(dim)), concatenated in alphabetical order; hidden layers linear,
without bias, truncated normal(1 / sqrt(width)) divided by 10 in the graph (so the division also
scales their gradient); V_j is the movie_id table itself; Adagrad, learning rate 8, initial
accumulator 0.1; 3,000 steps of 200 users with one random movie of each user as the label.

Kept, although a well-made recommender would not do so:
- the label stays among the inputs, so the model learns in part to hand back its input;
- every rating is a positive, a bad one too;
- V_j is tied to the input table, and there is no item bias.

Different, and only so:
- the course's vocabulary is list(set(...)), another order in every process; ours is sorted;
- the course splits its genres at '-', which destroys Film-Noir and Sci-Fi; ours are true names;
- the course holds out a tenth of the ratings and reports precision@10 with one label, which
  cannot exceed 0.1; here users are held out, as for every preset;
- a movie without a year adds nothing to the year feature; the course has an empty label there,
  which its vocabulary lookup ignores as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from embedstore.data.dataset import labels_of
from embedstore.data.features import Bags
from embedstore.evaluation.serving import evaluate, vector_scorer
from embedstore.runs.tower import DenseTower, Feature, MovieFeature, TowerInput, TowerLayer
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import Fitted, Prepared, Progress, TrainProgress

__all__ = ["ColabModel", "fit", "movie_features"]

GENRE_DIM = 3
YEAR_DIM = 2
INITIAL_ACCUMULATOR = 0.1
LOG_EVERY = 100  # steps; the course's "epoch" of the log


class ColabModel(keras.Model):  # type: ignore[misc]
    """psi: a multi-hot history (n_users, n_movies) to user embeddings (n_users, embedding_dim).

    genres: (n_movies, n_genres) float32, ones where a movie has the genre; years likewise.
    """

    def __init__(
        self, config: TrainConfig, genres: npt.NDArray[np.float32], years: npt.NDArray[np.float32]
    ) -> None:
        super().__init__()
        seeds = iter(
            np.random.default_rng([config.seed, 2]).integers(2**31, size=16 + len(config.hidden_dims))
        )
        self.incidence = {"genres": tf.constant(genres), "years": tf.constant(years)}
        dims = {"genres": GENRE_DIM, "movies": config.hidden_dims[-1], "years": YEAR_DIM}
        counts = {"genres": genres.shape[1], "movies": len(genres), "years": years.shape[1]}
        self.tables = {
            name: self._weight(name, (counts[name], dims[name]), dims[name], int(next(seeds)))
            for name in ("genres", "movies", "years")
            if counts[name]
        }
        width = sum(dims[name] for name in self.tables)
        self.kernels = []
        for position, units in enumerate(config.hidden_dims):
            self.kernels.append(self._weight(f"hidden{position}_w", (width, units), units, int(next(seeds))))
            width = units
        self.built = True

    def _weight(self, name: str, shape: tuple[int, int], dim: int, seed: int) -> keras.Variable:
        initializer = keras.initializers.TruncatedNormal(stddev=1 / np.sqrt(dim), seed=seed)
        return self.add_weight(name=name, shape=shape, initializer=initializer)

    def call(self, multi_hot: tf.Tensor) -> tf.Tensor:
        pooled = []
        for name, table in self.tables.items():
            counts = multi_hot if name == "movies" else tf.matmul(multi_hot, self.incidence[name])
            size = tf.maximum(tf.reduce_sum(counts, axis=1, keepdims=True), 1.0)
            pooled.append(tf.matmul(counts, table) / size)
        x = tf.concat(pooled, axis=1)
        for kernel in self.kernels:
            x = tf.matmul(x, kernel / 10.0)
        return x

    def logits(self, multi_hot: tf.Tensor) -> tf.Tensor:
        """Return psi(X) . V_j for all movies, shape (n_users, n_movies)."""
        return tf.matmul(self(multi_hot), self.tables["movies"], transpose_b=True)

    def movie_vectors(self) -> npt.NDArray[np.float32]:
        """Return V, shape (n_movies, embedding_dim): the input table."""
        return np.asarray(self.tables["movies"].numpy())

    def tower(self, features: dict[str, MovieFeature]) -> DenseTower:
        """Return psi as data."""
        names: dict[str, Feature] = {"genres": "genres", "movies": "movies", "years": "years"}
        inputs = [TowerInput(names[name], table.numpy(), "mean") for name, table in self.tables.items()]
        layers = [TowerLayer((kernel / 10.0).numpy(), None, "linear") for kernel in self.kernels]
        used = {name: feature for name, feature in features.items() if name in self.tables}
        return DenseTower(inputs, layers, constant=False, features=used)


def movie_features(data: Prepared) -> dict[str, MovieFeature]:
    """Return the genres and years of the run's movies; labels are sorted."""
    return {
        name: _feature(name, [labels_of(name, movie) for movie in data.catalog])
        for name in ("genres", "years")
    }


def fit(data: Prepared, config: TrainConfig, progress: Progress | None = None) -> Fitted:
    """Return the model after config.steps steps; the last is kept, as in the course."""
    features = movie_features(data)
    n_movies = data.n_movies
    model = ColabModel(config, _incidence(features["genres"]), _incidence(features["years"]))
    optimizer = keras.optimizers.Adagrad(config.learning_rate, initial_accumulator_value=INITIAL_ACCUMULATOR)
    optimizer.build(model.trainable_variables)
    bags = data.bags_of(data.split.train)
    steps = _steps_function(model, optimizer, bags, n_movies, config)

    n_users = len(bags)
    rng = np.random.default_rng([config.seed, 3])
    queue = np.zeros(0, np.int64)  # shuffled passes end to end: a batch may span two of them
    log: list[dict[str, Any]] = []
    ndcg: float | None = None
    best: float | None = None
    started = time.perf_counter()
    for first in range(0, config.steps, LOG_EVERY):
        last = min(first + LOG_EVERY, config.steps)
        wanted = (last - first) * config.batch_size
        passes = [rng.permutation(n_users) for _ in range(-(-max(wanted - queue.size, 0) // n_users))]
        queue = np.concatenate([queue, *passes]).astype(np.int64)
        order, queue = queue[:wanted], queue[wanted:]
        batches = tf.constant(order.reshape(last - first, config.batch_size))
        loss = float(steps(batches, tf.constant(first, tf.int64))) / (last - first)
        if len(data.validation):
            scorer = vector_scorer(model.tower(features).batch, model.movie_vectors())
            ndcg = float(evaluate(scorer, data.validation).ndcg.mean())
            best = ndcg if best is None else max(best, ndcg)
        epoch = len(log) + 1
        log.append(
            {
                "epoch": epoch,
                "step": last,
                "loss": round(loss, 6),
                "validation_ndcg@100": None if ndcg is None else round(ndcg, 6),
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
        if progress:
            progress(TrainProgress(last, config.steps, epoch, loss, ndcg, best))
    return Fitted(
        model=model,
        movie_vectors=model.movie_vectors(),
        tower=model.tower(features),
        log=log,
        best={"epoch": len(log), "epochs": len(log), "validation_ndcg@100": ndcg},
    )


def _steps_function(
    model: ColabModel, optimizer: keras.optimizers.Optimizer, bags: Bags, n_movies: int, config: TrainConfig
) -> Any:
    """Return the compiled loop: batches of users (n_steps, batch_size) -> the sum of their losses."""
    all_rows, all_offsets = tf.constant(bags.rows), tf.constant(bags.offsets)
    seed = config.seed

    def step(users: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        starts, ends = tf.gather(all_offsets, users), tf.gather(all_offsets, users + 1)
        ragged = tf.ragged.range(starts, ends)
        places = tf.stack([ragged.value_rowids(), tf.gather(all_rows, ragged.values)], axis=1)
        shape = tf.stack([tf.size(users, out_type=tf.int64), n_movies])
        seen = tf.scatter_nd(places, tf.ones_like(ragged.values, tf.float32), shape)
        chance = tf.random.stateless_uniform(
            tf.shape(users), tf.stack([tf.constant(seed, tf.int64), number]), dtype=tf.float64
        )
        picked = starts + tf.cast(chance * tf.cast(ends - starts, tf.float64), tf.int64)
        labels = tf.gather(all_rows, picked)  # one random movie of each user; it stays in seen
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=model.logits(seen))
            loss = tf.reduce_mean(losses)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec((None, config.batch_size), tf.int64), tf.TensorSpec((), tf.int64)],
        autograph=False,
    )
    def steps(batches: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        n_steps = tf.shape(batches, out_type=tf.int64)[0]

        def body(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return index + 1, total + step(batches[index], first + index)

        start = (tf.constant(0, tf.int64), tf.constant(0.0))
        return tf.while_loop(lambda index, _: index < n_steps, body, start)[1]

    return steps


def _feature(name: str, values: Sequence[Sequence[str]]) -> MovieFeature:
    labels = sorted({label for part in values for label in part})
    row_of = {label: row for row, label in enumerate(labels)}
    bags = Bags.of([[row_of[label] for label in part] for part in values])
    return MovieFeature(name, bags.offsets, bags.rows, labels)


def _incidence(feature: MovieFeature) -> npt.NDArray[np.float32]:
    """Return how often each movie has each label, shape (n_movies, n_labels)."""
    n_movies = feature.offsets.size - 1
    dense = np.zeros((n_movies, len(feature.labels)), dtype=np.float32)
    np.add.at(dense, (np.repeat(np.arange(n_movies), np.diff(feature.offsets)), feature.values), 1)
    return dense
