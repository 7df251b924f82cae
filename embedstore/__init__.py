"""Train a recommender, put its movie vectors into Qdrant, and recommend by the user embedding.

    from embedstore import Run, open_store, recommend

    run = Run.load("runs/20261124t031500-1a2b")
    with open_store("store") as store:
        answer = recommend(run, store, user_id=196, k=10)

Names are imported when they are first used: `import embedstore` loads neither TensorFlow nor
qdrant_client nor pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedstore.data.dataset import Dataset
    from embedstore.loaders import load
    from embedstore.query import embed, recommend, similar
    from embedstore.runs.run import Run
    from embedstore.stores.base import open_store
    from embedstore.sync import sync, verify
    from embedstore.training import train
    from embedstore.training.config import TrainConfig

__all__ = [
    "Dataset",
    "Run",
    "TrainConfig",
    "embed",
    "load",
    "open_store",
    "recommend",
    "similar",
    "sync",
    "train",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "Dataset": "embedstore.data.dataset",
    "Run": "embedstore.runs.run",
    "TrainConfig": "embedstore.training.config",
    "embed": "embedstore.query",
    "load": "embedstore.loaders",
    "open_store": "embedstore.stores.base",
    "recommend": "embedstore.query",
    "similar": "embedstore.query",
    "sync": "embedstore.sync",
    "train": "embedstore.training",
    "verify": "embedstore.sync",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'embedstore' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
