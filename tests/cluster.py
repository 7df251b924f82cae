"""Three Qdrant servers on loopback that form a cluster, to be killed and started again by tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from embedstore.stores.server import ServerStore
from tests.server_process import Server, free_port, start_server

__all__ = ["Cluster", "running_cluster", "wait_until"]

_NODES = 3


class Cluster:
    """The nodes, in the order in which they were started."""

    def __init__(self) -> None:
        self.nodes: list[Server] = []

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    @property
    def leader(self) -> Server:
        """The node that orders the changes of collections and aliases."""
        answers = [httpx.get(f"{url}/cluster").json()["result"] for url in self.urls]
        leaders = [answer["raft_info"]["leader"] == answer["peer_id"] for answer in answers]
        return self.nodes[leaders.index(True)]

    @property
    def follower(self) -> Server:
        return next(node for node in self.nodes if node is not self.leader)

    def others(self, node: Server) -> list[str]:
        """Return the URLs of all nodes but one."""
        return [url for url in self.urls if url != node.url]

    def start(self, folder: Path) -> None:
        first = ""
        for number in range(_NODES):
            port = free_port()
            uri = f"http://127.0.0.1:{port}"
            node = start_server(
                folder / f"node{number}",
                env={
                    "QDRANT__CLUSTER__ENABLED": "true",
                    "QDRANT__CLUSTER__P2P__PORT": str(port),
                    "QDRANT__STORAGE__WAL__WAL_CAPACITY_MB": "1",
                },
                args=["--uri", uri, *(["--bootstrap", first] if first else [])],
            )
            self.nodes.append(node)
            first = first or uri
        for url in self.urls:
            wait_until(partial(_sees_all, url), f"node {url} does not see the others")

    @contextmanager
    def down(self, node: Server, *collections: str) -> Iterator[None]:
        """After the block, which kills a node, start it again and wait until its replicas are back."""
        try:
            yield
        finally:
            node.restart()
        self.wait_until_active(*collections)

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()

    def wait_until_active(self, *names: str) -> None:
        """Wait until every node sees every replica of these collections Active."""
        for url in self.urls:
            with ServerStore(url) as store:
                for name in names:
                    wait_until(partial(_active, store, name), f"{name} is not Active")


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Yield three nodes; skips the test loudly where QDRANT_BIN does not name the binary of a server."""
    cluster = Cluster()
    try:
        cluster.start(folder)
        yield cluster
    finally:
        cluster.stop()


def wait_until(true: Callable[[], bool], otherwise: str, *, seconds: float = 40.0) -> None:
    """Return as soon as true() is; fails after some time, saying otherwise."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def _sees_all(url: str) -> bool:
    return len(httpx.get(f"{url}/cluster").json()["result"]["peers"]) == _NODES


def _active(store: ServerStore, name: str) -> bool:
    return {replica.state for replica in store.replicas(name)} == {"Active"}
