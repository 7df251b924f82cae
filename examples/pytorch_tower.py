"""A PyTorch user tower, through ONNX, to recommendations out of Qdrant.

The tower embeds the movies that somebody watched, pools them, and two layers make psi(X) of that. It is
trained by a full softmax: psi . V_j over all movies, against what the user watched, with half of it hidden
from the tower. torch.onnx.export writes the tower, NumPy writes V, and embedstore does the rest. It finds
out from the file's names and tables how a history becomes (movies, mask), and that the tower is a plain
stack: so queries need neither PyTorch nor onnxruntime.

    pip install '.[onnx]' torch onnxscript
    embedstore data fetch ml-100k
    python examples/pytorch_tower.py --data data/ml-100k

At the end everything is checked against PyTorch: psi of 100 users, and the answer of a query against brute
force over V. What it writes is below --out, --runs and --store.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.utils.rnn import pad_sequence

from embedstore import Run, import_run, load, open_store, recommend, sync
from embedstore.data.features import Bags
from embedstore.training.config import TrainConfig
from embedstore.training.prepared import Prepared, prepare

WIDTH, DIM = 128, 64
WATCHED = 0.3  # how much a movie that was watched and not liked counts; liked is 1
HIDDEN = 0.5  # of a history, in training


class Tower(nn.Module):
    """psi(X), (n_users, DIM), of movies, (n_users, length): rows of V + 1, padded with 0 where mask is 0."""

    def __init__(self, n_movies: int) -> None:
        super().__init__()
        self.table = nn.Embedding(n_movies + 1, WIDTH, padding_idx=0)
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, DIM))

    def forward(self, movies: Tensor, mask: Tensor) -> Tensor:
        watched = self.table(movies) * mask.unsqueeze(-1)
        count = mask.sum(1, keepdim=True).clamp(min=1)
        return self.layers(watched.sum(1) / count.sqrt())


def padded(histories: Bags) -> tuple[Tensor, Tensor]:
    """Return the inputs of the tower for histories of rows of V."""
    rows = torch.from_numpy(histories.rows + 1)
    movies = pad_sequence(rows.split(histories.sizes.tolist()), batch_first=True)
    return movies, (movies > 0).float()


def train(data: Prepared, *, epochs: int) -> tuple[Tower, nn.Parameter]:
    """Return the tower and V, (n_movies, DIM), trained on the training users of data."""
    torch.manual_seed(0)
    tower = Tower(data.n_movies)
    vectors = nn.Parameter(torch.randn(data.n_movies, DIM) / DIM**0.5)
    adam = torch.optim.Adam([*tower.parameters(), vectors], lr=3e-3, weight_decay=1e-5)
    for epoch in range(epochs):
        losses = []
        for users in torch.randperm(len(data.split.train)).split(128):
            rows = data.split.train[users.numpy()]
            movies, mask = padded(data.bags_of(rows))
            liked, is_liked = padded(data.bags_of(rows, liked_only=True))
            target = torch.zeros(len(rows), data.n_movies + 1)  # column 0 is the padding
            target.scatter_(1, movies, WATCHED * mask).scatter_(1, liked, is_liked)
            target = target[:, 1:] / target[:, 1:].sum(1, keepdim=True)
            shown = mask * (torch.rand_like(mask) > HIDDEN)
            logits = tower(movies, shown) @ vectors.T
            loss = -(target * logits.log_softmax(1)).sum(1).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
        if epoch % 5 == 4 or epoch == epochs - 1:
            print(f"epoch {epoch + 1:>3}  loss {np.mean(losses):.4f}")
    return tower.eval(), vectors


def export(tower: Tower, path: Path) -> None:
    """Write the tower, for any number of users and histories of any length."""
    example = padded(Bags.of([[0, 1, 2], [3, 4]]))
    axes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    torch.onnx.export(
        tower,
        example,
        path,
        input_names=["movies", "mask"],
        output_names=["psi"],
        dynamic_shapes=(axes, axes),
        dynamo=True,
        verbose=False,
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/ml-100k"), help="folder or file of ratings")
    parser.add_argument("--out", type=Path, default=Path("pytorch_tower"), help="folder for the tower and V")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs")
    parser.add_argument("--store", default="store", help="folder or URL of the store")
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()

    # Tested are users whom training never saw, those that embedstore sets aside by default.
    dataset = load(args.data)
    data = prepare(dataset, TrainConfig())
    with torch.enable_grad():
        tower, parameter = train(data, epochs=args.epochs)

    # This is all that PyTorch has to hand over: the tower, V, and which movie each row of V is.
    args.out.mkdir(parents=True, exist_ok=True)
    export(tower, args.out / "tower.onnx")
    vectors = parameter.numpy()
    np.save(args.out / "V.npy", vectors, allow_pickle=False)
    ids = dataset.movies.values[data.catalog_rows]
    sealed = import_run(
        args.out / "V.npy",
        ids,
        tower=args.out / "tower.onnx",
        movies=dict(zip(ids.tolist(), data.catalog, strict=True)),
        ratings=dataset,
        runs_dir=args.runs,
    )
    print(f"\nrun {sealed.run_id}: a {sealed.tower} tower, served by {sealed.served_by}")
    for finding in sealed.findings:
        print(f"  {finding.text}")

    run = Run.load(sealed.path)
    users = data.split.test[:100]
    psi = tower(*padded(data.bags_of(users))).numpy()
    np.testing.assert_allclose(run.tower.batch(data.bags_of(users)), psi, atol=1e-5 * np.abs(psi).max())
    print(f"psi of {len(users)} test users is PyTorch's")

    user_id = dataset.users.values[users[0]].item()
    with open_store(args.store, create=True) as store:
        sync(run, store)
        answer = recommend(run, store, user_id=user_id)
    print(f"\nuser {user_id}")
    for movie in answer.recommendations:
        print(f"{movie.rank:4}  {movie.score:7.4f}  {movie.title}")
    scores = vectors @ psi[0]
    scores[data.bags_of(users[:1]).rows] = -np.inf  # what they watched
    best = np.argsort(-scores)[: len(answer.recommendations)]
    np.testing.assert_array_equal([movie.movie_id for movie in answer.recommendations], ids[best])
    np.testing.assert_allclose([movie.score for movie in answer.recommendations], scores[best], rtol=1e-5)
    print("the same movies and scores as brute force over V by PyTorch's psi")


if __name__ == "__main__":
    main()
