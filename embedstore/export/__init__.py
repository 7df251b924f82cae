"""The user tower of a run for applications without our Python: ONNX, SavedModel, plain arrays.

An export is a folder of one run: the tower in the formats asked for, and vocabulary.json, which
says which movie is which row. It appears whole, after every format in it has been read back and
compared with the tower of the run.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from embedstore.errors import EmbedstoreError, UsageError
from embedstore.export.gate import check, random_histories
from embedstore.export.served import check_formats, copy, inputs_of
from embedstore.export.tables import Psi, TowerTables, tables_of
from embedstore.runs.run import Run
from embedstore.runs.served import ServedTower

__all__ = ["FORMATS", "VOCABULARY", "ExportReport", "ExportedFormat", "export_run", "require"]

VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class _Format:
    """module: has write(tables, path) and load(path), path being the first of files.

    packages: what it imports beyond NumPy.
    """

    module: str
    files: tuple[str, ...]
    packages: tuple[str, ...] = ()


FORMATS = {
    "onnx": _Format("onnx_file", ("model.onnx",), ("onnx", "onnxruntime")),
    "saved-model": _Format("saved_model", ("saved_model",), ("tensorflow",)),
    "npz": _Format("arrays", ("tower.npz", "tower.json")),
}


@dataclass(frozen=True)
class ExportedFormat:
    """What was written in one format. largest_difference: from the run's tower, see check."""

    format: str
    files: tuple[str, ...]
    bytes: int
    largest_difference: float


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote into the folder path, checked on n_histories random histories."""

    run_id: str
    path: str
    fingerprint: str
    embedding_dim: int
    n_movies: int
    n_histories: int
    formats: tuple[ExportedFormat, ...]


def export_run(run: Run, formats: Sequence[str], output: Path, *, force: bool = False) -> ExportReport:
    """Write the tower of run in each of formats (onnx, saved-model, npz) into the folder output.

    The folder must be new or empty, or an export that force replaces. Each format is read back and
    compared with the tower on random histories first; where one differs, nothing is written. A run whose
    psi its own model computes is exported as that model alone.

    Raises UsageError for a package that is missing or a folder that is in use, RunError for a run
    without tower, VerificationError for a difference.
    """
    for name in formats:
        require(name)
    folder = output.resolve()
    _check_free(folder, force=force)
    tower = run.tower
    if isinstance(tower, ServedTower):
        check_formats(run, tower, formats)
    source = tower if isinstance(tower, ServedTower) else tables_of(run)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        histories = random_histories(len(run.movies))
        histories = histories.of_users(tower.knows(histories))
        made = []
        for name in formats:
            paths = [temporary / file for file in FORMATS[name].files]
            psi = _written(run, source, name, paths[0])
            difference = check(name, psi, tower, histories, width=source.width)
            size = sum(_size(path) for path in paths)
            made.append(ExportedFormat(name, FORMATS[name].files, size, difference))
        content = json.dumps(_vocabulary(run, source), ensure_ascii=False) + "\n"
        (temporary / VOCABULARY).write_text(content, encoding="utf-8")
        _move(temporary, folder)
    except OSError as error:
        raise EmbedstoreError(f"export {output} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return ExportReport(
        run_id=run.run_id,
        path=str(output),
        fingerprint=run.fingerprint,
        embedding_dim=run.embedding_dim,
        n_movies=len(run.movies),
        n_histories=len(histories),
        formats=tuple(made),
    )


def require(name: str) -> None:
    """Raise UsageError where a package that the format name needs is not installed."""
    if name not in FORMATS:
        raise ValueError(f"a format must be one of {', '.join(FORMATS)}, received {name!r}")
    missing = [package for package in FORMATS[name].packages if find_spec(package) is None]
    if missing:
        raise UsageError(
            f"--{name} needs {' and '.join(missing)}; install with `pip install {' '.join(missing)}`"
        )


def _check_free(folder: Path, *, force: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    ours = {VOCABULARY, *(file for kind in FORMATS.values() for file in kind.files)}
    if not folder.is_dir() or not {path.name for path in folder.iterdir()} <= ours:
        raise UsageError(f"{folder} holds more than an export; choose another folder with -o")
    if not force:
        raise UsageError(f"{folder} holds an export; replace it with --force or choose another with -o")


def _move(temporary: Path, folder: Path) -> None:
    """Put the new export where the old one is, if any; between two renames there is neither."""
    replaced = temporary.with_suffix(".old")
    if folder.exists():
        folder.rename(replaced)
    temporary.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _written(run: Run, source: TowerTables | ServedTower, name: str, path: Path) -> Psi:
    """Write source in the format name, and return psi as it is read back."""
    if isinstance(source, ServedTower):
        return copy(run, source, path)
    module = importlib.import_module(f"{__name__}.{FORMATS[name].module}")
    module.write(source, path)
    psi: Psi = module.load(path)
    return psi


def _vocabulary(run: Run, source: TowerTables | ServedTower) -> dict[str, Any]:
    told = {
        "run_id": run.run_id,
        "fingerprint": run.fingerprint,
        "embedding_dim": run.embedding_dim,
        "n_movies": len(run.movies),
    }
    if isinstance(source, ServedTower):
        return {"schema": 2, **told, **inputs_of(source), "movie_ids": run.movies.values.tolist()}
    return {
        "schema": 1,
        **told,
        "input": {"name": "rows", "dtype": "int64", "shape": ["n_users", "length"], "padding": -1},
        "output": {"name": "psi", "dtype": "float32", "shape": ["n_users", run.embedding_dim]},
        "unknown_movie": "leave it out, or give -1",
        "empty_history": "has no psi: NaN in every dimension",
        "movie_ids": run.movies.values.tolist(),
    }
