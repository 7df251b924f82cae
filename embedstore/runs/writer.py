"""Writing a run folder: every file first, the manifest last."""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.data.features import Rows
from embedstore.errors import RunError
from embedstore.runs.manifest import MANIFEST, Manifest, digest_of, replace_file, sync_path
from embedstore.runs.tower import AdditiveTower, DenseTower

__all__ = ["new_run_id", "rated_movies", "write_run"]


def new_run_id(now: datetime | None = None) -> str:
    """Return a run id, a UTC timestamp and 4 hex digits: it sorts by age."""
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    return f"{moment:%Y%m%dt%H%M%S}-{secrets.token_hex(2)}"


def rated_movies(dataset: Dataset) -> Rows:
    """Return the rows of the movies that anybody rated: the vocabulary of a run.

    A movie with metadata and no rating has nothing that a vector could be learned from.
    """
    return np.flatnonzero(dataset.popularity).astype(np.int64)


def write_run(
    runs_dir: Path,
    *,
    dataset: Dataset,
    config: Mapping[str, Any],
    movie_vectors: npt.NDArray[np.float32],
    tower: AdditiveTower | DenseTower,
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]] = (),
    run_id: str | None = None,
) -> Path:
    """Write and seal a run; return its folder.

    movie_vectors and the tower's movie tables have one row per movie of rated_movies(dataset), in
    that order. An exception or an interrupt removes the folder; a killed process leaves one
    without a manifest, which counts as unfinished.

    Raises ValueError where shapes do not fit and RunError where a vector is not finite or the
    folder cannot be written.
    """
    vocabulary = rated_movies(dataset)
    vectors = np.ascontiguousarray(movie_vectors, dtype=np.float32)
    _check_vectors(vectors, vocabulary.size, tower)
    run_id = run_id or new_run_id()
    path = Path(runs_dir) / run_id
    try:
        (path / "histories").mkdir(parents=True, exist_ok=False)
    except FileExistsError:
        raise RunError(f"run folder {path} exists; choose another run id") from None
    except OSError as error:
        raise RunError(f"run folder {path} cannot be made: {error.strerror}") from error
    try:
        _write_files(path, dataset, vocabulary, vectors, tower, metrics, log)
        names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
        for name in names:
            sync_path(path / name)
        sync_path(path / "histories")
        sync_path(path)
        manifest = Manifest(
            run_id=run_id,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            dataset=_describe(dataset),
            config=dict(config),
            embedding_dim=int(vectors.shape[1]),
            tower="additive" if isinstance(tower, AdditiveTower) else "dense",
            metrics=dict(metrics),
            versions=_versions(),
            git_commit=_git_commit(),
            files={
                name: {"bytes": (path / name).stat().st_size, "sha256": digest_of(path / name)}
                for name in names
            },
        )
        replace_file(path / MANIFEST, manifest.to_json().encode())
        sync_path(path.parent)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise RunError(f"run folder {path} cannot be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return path


def _check_vectors(
    vectors: npt.NDArray[np.float32], n_movies: int, tower: AdditiveTower | DenseTower
) -> None:
    if vectors.ndim != 2 or len(vectors) != n_movies:
        raise ValueError(
            f"movie_vectors must have shape (n_movies={n_movies}, embedding_dim), received {vectors.shape}"
        )
    if tower.embedding_dim != vectors.shape[1]:
        raise ValueError(
            f"the tower's width {tower.embedding_dim} must be the vectors' width {vectors.shape[1]}"
        )
    for name, array in [("movie_vectors", vectors), *_arrays(tower)]:
        if not np.isfinite(array).all():
            raise RunError(
                f"{name} holds NaN or infinity after training; lower the learning rate and train again"
            )


def _arrays(tower: AdditiveTower | DenseTower) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """Return the tower's arrays by their file name without .npy."""
    if isinstance(tower, AdditiveTower):
        return [("history_vectors", tower.history_vectors)]
    named = [(f"tower.{part.feature}", part.table) for part in tower.inputs]
    for number, layer in enumerate(tower.layers):
        named.append((f"tower.kernel{number}", layer.kernel))
        if layer.bias is not None:
            named.append((f"tower.bias{number}", layer.bias))
    return named


def _write_files(
    path: Path,
    dataset: Dataset,
    vocabulary: Rows,
    vectors: npt.NDArray[np.float32],
    tower: AdditiveTower | DenseTower,
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]],
) -> None:
    _save(path / "movie_ids.npy", dataset.movies.values[vocabulary])
    _save(path / "movie_vectors.npy", vectors)
    for name, array in _arrays(tower):
        _save(path / f"{name}.npy", np.ascontiguousarray(array, dtype=np.float32))
    if isinstance(tower, DenseTower):
        for feature in tower.features.values():
            _save(path / f"tower.{feature.name}.offsets.npy", feature.offsets.astype(np.int64))
            _save(path / f"tower.{feature.name}.values.npy", feature.values.astype(np.int64))
    _write_json(path / "tower.json", _tower_json(tower))
    ids = dataset.movies.ids(vocabulary)
    with open(path / "movies.jsonl", "w", encoding="utf-8") as file:
        for row, movie_id in zip(vocabulary.tolist(), ids, strict=True):
            movie = dataset.catalog[row]
            line = {
                "movie_id": movie_id,
                "title": movie.title,
                "year": movie.year,
                "genres": list(movie.genres),
                "popularity": int(dataset.popularity[row]),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    row_of = np.full(len(dataset.movies), -1, dtype=np.int32)
    row_of[vocabulary] = np.arange(vocabulary.size, dtype=np.int32)
    _save(path / "histories/user_ids.npy", dataset.users.values)
    _save(path / "histories/offsets.npy", dataset.offsets)
    _save(path / "histories/movie_rows.npy", row_of[dataset.movie_rows])
    _write_json(path / "metrics.json", metrics)
    with open(path / "training.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in log)


def _tower_json(tower: AdditiveTower | DenseTower) -> dict[str, Any]:
    if isinstance(tower, AdditiveTower):
        return {"schema": 1, "kind": "additive", "rows": "history_vectors.npy"}
    return {
        "schema": 1,
        "kind": "dense",
        "inputs": [{"feature": part.feature, "pooling": part.pooling} for part in tower.inputs],
        "layers": [
            {"activation": layer.activation, "bias": layer.bias is not None} for layer in tower.layers
        ],
        "constant": tower.constant,
        "labels": {feature.name: list(feature.labels) for feature in tower.features.values()},
    }


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    np.save(path, np.ascontiguousarray(array), allow_pickle=False)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _describe(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "sha256": dataset.sha256,
        "n_users": len(dataset.users),
        "n_movies": len(dataset.movies),
        "n_ratings": dataset.n_ratings,
        "n_duplicates": dataset.n_duplicates,
        "tie_seed": dataset.tie_seed,
    }


def _versions() -> dict[str, str]:
    from embedstore import __version__

    found = {"embedstore": __version__, "python": platform.python_version(), "numpy": np.__version__}
    for name in ("tensorflow", "keras"):
        if name in sys.modules:
            found[name] = str(sys.modules[name].__version__)
    return found


def _git_commit() -> str | None:
    """Return the commit of the current folder's checkout, None where there is none."""
    git = shutil.which("git")
    if git is None:
        return None
    try:
        answer = subprocess.run(  # noqa: S603  (a fixed command)
            [git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
