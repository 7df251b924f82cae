"""What foreign hands do to a store behind the back of embedstore, one act at a time.

An Act says what it does and what embedstore owes afterwards: whether `verify` must name it, and whether
`sync` must mend it by itself. The same acts go to a folder, through qdrant_edge and its files, and to a
server, through raw requests.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import numpy as np
import qdrant_edge as edge

from embedstore.runs.run import Run
from embedstore.stores.contract import HISTORY_VECTOR, INDEXES, points

__all__ = ["THEIRS", "Act", "Folder", "Place", "Remote", "Victim", "acts_on", "remove"]

THEIRS = "theirs"  # a collection of another tool, there from the beginning
_KINDS = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
}
_DISTANCES = {"Dot": edge.Distance.Dot, "Cosine": edge.Distance.Cosine}

Shape = Mapping[str, tuple[int, str]]  # of every vector, its width and distance


@dataclass(frozen=True)
class Victim:
    """A sealed collection that holds run and that alias names; other: another one, of another run."""

    alias: str
    name: str
    run: Run
    other: str

    def point(self, row: int, **changes: Any) -> dict[str, Any]:
        """Return a point of run as REST takes it; row may count from the end, changes go over it."""
        row %= len(self.run.movies)
        batch = points(self.run, row, row + 1)
        vectors = {"": batch.movie_vectors[0].tolist()}
        if batch.history_vectors is not None:
            vectors[HISTORY_VECTOR] = batch.history_vectors[0].tolist()
        return {"id": batch.ids[0], "vector": vectors, "payload": dict(batch.payloads[0])} | changes


class Place(Protocol):
    """Where a store is, as other tools reach it. None as a value or a target removes."""

    def put(self, name: str, point: Mapping[str, Any]) -> None: ...
    def delete(self, name: str, ids: Sequence[Any]) -> None: ...
    def index(self, name: str, field: str, kind: str | None) -> None: ...
    def metadata(self, name: str, changes: Mapping[str, Any]) -> None: ...
    def alias(self, alias: str, target: str | None) -> None: ...
    def forget(self, name: str) -> None: ...
    def recreate(self, name: str, shape: Shape) -> None: ...
    def clear(self, alias: str, name: str) -> None:
        """Take alias, and the collections called alias and name, away."""


@dataclass(frozen=True)
class Act:
    """One thing that foreign hands do. kind: what docs/faults.md counts it as; what: how, in a few words.

    named: whether verify of the alias must refuse. mended: whether sync must mend it without further ado,
    else it may refuse, where its advice must do.
    """

    kind: str
    what: str
    do: Callable[[Any, Victim], None]
    named: bool = True
    mended: bool = True

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


class Remote:
    """A Qdrant server, real or in local mode, through plain requests."""

    def __init__(self, http: httpx.Client, *, grpc_port: int | None = None) -> None:
        self._http, self.grpc_port = http, grpc_port

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json()["result"]

    def of(self, name: str, method: str, rest: str = "", body: Any = None) -> Any:
        return self.ask(method, f"/collections/{quote(name, safe='')}{rest}", body)

    def put(self, name: str, point: Mapping[str, Any]) -> None:
        self.of(name, "PUT", "/points?wait=true", {"points": [point]})

    def delete(self, name: str, ids: Sequence[Any]) -> None:
        self.of(name, "POST", "/points/delete?wait=true", {"points": list(ids)})

    def index(self, name: str, field: str, kind: str | None) -> None:
        if kind is None:
            self.of(name, "DELETE", f"/index/{field}?wait=true")
        else:
            self.of(name, "PUT", "/index?wait=true", {"field_name": field, "field_schema": kind})

    def metadata(self, name: str, changes: Mapping[str, Any]) -> None:
        self.of(name, "PATCH", "", {"metadata": dict(changes)})

    def alias(self, alias: str, target: str | None) -> None:
        made = {"create_alias": {"alias_name": alias, "collection_name": target}}
        gone = {"delete_alias": {"alias_name": alias}}
        self.ask("POST", "/collections/aliases", {"actions": [gone if target is None else made]})

    def forget(self, name: str) -> None:
        self.of(name, "DELETE")

    def put_by_grpc(self, name: str, point: Mapping[str, Any]) -> None:
        from qdrant_client import QdrantClient, models

        assert self.grpc_port is not None
        client = QdrantClient(host="127.0.0.1", grpc_port=self.grpc_port, prefer_grpc=True)
        client.upsert(name, [models.PointStruct(**point)], wait=True)
        client.close()

    def clear(self, alias: str, name: str) -> None:
        for entry in self.ask("GET", "/aliases")["aliases"]:
            if entry["alias_name"] == alias:
                self.alias(alias, None)
        for other in {alias, name} & self.names():
            self.forget(other)

    def names(self) -> set[str]:
        return {entry["name"] for entry in self.ask("GET", "/collections")["collections"]}

    def foreign(self) -> dict[str, Any]:
        """Return all that every collection holds which was not made by embedstore."""
        infos = {name: self.of(name, "GET")["config"] for name in self.names()}
        return {
            name: (config, self.of(name, "POST", "/points/scroll", {"with_vector": True}))
            for name, config in infos.items()
            if not {"schema", "run_id"} <= (config.get("metadata") or {}).keys()
        }

    def recreate(self, name: str, shape: Shape) -> None:
        self.create(name, {key: {"size": size, "distance": kind} for key, (size, kind) in shape.items()})

    def create(self, name: str, vectors: Any, **more: Any) -> None:
        """Make a collection in the place of name, with its metadata and aliases unless more says others."""
        found = self.ask("GET", "/aliases")["aliases"]
        aliases = [entry["alias_name"] for entry in found if entry["collection_name"] == name]
        content = {"vectors": vectors, "metadata": self.of(name, "GET")["config"].get("metadata")} | more
        self.forget(name)
        self.of(name, "PUT", "", content)
        for alias in aliases:
            self.alias(alias, name)


class Folder:
    """The folder of an embedded store, through qdrant_edge and its files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def collection(self, name: str) -> Path:
        return self.path / "collections" / name

    def record(self, name: str) -> Path:
        return self.collection(name) / "collection.json"

    def alias_file(self, alias: str) -> Path:
        return self.path / "aliases" / f"{alias}.json"

    def shard(self, name: str) -> Path:
        generation: str = json.loads(self.record(name).read_text())["generation"]
        return self.collection(name) / generation

    def update(self, name: str, *operations: edge.UpdateOperation) -> None:
        shard = edge.EdgeShard.load(str(self.shard(name)))
        for operation in operations:
            shard.update(operation)
        shard.flush()
        shard.close()

    def put(self, name: str, point: Mapping[str, Any]) -> None:
        vector = point["vector"]
        if isinstance(vector, Mapping) and list(vector) == [""]:
            vector = vector[""]
        made = edge.Point(point["id"], vector, point.get("payload"))
        self.update(name, edge.UpdateOperation.upsert_points([made]))

    def delete(self, name: str, ids: Sequence[Any]) -> None:
        self.update(name, edge.UpdateOperation.delete_points(list(ids)))

    def index(self, name: str, field: str, kind: str | None) -> None:
        operations = [edge.UpdateOperation.delete_field_index(field)]
        if kind is not None:
            operations.append(edge.UpdateOperation.create_field_index(field, _KINDS[kind]))
        self.update(name, *operations)

    def metadata(self, name: str, changes: Mapping[str, Any]) -> None:
        content = json.loads(self.record(name).read_text())
        merged = {**content["metadata"], **changes}
        content["metadata"] = {key: value for key, value in merged.items() if value is not None}
        self.write(self.record(name), content)

    def alias(self, alias: str, target: str | None) -> None:
        if target is None:
            self.alias_file(alias).unlink()
        else:
            content = {"schema": 1, "collection": target, "promotions": []}
            self.alias_file(alias).write_text(json.dumps(content))

    def forget(self, name: str) -> None:
        remove(self.collection(name))

    def clear(self, alias: str, name: str) -> None:
        for path in (self.alias_file(alias), self.collection(alias), self.collection(name)):
            remove(path)

    def recreate(self, name: str, shape: Shape) -> None:
        shard = self.shard(name)
        shutil.rmtree(shard)
        shard.mkdir()
        vectors = {
            key: edge.EdgeVectorParams(size=size, distance=_DISTANCES[kind])
            for key, (size, kind) in shape.items()
        }
        edge.EdgeShard.create(str(shard), edge.EdgeConfig(vectors=vectors)).close()

    def write(self, path: Path, content: dict[str, Any]) -> None:
        """Write a JSON file of the store as versions did that knew no digest, so that it counts."""
        path.write_text(json.dumps({key: value for key, value in content.items() if key != "digest"}))


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def acts_on(place: Place, *, additive: bool) -> list[Act]:
    """Return every act that can be done in a place, to the collection of an additive run or another one."""
    acts = [*_POINTS, *_INDEXES, *_METADATA, *_ALIASES, *_SHAPES]
    if additive:
        acts += _HISTORY
    if isinstance(place, Folder):
        return acts + _FILES
    by_grpc = isinstance(place, Remote) and place.grpc_port is not None
    return acts + _COLLECTIONS + (_BY_GRPC if by_grpc else [])


def _payload(what: str, **changes: Any) -> Act:
    def do(place: Place, victim: Victim) -> None:
        content = {**victim.point(3)["payload"], **changes}
        gone = {key for key, value in changes.items() if value is ...}
        kept = {key: value for key, value in content.items() if key not in gone}
        place.put(victim.name, victim.point(3, payload=kept))

    return Act("points changed", what, do)


def _one_bit(place: Place, victim: Victim) -> None:
    point = victim.point(2)
    moved = np.nextafter(np.float32(point["vector"][""][0]), np.float32(np.inf))
    point["vector"][""][0] = float(moved)
    place.put(victim.name, point)


def _swapped(place: Place, victim: Victim) -> None:
    one, two = victim.point(0), victim.point(-1)
    place.put(victim.name, {**one, "vector": two["vector"]})
    place.put(victim.name, {**two, "vector": one["vector"]})


def _history_changed(place: Place, victim: Victim) -> None:
    point = victim.point(4)
    point["vector"][HISTORY_VECTOR][-1] = 7.5
    place.put(victim.name, point)


def _without(victim: Victim, key: str) -> dict[str, Any]:
    point = victim.point(4)
    del point["vector"][key]
    return point


def _all_deleted(place: Place, victim: Victim) -> None:
    place.delete(victim.name, [victim.point(row)["id"] for row in range(len(victim.run.movies))])


def _added(what: str, **changes: Any) -> Act:
    return Act("points added", what, lambda place, victim: place.put(victim.name, victim.point(0, **changes)))


_DEEP: Any = "at the bottom"
for _ in range(40):
    _DEEP = {"deeper": [_DEEP]}

_POINTS = [
    Act("points deleted", "one", lambda place, victim: place.delete(victim.name, [victim.point(1)["id"]])),
    Act("points deleted", "all", _all_deleted),
    Act("points changed", "a vector, in its last bit", _one_bit),
    Act("points changed", "the vectors of two swapped", _swapped),
    Act("points changed", "no payload", lambda p, v: p.put(v.name, v.point(3, payload={}))),
    _payload("no movie_id", movie_id=...),
    _payload("movie_id is a list", movie_id=[1]),
    _payload("movie_id is an object", movie_id={"a": 1}),
    _payload("movie_id is null", movie_id=None),
    _payload("movie_id is another", movie_id=10**9),
    _payload("movie_id is a float", movie_id=4.0),
    _payload("movie_id is text", movie_id="four"),
    _payload("title is a number", title=4),
    _payload("title is an object", title=_DEEP),
    _payload("no title", title=...),
    _payload("year is text", year="1953"),
    _payload("year is a fraction", year=1953.5),
    _payload("genres is text", genres="Drama"),
    _payload("genres is null", genres=None),
    _payload("genres is a number", genres=3),
    _payload("genres holds lists", genres=[["Drama"], [None]]),
    _payload("popularity is huge", popularity=1e300),
    _payload("run_id is another", run_id="20000101t000000-0000"),
    _payload("run_id is an object", run_id={"$": []}),
    _payload("cold is a list", cold=[[]]),
    _payload("a field more", secret="x" * 10_000),
    _added("a number", id=987_654_321),
    _added("the largest number", id=2**64 - 1),
    _added("a UUID", id="936da01f-9abd-4d9d-80c7-02af85c822a8"),
    _added("without payload", id=987_654_322, payload={}),
    _added("a field that nests deeply", id=987_654_323, payload={"movie_id": _DEEP}),
]
_HISTORY = [
    Act("points changed", "no movie vector", lambda p, v: p.put(v.name, _without(v, ""))),
    Act("points changed", "a history vector", _history_changed),
    Act("points changed", "no history vector", lambda p, v: p.put(v.name, _without(v, HISTORY_VECTOR))),
]


def _index(what: str, field: str, kind: str | None, *, named: bool = True) -> Act:
    return Act("indexes", what, lambda place, victim: place.index(victim.name, field, kind), named=named)


_INDEXES = [
    *[_index(f"{field} dropped", field, None) for field in INDEXES],
    _index("year of another kind", "year", "float"),
    _index("genres of another kind", "genres", "integer"),
    _index("one more", "title", "keyword", named=False),
]


def _meta(what: str, changes: Mapping[str, Any], *, named: bool = True, mended: bool = False) -> Act:
    return Act("metadata", what, lambda p, v: p.metadata(v.name, changes), named=named, mended=mended)


_WRONG = {"a number": 5.5, "text": "x", "a list": [1], "an object": {"a": [{}]}, "true": True, "": None}
_REQUIRED = ("state", "run_id", "dim", "count", "tower", "fingerprint", "schema")
_TOLD = ("created_at", "heartbeat", "tool_version", "search", "recall", "writer", "origin", "metrics",
         "measured_on", "promotions")  # fmt: skip

_LAST = "9999-12-31T23:59:59.999999+00:00"
_METADATA = [
    *[
        _meta(f"{field} is {what}" if what else f"no {field}", {field: value})
        for field in _REQUIRED
        for what, value in _WRONG.items()
        if not (field in ("run_id", "fingerprint") and what == "text")
    ],
    *[
        _meta(f"{field} is {what}" if what else f"no {field}", {field: value}, named=False, mended=True)
        for field in _TOLD
        for what, value in _WRONG.items()
    ],
    *[_meta(f"debias is {what}", {"debias": value}) for what, value in _WRONG.items() if what],
    *[
        _meta(f"{field} is {what}", {field: value}, mended=True)
        for field, what, value in (
            ("state", "building", "building"),
            ("state", "deleting", "deleting"),
            ("run_id", "another", "20000101t000000-0000"),
            ("debias", "another", 0.25),
            ("count", "smaller", 1),
            ("count", "0", 0),
            ("count", "10^12", 10**12),
            ("tower", "dense", "dense"),
            ("tower", "none", "none"),
        )
    ],
    *[
        _meta(f"{field} is {what}", {field: value})
        for field, what, value in (
            ("fingerprint", "another", "0" * 64),
            ("dim", "larger", 64),
            ("dim", "text", "64"),
            ("dim", "negative", -1),
            ("dim", "10^12", 10**12),
            ("count", "negative", -1),
            ("schema", "newer", 99),
            ("schema", "0", 0),
        )
    ],
    *[
        _meta(what, {key: value}, named=False, mended=True)
        for what, key, value in (
            ("a field more, huge", "note", "x" * 1_000_000),
            ("a field more, deep", "note", _DEEP),
            (
                "flips that are none",
                "promotions",
                [{"alias": "movies"}, 3, None, {"alias": "movies", "at": {}}],
            ),
            ("a flip to nowhere", "promotions", [{"alias": "movies", "at": _LAST, "collection": "../x"}]),
            ("a flip to theirs", "promotions", [{"alias": "movies", "at": "2020", "collection": THEIRS}]),
        )
    ],
    _meta("nothing left", dict.fromkeys((*_REQUIRED, *_TOLD))),
]

_ALIASES = [
    Act("aliases", "deleted", lambda place, victim: place.alias(victim.alias, None)),
    Act("aliases", "moved to another run", lambda place, victim: place.alias(victim.alias, victim.other)),
    Act("aliases", "one more", lambda place, victim: place.alias("another", victim.name), named=False),
]


def _shape(what: str, shape: Callable[[int], Shape]) -> Act:
    def do(place: Place, victim: Victim) -> None:
        made = dict(shape(victim.run.embedding_dim))
        if victim.run.history_vectors is None:
            made.pop(HISTORY_VECTOR, None)
        place.recreate(victim.name, made)

    return Act("shapes", what, do, mended=False)


_SHAPES = [
    Act("shapes", "deleted", lambda place, victim: place.forget(victim.name)),
    _shape("another width", lambda dim: {"": (dim + 1, "Dot"), HISTORY_VECTOR: (dim + 1, "Dot")}),
    _shape("another distance", lambda dim: {"": (dim, "Cosine"), HISTORY_VECTOR: (dim, "Dot")}),
    _shape("history of another width", lambda dim: {"": (dim, "Dot"), HISTORY_VECTOR: (dim + 1, "Dot")}),
    _shape("no vector without a name", lambda dim: {"other": (dim, "Dot")}),
    _shape("the same, but empty", lambda dim: {"": (dim, "Dot"), HISTORY_VECTOR: (dim, "Dot")}),
]


def _theirs(place: Remote, victim: Victim) -> None:
    place.alias(victim.alias, THEIRS)


def _created(what: str, vectors: Callable[[int], Any], **more: Any) -> Act:
    def do(place: Remote, victim: Victim) -> None:
        place.create(victim.name, vectors(victim.run.embedding_dim), **more)

    return Act("shapes", what, do, mended=False)


def _neighbour(name: str, metadata: Any, *, alias: str | None = None) -> Act:
    def do(place: Remote, victim: Victim) -> None:
        place.of(name, "PUT", "", {"vectors": {"size": 2, "distance": "Cosine"}, "metadata": metadata})
        if alias is not None:
            place.alias(alias, name)

    return Act("neighbours", f"{name!r}, metadata {str(metadata)[:30]}", do, named=False)


def _plain(dim: int) -> Any:
    return {"size": dim, "distance": "Dot"}


def _both(dim: int, **more: Any) -> Any:
    return {"": {**_plain(dim), **more}, HISTORY_VECTOR: _plain(dim)}


_COLLECTIONS = [  # of a server alone
    Act("aliases", "moved to another tool's", _theirs, mended=False),
    Act("aliases", "one more, with a strange name", lambda p, v: p.alias("a\nb/é ", THEIRS), named=False),
    _created("one vector without a name", _plain),
    _created("without metadata", _plain, metadata=None),
    _created("many vectors per point", lambda dim: _both(dim, multivector_config={"comparator": "max_sim"})),
    _created("sparse vectors alone", lambda _: {}, sparse_vectors={"words": {}}),
    _created("bytes", lambda dim: _both(dim, datatype="uint8")),
    _neighbour("movies__notes", None),
    _neighbour("movies__20300101t000000-ffff", {"schema": 1, "run_id": ["odd"]}, alias="films"),
    _neighbour("movies__20300101t000000-fffe", {"schema": 99, "run_id": "x", "state": "sealed"}),
    _neighbour(
        "movies__20300101t000000-fffd_debias0.50", {"schema": {}, "run_id": None, "promotions": {"a": 1}}
    ),
    _neighbour("films", {"promotions": [{"alias": "movies", "at": 5}]}),
    _neighbour("movies__x", {"promotions": [{"alias": "movies", "at": _LAST}]}),
    _neighbour("mo\nvies__x", {"promotions": [{"alias": "movies", "at": "9999"}]}),
]


def _contents(which: str) -> list[Act]:
    """Return what can be done to one JSON file of a folder: the record of a collection, or an alias."""

    def path(place: Folder, victim: Victim) -> Path:
        return place.record(victim.name) if which == "record" else place.alias_file(victim.alias)

    def holding(what: str, content: bytes) -> Act:
        def do(place: Folder, victim: Victim) -> None:
            path(place, victim).write_bytes(content)

        return Act(which, what, do, mended=False)

    def folder(place: Folder, victim: Victim) -> None:
        path(place, victim).unlink()
        path(place, victim).mkdir()

    def link(place: Folder, victim: Victim) -> None:
        file = path(place, victim)
        file.rename(place.path / f"{which}.moved")
        file.symlink_to(place.path / f"{which}.moved")

    def dangling(place: Folder, victim: Victim) -> None:
        path(place, victim).unlink()
        path(place, victim).symlink_to("/nowhere/at/all")

    def loop(place: Folder, victim: Victim) -> None:
        path(place, victim).unlink()
        path(place, victim).symlink_to(path(place, victim).name)

    return [
        holding("empty", b""),
        holding("not JSON", b"{nonsense"),
        holding("not UTF-8", b'{"\xff": 1}'),
        holding("a list", b"[]"),
        holding("an empty object", b"{}"),
        holding("nested 100,000 deep", b"[" * 100_000),
        holding("null bytes", bytes(1000)),
        Act(which, "a folder in its place", folder, mended=False),
        Act(which, "a link to where it is now", link, named=False, mended=False),
        Act(which, "a link to nothing", dangling, mended=False),
        Act(which, "a link to itself", loop, mended=False),
    ]


def _field(which: str, field: str, what: str, value: Any, *, named: bool = True, mended: bool = False) -> Act:
    def do(place: Folder, victim: Victim) -> None:
        path = place.record(victim.name) if which == "record" else place.alias_file(victim.alias)
        content = json.loads(path.read_text()) | {field: value}
        place.write(path, {key: kept for key, kept in content.items() if kept is not None})

    return Act(which, f"{field} is {what}" if what else f"no {field}", do, named=named, mended=mended)


def _shard_deleted(place: Folder, victim: Victim) -> None:
    shutil.rmtree(place.shard(victim.name))


def _shards_swapped(place: Folder, victim: Victim) -> None:
    one, two = place.shard(victim.name), place.shard(victim.other)
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)


def _collections_swapped(place: Folder, victim: Victim) -> None:
    one, two = place.record(victim.name).parent, place.record(victim.other).resolve(strict=True).parent
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)


def _shard_is_a_file(place: Folder, victim: Victim) -> None:
    shard = place.shard(victim.name)
    shutil.rmtree(shard)
    shard.write_text("x")


def _shard_is_a_link(place: Folder, victim: Victim) -> None:
    shard = place.shard(victim.name)
    shard.rename(place.path / "moved")
    shard.symlink_to(place.path / "moved")


def _collection_is_a_file(place: Folder, victim: Victim) -> None:
    place.forget(victim.name)
    place.collection(victim.name).write_text("x")


def _truncated(place: Folder, victim: Victim) -> None:
    next(place.shard(victim.name).rglob("chunk_0.mmap")).write_bytes(b"")


def _nonsense(place: Folder, victim: Victim) -> None:
    for path in place.shard(victim.name).rglob("*"):
        if path.is_file() and path.stat().st_size < 10**6:
            path.write_bytes(b"\x7f" * path.stat().st_size)


def _lock_is_a_folder(place: Folder, _: Victim) -> None:
    (place.path / "lock").unlink()
    (place.path / "lock").mkdir()


def _nan(victim: Victim) -> dict[str, Any]:
    point = victim.point(5)
    point["vector"][""] = [float("nan")] * victim.run.embedding_dim
    return point


_BY_GRPC = [  # which takes what JSON cannot say
    Act("points changed", "NaN", lambda p, v: p.put_by_grpc(v.name, _nan(v))),
]


_FILES = [  # of a folder alone
    Act("points changed", "NaN", lambda place, victim: place.put(victim.name, _nan(victim))),
    *_contents("record"),
    *_contents("alias file"),
    *[
        _field("record", field, what, value)
        for field in ("metadata", "generation", "files")
        for what, value in _WRONG.items()
    ],
    *[_field("record", "edge_config", what, value, named=False) for what, value in _WRONG.items()],
    _field("record", "edge_config", "other JSON", "{}", named=False),
    _field("record", "generation", "a path", "../../x"),
    _field("record", "generation", "two dots", ".."),
    _field("record", "generation", "none that is there", "gffffffff", mended=True),
    _field("record", "files", "empty", {}, named=False, mended=True),
    _field("record", "files", "far too much", {"x": {"bytes": 10**30, "sha256": ""}}, mended=True),
    _field(
        "record", "files", "a path", {"../../lock": {"bytes": 0, "sha256": "00"}}, named=False, mended=True
    ),
    _field("record", "schema", "newer", 99, named=False),
    *[
        _field("alias file", "schema", what, value, named=False, mended=False)
        for what, value in _WRONG.items()
    ],
    _field("alias file", "schema", "newer", 99),
    *[_field("alias file", "collection", what, value) for what, value in _WRONG.items() if what != "text"],
    _field("alias file", "collection", "none that is there", "movies__gone", mended=True),
    _field("alias file", "collection", "a path", "../collections"),
    _field("alias file", "collection", "empty", ""),
    *[
        _field("alias file", "promotions", what, value, named=False, mended=True)
        for what, value in {**_WRONG, "odd": [3, None, {"collection": 5}, {"a": 1}, []]}.items()
    ],
    Act("shards", "deleted", _shard_deleted),
    Act("shards", "swapped with another's", _shards_swapped),
    Act("shards", "a file in its place", _shard_is_a_file),
    Act("shards", "a link to where it is now", _shard_is_a_link, named=False),
    Act("shards", "a file of it emptied", _truncated),
    Act("shards", "its files are nonsense", _nonsense),
    Act("shards", "the whole folder swapped with another's", _collections_swapped, mended=False),
    Act("shards", "a file in place of the whole folder", _collection_is_a_file),
    Act("lock", "a folder in its place", _lock_is_a_folder, named=False, mended=False),
]
