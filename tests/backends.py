"""The stores that a test may run on.

edge: the embedded store. local: the server store, its requests answered by qdrant-client's local mode.
rest and grpc: the server store with a real server, at QDRANT_URL.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from embedstore.stores.base import Store, open_store
from embedstore.stores.connection import Connection
from embedstore.stores.server import ServerStore
from tests.server import LocalMode, server_store

__all__ = ["BACKENDS", "EVERY_BACKEND", "SERVER_BACKENDS"]


def _edge(folder: Path) -> Store:
    return open_store(folder / "store", create=True)


def _local(_: Path) -> Store:
    return ServerStore("http://local-mode:6333", Connection(grpc_port=0), transport=LocalMode())


BACKENDS: dict[str, Callable[[Path], Store]] = {
    "edge": _edge,
    "local": _local,
    "rest": lambda _: server_store(grpc_port=0),
    "grpc": lambda _: server_store(),
}
_REAL = [pytest.param(way, marks=pytest.mark.server) for way in ("rest", "grpc")]
SERVER_BACKENDS = ["local", *_REAL]
EVERY_BACKEND = ["edge", *SERVER_BACKENDS]
