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
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embedstore.data.dataset import Dataset
    from embedstore.importing import import_run
    from embedstore.loaders import load
    from embedstore.query.recommend import embed, recommend
    from embedstore.query.similar import similar
    from embedstore.runs.run import Run
    from embedstore.stores.base import open_store
    from embedstore.sync import sync
    from embedstore.sync.verify import verify
    from embedstore.training import train
    from embedstore.training.config import TrainConfig

__all__ = [
    "Dataset",
    "Run",
    "TrainConfig",
    "embed",
    "import_run",
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
    "embed": "embedstore.query.recommend",
    "import_run": "embedstore.importing",
    "load": "embedstore.loaders",
    "open_store": "embedstore.stores.base",
    "recommend": "embedstore.query.recommend",
    "similar": "embedstore.query.similar",
    "sync": "embedstore.sync",
    "train": "embedstore.training",
    "verify": "embedstore.sync",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'embedstore' has no attribute {name!r}")
    module = importlib.import_module(home)
    if home == f"{__name__}.{name}":  # embedstore.sync: a room and its verb, see _Room
        return module
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Room(ModuleType):
    """A module that can be called like the function of its own name.

    `embedstore.sync` names a package and a function. The import system sets the attribute to the
    package whenever a module of it is imported first, so the package has to answer for both.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOMES.get(name) == value.__name__:
            value.__class__ = _Room
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
