"""Many points at a time over gRPC, in qdrant-client's messages.

A vector travels as its own bytes, so that it never becomes a list of Python floats, on its way out or back.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from embedstore.errors import StoreError, StoreUnreachableError
from embedstore.stores.connection import Connection, Endpoint
from embedstore.stores.contract import HISTORY_VECTOR, CollectionSpec, PointBatch, PointId
from embedstore.stores.rest import (
    WRITING_SECONDS,
    NoAnswerError,
    Nodes,
    persistently,
    refusal,
    seconds_of,
)

__all__ = ["GrpcBulk", "UnreadableError"]

_SECONDS = WRITING_SECONDS / 3
_PROBE_SECONDS = 2.0
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Nothing is compressed: vectors hardly shrink, and the server would spend most of its time on it.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.max_reconnect_backoff_ms", 2000),  # else a node that returns is looked for every two minutes
]
_STATUS = {  # of HTTP, so that both ways lead to the same sentences
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 400,
    "CANCELLED": 503,
}


class UnreadableError(StoreError):
    """An answer that gRPC cannot read, as a payload that nests too deeply: REST can."""


class _Node(NamedTuple):
    endpoint: Endpoint
    channel: Any
    points: Any  # the stub of Qdrant's Points service


class GrpcBulk:
    """Upserts and scrolls over the gRPC ports of one or several nodes.

    The constructor raises StoreUnreachableError where no port answers as Qdrant, or qdrant-client is missing.
    """

    def __init__(self, endpoints: Sequence[Endpoint], connection: Connection) -> None:
        try:
            import grpc
        except ModuleNotFoundError:
            raise StoreUnreachableError("qdrant-client is not installed") from None

        self._grpc: Any = grpc
        self._messages = _messages()
        self._connection = connection
        reachable = [endpoint for endpoint in endpoints if endpoint.grpc_port is not None]
        if not reachable:
            raise StoreUnreachableError("gRPC is switched off")
        self._nodes = Nodes([self._node(endpoint, connection) for endpoint in reachable])
        try:
            self.way = self._nodes.ask(self._probe)
        except StoreUnreachableError:
            self.close()
            raise

    def close(self) -> None:
        for node in self._nodes:
            node.channel.close()

    def upsert(self, name: str, batch: PointBatch) -> None:
        """Write points, and return when they can be read.

        Raises StoreError for a movie id of 2^63 or more, which its messages cannot hold.
        """
        try:
            request = _upsert_request(self._messages, name, batch)
        except ValueError as error:
            raise StoreError(
                f"gRPC cannot send a point ({error}); use --grpc-port 0, which is REST"
            ) from None
        self._call("Upsert", request)

    def scroll(
        self, name: str, spec: CollectionSpec, *, offset: Any, limit: int, vectors: bool
    ) -> tuple[PointBatch, Any]:
        """Return a page of points in ascending order of their id, and the next offset, None at the end.

        Raises UnreadableError where other hands have written what gRPC cannot read.
        """
        q = self._messages
        answer = self._call(
            "Scroll",
            q.ScrollPoints(
                collection_name=name,
                offset=None if offset is None else _point_id(q, offset),
                limit=limit,
                with_payload=q.WithPayloadSelector(enable=True),
                with_vectors=q.WithVectorsSelector(enable=vectors),
            ),
        )
        more = _key_of(answer.next_page_offset) if answer.HasField("next_page_offset") else None
        return _batch_of(answer.result, spec, vectors=vectors), more

    def _node(self, endpoint: Endpoint, connection: Connection) -> _Node:
        channel = self._channel(endpoint, connection)
        return _Node(endpoint, channel, self._messages.PointsStub(channel))

    def _channel(self, endpoint: Endpoint, connection: Connection) -> Any:
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        target = f"{host}:{endpoint.grpc_port}"
        options = [*_OPTIONS]
        if not endpoint.secure:  # and not through the proxy of http_proxy, which would read the key
            options.append(("grpc.enable_http_proxy", 0))
            return self._grpc.insecure_channel(target, options=options)
        credentials = self._grpc.ssl_channel_credentials(_roots(connection))
        return self._grpc.secure_channel(target, credentials, options=options)

    def _probe(self, node: _Node) -> str:
        port, request = f"port {node.endpoint.grpc_port}", self._messages.HealthCheckRequest()
        try:
            self._messages.QdrantStub(node.channel).HealthCheck(request, timeout=_PROBE_SECONDS)
        except self._grpc.RpcError as error:
            raise NoAnswerError(f"gRPC {port} gives no answer ({error.code().name})") from None
        return f"{port} of {node.endpoint.host} answers"

    def _call(self, method: str, request: Any) -> Any:
        def send(node: _Node) -> Any:
            ask = getattr(node.points, method)
            try:
                return ask(request, timeout=_SECONDS, metadata=self._credentials())
            except self._grpc.RpcError as error:
                problem = self._meaning_of(error, node.endpoint)
            raise problem  # without the error as its context, in whose frames the key is

        return persistently(lambda: self._nodes.ask(send), WRITING_SECONDS)

    def _credentials(self) -> Sequence[tuple[str, str]]:
        key = self._connection.api_key
        return [] if key is None else [("api-key", key.reveal())]

    def _meaning_of(self, error: Any, endpoint: Endpoint) -> Exception:
        code = error.code().name
        said = self._connection.without_key(" ".join((error.details() or "").split()))
        where = f"{endpoint.url} (gRPC port {endpoint.grpc_port})"
        if "deserializing" in said:
            return UnreadableError(f"store {where} sends what its messages cannot hold ({said})")
        if code in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            return NoAnswerError(f"store {where} gives no answer ({code}: {said}); start the server")
        waits = [value for key, value in error.trailing_metadata() or () if key == "retry-after"]
        return refusal(where, _STATUS.get(code, 500), said, seconds_of(waits[0]) if waits else None)


@cache
def _messages() -> Any:
    """Return the package qdrant_client.grpc, loaded without qdrant_client itself, which takes .6 s more."""
    client = find_spec("qdrant_client")
    if client is None or client.origin is None:
        raise StoreUnreachableError("qdrant-client is not installed")
    folder = Path(client.origin).parent / "grpc"
    spec = spec_from_file_location(
        "embedstore_messages", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise StoreUnreachableError(f"{folder} holds no messages")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _roots(connection: Connection) -> bytes | None:
    """Return the authorities that REST trusts too, as PEM; gRPC by itself knows none of this machine."""
    if connection.ca_file is not None:
        return connection.ca_file.read_bytes()
    known = ssl.create_default_context().get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, known)).encode() or None


def _upsert_request(q: Any, name: str, batch: PointBatch) -> Any:
    """Return the message that writes batch; filled in place, since a message that is assigned is copied."""
    request = q.UpsertPoints(collection_name=name, wait=True)
    for key, vectors, payload in zip(batch.ids, _serialized_vectors(q, batch), batch.payloads, strict=True):
        point = request.points.add()
        if isinstance(key, int):
            point.id.num = key
        else:
            point.id.uuid = key
        point.vectors.MergeFromString(vectors)
        for field, value in payload.items():
            _set(point.payload[field], value)
    return request


def _serialized_vectors(q: Any, batch: PointBatch) -> list[bytes]:
    """Return the serialized Vectors of every point: those of one point, with the rows' own bytes in them."""
    arrays = {"": batch.movie_vectors}
    if batch.history_vectors is not None:
        arrays[HISTORY_VECTOR] = batch.history_vectors
    dim = batch.movie_vectors.shape[1]
    marks = {name: np.full(dim, number, "<f4") for number, name in enumerate(arrays, start=1)}
    dense = {name: q.Vector(dense=q.DenseVector(data=mark.tolist())) for name, mark in marks.items()}
    pattern = q.Vectors(vectors=q.NamedVectors(vectors=dense)).SerializeToString()
    rows = np.tile(np.frombuffer(pattern, np.uint8), (len(batch), 1))
    for name, array in arrays.items():
        start = pattern.index(marks[name].tobytes())
        rows[:, start : start + 4 * dim] = np.ascontiguousarray(array, "<f4").view(np.uint8)
    return [row.tobytes() for row in rows]


def _set(target: Any, value: Any) -> None:
    """Set a Value to one of the values that the contract's payload has."""
    if isinstance(value, str):
        target.string_value = value
    elif isinstance(value, bool):  # an int, too
        target.bool_value = value
    elif isinstance(value, int):
        target.integer_value = value
    elif value is None:
        target.null_value = 0
    else:
        target.list_value.SetInParent()  # an empty list is a list
        for part in value:
            _set(target.list_value.values.add(), part)


def _plain(value: Any) -> Any:
    """Return any payload value, also of foreign hands, as JSON would hold it."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":  # the commonest first
        return value.string_value
    if kind == "integer_value":
        return value.integer_value
    if kind == "list_value":
        return [_plain(part) for part in value.list_value.values]
    if kind == "struct_value":
        return {key: _plain(part) for key, part in value.struct_value.fields.items()}
    return None if kind in (None, "null_value") else getattr(value, kind)


def _batch_of(points: Sequence[Any], spec: CollectionSpec, *, vectors: bool) -> PointBatch:
    ids = [_key_of(point.id) for point in points]
    payloads = [{key: _plain(value) for key, value in point.payload.items()} for point in points]
    if not vectors:
        none = np.zeros((len(ids), 0), np.float32)
        return PointBatch(ids, none, none if spec.additive else None, payloads)
    rows = _rows_of(points, spec.dim, _unnamed)
    history = _rows_of(points, spec.dim, _history) if spec.additive else None
    return PointBatch(ids, rows, history, payloads)


def _key_of(message: Any) -> PointId:
    key: PointId = message.num if message.HasField("num") else message.uuid
    return key


def _point_id(q: Any, key: PointId) -> Any:
    return q.PointId(num=key) if isinstance(key, int) else q.PointId(uuid=key)


def _unnamed(point: Any) -> Any:
    """Return the unnamed vector, which comes alone or among named ones."""
    if point.vectors.HasField("vector"):
        return point.vectors.vector
    return point.vectors.vectors.vectors.get("")


def _history(point: Any) -> Any:
    return point.vectors.vectors.vectors.get(HISTORY_VECTOR)


def _rows_of(points: Sequence[Any], dim: int, vector_of: Callable[[Any], Any]) -> npt.NDArray[np.float32]:
    """Return one vector of every point as a row; a missing one, written by foreign hands, is a row of NaN."""
    missing = np.full(dim, np.nan, "<f4").tobytes()
    width = dim * 4
    parts = []
    for point in points:
        vector = vector_of(point)
        content = b"" if vector is None else vector.dense.SerializeToString()[-width:]
        parts.append(content if len(content) == width else missing)
    return np.frombuffer(b"".join(parts), dtype="<f4").reshape(len(points), dim).astype(np.float32)
