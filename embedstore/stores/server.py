"""The server store: collections of a Qdrant server or cluster, by URL.

Single requests go by REST, many points by gRPC where its port answers. What a collection is stands in
its metadata; when it was promoted too, so that every machine sees the history of an alias. A repair
writes the right points over the wrong ones in place: the collection has a name of its own and an
alias that must not break.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from embedstore.data.features import MovieId
from embedstore.errors import (
    NotFoundError,
    StoreError,
    StoreLockedError,
    StoreUnreachableError,
    UsageError,
)
from embedstore.stores.base import (
    NO_FILTERS,
    Filters,
    Hit,
    Note,
    Peer,
    Promotion,
    Query,
    Replica,
    Store,
    moment_after,
)
from embedstore.stores.bulk import GrpcBulk, UnreadableError
from embedstore.stores.connection import NO_KEY, Connection, endpoints_of
from embedstore.stores.contract import (
    HEARTBEAT_SECONDS,
    HISTORY_VECTOR,
    INDEXES,
    STALE_SECONDS,
    CollectionSpec,
    Metadata,
    PointBatch,
    PointId,
    SearchIndex,
    Spread,
    check_batch,
    collection_name,
    now,
    point_id,
    rows_of,
    seconds_since,
    valid_alias,
)
from embedstore.stores.rest import (
    WRITING_SECONDS,
    ConflictError,
    ForbiddenError,
    OverloadedError,
    RestClient,
    anything,
)

__all__ = ["ServerStore"]

T = TypeVar("T")

OLDEST_SERVER = (1, 17, 1)
_PROMOTIONS_KEPT = 100
_PROMOTIONS = "promotions"  # in the metadata: [{"alias", "at", "previous", ...}, ...], oldest first
_PROMOTING = "promoting"  # in the metadata: {"at", "who"} of somebody who is about to point an alias here
_PROMOTING_SECONDS = 600.0  # after which he was killed
_NAME = re.compile(r"[^/\\\0<>:\"|?*]{1,250}")
_OUR_NAME = re.compile(r".+__\d{8}t\d{6}-[0-9a-f]{4}(_debias[01]\.\d\d)?")  # ALIAS__RUN
_IN_FLIGHT = 2
_READY_SECONDS = 3600.0
_SETTLE_SECONDS = 30.0  # for the nodes of a cluster to agree
_SETTLING = (0.0, *[0.02] * 50)  # looks, until it is written again
_NOTING_SECONDS = 15.0  # for the history, which a flip does not need
_PARTING_SECONDS = 3.0  # for a writer to say that it ends
_LOST_SECONDS = 3.0  # until a collection that cannot be read is taken for lost
_PEER_SECONDS = 5  # for one of them to answer another
_BATCH_QUERIES = 64
_COMPARISONS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


class ServerStore(Store):
    """Collections on a Qdrant server. See Store for the methods; open it with open_store."""

    in_place = True
    approximate = True

    def __init__(
        self,
        location: str,
        connection: Connection = NO_KEY,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._connection = connection
        self._endpoints = endpoints_of(location, connection)
        self.location = ",".join(endpoint.url for endpoint in self._endpoints)
        self._rest = RestClient(self._endpoints, connection, transport=transport)
        self._bulk: GrpcBulk | None = None
        self._bulk_reason: str | None = None  # why bulk goes as it does; None before it was needed
        self._threads = ThreadPoolExecutor(_IN_FLIGHT)
        self._flying: list[Future[None]] = []
        self._revising: set[str] = set()
        self._depth = 0
        self._name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"  # as Metadata.writer
        self._known: dict[str, Metadata] = {}
        try:
            self.version = self._checked_version()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"ServerStore({self.location!r})"

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        self._rest.close()
        if self._bulk is not None:
            self._bulk.close()

    # Collections

    def collections(self) -> list[str]:
        return sorted(name for name in self._all_names() if self._is_ours(name))

    def exists(self, name: str) -> bool:
        return name in self._all_names()

    def metadata(self, name: str) -> Metadata:
        known = self._known.get(name)
        if known is not None:
            return known
        found = self._metadata_in(self._info(name), name)
        # An alias may name another collection in a moment, so what it names is never kept.
        if name.endswith(f"__{found.reference}") and (found.state == "sealed" or self._depth):
            self._known[name] = found
        return found

    def create(self, name: str, spec: CollectionSpec, metadata: Metadata) -> None:
        if not _NAME.fullmatch(name):
            raise StoreError(f"collection name {name!r} cannot be used")
        if name in self.aliases():
            raise StoreError(f"collection {name!r} has the name of an alias; choose another alias")
        if self.exists(name):
            if self.metadata(name).state == "sealed":
                raise StoreError(f"collection {name!r} exists and is sealed; use revise to change it")
            self._await_silence(name)
            self._rest.request("DELETE", _path(name))
            self._forget(name)
        self._check_spread(spec.spread)
        content = {**metadata.to_dict(), "state": "building", "writer": self._name}
        try:
            self._rest.request("PUT", _path(name), _creation(spec, content))
        except ConflictError:  # another writer was faster, unless the answer to an earlier try was lost
            self._await_silence(name)
        self.create_indexes(name)

    def create_indexes(self, name: str) -> None:
        for field, kind in INDEXES.items():
            body = {"field_name": field, "field_schema": kind}
            self._rest.request("PUT", _path(name, "index?wait=true"), body)

    def tune(self, name: str, index: SearchIndex) -> None:
        hnsw = {"m": index.m, "ef_construct": index.ef} if index.m else {"m": 0}
        self._rest.request("PATCH", _path(name), {"vectors": {"": {"hnsw_config": hnsw}}})
        self.flush(name)

    def revise(self, name: str, *, empty: bool = False) -> None:
        metadata = self.metadata(name)
        if empty:
            self._refuse_needed(name)
            noted = self._flips_in(name)
            self._rest.request("DELETE", _path(name))
            self._forget(name)
            self.create(name, metadata.spec, metadata)
            self._patch(name, {_PROMOTIONS: noted})
        elif metadata.state == "sealed" and self._depth:
            self._revising.add(name)

    def upsert(self, name: str, batch: PointBatch) -> None:
        metadata = self._writable(name)
        check_batch(name, batch, metadata.spec)
        bulk = self._bulk_client()
        while len(self._flying) >= _IN_FLIGHT:
            self._flying.pop(0).result()
        send = self._upsert_by_rest if bulk is None else bulk.upsert
        self._flying.append(self._threads.submit(send, name, batch))

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self._writable(name)
        self._land()  # what is deleted now may be in flight
        self._rest.request("POST", _path(name, "points/delete?wait=true"), {"points": list(ids)})

    def flush(self, name: str) -> None:
        """Wait until every point is written, and the server has nothing left to do for the collection."""
        self._land()
        deadline = time.monotonic() + _READY_SECONDS
        calm, pause = 0, 0.02
        while calm < 2:
            info = self._info(name)
            _refuse_failing(name, info)
            if info["status"] == "grey":  # optimisations wait for a nudge, which any update is
                self._rest.request("PATCH", _path(name), {"optimizers_config": {}})
            calm = calm + 1 if _is_calm(info) else 0
            if time.monotonic() > deadline:
                raise StoreError(f"collection {name!r} was not ready after an hour ({info['status']})")
            if calm < 2:
                time.sleep(pause)
                pause = min(pause * 1.5, 1.0)

    def scroll(self, name: str, *, vectors: bool = True, limit: int = 1000) -> Iterator[PointBatch]:
        self._land()
        spec = self.metadata(name).spec
        bulk = self._bulk_client()
        offset: Any = None

        def page() -> tuple[PointBatch, Any]:
            if bulk is not None:
                with suppress(UnreadableError):
                    return bulk.scroll(name, spec, offset=offset, limit=limit, vectors=vectors)
            return self._page_by_rest(name, spec, offset=offset, limit=limit, vectors=vectors)

        coming = self._threads.submit(page)
        while True:
            batch, offset = coming.result()
            if offset is not None:
                coming = self._threads.submit(page)  # the server reads on while this page is looked at
            if len(batch):
                yield batch
            if offset is None:
                return

    def count(self, name: str, *, filters: Filters = NO_FILTERS) -> int:
        self._land()
        body: dict[str, Any] = {"exact": True}
        if (condition := _filter_of(filters, ())) is not None:
            body["filter"] = condition
        return self._ask("POST", name, "points/count", body, read=lambda found: int(found["count"]))

    def indexes(self, name: str) -> dict[str, str]:
        schema = self._info(name)["payload_schema"]
        return {field: info["data_type"] for field, info in sorted(schema.items())}

    def intact(self, name: str) -> bool:
        self._info(name)
        return False  # nothing but the points themselves tells

    def set_metadata(self, name: str, metadata: Metadata) -> None:
        content = metadata.to_dict()
        del content["pinned"]  # see pin
        self._patch(name, content)

    def pin(self, name: str, pin: Mapping[str, Any] | None) -> None:
        self.metadata(name)
        self._patch(name, {"pinned": pin})

    def seal(self, name: str, metadata: Metadata) -> None:
        self._land()
        found = self._fresh(name)
        if found.state == "building" and found.writer != self._name:
            raise _taken_over(name, found)
        # A node asks another one for the shards that it lacks, and that one may learn of it later.
        deadline = time.monotonic() + _SETTLE_SECONDS
        while found.state != "sealed" or found.writer is not None or name in self._revising:
            if time.monotonic() > deadline:
                raise StoreError(f"collection {name!r} does not become sealed; look at the cluster's nodes")
            self.set_metadata(name, replace(metadata, state="sealed", writer=None))
            self._revising.discard(name)
            for pause in _SETTLING:
                found = self._fresh(name)
                if found.state == "sealed":
                    break
                time.sleep(pause)

    def _delete(self, name: str) -> None:
        """Mark the collection, look whether somebody promotes it at this moment, and delete it.

        Whoever promotes writes first that he does and looks for the mark then, so that one of the two
        sees the other: deleting a collection would delete its aliases.
        """
        before = self._fresh(name)
        if before.state == "building":
            self._await_silence(name)
        self._patch(name, {"state": "deleting"})
        try:
            self._refuse_promoted(name)  # first: a promotion that has ended since shows in the aliases
            self._refuse_needed(name)
        except StoreError:
            self._patch(name, {"state": "building" if before.state == "building" else "sealed"})
            raise
        try:
            self._carry(name)
        except StoreUnreachableError:  # the next gc goes on with it
            raise
        except (StoreError, NotFoundError):
            pass  # what other hands have made of the history does not stand in the way
        self._forget(name)
        self._rest.request("DELETE", _path(name))

    def _refuse_promoted(self, name: str) -> None:
        mark = (self._metadata_of(name) or {}).get(_PROMOTING)
        if not isinstance(mark, dict) or _is_dead(mark.get("who")):
            return
        age = seconds_since(mark.get("at"))
        if age is not None and age < _PROMOTING_SECONDS:
            who = _in_words(mark.get("who"))
            raise StoreError(f"collection {name!r} is being promoted by {who}; wait until it has finished")

    # Aliases

    def aliases(self) -> dict[str, str]:
        return dict(self._rest.get("/aliases", _aliases_in))

    def _flip(self, alias: str, name: str, note: Note) -> bool:
        previous = self.aliases().get(alias)
        flips: list[Promotion] = []
        # The history never stands in the way of a flip.
        with suppress(StoreError, NotFoundError), self._rest.tried_for(_NOTING_SECONDS):
            flips = self.promotions(alias)
            # Where the last one has no time, whoever flipped it was killed before he noted it.
            if flips and previous == name and not flips[-1].at:
                self._note(alias, name, flips[-2].collection if flips[1:] else None, note, flips)
        if previous == name:
            return False
        self._patch(name, {_PROMOTING: {"at": now(), "who": self._name}})
        try:
            self._forget(name)
            self._require_sealed(name)
            # CreateAlias moves an alias that is there in one step; deleting it first would leave a gap.
            move = {"create_alias": {"alias_name": alias, "collection_name": name}}
            self._rest.request("POST", "/collections/aliases", {"actions": [move]})
        except BaseException:
            with suppress(StoreError, NotFoundError), self._rest.tried_for(_PARTING_SECONDS):
                self._patch(name, {_PROMOTING: None})
            raise
        with suppress(StoreError, NotFoundError), self._rest.tried_for(_NOTING_SECONDS):
            self._note(alias, name, previous, note, flips)
        return True

    def _note(
        self, alias: str, name: str, previous: str | None, note: Note, flips: Sequence[Promotion]
    ) -> None:
        """Note a flip from previous to name in the latter, after flips."""
        at = moment_after(max((flip.at for flip in flips), default=""))
        flip = {"alias": alias, "at": at, "previous": previous, **note.to_dict()}
        noted = {_PROMOTIONS: [*self._flips_in(name), flip][-_PROMOTIONS_KEPT:], _PROMOTING: None}
        self._patch(name, {"state": "sealed", **noted})  # a killed gc may have left its mark

    def promotions(self, alias: str) -> list[Promotion]:
        """Return the flips of alias, newest last, as the collections that are there remember them.

        A flip that was not noted, by a kill or by other hands, has no time. It is the last one, or is told
        of by the one after it, which noted what the alias named then.
        """
        target = self.aliases().get(valid_alias(alias))
        if target is None:
            return []
        found: dict[tuple[str, str], Promotion] = {}
        run_ids: dict[str, str] = {}
        for name in self._all_names():
            with suppress(OverloadedError):  # what has lost its last replica cannot be returned to either
                content = self._metadata_of(name, seconds=_LOST_SECONDS) or {}
                run_ids[name] = str(content.get("run_id") or "")
                for flip in _noted(content, name, alias):
                    found[flip.at, flip.collection] = flip
        flips: list[Promotion] = []
        for flip in sorted(found.values(), key=lambda flip: flip.at):
            before = flip.previous
            if before is not None and (not flips or flips[-1].collection != before):
                flips.append(Promotion(before, run_ids.get(before) or _run_id_in(before, alias), ""))
            flips.append(flip)
        if not flips or flips[-1].collection != target:
            flips.append(Promotion(target, self.metadata(target).run_id, ""))
        return flips[-_PROMOTIONS_KEPT:]

    def live(self, alias: str, back: int = 0) -> Promotion:
        if back:
            return super().live(alias, back)
        target = self.aliases().get(valid_alias(alias))
        if target is not None:
            try:
                return Promotion(target, self.metadata(target).run_id, "")
            except NotFoundError:  # deleted since, where the alias has moved on
                if self.aliases().get(alias) == target:
                    raise
                return self.live(alias)
        # A token for one alias sees no list of aliases, but reads through its own.
        try:
            found = self._metadata_in(self._info(alias), alias)
        except NotFoundError:
            return super().live(alias)
        return Promotion(alias, found.run_id, "")

    # Search

    def vectors_of(self, name: str, movie_ids: Sequence[MovieId]) -> npt.NDArray[np.float32]:
        self._check_readable(name)
        ids = [point_id(movie_id) for movie_id in movie_ids]
        body = {"ids": ids, "with_vector": True, "with_payload": False}
        found = self._ask("POST", name, "points", body, read=_vectors_in)
        for movie_id, key in zip(movie_ids, ids, strict=True):
            if found.get(key) is None:
                raise NotFoundError(f"movie {movie_id} is not in collection {name!r}")
        return rows_of([found[key] for key in ids], self.metadata(name).dim)

    def nearest(
        self, name: str, queries: Sequence[Query], limit: int, *, with_vectors: bool = False
    ) -> list[list[Hit]]:
        self._check_readable(name)
        bodies = []
        for query in queries:
            body: dict[str, Any] = {"query": query.vector.tolist(), "limit": limit, "with_payload": True}
            if with_vectors:
                body["with_vector"] = [""]
            if (condition := _filter_of(query.filters, query.exclude)) is not None:
                body["filter"] = condition
            bodies.append(body)

        def hits_in(answer: Any) -> list[Hit]:
            return [
                Hit.of(name, point["id"], point["score"], point.get("payload"), _unnamed(point))
                for point in answer["points"]
            ]

        def all_in(count: int, answers: Any) -> list[list[Hit]]:
            return [hits_in(answer) for answer, _ in zip(answers, range(count), strict=True)]

        if len(bodies) == 1:
            return [self._ask("POST", name, "points/query", bodies[0], read=hits_in)]
        found: list[list[Hit]] = []
        for start in range(0, len(bodies), _BATCH_QUERIES):
            part = bodies[start : start + _BATCH_QUERIES]
            read = partial(all_in, len(part))
            found += self._ask("POST", name, "points/query/batch", {"searches": part}, read=read)
        return found

    # The writer

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Nothing is locked on a server: two syncs of one run write the same points."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._revising.clear()
                self._known.clear()
                with suppress(StoreError):
                    self._land()

    @contextmanager
    def writing(self, name: str) -> Iterator[Callable[[], None]]:
        """See Store.writing. The server has no lock: a thread notes the heartbeat, and looks whose it is.

        Two that took over at the same instant write the same points, until one sees the other.
        """
        with self.writer(), self._rest.tried_for(WRITING_SECONDS):
            metadata = self._fresh(name)
            if metadata.state != "building":
                yield lambda: None
                return
            self._await_silence(name)
            self._patch(name, {"writer": self._name, "heartbeat": now()})
            ended, lost = threading.Event(), threading.Event()

            def beat() -> None:
                while not ended.wait(HEARTBEAT_SECONDS):
                    with suppress(StoreError, NotFoundError):  # whoever writes will see it too
                        found = self._metadata_of(name) or {}
                        if found.get("writer") not in (self._name, None):
                            lost.set()
                            return
                        if found.get("state") == "building":
                            self._patch(name, {"heartbeat": now()})

            def check() -> None:
                if lost.is_set():
                    raise _taken_over(name, self._fresh(name))

            thread = threading.Thread(target=beat, daemon=True)
            thread.start()
            try:
                yield check
            except BaseException:
                ended.set()
                # The next one need not wait; nor does this one, where the server is why it ends.
                with suppress(StoreError, NotFoundError), self._rest.tried_for(_PARTING_SECONDS):
                    if self._fresh(name).writer == self._name:
                        self._patch(name, {"writer": None})
                raise
            finally:
                ended.set()
                thread.join(_PARTING_SECONDS)

    def _await_silence(self, name: str) -> None:
        """Return when nobody else builds a collection, or whoever does gives no sign of life.

        By this machine's clock, since those of others may be wrong. Raises StoreLockedError at the
        first sign.
        """
        found = self._fresh(name)
        deadline = time.monotonic() + STALE_SECONDS
        while found.state == "building" and found.writer not in (None, self._name):
            if _is_dead(found.writer) or time.monotonic() > deadline:
                return
            time.sleep(HEARTBEAT_SECONDS / 5)
            before, found = found, self._fresh(name)
            if (found.writer, found.heartbeat) != (before.writer, before.heartbeat):
                raise _taken_over(name, found)

    # The nodes

    def peers(self) -> Sequence[Peer]:
        try:
            if self._rest.get("/cluster", lambda found: found["status"]) != "enabled":
                return ()
        except ForbiddenError:  # a token for one alias
            return ()
        return self._rest.get(f"/cluster/telemetry?timeout={_PEER_SECONDS}", _peers_in)

    def replicas(self, name: str) -> Sequence[Replica]:
        return self._ask("GET", name, "cluster", read=_replicas_in)

    def silent_nodes(self) -> list[str]:
        """Return a sentence for each node that location names and that gives no answer now."""
        return self._rest.silent_nodes()

    def bulk_way(self) -> str:
        """Return how many points travel, gRPC or REST, and why."""
        self._bulk_client()
        return str(self._bulk_reason)

    def require_maintained(self, name: str) -> None:
        """Raise StoreError where the server says that it cannot maintain a collection, as on a full disk."""
        _refuse_failing(name, self._info(name))

    def clock_skew(self) -> float | None:
        """Return how many seconds the server's clock is ahead of ours, None where it does not tell."""
        return self._rest.clock_skew()

    def may_write(self) -> bool:
        """Return whether the key may write, by asking to change a collection that is not there.

        Rights are looked at first, then the collection, so that no key changes anything.
        """
        path = _path("embedstore-asks-for-its-rights", "cluster")
        try:
            self._rest.request("POST", path, {"drop_sharding_key": {"shard_key": "none"}})
        except ForbiddenError:
            return False
        except StoreUnreachableError:
            raise
        except (NotFoundError, StoreError):  # allowed, but there is no such collection, or no cluster
            return True
        return True

    # Requests

    def _checked_version(self) -> str:
        try:
            found = self._rest.get("/", anything, patient=False)
        except NotFoundError:
            found = {}
        text = str(found.get("version", "")) if isinstance(found, dict) else ""
        numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", text)
        if numbers is None:
            raise StoreUnreachableError(
                f"store {self.location} answers, but not as Qdrant; expected its REST port, usually 6333"
            )
        if tuple(map(int, numbers.groups())) < OLDEST_SERVER:
            oldest = ".".join(map(str, OLDEST_SERVER))
            raise StoreError(
                f"store {self.location} is Qdrant {text}, expected {oldest} or newer; upgrade it"
            )
        return text

    def _ask(
        self, method: str, name: str, rest: str = "", body: Any = None, *, read: Callable[[Any], T]
    ) -> T:
        missing = NotFoundError(
            f"no collection {name!r} in store {self.location}; list them with `embedstore status`"
        )
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise missing
        try:
            return self._rest.request(method, _path(name, rest), body, read=read)
        except NotFoundError as error:
            self._forget(name)
            if "Collection" not in str(error):
                raise
            raise missing from None

    def _info(self, name: str) -> dict[str, Any]:
        return self._ask("GET", name, read=_checked_info)

    def _all_names(self) -> list[str]:
        return self._rest.get(
            "/collections", lambda found: [str(entry["name"]) for entry in found["collections"]]
        )

    def _metadata_of(self, name: str, *, seconds: float | None = 0.0) -> Mapping[str, Any] | None:
        """Return the raw metadata of a collection; None where it has none, or is gone by now.

        Raises OverloadedError where they cannot be read for some seconds, as when its only replica is away.
        """
        try:
            info = self._rest.get(_path(name), _checked_info, seconds=seconds)
        except NotFoundError:
            return None
        content = info["config"].get("metadata")
        return content if isinstance(content, dict) else None

    def _is_ours(self, name: str) -> bool:
        try:
            content = self._metadata_of(name)
        except OverloadedError:
            return _OUR_NAME.fullmatch(name) is not None  # nothing else tells
        return content is not None and "schema" in content and "run_id" in content

    def _metadata_in(self, info: Mapping[str, Any], name: str) -> Metadata:
        """Return the metadata of a collection, checked against its real shape."""
        content = info["config"].get("metadata") or {}
        if "schema" not in content or "run_id" not in content:
            raise StoreError(
                f"collection {name!r} in store {self.location} was not made by embedstore; "
                "choose another --alias"
            )
        found = Metadata.from_dict(content, name=name)
        vectors = info["config"]["params"]["vectors"]
        named = {"": vectors} if "size" in vectors else vectors
        expected = {"", HISTORY_VECTOR} if found.spec.additive else {""}
        for key in sorted(expected):
            params = named.get(key, {})
            size, distance = params.get("size"), params.get("distance")
            kind = "many vectors" if params.get("multivector_config") else params.get("datatype") or "float32"
            if (size, distance, kind) != (found.dim, "Dot", "float32"):
                raise StoreError(
                    f"collection {name!r} has vector {key!r} of width {size}, distance {distance} and type "
                    f"{kind}, expected {found.dim}, Dot and float32; delete the collection and run "
                    "`embedstore sync` again"
                )
        return found

    def _check_spread(self, spread: Spread) -> None:
        """Raise UsageError for more copies than nodes, of which a server would make fewer in silence."""
        if spread.replicas is None:
            return
        nodes = self._rest.get("/cluster", lambda found: len(found.get("peers", ()))) or 1
        if spread.replicas > nodes:
            raise UsageError(
                f"{spread.replicas} replicas need as many nodes, store {self.location} has {nodes}; "
                "add nodes or lower --replicas"
            )

    def _writable(self, name: str) -> Metadata:
        metadata = self.metadata(name)
        if metadata.state == "sealed" and name not in self._revising:
            raise StoreError(f"collection {name!r} is sealed; use revise to change it")
        return metadata

    def _check_readable(self, name: str) -> None:
        if not self._depth:
            self._require_sealed(name)

    def _forget(self, name: str) -> None:
        self._known.pop(name, None)

    def _fresh(self, name: str) -> Metadata:
        self._forget(name)
        return self.metadata(name)

    def _patch(self, name: str, content: Mapping[str, Any]) -> None:
        """Merge content into the metadata of a collection; None removes a key."""
        self._forget(name)
        self._rest.request("PATCH", _path(name), {"metadata": content})

    def _flips_in(self, name: str) -> list[Any]:
        """Return the flips that a collection remembers."""
        noted = (self._metadata_of(name, seconds=None) or {}).get(_PROMOTIONS)
        return noted if isinstance(noted, list) else []

    def _carry(self, name: str) -> None:
        """Give the flips that a collection remembers to those that their aliases name now."""
        content = self._metadata_of(name, seconds=None) or {}
        for alias, target in self.aliases().items():
            if (flips := _noted(content, name, alias)) and self._is_ours(target):
                moved = [{"alias": alias, **asdict(flip)} for flip in flips]
                known = [flip for flip in self._flips_in(target) if isinstance(flip, dict)]
                kept = sorted([*moved, *known], key=lambda flip: str(flip.get("at")))
                self._patch(target, {_PROMOTIONS: kept[-_PROMOTIONS_KEPT:]})

    # Many points

    def _bulk_client(self) -> GrpcBulk | None:
        if self._bulk_reason is None:
            try:
                self._bulk = GrpcBulk(self._endpoints, self._connection)
                self._bulk_reason = f"gRPC, {self._bulk.way}"
            except StoreUnreachableError as error:
                self._bulk_reason = f"REST, {error}"
        return self._bulk

    def _land(self) -> None:
        """Wait for the upserts in flight. Raises what the first of them raised."""
        flying, self._flying = self._flying, []
        for future in flying:
            future.result()

    def _upsert_by_rest(self, name: str, batch: PointBatch) -> None:
        movies = batch.movie_vectors.tolist()
        vectors: list[Any] = movies
        if batch.history_vectors is not None:
            pairs = zip(movies, batch.history_vectors.tolist(), strict=True)
            vectors = [{"": movie, HISTORY_VECTOR: history} for movie, history in pairs]
        points = [
            {"id": key, "vector": vector, "payload": dict(payload)}
            for key, vector, payload in zip(batch.ids, vectors, batch.payloads, strict=True)
        ]
        self._rest.request("PUT", _path(name, "points?wait=true"), {"points": points})

    def _page_by_rest(
        self, name: str, spec: CollectionSpec, *, offset: Any, limit: int, vectors: bool
    ) -> tuple[PointBatch, Any]:
        body = {"offset": offset, "limit": limit, "with_payload": True, "with_vector": vectors}

        def page_in(found: Any) -> tuple[PointBatch, Any]:
            records = found["points"]
            ids = [record["id"] for record in records]
            payloads = [record.get("payload") or {} for record in records]
            if vectors:
                movies = rows_of([_unnamed(record) for record in records], spec.dim)
                named = [_named(record, HISTORY_VECTOR) for record in records]
                history = rows_of(named, spec.dim) if spec.additive else None
            else:
                movies = np.zeros((len(ids), 0), np.float32)
                history = movies if spec.additive else None
            return PointBatch(ids, movies, history, payloads), found.get("next_page_offset")

        return self._ask("POST", name, "points/scroll", body, read=page_in)


def _run_id_in(name: str, alias: str) -> str:
    """Return the run id in the name of a collection of alias that may be gone."""
    return name.removeprefix(collection_name(alias, "")).partition("_debias")[0]


def _noted(metadata: Mapping[str, Any], name: str, alias: str) -> list[Promotion]:
    """Return the flips of alias that the metadata of collection name remember: its own, and carried ones."""
    noted = metadata.get(_PROMOTIONS)
    own = {"collection": name, "run_id": metadata.get("run_id")}
    entries = [entry for entry in noted if isinstance(entry, dict)] if isinstance(noted, list) else []
    flips = [Promotion.from_dict({**own, **entry}) for entry in entries if entry.get("alias") == alias]
    return [flip for flip in flips if flip is not None]


def _taken_over(name: str, found: Metadata) -> StoreLockedError:
    return StoreLockedError(
        f"collection {name!r} is being written by {_in_words(found.writer)}; wait until it has finished"
    )


def _host_and_pid(writer: object) -> tuple[str, str]:
    """Return what Metadata.writer names; the second empty where there is none, or other hands wrote it."""
    host, pid = (*str(writer or "").split(":"), "")[:2]
    return host, pid


def _in_words(writer: object) -> str:
    host, pid = _host_and_pid(writer)
    # Who is not named has finished by now, or is not ours.
    return f"process {pid} on {host}" if pid else "another process"


def _is_dead(writer: object) -> bool:
    """Whether a writer was a process of this machine that is no more."""
    host, pid = _host_and_pid(writer)
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _path(name: str, rest: str = "") -> str:
    return f"/collections/{quote(name, safe='')}" + (f"/{rest}" if rest else "")


def _creation(spec: CollectionSpec, metadata: Mapping[str, Any]) -> dict[str, Any]:
    # m=0: exact search; sync may raise it. The rows of `history` are looked up by id, never searched.
    movies = {"size": spec.dim, "distance": "Dot", "hnsw_config": {"m": 0}}
    vectors: dict[str, Any] = {"": movies}
    if spec.additive:
        vectors[HISTORY_VECTOR] = {**movies, "on_disk": True}
    body: dict[str, Any] = {"vectors": vectors, "hnsw_config": {"m": 0}, "metadata": dict(metadata)}
    layout = {
        "shard_number": spec.spread.shards,
        "replication_factor": spec.spread.replicas,
        "write_consistency_factor": spec.spread.write_consistency,
    }
    return body | {key: value for key, value in layout.items() if value is not None}


def _refuse_failing(name: str, info: Mapping[str, Any]) -> None:
    if info["status"] == "red" or info["optimizer_status"] != "ok":
        raise StoreError(
            f"collection {name!r} is {info['status']} on the server (optimizer: "
            f"{info['optimizer_status']}); look at the server's log"
        )


def _is_calm(info: Mapping[str, Any]) -> bool:
    queue = info.get("update_queue") or {}
    return info["status"] == "green" and not queue.get("length") and not queue.get("deferred_points")


def _filter_of(filters: Filters, exclude: Sequence[MovieId]) -> dict[str, Any] | None:
    must: list[Any] = [{"key": "genres", "match": {"value": genre}} for genre in filters.genres]
    for operator, year in filters.years:
        bounds = {"gte": year, "lte": year} if operator == "=" else {_COMPARISONS[operator]: year}
        must.append({"key": "year", "range": bounds})
    condition: dict[str, Any] = {"must": must} if must else {}
    if exclude:
        condition["must_not"] = [{"has_id": sorted({point_id(movie) for movie in exclude}, key=str)}]
    return condition or None


def _unnamed(record: Mapping[str, Any]) -> Sequence[float] | None:
    return record["vector"] if isinstance(record.get("vector"), list) else _named(record, "")


def _named(record: Mapping[str, Any], key: str) -> Sequence[float] | None:
    vectors = record.get("vector")
    found = vectors.get(key) if isinstance(vectors, dict) else None
    return found if isinstance(found, list) else None


# What is read from the results of Qdrant; see RestClient.request.


def _checked_info(info: Any) -> dict[str, Any]:
    """Return what is told of a collection, where all that is used is in it."""
    if not {"status", "optimizer_status", "payload_schema"} <= info.keys() or "params" not in info["config"]:
        raise KeyError("status")
    return dict(info)


def _aliases_in(found: Any) -> list[tuple[str, str]]:
    return sorted((str(entry["alias_name"]), str(entry["collection_name"])) for entry in found["aliases"])


def _vectors_in(records: Any) -> dict[PointId, Sequence[float] | None]:
    return {record["id"]: _unnamed(record) for record in records}


def _peers_in(found: Any) -> Sequence[Peer]:
    peers = found["cluster"]["peers"].items()
    made = [Peer(int(peer), info["uri"], bool(info["responsive"])) for peer, info in peers]
    return sorted(made, key=lambda peer: peer.id)


def _replicas_in(found: Any) -> Sequence[Replica]:
    here = [Replica(found["peer_id"], part["shard_id"], part["state"]) for part in found["local_shards"]]
    there = [Replica(part["peer_id"], part["shard_id"], part["state"]) for part in found["remote_shards"]]
    return sorted(here + there, key=lambda replica: (replica.shard, replica.peer))
