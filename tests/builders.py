"""Small data sets and runs with known content, made in a moment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.data.features import MovieId, Vocabulary
from embedstore.runs.manifest import MANIFEST, digest_of, with_digest
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower, DenseTower, TowerInput, TowerLayer
from embedstore.runs.writer import rated_movies, write_run
from embedstore.stores.contract import Metadata

GENRES = ("Action", "Comedy", "Drama", "Film-Noir", "Sci-Fi")


def tiny_dataset(*, n: int = 40, n_users: int = 12, seed: int = 0, text_ids: bool = False) -> Dataset:
    """Return a data set where all n movies are rated and movie 7 (if there) has neither title nor year."""
    rng = np.random.default_rng(seed)
    ids: list[MovieId] = [f"tt{number:05d}" if text_ids else number for number in range(1, n + 1)]
    users = np.concatenate([np.zeros(n, np.int64), rng.integers(1, n_users, size=5 * n)]) + 1
    movies = np.concatenate([np.arange(n), rng.integers(0, n, size=5 * n)])
    columns = RatingColumns(
        user_ids=users.astype(np.int64),
        movie_ids=np.array(ids)[movies],
        ratings=rng.integers(1, 6, size=users.size).astype(np.float32),
        timestamps=rng.integers(1, 1_000_000_000, size=users.size),
    )
    table = {
        movie_id: Movie()
        if number == 6
        else Movie(
            title=f'Movie {number + 1}, "é"',
            year=1950 + number % 60,
            genres=tuple(GENRES[k] for k in range(len(GENRES)) if (number + 1) >> k & 1),
        )
        for number, movie_id in enumerate(ids)
    }
    return Dataset.of("tiny", columns, table)


def written(folder: Path, dataset: Dataset) -> Path:
    """Write dataset into folder, in the format of the newer MovieLens files, and return folder."""
    folder.mkdir(parents=True)
    users = dataset.users.values[dataset.user_rows].tolist()
    movies = dataset.movies.values[dataset.movie_rows].tolist()
    rated = zip(users, movies, dataset.ratings.tolist(), dataset.timestamps.tolist(), strict=True)
    lines = ["userId,movieId,rating,timestamp", *(",".join(map(str, rating)) for rating in rated)]
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    known = zip(dataset.movies.values.tolist(), dataset.catalog, strict=True)
    lines = ["movieId,title,genres"]
    lines += [f"{movie_id},Movie {movie_id} (1990),{'|'.join(movie.genres)}" for movie_id, movie in known]
    (folder / "movies.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def with_unrated(dataset: Dataset, *movies: Movie) -> Dataset:
    """Return dataset with movies that nobody rated, their ids those after the largest (of integers)."""
    ids = np.concatenate([dataset.movies.values, dataset.movies.values[-1] + 1 + np.arange(len(movies))])
    return replace(dataset, movies=Vocabulary(ids), catalog=[*dataset.catalog, *movies])


def tiny_run(
    folder: Path,
    *,
    n: int = 40,
    dim: int = 4,
    additive: bool = True,
    seed: int = 0,
    run_id: str | None = None,
    text_ids: bool = False,
    dataset: Dataset | None = None,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    cold: bool = False,
) -> Run:
    """Write a run of n movies into folder / "runs" and return it; vectors are drawn from seed.

    cold: movies of dataset that nobody rated are in it too.
    """
    dataset = dataset or tiny_dataset(n=n, seed=seed, text_ids=text_ids)
    unrated = np.flatnonzero(dataset.popularity == 0) if cold else np.zeros(0, np.int64)
    count = rated_movies(dataset).size + unrated.size
    rng = np.random.default_rng(seed + 1)
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    tower: AdditiveTower | DenseTower
    if additive:
        tower = AdditiveTower(rng.normal(size=(count, dim)).astype(np.float32))
    else:
        table = rng.normal(size=(count, 3)).astype(np.float32)
        kernel = rng.normal(size=(3, dim)).astype(np.float32)
        tower = DenseTower([TowerInput("movies", table, "mean")], [TowerLayer(kernel, None, "tanh")])
    path = write_run(
        folder / "runs",
        dataset=dataset,
        config={"preset": "tiny"} if config is None else config,
        movie_vectors=vectors,
        tower=tower,
        metrics=metrics or {},
        cold=unrated,
        run_id=run_id,
    )
    return Run.load(path)


def without_tower(run: Run) -> Run:
    """Take the tower out of a run, seal it anew, as if it was imported so, and return it."""
    manifest = run.path / MANIFEST
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    for name in [name for name in files if name.startswith("tower.") or name == "history_vectors.npy"]:
        (run.path / name).unlink()
        del files[name]
    edit_json(manifest, files=files, tower="none")
    return Run.load(run.path)


def metadata_of(run: Run) -> Metadata:
    """Return the metadata of a collection of run that is being built."""
    return Metadata(
        state="building",
        run_id=run.run_id,
        dim=run.embedding_dim,
        count=len(run.movies),
        tower=run.manifest.tower,
        fingerprint=run.fingerprint,
        created_at="2026-01-01T00:00:00+00:00",
        heartbeat="2026-01-01T00:00:00+00:00",
        tool_version="0",
    )


def with_value(run: Run, name: str, at: tuple[int, ...], value: float) -> Run:
    """Change one number in an array of run, seal it anew, as if trained so, and return it."""
    path, manifest = run.path / name, run.path / MANIFEST
    array = np.load(path)
    array[at] = value
    np.save(path, array)
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    files[name]["sha256"] = digest_of(path)
    edit_json(manifest, files=files)
    return Run.load(run.path)


def edit_json(path: Path, **change: object) -> None:
    """Change fields of a JSON file with a digest, and the digest with them, as if it was written so."""
    content = json.loads(path.read_text(encoding="utf-8")) | change
    content.pop("digest", None)
    path.write_bytes(with_digest(json.dumps(content, indent=1)))
