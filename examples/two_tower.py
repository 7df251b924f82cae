"""A two-tower retrieval model, its users in Qdrant, and what to do about users whom it does not know.

The model is that of the Keras and TensorFlow Recommenders tutorials: the user tower embeds a user's id,
the movie tower a movie's id, and the score of a pair is the dot product of the two, psi . V_j. It is trained
on (user, movie) pairs by in-batch softmax: each user of a batch must find their own movie among all movies
of the batch. A popular movie is in more batches and so would be pushed down more often; the log of its
share ("log q") is taken from the logits to undo that. Without this the model here loses to popularity.

psi of a known user is three lines: see user_embedding. An unknown user has no row in the user tower: they
get that of "out of vocabulary", the same for everybody. Two ways out, both with the movie tower as it is:

  fold in   Find one row E_j per movie, so that the mean of E_j over a known user's history is close to the
            psi that training found for them: ridge regression, in closed form. Then psi of *any* history is
            a mean, embedstore serves it (--user, --history, --explain), and Qdrant itself can compute it.
  solve     Find the psi of one history that has the smallest training loss, with V held still.

    python examples/two_tower.py --data data/ml-100k --out two_tower

What it writes is below --out: V.npy, E.npy and movies.csv; psi.npy; runs; store. With --files-only it stops
after the first three, which examples/nightly.sh imports.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import ops
from scipy.optimize import minimize
from scipy.sparse import csr_array

from embedstore import Run, TrainConfig, import_run, load, open_store, recommend, sync
from embedstore.data.features import Bags, Ids, Rows
from embedstore.data.splits import HeldOut, hide_ratings
from embedstore.evaluation.baselines import Scorer, popularity
from embedstore.evaluation.serving import evaluate, vector_scorer
from embedstore.query.recommend import Answer
from embedstore.training.prepared import Prepared, prepare

Matrix = npt.NDArray[np.floating]

DIM = 64
WATCHED = 0.3  # the weight of a movie that was watched and not liked; liked is 1
L2 = 0.03  # of psi and V_j, in training and in solve
RIDGE = (0.001, 0.003, 0.01, 0.03, 0.1)  # of fold_in; validation users choose


class TwoTower(keras.Model):
    """psi and V_j of a batch of pairs. log_q: the log of each movie's share of the pairs, (n_movies,)."""

    def __init__(self, users: list[str], movies: list[str], log_q: Matrix) -> None:
        super().__init__()
        self.user_tower, self.movie_tower = (
            keras.Sequential(
                [
                    keras.layers.StringLookup(vocabulary=names),  # what it does not know is 0
                    keras.layers.Embedding(len(names) + 1, DIM, keras.initializers.RandomNormal(stddev=0.1)),
                ]
            )
            for names in (users, movies)
        )
        self.log_q = ops.convert_to_tensor(log_q, "float32")

    def call(self, pair: dict[str, Any]) -> tuple[Any, Any]:
        return self.user_tower(pair["user"]), self.movie_tower(pair["movie"])

    def compute_loss(
        self, x: Any, y: Any, y_pred: tuple[Any, Any], sample_weight: Any, training: bool = True
    ) -> Any:
        """In-batch softmax; y is the row of the pair's movie."""
        psi, vectors = y_pred  # (batch, DIM) each
        logits = psi @ ops.transpose(vectors) - ops.take(self.log_q, y)
        own = ops.arange(ops.shape(y)[0])
        twice = (y[:, None] == y[None, :]) & (own[:, None] != own[None, :])
        logits = ops.where(twice, -1e9, logits)  # the same movie, in another pair, is no wrong answer
        losses = keras.losses.sparse_categorical_crossentropy(own, logits, from_logits=True)
        size = ops.sum(psi**2 + vectors**2, axis=1)
        return ops.sum(sample_weight * losses) / ops.sum(sample_weight) + L2 * ops.mean(size)


def train(data: Prepared, learned: npt.NDArray[np.bool_], *, epochs: int) -> TwoTower:
    """Train on the ratings of data that learned marks, (n_ratings,)."""
    keras.utils.set_random_seed(0)
    user_rows, movie_rows = data.dataset.user_rows[learned], data.histories.rows[learned]
    weights = np.where(data.liked[learned], 1, WATCHED).astype(np.float32)
    share = np.bincount(movie_rows, weights, minlength=data.n_movies) + 1e-3
    users = data.dataset.users.values.astype(str)
    movies = ids_of(data).astype(str)
    known = np.unique(user_rows)
    model = TwoTower(users[known].tolist(), movies.tolist(), np.log(share / share.sum()))
    model.compile(keras.optimizers.Adam(0.01))
    pairs = {"user": users[user_rows], "movie": movies[movie_rows]}
    batches = tf.data.Dataset.from_tensor_slices((pairs, movie_rows, weights))
    model.fit(batches.shuffle(movie_rows.size).batch(2048), epochs=epochs, shuffle=False, verbose=2)
    return model


def user_embedding(model: TwoTower, user_id: object) -> Matrix:
    """Return psi of one user, (DIM,): what the user tower gives for the id. This is the whole answer."""
    ids = ops.convert_to_tensor([str(user_id)])
    psi = model.user_tower(ids)
    return np.asarray(psi[0])


def ids_of(data: Prepared) -> Ids:
    """Return the movie of every row of V."""
    return data.dataset.movies.values[data.catalog_rows]


def mean_of(bags: Bags, n_movies: int) -> csr_array:
    """Return the matrix that takes the mean over each history, (n_users, n_movies)."""
    shares = 1 / np.repeat(bags.sizes, bags.sizes)
    return csr_array((shares, bags.rows, bags.offsets), shape=(len(bags), n_movies))


def fold_in(psi: Matrix, bags: Bags, n_movies: int, ridge: float) -> Matrix:
    """Return E, (n_movies, DIM), whose mean over history u is near psi_u: (X'X + ridge I)^-1 X' psi."""
    x = mean_of(bags, n_movies)
    gram = (x.T @ x).toarray() + ridge * np.eye(n_movies)
    return np.linalg.solve(gram, x.T @ psi.astype(np.float64)).astype(np.float32)


def solve(bags: Bags, vectors: Matrix, average: Matrix) -> Matrix:
    """Return the psi of each history, (n_users, DIM), that has the least loss: softmax over all movies.

    The L2 of training holds it near the average user, of whom a new one is the likeliest to be like.
    """
    v, start = vectors.astype(np.float64), average.astype(np.float64)

    def solved(history: Rows) -> Matrix:
        watched = v[history].mean(axis=0)

        def loss(psi: Matrix) -> tuple[float, Matrix]:
            logits, away = v @ psi, psi - start
            weights = np.exp(logits - logits.max())
            value = logits.max() + np.log(weights.sum()) - watched @ psi + L2 * away @ away
            return value, weights @ v / weights.sum() - watched + 2 * L2 * away

        return minimize(loss, start, jac=True, method="L-BFGS-B").x

    return np.array([solved(bags.part(user, user + 1).rows) for user in range(len(bags))], np.float32)


def check(answer: Answer, scores: Matrix, ids: Ids, watched: Rows) -> None:
    """Print what Qdrant answered; an error where it is not the brute force over all movies."""
    for movie in answer.recommendations:
        print(f"{movie.rank:4}  {movie.score:7.4f}  {movie.title}")
    scores[watched] = -np.inf
    best = np.argsort(-scores)[: len(answer.recommendations)]
    np.testing.assert_array_equal([movie.movie_id for movie in answer.recommendations], ids[best])
    np.testing.assert_allclose([movie.score for movie in answer.recommendations], scores[best], atol=1e-4)


def write_files(out: Path, data: Prepared, vectors: Matrix, rows: Matrix) -> None:
    """Write V.npy, E.npy, and their movies in the same order, as `embedstore runs import` reads them."""
    np.save(out / "V.npy", vectors, allow_pickle=False)
    np.save(out / "E.npy", rows, allow_pickle=False)
    with (out / "movies.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["movieId", "title", "genres"])
        for movie_id, movie in zip(ids_of(data).tolist(), data.catalog, strict=True):
            year = f" ({movie.year})" if movie.year else ""
            table.writerow([movie_id, f"{movie.title or ''}{year}", "|".join(movie.genres)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/ml-100k"), help="folder or file of ratings")
    parser.add_argument("--out", type=Path, default=Path("two_tower"), help="folder to write to")
    parser.add_argument("--user", default="42", help="a user who is asked for psi")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--files-only", action="store_true", help="write V, E and movies, and stop")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    # Who is known: the users of the training split. A fifth of them hide a fifth of their ratings, to ask
    # the user tower for; the validation and test users are unknown, as whoever signs up tomorrow is.
    dataset = load(args.data)
    data = prepare(dataset, TrainConfig())
    n_movies, ids = data.n_movies, ids_of(data)
    users = data.split.train
    row = dataset.users.row(dataset.users.parse(args.user))
    if row not in users and not args.files_only:
        raise SystemExit(f"user {args.user} is no user that the model learns from; choose another by --user")
    known, new = hide_ratings(data.histories, data.liked, users[::5], seed=1), data.test
    hidden = np.isin(dataset.user_rows, known.users)
    hidden[known.known_at] = False
    learned = np.isin(dataset.user_rows, users) & (args.files_only | ~hidden)
    model = train(data, learned, epochs=args.epochs)

    every_movie = ops.convert_to_tensor(ids.astype(str))
    every_user = ops.convert_to_tensor(dataset.users.values.astype(str))
    vectors = np.asarray(model.movie_tower(every_movie))  # V, (n_movies, DIM)
    by_id = np.asarray(model.user_tower(every_user))  # psi, (n_users, DIM); all alike where unknown
    positions, offsets = data.positions_of(users)
    ratings = Bags(data.histories.rows[positions], offsets)
    histories, liked = ratings.where(learned[positions]), ratings.where((learned & data.liked)[positions])

    def ndcg(scorer: Scorer, held_out: HeldOut) -> float:
        return evaluate(scorer, held_out).means()["ndcg@100"]

    def folded(rows: Matrix) -> Scorer:
        return vector_scorer(lambda bags: mean_of(bags, n_movies) @ rows, vectors)

    fits = [fold_in(by_id[users], histories, n_movies, ridge) for ridge in RIDGE]
    found = [ndcg(folded(rows), data.validation) for rows in fits]
    rows = fits[int(np.argmax(found))]  # E, (n_movies, DIM)
    write_files(args.out, data, vectors, rows)
    if args.files_only:
        return

    print(f"\npsi of user {args.user}, V without a tower: Qdrant answers the query vector psi")
    psi = user_embedding(model, args.user)
    np.save(args.out / "psi.npy", psi, allow_pickle=False)
    watched = data.bags_of(np.array([row])).rows
    table = dict(zip(ids.tolist(), data.catalog, strict=True))
    bare = import_run(vectors, ids, movies=table, runs_dir=args.out / "runs")
    with open_store(args.out / "store", create=True) as store:
        sync(Run.load(bare.path), store)
        answer = recommend(None, store, vector=psi, exclude=ids[watched].tolist())
        check(answer, vectors @ psi, ids, watched)

    print("\nnobody and somebody, whom the user tower does not know, have the same psi")
    np.testing.assert_array_equal(user_embedding(model, "nobody"), user_embedding(model, "somebody"))

    average = by_id[users].mean(axis=0)
    scorers: dict[str, Scorer] = {
        "user tower, by id": lambda batch: by_id[batch.users] @ vectors.T,
        "fold in, mean of E_j": folded(rows),
        "solve, against V": vector_scorer(lambda bags: solve(bags, vectors, average), vectors),
        "popularity": popularity(liked, n_movies),
    }
    print(f"ridge {RIDGE[int(np.argmax(found))]:g} by validation users\n")
    print(f"NDCG@100              {len(known):>5} known users  {len(new):>5} new users")
    for name, scorer in scorers.items():
        print(f"{name:<20}  {ndcg(scorer, known):>17.4f}  {ndcg(scorer, new):>15.4f}")

    stranger = int(new.users[0])
    user_id = dataset.users.values[stranger].item()
    print(f"\nuser {user_id}, whom training never saw, by the history; the run has E as its tower")
    sealed = import_run(vectors, ids, tower=rows, movies=table, ratings=dataset, runs_dir=args.out / "runs")
    np.testing.assert_allclose(sealed.metrics["ndcg@100"], ndcg(folded(rows), new), atol=1e-4)
    run = Run.load(sealed.path)
    with open_store(args.out / "store") as store:
        sync(run, store)
        answer = recommend(run, store, user_id=user_id)
    watched = data.bags_of(np.array([stranger])).rows
    check(answer, vectors @ rows[watched].mean(axis=0), ids, watched)

    print("\nthe same from the shell (of a vector, nothing is known to be watched):")
    where = f"--runs {args.out / 'runs'} --store {args.out / 'store'}"
    print(f"embedstore query --vector {args.out / 'psi.npy'} {where}")
    print(f"embedstore query --user {user_id} --explain {where}")


if __name__ == "__main__":
    main()
