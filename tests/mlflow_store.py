"""A tracking store of MLflow in a folder of its own: SQLite, and files below mlruns/."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

from embedstore.runs.manifest import MANIFEST, digest_of
from embedstore.runs.run import Run
from embedstore.tracking.client import open_client
from tests.builders import edit_json, tiny_run

__all__ = ["EPOCHS", "EVALUATION", "artefacts_of", "logged_run", "new_store"]

EPOCHS = [{"epoch": n, "loss": 6 - n / 10, "validation_ndcg@100": 0.1 * n} for n in (1, 2, 3)]
METRICS = {"ndcg@100": 0.5, "users": {"test": 12}, "popularity": {"ndcg@100": 0.25}, "ease": None}
EVALUATION = {
    "next-session": {
        "protocol": "next-session",
        "at": "2026-11-24T21:58:56+00:00",
        "retrained": False,
        "split_seed": 0,
        "headline": "ndcg@100",
        "ndcg@100": 0.75,
        "intervals": {"ndcg@100": [0.5, 0.875]},
        "ease": {"ndcg@100": 0.625, "lead": {"ndcg@100": 0.125}},
        "users": {"scored": 11},
    }
}


def new_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make folder the current one, with an empty MLflow database that MLflow's own settings name."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    (folder / "mlflow.db").write_bytes(_empty_database())
    uri = f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mlflow.db")
        with open_client(f"sqlite:///{path}", create=True):
            return path.read_bytes()


def logged_run(
    folder: Path,
    *,
    run_id: str | None = None,
    seed: int = 0,
    log: Sequence[Mapping[str, object]] = EPOCHS,
    config: Mapping[str, object] | None = None,
    additive: bool = True,
) -> Run:
    """Return a tiny run with metrics and a training log."""
    import json

    run = tiny_run(folder, run_id=run_id, seed=seed, config=config, metrics=METRICS, additive=additive)
    path, manifest = run.path / "training.jsonl", run.path / MANIFEST
    path.write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    files[path.name] = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
    edit_json(manifest, files=files)
    return Run.load(run.path)


def artefacts_of(mlflow_run_id: str) -> dict[str, bytes]:
    """Return the files of an MLflow run in the current folder, by their path below embedstore/."""
    (folder,) = Path("mlruns").glob(f"*/{mlflow_run_id}/artifacts/embedstore")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
