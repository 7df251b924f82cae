"""Qdrant servers for tests: a real one at QDRANT_URL, and qdrant-client's local mode behind the REST API."""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient, models

from embedstore.stores.connection import Connection, Secret
from embedstore.stores.server import ServerStore

__all__ = ["LocalMode", "clean", "connection_of_tests", "server_store", "server_url"]

OURS = re.compile(r"(movies|films|canary)(__.*)?")


def server_url() -> str:
    """Return QDRANT_URL; skips the test loudly where there is no server."""
    url = os.environ.get("QDRANT_URL")
    if not url:
        pytest.skip("NO QDRANT SERVER: set QDRANT_URL (and QDRANT_API_KEY) to run this test")
    return url


def connection_of_tests(*, grpc_port: int | None = None) -> Connection:
    key = os.environ.get("QDRANT_API_KEY")
    return Connection(api_key=Secret(key) if key else None, grpc_port=grpc_port)


def server_store(*, grpc_port: int | None = None) -> ServerStore:
    """Open the store at QDRANT_URL, emptied of what tests leave behind."""
    store = ServerStore(server_url(), connection_of_tests(grpc_port=grpc_port))
    clean(store.location)
    return store


def clean(url: str, *, but: str = "") -> None:
    """Delete the collections that tests make, all but one, and with them their aliases."""
    key = os.environ.get("QDRANT_API_KEY")
    with httpx.Client(base_url=url, headers={"api-key": key} if key else {}, timeout=60) as http:
        for entry in http.get("/collections").json()["result"]["collections"]:
            if OURS.fullmatch(entry["name"]) and entry["name"] != but:
                http.delete(f"/collections/{entry['name']}").raise_for_status()


class LocalMode(httpx.BaseTransport):
    """Qdrant's REST API, as far as the store uses it, answered by qdrant-client's local mode.

    Every body passes through qdrant-client's own models, so a request that the client could not have
    sent fails here.
    """

    def __init__(self) -> None:
        self.client = QdrantClient(":memory:")
        self.metadata: dict[str, dict[str, Any]] = {}  # local mode keeps none
        self.indexes: dict[str, dict[str, str]] = {}  # nor payload indexes
        self.lock = threading.Lock()

    def close(self) -> None:
        self.client.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            return self._answer(request)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        request.read()
        body = json.loads(request.content) if request.content else None
        path = request.url.path
        for method, pattern, answer in self._routes():
            found = re.fullmatch(pattern, path)
            if method == request.method and found:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # payload indexes have no effect in local mode
                    try:
                        content = answer(body, *found.groups())
                    except ValueError as error:
                        said = str(error)
                        status = 404 if "not found" in said else 409 if "already exists" in said else 400
                        return _refusal(status, said)
                return httpx.Response(200, json=content if path == "/" else {"result": content})
        return _refusal(404, f"no route {request.method} {path}")

    def _routes(self) -> list[tuple[str, str, Callable[..., Any]]]:
        one = "/collections/([^/]+)"
        return [
            ("GET", "/", lambda _: {"title": "qdrant", "version": "1.18.3"}),
            ("GET", "/cluster", lambda _: {"status": "disabled"}),
            ("GET", "/collections", lambda _: _json(self.client.get_collections())),
            ("GET", "/aliases", lambda _: _json(self.client.get_aliases())),
            ("POST", "/collections/aliases", self._flip),
            ("GET", one, self._info),
            ("PUT", one, self._create),
            ("PATCH", one, self._update),
            ("DELETE", one, lambda _, name: self.client.delete_collection(name)),
            ("PUT", f"{one}/index", self._index),
            ("DELETE", f"{one}/index/([^/]+)", lambda _, name, field: bool(self.indexes[name].pop(field))),
            ("PUT", f"{one}/points", self._upsert),
            ("POST", f"{one}/points/delete", self._delete),
            ("POST", f"{one}/points/count", self._count),
            ("POST", f"{one}/points/scroll", self._scroll),
            ("POST", f"{one}/points", self._retrieve),
            ("POST", f"{one}/points/query", lambda body, name: self._query([body], name)[0]),
            ("POST", f"{one}/points/query/batch", lambda body, name: self._query(body["searches"], name)),
        ]

    def _info(self, _: Any, name: str) -> dict[str, Any]:
        info: dict[str, Any] = _json(self.client.get_collection(name))
        target = {a.alias_name: a.collection_name for a in self.client.get_aliases().aliases}.get(name, name)
        info["config"]["metadata"] = self.metadata.get(target)
        info["payload_schema"] = {k: {"data_type": kind} for k, kind in self.indexes.get(target, {}).items()}
        return info

    def _create(self, body: dict[str, Any], name: str) -> bool:
        made = models.CreateCollection.model_validate(body)
        assert made.vectors is not None
        created = self.client.create_collection(
            name, vectors_config=made.vectors, sparse_vectors_config=made.sparse_vectors
        )
        self.metadata[name] = dict(made.metadata or {})
        self.indexes[name] = {}
        return created

    def _update(self, body: dict[str, Any], name: str) -> bool:
        update = models.UpdateCollection.model_validate(body)
        self._info(None, name)
        merged = {**self.metadata.get(name, {}), **(update.metadata or {})}
        self.metadata[name] = {key: value for key, value in merged.items() if value is not None}
        return True

    def _index(self, body: dict[str, Any], name: str) -> bool:
        made = models.CreateFieldIndex.model_validate(body)
        self._info(None, name)
        self.indexes[name][made.field_name] = body["field_schema"]
        return True

    def _flip(self, body: dict[str, Any]) -> bool:
        actions = models.ChangeAliasesOperation.model_validate(body).actions
        for action in actions:  # on a server, creating an alias that is there moves it
            if not isinstance(action, models.CreateAliasOperation):
                continue
            name = action.create_alias.alias_name
            if name in [alias.alias_name for alias in self.client.get_aliases().aliases]:
                delete = models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name))
                self.client.update_collection_aliases([delete])
        return self.client.update_collection_aliases(actions)

    def _upsert(self, body: dict[str, Any], name: str) -> Any:
        return _json(self.client.upsert(name, models.PointsList.model_validate(body).points))

    def _delete(self, body: dict[str, Any], name: str) -> Any:
        return _json(self.client.delete(name, models.PointIdsList.model_validate(body)))

    def _count(self, body: dict[str, Any], name: str) -> Any:
        asked = models.CountRequest.model_validate(body)
        return _json(self.client.count(name, count_filter=asked.filter, exact=bool(asked.exact)))

    def _scroll(self, body: dict[str, Any], name: str) -> Any:
        asked = models.ScrollRequest.model_validate(body)
        points, offset = self.client.scroll(
            name,
            offset=asked.offset,
            limit=asked.limit or 10,
            with_payload=True,
            with_vectors=asked.with_vector or False,
        )
        return {"points": [_json(point) for point in points], "next_page_offset": offset}

    def _retrieve(self, body: dict[str, Any], name: str) -> Any:
        asked = models.PointRequest.model_validate(body)
        found = self.client.retrieve(name, asked.ids, with_payload=False, with_vectors=True)
        return [_json(point) for point in found]

    def _query(self, bodies: list[dict[str, Any]], name: str) -> Any:
        asked = [models.QueryRequest.model_validate(body) for body in bodies]
        return [_json(answer) for answer in self.client.query_batch_points(name, asked)]


def _json(answer: Any) -> Any:
    return answer.model_dump(mode="json")


def _refusal(status: int, message: str) -> httpx.Response:
    return httpx.Response(status, json={"status": {"error": message}})
