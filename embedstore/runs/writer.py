"""Writing a run folder: every file first, the manifest last."""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.data.features import Ids, MovieId, Rows
from embedstore.errors import RunError
from embedstore.runs.files import release
from embedstore.runs.manifest import (
    MANIFEST,
    Manifest,
    digest_of,
    replace_file,
    sync_folders,
    sync_path,
    with_digest,
)
from embedstore.runs.programs import git
from embedstore.runs.registry import RUN_ID
from embedstore.runs.scratch import scratch_folder
from embedstore.runs.served import FILES, ServedTower
from embedstore.runs.tower import AdditiveTower, DenseTower, MovieFeature

__all__ = [
    "ADDITIVE",
    "Histories",
    "RunContent",
    "describe",
    "describe_run",
    "ids_of",
    "movie_line",
    "new_run_id",
    "rated_movies",
    "run_folder",
    "save_array",
    "seal_run",
    "write_content",
    "write_json",
    "write_run",
    "write_served",
]

_LARGEST = 2**63 - 1
_STAMP = "%Y%m%dt%H%M%S"
ADDITIVE = {"schema": 1, "kind": "additive", "rows": "history_vectors.npy"}  # tower.json


@dataclass(frozen=True)
class Histories:
    """The histories of users in CSR form, oldest movie first.

    user_ids: ascending, (n_users,). offsets: int64, (n_users + 1,). movie_rows: int32, (n_ratings,).
    """

    user_ids: Ids = field(default_factory=lambda: np.zeros(0, np.int64))
    offsets: Rows = field(default_factory=lambda: np.zeros(1, np.int64))
    movie_rows: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))


@dataclass(frozen=True)
class RunContent:
    """What a run folder holds: one movie per row of movie_vectors, in ascending order of movie_ids.

    movie_lines: what movie_line made of each. tower: None where the run cannot compute psi.
    """

    movie_ids: Ids
    movie_lines: Iterable[str]
    movie_vectors: npt.NDArray[np.float32]
    tower: AdditiveTower | DenseTower | ServedTower | None
    histories: Histories = field(default_factory=Histories)

    @property
    def tower_kind(self) -> str:
        """What the manifest calls the tower."""
        if self.tower is None:
            return "none"
        return "additive" if isinstance(self.tower, AdditiveTower) else "dense"


def new_run_id(runs_dir: Path, now: datetime | None = None) -> str:
    """Return a run id, a UTC timestamp and 4 hex digits, that sorts after every run in runs_dir.

    Where the clock was set back, or two runs end in one second, the timestamp is a second after the last.
    """
    stamp = f"{(now or datetime.now(UTC)).astimezone(UTC):{_STAMP}}"
    last = max((path.name for path in Path(runs_dir).glob("*") if RUN_ID.fullmatch(path.name)), default="")
    if stamp <= last[: len(stamp)]:
        with suppress(ValueError, OverflowError):  # no time, or the last one that there is
            after = datetime.strptime(last[: len(stamp)], _STAMP).replace(tzinfo=UTC) + timedelta(seconds=1)
            stamp = f"{after:{_STAMP}}"
    return f"{stamp}-{secrets.token_hex(2)}"


def rated_movies(dataset: Dataset) -> Rows:
    """Return the rows of the movies that anybody rated: the vocabulary of a run, but for cold movies."""
    return np.flatnonzero(dataset.popularity).astype(np.int64)


def write_run(
    runs_dir: Path,
    *,
    dataset: Dataset,
    config: Mapping[str, Any],
    movie_vectors: npt.NDArray[np.float32],
    tower: AdditiveTower | DenseTower | ServedTower,
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]] = (),
    cold: Rows | None = None,
    run_id: str | None = None,
) -> Path:
    """Write and seal a run; return its folder.

    movie_vectors and the tower's movie tables have one row per movie of rated_movies(dataset) and
    of cold, the rows of movies without ratings, in ascending order of both. The folder appears
    when it is whole; see run_folder.

    Raises ValueError where shapes do not fit and RunError where a vector is not finite or the
    folder cannot be written.
    """
    vocabulary = rated_movies(dataset)
    if cold is not None:
        vocabulary = np.union1d(vocabulary, cold)
    row_of = np.full(len(dataset.movies), -1, dtype=np.int32)
    row_of[vocabulary] = np.arange(vocabulary.size, dtype=np.int32)
    ids = dataset.movies.ids(vocabulary)
    content = RunContent(
        movie_ids=ids_of(ids),
        movie_lines=_lines(dataset, vocabulary, ids),
        movie_vectors=movie_vectors,
        tower=tower,
        histories=Histories(dataset.users.values, dataset.offsets, row_of[dataset.movie_rows]),
    )
    return write_content(
        runs_dir, content, dataset=describe(dataset), config=config, metrics=metrics, log=log, run_id=run_id
    )


def write_content(
    runs_dir: Path,
    content: RunContent,
    *,
    dataset: Mapping[str, Any],
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    log: Sequence[Mapping[str, Any]] = (),
    run_id: str | None = None,
) -> Path:
    """Write and seal a run of content; return its folder, which appears when it is whole. See write_run."""
    vectors = np.ascontiguousarray(content.movie_vectors, dtype=np.float32)
    tower = content.tower
    _check_vectors(vectors, content.movie_ids.size, tower)
    with run_folder(runs_dir, run_id or new_run_id(runs_dir)) as path:
        save_array(path / "movie_ids.npy", content.movie_ids)
        save_array(path / "movie_vectors.npy", vectors)
        release(vectors)
        with open(path / "movies.jsonl", "w", encoding="utf-8") as file:
            file.writelines(content.movie_lines)
        if tower is not None:
            _write_tower(path, tower)
        save_array(path / "histories/user_ids.npy", content.histories.user_ids)
        save_array(path / "histories/offsets.npy", content.histories.offsets)
        save_array(path / "histories/movie_rows.npy", content.histories.movie_rows)
        write_json(path / "metrics.json", metrics)
        with open(path / "training.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in log)
        manifest = describe_run(
            path,
            dataset=dataset,
            config=config,
            embedding_dim=int(vectors.shape[1]),
            tower=content.tower_kind,
            metrics=metrics,
            git_commit=_git_commit(),
        )
        seal_run(path, manifest)
    return Path(runs_dir) / path.name


@contextmanager
def run_folder(runs_dir: Path, run_id: str) -> Iterator[Path]:
    """Yield a folder, to be filled and sealed in the block, that then becomes runs_dir / run_id, whole.

    An exception leaves nothing behind, and what a kill leaves is removed by the next one; see
    scratch_folder. Raises RunError where run_id is none, the run is there, or an OSError says that it cannot
    be written.
    """
    if not RUN_ID.fullmatch(run_id):
        raise RunError(f"run id {run_id!r} is not one; expected the form 20261124t031500-1a2b")
    target = Path(runs_dir) / run_id
    if target.exists():
        raise RunError(f"run folder {target} exists; choose another run id")
    try:
        with scratch_folder(target.parent) as scratch:
            path = scratch / run_id
            (path / "histories").mkdir(parents=True)
            yield path
            path.rename(target)
            sync_path(target.parent)
    except OSError as error:
        raise RunError(f"run folder {target} cannot be written: {error.strerror or error}") from error


def describe_run(
    path: Path,
    *,
    dataset: Mapping[str, Any],
    config: Mapping[str, Any],
    embedding_dim: int,
    tower: str,
    metrics: Mapping[str, Any],
    git_commit: str | None,
) -> Manifest:
    """Make every file of an unsealed run durable, and return the manifest that holds their digests."""
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    for name in names:
        sync_path(path / name)
    return Manifest(
        run_id=path.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=dict(dataset),
        config=dict(config),
        embedding_dim=embedding_dim,
        tower=tower,
        metrics=dict(metrics),
        versions=_versions(),
        git_commit=git_commit,
        files={
            name: {"bytes": (path / name).stat().st_size, "sha256": digest_of(path / name)} for name in names
        },
    )


def seal_run(path: Path, manifest: Manifest) -> None:
    """Write the manifest, the last file of a run."""
    sync_folders(path)
    replace_file(path / MANIFEST, with_digest(manifest.to_json()))


def ids_of(values: Sequence[MovieId]) -> Ids:
    """Return ids as they are stored: int64, uint64 where one needs it, or text no wider than the longest."""
    if any(isinstance(value, str) for value in values):
        return np.array(values, dtype=np.str_)
    large = any(isinstance(value, int) and value > _LARGEST for value in values)
    return np.array(values, dtype=np.uint64 if large else np.int64)


def movie_line(
    *,
    movie_id: MovieId,
    title: str | None,
    year: int | None,
    genres: Sequence[str],
    popularity: int,
    cold: bool = False,
) -> str:
    """Return the line of movies.jsonl that describes a movie."""
    line: dict[str, Any] = {
        "movie_id": movie_id,
        "title": title,
        "year": year,
        "genres": list(genres),
        "popularity": popularity,
    }
    if cold:
        line["cold"] = True
    return json.dumps(line, ensure_ascii=False) + "\n"


def _check_vectors(
    vectors: npt.NDArray[np.float32], n_movies: int, tower: AdditiveTower | DenseTower | ServedTower | None
) -> None:
    if vectors.ndim != 2 or len(vectors) != n_movies:
        raise ValueError(
            f"movie_vectors must have shape (n_movies={n_movies}, embedding_dim), received {vectors.shape}"
        )
    if tower is not None and tower.embedding_dim != vectors.shape[1]:
        raise ValueError(
            f"the tower's width {tower.embedding_dim} must be the vectors' width {vectors.shape[1]}"
        )
    for name, array in [("movie_vectors", vectors), *_arrays(tower)]:
        if not np.isfinite(array).all():
            raise RunError(
                f"{name} holds NaN or infinity after training; lower the learning rate and train again"
            )
        release(array)


def _arrays(
    tower: AdditiveTower | DenseTower | ServedTower | None,
) -> list[tuple[str, npt.NDArray[np.float32]]]:
    """Return the tower's tables and kernels by their file name without .npy."""
    if tower is None or isinstance(tower, ServedTower):
        return []
    if isinstance(tower, AdditiveTower):
        return [("history_vectors", tower.history_vectors)]
    named = [(f"tower.{part.feature}", part.table) for part in tower.inputs]
    for number, layer in enumerate(tower.layers):
        named.append((f"tower.kernel{number}", layer.kernel))
        if layer.bias is not None:
            named.append((f"tower.bias{number}", layer.bias))
    return named


def _write_tower(path: Path, tower: AdditiveTower | DenseTower | ServedTower) -> None:
    if isinstance(tower, ServedTower):
        write_served(path, tower)
        return
    for name, array in _arrays(tower):
        save_array(path / f"{name}.npy", np.ascontiguousarray(array, dtype=np.float32))
    if isinstance(tower, DenseTower):
        _write_features(path, tower.features)
    write_json(path / "tower.json", ADDITIVE if isinstance(tower, AdditiveTower) else _dense_json(tower))


def _write_features(path: Path, features: Mapping[str, MovieFeature]) -> None:
    for name, feature in features.items():
        save_array(path / f"tower.{name}.offsets.npy", feature.offsets.astype(np.int64))
        save_array(path / f"tower.{name}.values.npy", feature.values.astype(np.int64))


def _lines(dataset: Dataset, vocabulary: Rows, ids: Sequence[MovieId]) -> Iterator[str]:
    for row, movie_id in zip(vocabulary.tolist(), ids, strict=True):
        movie = dataset.catalog[row]
        yield movie_line(
            movie_id=movie_id,
            title=movie.title,
            year=movie.year,
            genres=movie.genres,
            popularity=int(dataset.popularity[row]),
            cold=not dataset.popularity[row],
        )


def _dense_json(tower: DenseTower) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "dense",
        "inputs": [
            {
                "feature": part.feature,
                "pooling": part.pooling,
                "half_life": part.half_life and float(part.half_life),
                **({} if part.newest is None else {"newest": part.newest}),
            }
            for part in tower.inputs
        ],
        "layers": [
            {"activation": layer.activation, "bias": layer.bias is not None} for layer in tower.layers
        ],
        "constant": tower.constant,
        "labels": {feature.name: list(feature.labels) for feature in tower.features.values()},
    }


def write_served(path: Path, tower: ServedTower) -> None:
    """Write tower into the unsealed run folder path: tower.json, its arrays, and a copy of the model.

    Raises ValueError where it has no model that can be copied, OSError where it cannot be written.
    """
    if tower.model is None:
        raise ValueError("a served tower must have the file of its model, received None")
    target = path / FILES[tower.kind]
    target.parent.mkdir()
    if tower.kind == "saved_model":
        shutil.copytree(tower.model, target, copy_function=shutil.copyfile)
    else:
        shutil.copyfile(tower.model, target)
    save_array(path / "tower.positions.npy", tower.positions.astype(np.int64))
    _write_features(path, tower.features)
    content = {
        "schema": 1,
        "kind": tower.kind,
        "output": tower.output,
        "signature": tower.signature,
        "constant": tower.constant,
        "inputs": [rule.to_dict() for rule in tower.rules],
    }
    write_json(path / "tower.json", content)


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a .npy file."""
    np.save(path, np.ascontiguousarray(array), allow_pickle=False)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file of a run."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return what a manifest says of a data set."""
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
    for name in ("tensorflow", "keras", "onnxruntime"):
        if (module := sys.modules.get(name)) is not None:
            found[name] = str(module.__version__)
    return found


def _git_commit() -> str | None:
    """Return the commit of the current folder's checkout, None where there is none."""
    answer = git(Path(), "rev-parse", "HEAD")
    return None if answer is None or answer.returncode else answer.stdout.strip() or None
