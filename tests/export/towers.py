"""Runs with a tower of every shape, made in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower, DenseTower, MovieFeature, TowerInput, TowerLayer
from embedstore.runs.writer import write_run
from tests.builders import GENRES, tiny_dataset

FORMS = ("additive", "recency", "recency tanh", "newest", "l2 tanh constant", "sum relu", "colab")
RUN_ID = "20260101t000000-0000"


def tower_of(form: str, n: int = 40) -> AdditiveTower | DenseTower:
    """Return a tower over the movies of tiny_dataset(n=n) with random weights."""
    rng = np.random.default_rng(len(form))

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    if form == "additive":
        return AdditiveTower(normal(n, 4))
    if form.startswith("recency"):
        layers = [TowerLayer(normal(4, 3), normal(3), "tanh")] if form.endswith("tanh") else []
        return DenseTower([TowerInput("movies", normal(n, 4), half_life=2.5)], layers)
    if form == "newest":
        return DenseTower(
            [TowerInput("movies", normal(n, 4), newest=3)], [TowerLayer(normal(4, 3), normal(3))]
        )
    if form == "l2 tanh constant":
        layers = [TowerLayer(normal(5, 6), normal(6), "tanh"), TowerLayer(normal(6, 3), normal(3))]
        return DenseTower([TowerInput("movies", normal(n, 5), "l2")], layers, constant=True)
    if form == "sum relu":
        return DenseTower(
            [TowerInput("movies", normal(n, 3), "sum")], [TowerLayer(normal(3, 4), None, "relu")]
        )
    catalog = tiny_dataset(n=n).catalog
    years = sorted({movie.year for movie in catalog if movie.year is not None})
    features = {
        "genres": feature("genres", [[GENRES.index(genre) for genre in movie.genres] for movie in catalog]),
        "years": feature("years", [[years.index(m.year)] if m.year is not None else [] for m in catalog]),
    }
    inputs = [
        TowerInput("genres", normal(len(GENRES), 3)),
        TowerInput("movies", normal(n, 4)),
        TowerInput("years", normal(len(years), 2)),
    ]
    return DenseTower(inputs, [TowerLayer(normal(9, 4))], features=features)


def feature(name: str, values: list[list[int]]) -> MovieFeature:
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in values])])
    return MovieFeature(name, offsets, np.array([row for part in values for row in part], dtype=np.int64))


def run_of(form: str, folder: Path, *, text_ids: bool = False) -> Run:
    """Write a run with that tower into folder / "runs" and return it."""
    tower = tower_of(form)
    path = write_run(
        folder / "runs",
        dataset=tiny_dataset(text_ids=text_ids),
        config={"preset": "tiny"},
        movie_vectors=np.ones((40, tower.embedding_dim), np.float32),
        tower=tower,
        metrics={},
        run_id=RUN_ID,
    )
    return Run.load(path)
