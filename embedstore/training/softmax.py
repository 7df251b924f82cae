"""The softmax DNN: all movies that a user liked as one multinomial target.

A step hides a random part of each history (dropout) and predicts it from the rest, among the
movies that are left: what a query is asked, and why no movie learns to predict itself. E_j (the
input) and V_j (the output) are untied and start from a truncated SVD of the normalised ratings,
which is worth about .05 of NDCG and half of the epochs. A constant last dimension of psi(X)
carries the item bias, so that a score is one dot product. The additive form, the default, adds to
its score that of the closed form of linear.py, in the other half of the same vectors. On
ML-100K the sum does not beat that closed form alone: docs/quality.md has the figures.

Each step holds three dense matrices of batch_size x n_movies.
"""

from __future__ import annotations

import time
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from embedstore.data.features import Bags, Rows
from embedstore.evaluation.serving import evaluate, vector_scorer
from embedstore.runs.tower import AdditiveTower, DenseTower, Pooling, TowerInput, TowerLayer, recency
from embedstore.training import linear
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import Fitted, Prepared, Progress, TrainProgress

__all__ = ["SoftmaxModel", "fit", "multi_hot"]

Matrix = npt.NDArray[np.float32]

_CALL = 32  # steps of one call of the compiled loop: how often progress shows and Ctrl-C is heard
_BLIND_EPOCHS = 50  # at most, where no validation user says when to stop
_FEWEST_EPOCHS, _PATIENT_STEPS = 4, 105  # both must pass without a better NDCG, where patience is auto
_NARROWEST, _WIDEST = 5, 256  # of an embedding that holds the closed form as well
_WEIGHT = 0.7  # of the softmax beside the closed form while it trains, and where nobody chooses
_WEIGHTS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
_MANY_RATINGS = 300_000  # above, the validation users teach the softmax too little for a second training
_SAMPLE = 500  # users whose scores tell how far scores spread
_POPULARITY_POWER = 0.25
_HISTORY_SCALE = 20.0  # mean of E over a history to logits of unit order
_MASKED = 1e9
_EMPTY = 1e-30  # instead of the size 0 of an empty history


class SoftmaxModel(keras.Model):  # type: ignore[misc]
    """psi: a multi-hot history (n_users, n_movies) to user embeddings (n_users, embedding_dim).

    pooled = mean (or sum / sqrt(n)) of E_j; hidden layers tanh, then linear; a last dimension 1.
    """

    def __init__(self, config: TrainConfig, history: Matrix, movies: Matrix, bias: Matrix) -> None:
        super().__init__()
        width = history.shape[1]
        self.pooling = config.pooling
        self.half_life = config.half_life
        self.history = self._table("history", history)
        self.movies = self._table("movies", movies)
        self.bias = self._table("bias", bias)
        seeds = np.random.default_rng([config.seed, 2]).integers(2**31, size=len(config.hidden_dims) + 1)
        self.hidden: list[keras.layers.Dense] = []
        sizes = [*config.hidden_dims, width] if config.hidden_dims else []
        for position, (units, seed) in enumerate(zip(sizes, seeds.tolist(), strict=False)):
            layer = keras.layers.Dense(
                units,
                activation="linear" if position == len(sizes) - 1 else "tanh",
                kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
            )
            layer.build((None, width if position == 0 else sizes[position - 1]))
            self.hidden.append(layer)
        self.built = True

    def _table(self, name: str, values: Matrix) -> keras.Variable:
        return self.add_weight(
            name=name, shape=values.shape, initializer=lambda shape, dtype: tf.constant(values, dtype)
        )

    def call(self, multi_hot: tf.Tensor) -> tf.Tensor:
        x = self.embed(multi_hot)
        return tf.concat([x, tf.ones_like(x[:, :1])], axis=1)

    def embed(self, multi_hot: tf.Tensor) -> tf.Tensor:
        """Return psi(X) without its constant dimension."""
        size = tf.maximum(tf.reduce_sum(multi_hot, axis=1, keepdims=True), _EMPTY)
        x = tf.matmul(multi_hot, self.history) / (size if self.pooling == "mean" else tf.sqrt(size))
        for layer in self.hidden:
            x = layer(x)
        return x

    def logits(self, multi_hot: tf.Tensor) -> tf.Tensor:
        """Return psi(X) . V_j for all movies, shape (n_users, n_movies)."""
        return tf.matmul(self.embed(multi_hot), self.movies, transpose_b=True) + self.bias

    def movie_vectors(self) -> Matrix:
        """Return V, shape (n_movies, embedding_dim), the item bias last."""
        bias = self.bias.numpy()[:, None]
        return np.concatenate([self.movies.numpy(), bias], axis=1)

    def tower(self) -> AdditiveTower | DenseTower:
        """Return psi as data: an additive tower where it is the mean of one row per movie."""
        table = self.history.numpy()
        if not self.hidden and self.pooling == "mean":
            rows = np.concatenate([table, np.ones((len(table), 1), np.float32)], axis=1)
            return linear.pooled_tower(rows, self.half_life)
        last = len(self.hidden) - 1
        layers = [
            TowerLayer(
                layer.kernel.numpy(),
                layer.bias.numpy(),
                "linear" if position == last else "tanh",
            )
            for position, layer in enumerate(self.hidden)
        ]
        pooling: Pooling = "mean" if self.pooling == "mean" else "l2"
        return DenseTower([TowerInput("movies", table, pooling, self.half_life)], layers, constant=True)


def multi_hot(bags: Bags, n_movies: int, half_life: float | None = None) -> tf.Tensor:
    """Return the bags as a dense tensor of zeros and ones, or weights, (n_users, n_movies) float32."""
    dense = np.zeros((len(bags), n_movies), dtype=np.float32)
    weights = 1 if half_life is None else recency(bags.sizes, half_life)
    dense[np.repeat(np.arange(len(bags)), bags.sizes), bags.rows] = weights
    return tf.constant(dense)


def fit(
    data: Prepared,
    config: TrainConfig,
    progress: Progress | None = None,
    *,
    learn_validation: bool = False,
) -> Fitted:
    """Train the softmax model of config; it stops when the NDCG of the validation users does.

    Where it is additive (no hidden layer, mean pooling), the closed form of linear.py takes half of
    the width beside the softmax model, and the two scores are added: one dot product, two ways of
    being wrong. The weight of the second is chosen on the validation users. learn_validation:
    with epochs and weight chosen, both are trained again on the validation users as well (above
    300,000 ratings the closed form alone).

    Without a validation user it stops after 50 epochs at most and keeps the last.
    """
    beside = not config.hidden_dims and config.pooling == "mean"
    dim = config.embedding_dim or min(2 * data.embedding_dim(config), _WIDEST)
    width = (dim - 1) // 2 if beside and dim >= _NARROWEST else 0
    closed = TrainConfig.of("linear", {"embedding_dim": width, "seed": config.seed}) if width else None
    training = _Training(data, config, data.split.train, dim - width, closed)
    n_epochs = config.epochs if len(data.validation) else min(config.epochs, _BLIND_EPOCHS)
    patience = config.patience or max(_FEWEST_EPOCHS, -(-_PATIENT_STEPS // training.per_epoch))
    log: list[dict[str, Any]] = []
    kept = training.model.get_weights()
    best_ndcg: float | None = None
    best_epoch = 0
    ndcg: float | None = None
    started = time.perf_counter()
    for epoch in range(1, n_epochs + 1):
        loss = training.epoch(epoch, n_epochs, progress, ndcg, best_ndcg)
        ndcg = training.ndcg(_WEIGHT)
        log.append(
            {
                "epoch": epoch,
                "loss": round(loss, 6),
                "validation_ndcg@100": None if ndcg is None else round(ndcg, 6),
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
        if ndcg is None or best_ndcg is None or ndcg > best_ndcg:
            best_ndcg, best_epoch, kept = ndcg, epoch, training.model.get_weights()
        elif epoch - best_epoch >= patience:
            break
    training.model.set_weights(kept)
    best = {"epoch": best_epoch, "epochs": len(log), "validation_ndcg@100": best_ndcg}
    weight = _WEIGHT
    if closed and best_ndcg is not None:
        weight = max(_WEIGHTS, key=lambda candidate: training.ndcg(candidate) or 0.0)
        best["weight"] = weight
    if learn_validation and len(data.validation):
        users = data.split.untested
        if training.bags.rows.size > _MANY_RATINGS:
            training.closed = training.solved(closed, users) if closed else None
        else:
            training = _Training(data, config, users, dim - width, closed)
            for epoch in range(1, best_epoch + 1):
                training.epoch(epoch, best_epoch, progress, ndcg, best_ndcg)
    model = training.joined(weight)
    return Fitted(model, model.movie_vectors(), model.tower(), log, best)


class _Training:
    """A softmax model of width dim that learns from users, and the closed form of them beside it."""

    def __init__(
        self, data: Prepared, config: TrainConfig, users: Rows, dim: int, closed: TrainConfig | None
    ) -> None:
        self.data, self.config = data, config
        self.bags = data.bags_of(users)
        self.closed = self.solved(closed, users) if closed else None
        weights = data.grades_of(users, watched_weight=config.watched_weight).astype(np.float32)
        self.model = SoftmaxModel(config, *_initial(self.bags, weights, data.n_movies, dim - 1, config.seed))
        optimizer = keras.optimizers.Adam(config.learning_rate)
        optimizer.build(self.model.trainable_variables)
        self.steps = _steps_function(self.model, optimizer, self.bags, weights, data.n_movies, config)
        self.per_epoch = -(-len(users) // config.batch_size)
        self.rng = np.random.default_rng([config.seed, 3])

    def epoch(
        self, epoch: int, n_epochs: int, progress: Progress | None, ndcg: float | None, best: float | None
    ) -> float:
        """Take every user once, in random order, and return the mean loss of the steps."""
        order = self.rng.permutation(len(self.bags)).astype(np.int64)
        size, per_epoch, total = self.config.batch_size, self.per_epoch, 0.0
        for first in range(0, per_epoch, _CALL):
            last = min(first + _CALL, per_epoch)
            number = (epoch - 1) * per_epoch + first
            users = tf.constant(order[first * size : last * size])
            total += float(self.steps(users, tf.constant(number, tf.int64)))
            if progress:
                done = (epoch - 1) * per_epoch + last
                progress(TrainProgress(done, n_epochs * per_epoch, epoch, total / last, ndcg, best))
        return total / per_epoch

    def ndcg(self, weight: float) -> float | None:
        """Return NDCG@100 of the validation users, None where there is none."""
        if not len(self.data.validation):
            return None
        model = self.joined(weight)
        scorer = vector_scorer(model.tower().batch, model.movie_vectors())
        return float(evaluate(scorer, self.data.validation).ndcg.mean())

    def joined(self, weight: float) -> SoftmaxModel:
        """Return the model whose score is that of the closed form plus weight x that of the softmax.

        Both are divided by how far the scores of a user spread. Without a closed form: the softmax.
        """
        if self.closed is None:
            return self.model
        history, movies = self.model.history.numpy(), self.model.movies.numpy()
        bias = self.model.bias.numpy()
        scale = np.float32(weight / self.spread(history, movies, bias))
        return SoftmaxModel(
            self.config,
            np.concatenate([self.closed[0], history], axis=1),
            np.concatenate([self.closed[1], movies * scale], axis=1),
            bias * scale,
        )

    def solved(self, closed: TrainConfig, users: Rows) -> tuple[Matrix, Matrix]:
        """Return E and V of the closed form of users, V divided by how far its scores spread."""
        history, movies = linear.solve(self.data, closed, users)
        return history, movies * np.float32(1 / self.spread(history, movies))

    def spread(self, history: Matrix, movies: Matrix, bias: Matrix | float = 0.0) -> float:
        """Return the standard deviation of a user's scores of all movies, the mean of some users."""
        sample = self.data.bags_of(self.data.split.train[:_SAMPLE])
        scores = AdditiveTower(history).batch(sample) @ movies.T + bias
        return max(float(scores.std(axis=1).mean()), 1e-9)


def _steps_function(
    model: SoftmaxModel,
    optimizer: keras.optimizers.Optimizer,
    bags: Bags,
    weights: npt.NDArray[np.float32],
    n_movies: int,
    config: TrainConfig,
) -> Any:
    """Return the compiled loop: users in order -> the sum of the losses of their steps."""
    all_rows, all_offsets, all_weights = map(tf.constant, (*bags, weights))
    size, drop, l2, seed = config.batch_size, config.dropout, config.l2, config.seed
    if config.half_life is not None:
        all_recent = tf.constant(recency(bags.sizes, config.half_life).astype(np.float32))

    def loss_of(seen: tf.Tensor, known: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
        log_softmax = tf.nn.log_softmax(model.logits(seen) - _MASKED * known)
        # a movie of the input has weight 0, and 0 x -1e9 would still cost precision
        likelihood = tf.reduce_sum(tf.where(wanted > 0, wanted * log_softmax, 0.0))
        return -likelihood / tf.maximum(tf.reduce_sum(wanted), 1e-6)

    def step(users: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        bags = tf.ragged.range(tf.gather(all_offsets, users), tf.gather(all_offsets, users + 1))
        places = tf.stack([bags.value_rowids(), tf.gather(all_rows, bags.values)], axis=1)
        shape = tf.stack([tf.size(users, out_type=tf.int64), n_movies])
        chance = tf.random.stateless_uniform(
            tf.shape(bags.values), tf.stack([tf.constant(seed, tf.int64), number])
        )
        kept = tf.cast(chance >= drop, tf.float32)
        known = tf.scatter_nd(places, kept, shape)
        seen = known
        if config.half_life is not None:
            seen = tf.scatter_nd(places, kept * tf.gather(all_recent, bags.values), shape)
        wanted = tf.scatter_nd(places, (1.0 - kept) * tf.gather(all_weights, bags.values), shape)
        with tf.GradientTape() as tape:
            loss = loss_of(seen, known, wanted)
            objective = loss + 0.5 * l2 * tf.reduce_sum(tf.square(model.movies))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(objective, variables), variables)
        return loss

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec((None,), tf.int64), tf.TensorSpec((), tf.int64)], autograph=False
    )
    def steps(order: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        n_steps = (tf.size(order, out_type=tf.int64) + size - 1) // size

        def body(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            users = order[index * size : (index + 1) * size]
            return index + 1, total + step(users, first + index)

        start = (tf.constant(0, tf.int64), tf.constant(0.0))
        return tf.while_loop(lambda index, _: index < n_steps, body, start)[1]

    return steps


def _initial(
    bags: Bags, weights: npt.NDArray[np.float32], n_movies: int, width: int, seed: int
) -> tuple[Matrix, Matrix, Matrix]:
    """Return E and V (n_movies, width) and the item bias (n_movies,) to start from.

    V = the right singular vectors of the weights, divided by the root of the length of a history
    and by popularity^0.25; E = V, scaled by the same power of popularity.
    """
    from scipy.sparse import csr_array

    sizes = np.maximum(bags.sizes, 1)
    values = weights / np.sqrt(np.repeat(sizes, bags.sizes))
    matrix = csr_array((values.astype(np.float64), bags.rows, bags.offsets), shape=(len(bags), n_movies))
    popularity = np.asarray(matrix.sum(axis=0)).ravel() + 1
    scale = popularity**-_POPULARITY_POWER
    matrix = csr_array(matrix.multiply(scale[None, :]))
    rng = np.random.default_rng([seed, 4])
    vectors = _right_vectors(matrix, width, rng)  # (n_movies, width)
    totals = np.bincount(bags.rows, weights=weights, minlength=n_movies)
    bias = np.log(totals + 0.5) - np.log(totals.sum() / n_movies)
    history = vectors * scale[:, None] * _HISTORY_SCALE
    return history.astype(np.float32), vectors.astype(np.float32), bias.astype(np.float32)


def _right_vectors(matrix: Any, width: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the first right singular vectors as columns; small noise where there are too few."""
    rank = min(matrix.shape)
    if width < rank // 2:
        from scipy.sparse.linalg import svds

        vectors = svds(matrix, k=width, v0=rng.normal(size=rank), return_singular_vectors="vh")[2].T[:, ::-1]
    else:
        vectors = np.linalg.svd(matrix.toarray(), full_matrices=False)[2].T[:, :width]
    missing = width - vectors.shape[1]
    if missing:
        noise = rng.normal(scale=0.01, size=(vectors.shape[0], missing))
        vectors = np.concatenate([vectors, noise], axis=1)
    return np.asarray(vectors, dtype=np.float64)
