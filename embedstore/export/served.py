"""psi by the model that serves a run: its own file, and how a history becomes its inputs."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows
from embedstore.errors import UsageError
from embedstore.export.tables import Psi
from embedstore.runs.files import open_file
from embedstore.runs.run import Run
from embedstore.runs.served import FILES, NAMES, ServedTower, model_files, open_session

__all__ = ["check_formats", "copy", "inputs_of"]

_FORMATS = {"onnx": "onnx", "saved_model": "saved-model"}  # by kind


def check_formats(run: Run, tower: ServedTower, formats: Sequence[str]) -> None:
    """Raise UsageError where one of formats is not that of the model."""
    own = _FORMATS.get(tower.kind)
    other = next((name for name in formats if name != own), None)
    if other is not None:
        way = f"export that with --{own}" if own else f"take that, {FILES[tower.kind]} in its folder"
        raise UsageError(
            f"psi of run {run.run_id} is computed by its own {NAMES[tower.kind]}, of which no --{other} can "
            f"be made; {way}"
        )


def copy(run: Run, tower: ServedTower, path: Path) -> Psi:
    """Copy the model of run to path, and return psi as the copy computes it."""
    for name in model_files(run.manifest.files, tower.kind):
        target = path / name.removeprefix(FILES[tower.kind]).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_file(run.path, name) as file, open(target, "xb") as copied:
            shutil.copyfileobj(file, copied)
    session = open_session(tower.kind, path, output=tower.output, signature=tower.signature)
    own = replace(tower, session=session)

    def psi(rows: Rows) -> npt.NDArray[np.float32]:
        return own.batch(Bags.of(history[history >= 0] for history in rows))

    return psi


def inputs_of(tower: ServedTower) -> dict[str, Any]:
    """Return what vocabulary.json says of the model's inputs and output."""
    features = {
        name: [found.tolist() for found in np.split(feature.values, feature.offsets[1:-1])]
        for name, feature in tower.features.items()
    }
    return {
        "inputs": [rule.to_dict() for rule in tower.rules],
        "output": tower.output,
        "signature": tower.signature,
        "constant": tower.constant,
        "positions": tower.positions.tolist(),
        **features,
    }
