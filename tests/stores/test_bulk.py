"""gRPC against a scripted server: the same rules as for REST, by the statuses of gRPC."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import NotFoundError, StoreError, StoreUnreachableError
from embedstore.stores import bulk, rest
from embedstore.stores.bulk import GrpcBulk, UnreadableError
from embedstore.stores.connection import Connection, Endpoint, Secret, endpoints_of
from embedstore.stores.contract import CollectionSpec, PointBatch, points
from embedstore.stores.rest import ConflictError, ForbiddenError, OverloadedError, UnknownKeyError
from embedstore.stores.server import ServerStore
from tests.builders import tiny_run
from tests.keys import KEY
from tests.scripted import QDRANT, GrpcServer, HttpServer, answer, everything_about, refuse

Act = Callable[[Any], bytes]


def accept(context: Any) -> bytes:
    return b""  # an empty message has every field at its default


def hang(context: Any) -> bytes:
    gone = threading.Event()
    context.add_callback(gone.set)
    gone.wait()
    return b""


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; none is made."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", made.append)
    return made


@pytest.fixture
def batch(tmp_path: Path) -> PointBatch:
    return points(tiny_run(tmp_path, n=3))


@contextmanager
def client(*ports: int) -> Iterator[GrpcBulk]:
    endpoints = [Endpoint(f"http://127.0.0.1:{port}", "127.0.0.1", port) for port in ports]
    with closing(GrpcBulk(endpoints, Connection(api_key=Secret(KEY)))) as opened:
        yield opened


AT_ONCE: list[tuple[str, type[Exception], str]] = [
    ("UNAUTHENTICATED", UnknownKeyError, "refuses the key, or asks for one (401: no)"),
    ("PERMISSION_DENIED", ForbiddenError, "does not allow this (403: no)"),
    ("NOT_FOUND", NotFoundError, "no; list what is there"),
    ("ALREADY_EXISTS", ConflictError, "no"),
    ("INVALID_ARGUMENT", StoreError, "refuses the request (400: no)"),
    ("FAILED_PRECONDITION", StoreError, "refuses the request (400: no)"),
    ("OUT_OF_RANGE", StoreError, "refuses the request (400: no)"),
    ("UNIMPLEMENTED", StoreError, "refuses the request (400: no)"),
]
AGAIN = ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL", "UNKNOWN", "ABORTED", "CANCELLED", "DATA_LOSS"]


@pytest.mark.parametrize(("code", "error", "sentence"), AT_ONCE, ids=[case[0] for case in AT_ONCE])
def test_what_will_not_get_better_fails_at_once(
    code: str, error: type[Exception], sentence: str, batch: PointBatch, pauses: list[float]
) -> None:
    with GrpcServer(refuse(code, "no"), accept) as server, client(server.port) as asked:
        with pytest.raises(error) as caught:
            asked.upsert("movies", batch)
        assert len(server.calls) == 1
    assert type(caught.value) is error
    assert sentence in str(caught.value)
    assert pauses == []


@pytest.mark.parametrize("code", AGAIN)
def test_what_may_get_better_is_asked_again(code: str, batch: PointBatch, pauses: list[float]) -> None:
    script = [refuse(code, "later"), refuse(code, "later"), accept]
    with GrpcServer(*script) as server, client(server.port) as asked:
        asked.upsert("movies", batch)
        assert len(server.calls) == 3
    assert len(pauses) == 2
    assert min(pauses) > 0


def test_but_not_for_ever(batch: PointBatch, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "_TRIES", 3)
    with GrpcServer(refuse("UNAVAILABLE", "away")) as server, client(server.port) as asked:
        with pytest.raises(OverloadedError, match=r"gives no answer \(UNAVAILABLE: away\)"):
            asked.upsert("movies", batch)
        assert (len(server.calls), len(pauses)) == (3, 2)


def test_a_stall_is_asked_again(
    batch: PointBatch, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_SECONDS", 0.2)
    with GrpcServer(hang, accept) as server, client(server.port) as asked:
        asked.upsert("movies", batch)
        assert len(server.calls) == 2


def test_a_pause_is_at_least_what_the_server_asks_for(batch: PointBatch, pauses: list[float]) -> None:
    overloaded = refuse("RESOURCE_EXHAUSTED", "rate limit", retry_after="7")
    with GrpcServer(overloaded, accept) as server, client(server.port) as asked:
        asked.upsert("movies", batch)
    assert pauses[0] > 7


def test_what_the_messages_cannot_hold_is_told_at_once(pauses: list[float]) -> None:
    with (
        GrpcServer(lambda _: b"\xff" * 9) as server,
        client(server.port) as asked,
        pytest.raises(UnreadableError, match="sends what its messages cannot hold"),
    ):
        asked.scroll("movies", CollectionSpec(4, additive=True), offset=None, limit=5, vectors=True)
    assert pauses == []


def test_a_full_disk_is_named_at_once(batch: PointBatch, pauses: list[float]) -> None:
    full = refuse("INTERNAL", "Service internal error: No space left on device (os error 28)")
    with GrpcServer(full) as server, client(server.port) as asked:
        with pytest.raises(StoreError, match=r"the disk of store .* is full") as caught:
            asked.upsert("movies", batch)
        assert len(server.calls) == 1
    assert not isinstance(caught.value, StoreUnreachableError)


def test_the_key_goes_along_and_is_never_told(batch: PointBatch, pauses: list[float]) -> None:
    with (
        GrpcServer(refuse("UNAUTHENTICATED", f"api-key {KEY} is\nwrong")) as server,
        client(server.port) as asked,
    ):
        with pytest.raises(StoreError) as caught:
            asked.upsert("movies", batch)
        assert server.calls[0]["api-key"] == KEY
    assert "api-key *** is wrong" in str(caught.value)
    assert KEY not in everything_about(caught.value)


def test_a_key_over_plain_http_does_not_pass_the_proxy_of_the_environment(
    batch: PointBatch, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with HttpServer(answer(502)) as proxy, GrpcServer(accept) as server:
        for name in ("http_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, proxy.url)
        with client(server.port) as asked:
            asked.upsert("movies", batch)
        assert proxy.requests == []


def test_the_next_node_takes_over(batch: PointBatch, pauses: list[float]) -> None:
    with GrpcServer(refuse("UNAVAILABLE")) as dying, GrpcServer(accept) as other:
        with client(dying.port, other.port) as asked:
            for _ in range(3):
                asked.upsert("movies", batch)
        assert (len(dying.calls), len(other.calls)) == (1, 3)


def test_a_first_node_that_is_away_does_not_send_points_by_rest(
    batch: PointBatch, pauses: list[float]
) -> None:
    with GrpcServer(accept) as server, client(9, server.port) as asked:
        asked.upsert("movies", batch)
        assert asked.way == f"port {server.port} of 127.0.0.1 answers"
    assert pauses == []


def test_a_port_that_is_not_of_grpc_is_told(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_PROBE_SECONDS", 0.5)
    for script in (QDRANT, answer(502)):
        with HttpServer(script) as server:
            (endpoint,) = endpoints_of(server.url, Connection(grpc_port=port_of(server)))
            with pytest.raises(StoreUnreachableError, match=f"gRPC port {port_of(server)} gives no answer"):
                GrpcBulk([endpoint], Connection())


def test_points_go_by_rest_where_grpc_is_away(pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    with HttpServer(QDRANT) as server:
        port = port_of(server)
        for grpc_port, reason in [
            (0, "gRPC is switched off"),
            (9, "port 9 gives no"),
            (port, f"port {port} gives no"),
        ]:
            with ServerStore(server.url, Connection(grpc_port=grpc_port)) as store:
                assert reason in store.bulk_way()
                assert store.bulk_way().startswith("REST")


def port_of(server: HttpServer) -> int:
    return int(server.url.rpartition(":")[2])
