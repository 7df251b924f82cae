"""A proxy on loopback before a real server, which does to chosen requests what networks and gateways do.

REST is passed on request by request, gRPC as bytes: its n-th request is the n-th piece that clients
send. What the proxy saw, keys too, stays in its memory.
"""

from __future__ import annotations

import itertools
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.scripted import HTML, HttpServer, Request, answer, break_off, reset
from tests.server_process import Server

__all__ = ["GRPC_FAULTS", "REST_FAULTS", "Choice", "FaultProxy", "at", "at_random", "from_then_on", "never"]

STALL_SECONDS = 10.0
_DRIPS = 20  # parts of what is sent slowly
_PIECE = 1 << 16

Choice = Callable[[int], str | None]  # from the number of a request, 1 and up, to the name of its fault


def never(_: int) -> None:
    """Choose no fault."""


def at(position: int, fault: str) -> Choice:
    """Return what chooses fault for one request alone."""
    return lambda number: fault if number == position else None


def from_then_on(position: int, fault: str) -> Choice:
    """Return what chooses fault for a request and all after it."""
    return lambda number: fault if number >= position else None


def at_random(rate: float, faults: Sequence[str], seed: int) -> Choice:
    """Return what chooses one of faults for a request with the probability rate."""
    rng = random.Random(seed)  # noqa: S311 - faults, not secrets
    return lambda _: rng.choice(faults) if rng.random() < rate else None


class FaultProxy:
    """Two free ports before a server, while its `with` lasts: url for REST, and grpc_port.

    stall is in seconds. Since the last restart: seen counts the requests of each way, done names the faults.
    """

    def __init__(self, server: Server, *, stall: float = STALL_SECONDS) -> None:
        self.stall = stall
        self._server = server
        self._http = HttpServer(self._act)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._accepting = threading.Thread(target=self._accept)
        self._sockets: list[socket.socket] = []
        self.url = self._http.url
        self.grpc_port: int = self._listener.getsockname()[1]
        self.restart()

    def __enter__(self) -> Self:
        self._http.__enter__()
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self._http.__exit__(kind, error, trace)
        for end in self._sockets:
            break_off(end)

    @property
    def requests(self) -> Sequence[Request]:
        """All requests of REST, with their headers."""
        return self._http.requests

    def restart(self, *, rest: Choice = never, grpc: Choice = never) -> None:
        """Count from 1 again, and let rest and grpc choose the faults."""
        self._choose = {"rest": rest, "grpc": grpc}
        self._numbers = {"rest": itertools.count(1), "grpc": itertools.count(1)}
        self.seen = {"rest": 0, "grpc": 0}
        self.done: list[str] = []

    def wait(self, seconds: float) -> None:
        """Return after seconds, or when the proxy ends."""
        self._http.closing.wait(seconds)

    def drips(self, content: bytes) -> Iterator[bytes]:
        """Yield content in parts, which takes half of a stall."""
        step = max(1, -(-len(content) // _DRIPS))
        for start in range(0, len(content), step):
            self.wait(self.stall / 2 / _DRIPS)
            yield content[start : start + step]

    def exchange(self, handler: Any) -> _Answer:
        """Send a request on and return its answer."""
        with closing(HTTPConnection("127.0.0.1", self._server.port, timeout=60)) as server:
            server.request(handler.command, handler.path, handler.body, dict(handler.headers))
            found = server.getresponse()
            return _Answer(found.status, found.headers.get("content-type", ""), found.read())

    def _next(self, way: str) -> str | None:
        self.seen[way] = number = next(self._numbers[way])
        fault = self._choose[way](number)
        if fault is not None:
            self.done.append(fault)
        return fault

    def _act(self, handler: Any) -> None:
        fault = self._next("rest")
        try:
            if fault is None:
                self.exchange(handler).give(handler)
            else:
                REST_FAULTS[fault](self, handler)
        except OSError:  # the client waits no longer
            handler.close_connection = True

    def _accept(self) -> None:
        with suppress(OSError):  # the end of the proxy, or of the server
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server.grpc_port))
                self._sockets += [client, server]
                dripping = threading.Event()
                for work in (self._pass_on, self._pass_back):
                    threading.Thread(target=work, args=(client, server, dripping), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket, dripping: threading.Event) -> None:
        with suppress(OSError):
            while piece := client.recv(_PIECE):
                fault = self._next("grpc")
                if fault == "stall":
                    self.wait(self.stall)
                if fault == "drip":
                    dripping.set()
                if fault != "reset before":
                    server.sendall(piece)
                if fault in ("reset before", "reset after"):
                    break_off(client)
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _pass_back(self, client: socket.socket, server: socket.socket, dripping: threading.Event) -> None:
        with suppress(OSError):
            while piece := server.recv(_PIECE):
                if dripping.is_set():
                    dripping.clear()
                    for part in self.drips(piece):
                        client.sendall(part)
                else:
                    client.sendall(piece)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


class _Answer(NamedTuple):
    status: int
    kind: str
    body: bytes

    def give(self, handler: Any) -> None:
        answer(self.status, self.body, content_type=self.kind)(handler)

    def give_parts(self, handler: Any, parts: Iterator[bytes]) -> None:
        """Promise the whole body, and send parts."""
        length = str(len(self.body))
        answer(self.status, b"", content_type=self.kind, content_length=length)(handler)
        for part in parts:
            handler.wfile.write(part)


def _reset_after(proxy: FaultProxy, handler: Any) -> None:
    proxy.exchange(handler)
    reset(handler)


def _half_a_body(proxy: FaultProxy, handler: Any) -> None:
    found = proxy.exchange(handler)
    found.give_parts(handler, iter([found.body[: len(found.body) // 2]]))
    handler.close_connection = True


def _stall(proxy: FaultProxy, handler: Any) -> None:
    proxy.wait(proxy.stall)
    proxy.exchange(handler).give(handler)


def _no_answer(proxy: FaultProxy, handler: Any) -> None:
    proxy.wait(proxy.stall)
    reset(handler)


def _late_answer(proxy: FaultProxy, handler: Any) -> None:
    found = proxy.exchange(handler)
    proxy.wait(proxy.stall)
    found.give(handler)


def _drip(proxy: FaultProxy, handler: Any) -> None:
    found = proxy.exchange(handler)
    found.give_parts(handler, proxy.drips(found.body))


def _twice(proxy: FaultProxy, handler: Any) -> None:
    proxy.exchange(handler)
    proxy.exchange(handler).give(handler)


def _instead(status: int, content: Any, **headers: str) -> Callable[[FaultProxy, Any], None]:
    act = answer(status, content, **headers)
    return lambda _, handler: act(handler)


REST_FAULTS: Mapping[str, Callable[[FaultProxy, Any], None]] = {
    "reset before": lambda _, handler: reset(handler),
    "reset after": _reset_after,
    "half a body": _half_a_body,
    "429": _instead(429, {"status": {"error": "Rate limiting exceeded"}}, retry_after="0.3"),
    "502 HTML": _instead(502, HTML, content_type="text/html"),
    "stall": _stall,
    "no answer": _no_answer,
    "late answer": _late_answer,
    "wrong JSON": _instead(200, {"hello": "world"}),
    "other result": _instead(200, {"result": {"hello": ["world"]}, "status": "ok"}),
    "no result": _instead(200, {"result": None, "status": "ok"}),
    "drip": _drip,
    "twice": _twice,
}
GRPC_FAULTS = ("reset before", "reset after", "stall", "drip")
