"""psi as plain arrays, for any language: tower.npz, and tower.json that says how to put them together."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Rows
from embedstore.export.tables import Psi, TowerTables

__all__ = ["load", "write"]

Array = npt.NDArray[Any]

_DIVISORS: dict[str, Callable[[float], float]] = {
    "mean": lambda count: max(count, 1),
    "l2": lambda count: max(count, 1) ** 0.5,
    "sum": lambda count: 1,
}
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
}


def write(tables: TowerTables, path: Path) -> None:
    """Write the arrays to path (.npz, uncompressed), and beside it the .json that names them."""
    arrays: dict[str, Array] = {}

    def name_of(name: str, array: Array | None) -> str | None:
        if array is None:
            return None
        arrays[name] = array
        return name

    content = {
        "schema": 1,
        "run_id": tables.run_id,
        "inputs": [
            {
                "feature": part.feature,
                "pooling": part.pooling,
                "half_life": part.half_life,
                **({} if part.newest is None else {"newest": part.newest}),
                "rows": name_of(f"{part.feature}.rows", part.rows),
                "counts": name_of(f"{part.feature}.counts", part.counts),
            }
            for part in tables.inputs
        ],
        "layers": [
            {
                "kernel": name_of(f"kernel{number}", layer.kernel),
                "bias": name_of(f"bias{number}", layer.bias),
                "activation": layer.activation,
            }
            for number, layer in enumerate(tables.layers)
        ],
        "constant": tables.constant,
    }
    np.savez(path, allow_pickle=False, **arrays)
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Psi:
    """Return psi of histories that are not empty, computed from the two files alone."""
    tower = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    return lambda rows: np.stack([_psi(tower, arrays, history[history >= 0]) for history in rows])


def _psi(tower: Mapping[str, Any], arrays: Mapping[str, Array], history: Rows) -> npt.NDArray[np.float32]:
    pooled = []
    for part in tower["inputs"]:
        pooled_rows = history[-part["newest"] :] if "newest" in part else history
        age = np.arange(pooled_rows.size)[::-1]  # 0 for the newest movie
        weights = 0.5 ** (age / part["half_life"]) if part["half_life"] else np.ones(pooled_rows.size)
        count = float(weights @ arrays[part["counts"]][pooled_rows])
        total = weights @ arrays[part["rows"]][pooled_rows].astype(np.float64)
        pooled.append(total / _DIVISORS[part["pooling"]](count))
    x = np.concatenate(pooled)
    for layer in tower["layers"]:
        x = x @ arrays[layer["kernel"]].astype(np.float64)
        if layer["bias"] is not None:
            x = x + arrays[layer["bias"]]
        x = _ACTIVATIONS[layer["activation"]](x)
    return np.append(x, 1.0).astype(np.float32) if tower["constant"] else x.astype(np.float32)
