"""Servers on loopback that answer as a test tells them to: HTTP, by real sockets, and gRPC.

A script is a sequence of acts, one for each request; the last one goes on for ever.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = [
    "HTML",
    "QDRANT",
    "Act",
    "GrpcServer",
    "HttpServer",
    "answer",
    "break_off",
    "drip",
    "everything_about",
    "forward",
    "half_a_body",
    "refuse",
    "reset",
    "stall",
]

Act = Callable[[Any], None]


@dataclass(frozen=True)
class Request:
    """What an HTTP server was asked."""

    method: str
    path: str
    headers: Mapping[str, str]


class HttpServer:
    """An HTTP server on a free port, while its `with` lasts; requests are those it got."""

    def __init__(self, *script: Act) -> None:
        self.requests: list[Request] = []
        self.closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                self.body = self.rfile.read(int(self.headers.get("content-length", 0)))
                server.requests.append(Request(self.command, self.path, dict(self.headers)))
                script[min(len(server.requests), len(script)) - 1](self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._http.closing = self.closing  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def answer(status: int = 200, content: Any = None, **headers: str) -> Act:
    """Answer with content: bytes or text as they are, else as JSON. retry_after is the header Retry-After."""
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    body = text.encode() if isinstance(text, str) else text
    sent = {"content-type": "application/json", "content-length": str(len(body))}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response_only(status)
        for name, value in sent.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


QDRANT = answer(content={"title": "qdrant - vector search engine", "version": "1.18.3"})
HTML = "<!doctype html><title>Portal</title><h1>Sign in</h1>"


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Break the connection off, as a crash or a firewall does."""
    break_off(handler.connection)
    handler.close_connection = True


def break_off(connection: socket.socket) -> None:
    """Close a connection by RST."""
    with suppress(OSError):  # closed already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def half_a_body(handler: BaseHTTPRequestHandler) -> None:
    """Promise 100 bytes and send 10."""
    handler.send_response_only(200)
    handler.send_header("content-length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"result":')
    handler.close_connection = True


def drip(handler: Any) -> None:
    """Promise 100 bytes and send one now and then."""
    answer(content=b"", content_length="100")(handler)
    with suppress(OSError):  # the client waits no longer
        while not handler.server.closing.wait(0.03):
            handler.wfile.write(b" ")
    handler.close_connection = True


def stall(handler: Any) -> None:
    """Never answer."""
    handler.server.closing.wait()
    handler.close_connection = True


def forward(url: str, **headers: str) -> Act:
    """Answer as the server at url does, with other headers, as a proxy that changes them."""

    def act(handler: Any) -> None:
        with closing(HTTPConnection(urlsplit(url).netloc, timeout=60)) as server:
            del handler.headers["accept-encoding"]  # the answer goes on as it is read
            server.request(handler.command, handler.path, handler.body, dict(handler.headers))
            found = server.getresponse()
            answer(found.status, found.read(), **headers)(handler)

    return act


class GrpcServer:
    """A gRPC server on a free port with Qdrant's Points service, while its `with` lasts.

    calls are the metadata of the calls it got. A health check succeeds and is not among them.
    """

    def __init__(self, *script: Callable[[Any], bytes]) -> None:
        import grpc

        self.calls: list[dict[str, str]] = []
        self._script: Sequence[Callable[[Any], bytes]] = script
        self._server = grpc.server(ThreadPoolExecutor(2))
        points = dict.fromkeys(("Upsert", "Scroll"), grpc.unary_unary_rpc_method_handler(self._act))
        health = {"HealthCheck": grpc.unary_unary_rpc_method_handler(lambda request, context: b"")}
        for service, methods in (("qdrant.Points", points), ("qdrant.Qdrant", health)):
            self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, methods)])
        self.port: int = self._server.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()

    def _act(self, request: bytes, context: Any) -> bytes:
        self.calls.append(dict(context.invocation_metadata()))
        return self._script[min(len(self.calls), len(self._script)) - 1](context)


def refuse(code: str, details: str = "", **trailing: str) -> Callable[[Any], bytes]:
    """Answer a gRPC call with a status by its name; retry_after is the trailing metadata retry-after."""

    def act(context: Any) -> bytes:
        import grpc

        context.set_trailing_metadata([(key.replace("_", "-"), value) for key, value in trailing.items()])
        context.abort(getattr(grpc.StatusCode, code), details)
        raise AssertionError  # abort has raised already

    return act


def everything_about(error: BaseException) -> str:
    """Return the traceback with the local variables of every frame, as error trackers send it."""
    return "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
