"""The embedded store: a folder in which every collection is a shard of Qdrant Edge.

    store/  embedstore.json                 {"schema", "engine"}
            lock                            flock'ed by the one writer
            collections/<name>/             collection.json, and the shard in the folder that it names;
                                            checked.json, see below
            aliases/<alias>.json            {"schema", "collection", "promotions"}

A *generation* is one shard folder. collection.json names the generation that readers open and,
once sealed, the sha256 of its files. A sealed generation is never written to: a repair fills a new
one, and replacing collection.json is the one step in which readers pass from one to the other.
Shards have no WAL: with one, a shard has a single owner. So a building shard is not trusted after
a kill, but compared point by point by sync, and sealing makes it durable.

Edge replaces edge_config.json whenever a shard is loaded and segment.json whenever one is closed, by
readers too. So the first is not part of the seal (collection.json holds a copy, to mend it), and of
the second the content counts, not the bytes.

A shard is opened for searches only where every file has the sha256 that was sealed. What is larger than
_READ_EACH_TIME is read in full once; checked.json keeps its inode, size and times, and as long as these
stay it is not read again. collection.json and the aliases carry a digest of their own.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import qdrant_edge as edge

from embedstore.data.features import MovieId
from embedstore.errors import NotFoundError, StoreDamagedError, StoreError, StoreLockedError, UsageError
from embedstore.runs.files import open_file, parse_json, read_small
from embedstore.runs.manifest import damage_of, replace_file, sync_path, with_digest
from embedstore.runs.programs import run_program
from embedstore.runs.scratch import scratch_folder
from embedstore.stores.base import NO_FILTERS, Filters, Hit, Note, Promotion, Query, Store, moment_after
from embedstore.stores.contract import (
    ANY_SPREAD,
    HEARTBEAT_SECONDS,
    HISTORY_VECTOR,
    INDEXES,
    CollectionSpec,
    Metadata,
    PointBatch,
    PointId,
    check_batch,
    now,
    point_id,
    rows_of,
    valid_alias,
)
from embedstore.stores.shards import (
    EDGE_CONFIG,
    EDGE_UNFINISHED,
    SHARD_BYTES,
    allocated,
    copy_tree,
    digests_of,
    expected_bytes,
    files_of,
    home_of_scratch,
    is_large,
    link_tree,
    refuse_links,
    remove,
    remove_unfinished,
    require_room,
    stamp,
    sync_tree,
)

__all__ = ["EdgeStore"]

STORE_SCHEMA = 1
_STORE_FILE = "embedstore.json"
_STORE_CONTENT = '{"schema": 1, "engine": "qdrant-edge"}'
_RECORD = "collection.json"
_CHECKED = "checked.json"
_RECORD_FIELDS = ("schema", "metadata", "generation", "files", "edge_config")
_ALIAS_FIELDS = ("schema", "collection", "promotions")
_SYNC_AGAIN = "run `embedstore sync` with its run again"
_PROMOTE_AGAIN = "promote a run again, or delete the file where none is finished"
_EDGE_SECONDS = 60.0  # far more than Edge takes from making such a folder to removing it
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,250}")
_PROMOTIONS_KEPT = 100
_BATCH_QUERIES = 64
_WIDEST = 1 << 16  # of vectors: Qdrant's own bound
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_LOADING_SECONDS = 5
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
_INDEX_TYPES = {"keyword": edge.PayloadSchemaType.Keyword, "integer": edge.PayloadSchemaType.Integer}
_EXACT = edge.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10000)

_ROOM_TO_OPEN = 1 << 20  # Edge writes edge_config.json and segment.json


@dataclass(frozen=True)
class _Record:
    """What collection.json holds; files maps a name to its bytes and sha256, empty while building."""

    metadata: Metadata
    generation: str
    files: Mapping[str, Mapping[str, Any]]
    edge_config: str | None

    @property
    def sealed(self) -> bool:
        return self.metadata.state == "sealed"

    def to_json(self) -> bytes:
        content = {
            "schema": STORE_SCHEMA,
            "metadata": self.metadata.to_dict(),
            "generation": self.generation,
            "files": self.files,
            "edge_config": self.edge_config,
        }
        return with_digest(json.dumps(content, indent=1, sort_keys=True))


@dataclass
class _Writing:
    generation: str
    shard: edge.EdgeShard
    dirty: bool = True  # something was written since the shard was last read from the disk


@dataclass(frozen=True)
class _Reading:
    generation: str
    shard: edge.EdgeShard
    whole: bool  # every file is as it was sealed
    copy: ExitStack  # removes the copy that the shard was loaded from, if any

    def close(self) -> None:
        _close(self.shard)
        self.copy.close()


class EdgeStore(Store):
    """A folder of Qdrant Edge shards. See Store for the methods; open it with open_store."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = path
        self.location = str(path)
        self._lock_file: int | None = None
        self._lock_depth = 0
        self._writing: dict[str, _Writing] = {}
        self._reading: dict[str, _Reading] = {}
        self._records: dict[str, tuple[tuple[int, ...], _Record]] = {}
        with _disk(path):
            if create and not (path / _STORE_FILE).exists():
                _make_store(path)
            _check_store(path)

    def __repr__(self) -> str:
        return f"EdgeStore({self.location!r})"

    def close(self) -> None:
        """Close every shard. Unsealed writes stay on the disk for the next sync."""
        for writing in self._writing.values():
            _close(writing.shard)
        self._writing.clear()
        for reading in self._reading.values():
            reading.close()
        self._reading.clear()

    # Collections

    def collections(self) -> list[str]:
        with _disk(self.path):
            return sorted(path.parent.name for path in (self.path / "collections").glob(f"*/{_RECORD}"))

    def exists(self, name: str) -> bool:
        with _disk(self.path):
            return bool(_NAME.fullmatch(name)) and (self.path / "collections" / name / _RECORD).exists()

    def metadata(self, name: str) -> Metadata:
        return self._record(name).metadata

    def create(self, name: str, spec: CollectionSpec, metadata: Metadata) -> None:
        with self.writer(), _disk(self.path):
            if not _NAME.fullmatch(name):
                raise StoreError(f"collection name {name!r} cannot be used; expected letters, digits, '_.-'")
            if spec.spread != ANY_SPREAD:
                raise UsageError(
                    "an embedded store has neither shards nor replicas; give a server to --store"
                )
            if name in self.aliases():
                raise StoreError(f"collection {name!r} has the name of an alias; choose another alias")
            with suppress(NotFoundError, StoreDamagedError):
                if self._record(name).sealed:
                    raise StoreError(f"collection {name!r} exists and is sealed; use revise to change it")
            self._abandon(name)
            require_room(self.path, expected_bytes(metadata.count, spec, self.path))
            folder = self.path / "collections" / name
            remove(folder)
            generation = _new_generation()
            (folder / generation).mkdir(parents=True)
            shard = _create_shard(folder / generation, spec)
            replace_file(
                folder / _RECORD, _Record(replace(metadata, state="building"), generation, {}, None).to_json()
            )
            sync_path(folder.parent)
            self._writing[name] = _Writing(generation, shard)

    def create_indexes(self, name: str) -> None:
        with self.writer():
            writing = self._writer_of(name)
            writing.dirty = True
            _reindex(writing.shard)

    def revise(self, name: str, *, empty: bool = False) -> None:
        with self.writer(), _disk(self.path):
            record = self._record(name)
            self._abandon(name)
            if not record.sealed:
                if empty:
                    self.create(name, record.metadata.spec, record.metadata)
                else:
                    self._writer_of(name)
                return
            folder = self.path / "collections" / name
            generation = _new_generation()
            if empty:
                require_room(
                    self.path, expected_bytes(record.metadata.count, record.metadata.spec, self.path)
                )
                (folder / generation).mkdir()
                shard = _create_shard(folder / generation, record.metadata.spec)
            else:
                source = folder / record.generation
                self._check_sizes(name, record)
                require_room(
                    self.path, allocated(source) + expected_bytes(0, record.metadata.spec, self.path)
                )
                copy_tree(source, folder / generation)
                if not self.intact(name):
                    _try_to_load(name, folder / generation, record)
                shard = _load_shard(folder / generation, record)
                _reindex(shard)
            self._writing[name] = _Writing(generation, shard)

    def upsert(self, name: str, batch: PointBatch) -> None:
        record = self._record(name)
        check_batch(name, batch, record.metadata.spec)
        history = batch.history_vectors
        rows = batch.movie_vectors.tolist()  # Edge takes lists faster than arrays
        if history is None:
            made = [
                edge.Point(i, v, _as_dict(p)) for i, v, p in zip(batch.ids, rows, batch.payloads, strict=True)
            ]
        else:
            made = [
                edge.Point(i, {"": v, HISTORY_VECTOR: h}, _as_dict(p))
                for i, v, h, p in zip(batch.ids, rows, history.tolist(), batch.payloads, strict=True)
            ]
        self._update(name, edge.UpdateOperation.upsert_points(made))

    def delete(self, name: str, ids: Sequence[PointId]) -> None:
        self._update(name, edge.UpdateOperation.delete_points(list(ids)))

    def flush(self, name: str) -> None:
        with self.writer(), _disk(self.path):
            writing = self._writer_of(name)
            path = self.path / "collections" / name / writing.generation
            with _engine(f"collection {name!r} cannot be written"):
                writing.shard.flush()
                writing.shard.close()
                writing.shard = edge.EdgeShard.load(str(path))
            writing.dirty = False

    def scroll(self, name: str, *, vectors: bool = True, limit: int = 1000) -> Iterator[PointBatch]:
        from concurrent.futures import ThreadPoolExecutor

        shard = self._any_shard(name, doubtful=True)
        spec = self._record(name).metadata.spec

        def page(offset: Any) -> tuple[Any, Any]:
            request = edge.ScrollRequest(offset=offset, limit=limit, with_payload=True, with_vector=vectors)
            with _engine(f"collection {name!r} cannot be read"):
                return shard.scroll(request)  # without the GIL

        with ThreadPoolExecutor(1) as pool:  # reads on while a page is looked at
            records, offset = page(None)
            while records:
                coming = None if offset is None else pool.submit(page, offset)
                yield _batch_of(records, spec, vectors=vectors)
                records, offset = ([], None) if coming is None else coming.result()

    def count(self, name: str, *, filters: Filters = NO_FILTERS) -> int:
        shard = self._any_shard(name, doubtful=True)
        with _engine(f"collection {name!r} cannot be read"):
            return int(shard.count(edge.CountRequest(exact=True, filter=_filter_of(filters, ()))))

    def indexes(self, name: str) -> dict[str, str]:
        shard = self._any_shard(name, doubtful=True)
        with _engine(f"collection {name!r} cannot be read"):
            schema = shard.info().payload_schema
        return {key: str(info.data_type).rsplit(".")[-1].lower() for key, info in sorted(schema.items())}

    def intact(self, name: str) -> bool:
        record = self._record(name)
        if not record.sealed:
            return False
        folder = self.path / "collections" / name / record.generation
        try:
            paths = dict(files_of(folder))
            sizes = {key: path.stat().st_size for key, path in paths.items()}
            if sizes != {key: entry["bytes"] for key, entry in record.files.items()}:
                return False
            digests = digests_of(paths)
        except OSError:
            return False
        return digests == {key: entry["sha256"] for key, entry in record.files.items()}

    def set_metadata(self, name: str, metadata: Metadata) -> None:
        with self.writer(), _disk(self.path):
            record = self._record(name)
            changed = replace(record, metadata=replace(metadata, pinned=record.metadata.pinned))
            replace_file(self.path / "collections" / name / _RECORD, changed.to_json())

    def seal(self, name: str, metadata: Metadata) -> None:
        with self.writer(), _disk(self.path):
            writing = self._writer_of(name)
            if writing.dirty:
                self.flush(name)
            folder = self.path / "collections" / name
            shard_folder = folder / writing.generation
            with _engine(f"collection {name!r} cannot be closed"):
                writing.shard.close()
            del self._writing[name]
            remove_unfinished(shard_folder.rglob(f"{EDGE_UNFINISHED}*"))
            sync_tree(shard_folder)
            paths = dict(files_of(shard_folder))
            sizes = {key: path.stat().st_size for key, path in paths.items()}
            files = {
                key: {"bytes": sizes[key], "sha256": digest} for key, digest in digests_of(paths).items()
            }
            config = (shard_folder / EDGE_CONFIG).read_text(encoding="utf-8")
            pinned = self._record(name).metadata.pinned
            sealed = replace(metadata, state="sealed", writer=None, pinned=pinned)
            sync_path(folder)
            record = _Record(sealed, writing.generation, files, config)
            _keep_stamps(folder, record, {key: stamp(path) for key, path in paths.items()})
            replace_file(folder / _RECORD, record.to_json())
            _remove_other_generations(folder, writing.generation)

    def pin(self, name: str, pin: Mapping[str, Any] | None) -> None:
        with self.writer(), _disk(self.path):
            record = self._record(name)
            pinned = replace(record, metadata=replace(record.metadata, pinned=pin))
            replace_file(self.path / "collections" / name / _RECORD, pinned.to_json())

    def _delete(self, name: str) -> None:
        with _disk(self.path):
            self._record(name)
            self._abandon(name)
            folder = self.path / "collections" / name
            (folder / _RECORD).unlink()
            sync_path(folder)
            remove(folder)

    def size(self, name: str) -> int | None:
        try:
            return allocated(self.path / "collections" / name)
        except OSError:  # being deleted, or of another user
            return None

    # Aliases

    def aliases(self) -> dict[str, str]:
        targets, damaged = self.readable_aliases()
        for error in damaged.values():
            raise error
        return targets

    def readable_aliases(self) -> tuple[dict[str, str], dict[str, StoreError]]:
        """Return what aliases returns, of the files that can be read, and by alias why the others cannot."""
        targets: dict[str, str] = {}
        damaged: dict[str, StoreError] = {}
        with _disk(self.path):
            for path in sorted((self.path / "aliases").glob("[!.]*.json")):
                alias = path.name.removesuffix(".json")
                try:
                    with _disk(path), suppress(FileNotFoundError):  # gone by now
                        targets[alias] = _read_alias(path)["collection"]
                except StoreError as error:
                    damaged[alias] = error
        return targets, damaged

    def _flip(self, alias: str, name: str, note: Note) -> bool:
        path = self.path / "aliases" / f"{alias}.json"
        with _disk(self.path):
            path.parent.mkdir(exist_ok=True)
            before: dict[str, Any] = {"collection": None}
            with suppress(StoreDamagedError, FileNotFoundError):  # a flip mends it
                before = _read_alias(path)
            if before["collection"] == name:
                return False
            flips = _flips_of(before)
            at = moment_after(flips[-1].at if flips else None)
            run_id = self._record(name).metadata.run_id
            flips.append(Promotion(name, run_id, at, before["collection"], **note.to_dict()))
            content = {
                "schema": STORE_SCHEMA,
                "collection": name,
                "promotions": [asdict(flip) for flip in flips[-_PROMOTIONS_KEPT:]],
            }
            replace_file(path, with_digest(json.dumps(content, indent=1)))
            return True

    def promotions(self, alias: str) -> list[Promotion]:
        path = self.path / "aliases" / f"{valid_alias(alias)}.json"
        with _disk(self.path):
            try:
                content = _read_alias(path)
            except FileNotFoundError:
                return []
        target, flips = content["collection"], _flips_of(content)
        if not flips or flips[-1].collection != target:  # by other hands
            flips.append(Promotion(target, self.metadata(target).run_id, ""))
        return flips

    # Search

    def nearest(
        self, name: str, queries: Sequence[Query], limit: int, *, with_vectors: bool = False
    ) -> list[list[Hit]]:
        shard = self._any_shard(name)
        answers: list[list[Hit]] = []
        for start in range(0, len(queries), _BATCH_QUERIES):
            part = queries[start : start + _BATCH_QUERIES]
            made = [(query.vector.tolist(), _filter_of(query.filters, query.exclude)) for query in part]
            answers += [
                [_hit(name, point, with_vectors) for point in found]
                for found in _query(shard, name, made, limit, with_vectors)
            ]
        return answers

    def vectors_of(self, name: str, movie_ids: Sequence[MovieId]) -> npt.NDArray[np.float32]:
        shard = self._reader(name)
        ids = [point_id(movie_id) for movie_id in movie_ids]
        with _engine(f"collection {name!r} cannot be read"):
            records = shard.retrieve(list(ids), with_payload=False, with_vector=True)
        found: dict[PointId, Any] = {_plain_id(record.id): _unnamed(record.vector) for record in records}
        for movie_id, key in zip(movie_ids, ids, strict=True):
            if found.get(key) is None:
                raise NotFoundError(f"movie {movie_id} is not in collection {name!r}")
        return rows_of([found[key] for key in ids], self._record(name).metadata.dim)

    # The writer lock

    @contextmanager
    def writer(self) -> Iterator[None]:
        if self._lock_depth == 0:
            self._acquire()
        self._lock_depth += 1
        try:
            yield
        finally:
            self._lock_depth -= 1
            if self._lock_depth == 0 and self._lock_file is not None:
                for name in list(self._writing):
                    _close(self._writing.pop(name).shard)
                os.close(self._lock_file)
                self._lock_file = None

    @contextmanager
    def writing(self, name: str) -> Iterator[Callable[[], None]]:
        beaten = time.monotonic()

        def check() -> None:
            nonlocal beaten
            if time.monotonic() - beaten > HEARTBEAT_SECONDS:
                beaten = time.monotonic()
                metadata = self.metadata(name)
                if metadata.state == "building":
                    self.set_metadata(name, replace(metadata, heartbeat=now()))

        with self.writer():  # whoever dies loses the lock
            yield check

    def locked(self) -> bool:
        """Whether another process writes now. Takes the lock for an instant, so it is not for a loop."""
        import fcntl

        with _disk(self.path):
            try:
                with open_file(self.path, "lock") as file:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except FileNotFoundError:
                return False
        return False

    def leftovers(self) -> list[str]:
        """Return the folders of collections that were being made or deleted; the next writer removes them."""
        with _disk(self.path):
            folders = (self.path / "collections").glob("*")
            return sorted(path.name for path in folders if not (path / _RECORD).exists())

    def room(self) -> tuple[int, int]:
        """Return how many bytes are free, and how many a collection like the largest one needs."""
        specs = []
        for name in self.collections():
            with suppress(StoreError, NotFoundError):  # a damaged one is reported by whoever asks for it
                specs.append(self.metadata(name))
        needed = max((expected_bytes(found.count, found.spec, self.path) for found in specs), default=0)
        return shutil.disk_usage(self.path).free, needed

    def _acquire(self) -> None:
        import fcntl  # POSIX alone; reading works without it

        with _disk(self.path):
            descriptor = os.open(self.path / "lock", _LOCK_FLAGS, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise StoreLockedError(
                    f"store {self.path} is being written by another process; wait until it has finished"
                ) from None
            raise StoreError(f"store {self.path} cannot be locked: {error.strerror}") from error
        self._lock_file = descriptor
        try:
            with _disk(self.path):
                self._clean()
        except BaseException:
            os.close(descriptor)
            self._lock_file = None
            raise

    def _clean(self) -> None:
        """Remove what a killed writer left behind: folders and files that no record names."""
        for folder in (self.path / "collections").glob("*"):
            if folder.is_symlink():  # what is behind it is none of ours
                continue
            if not (folder / _RECORD).exists():
                remove(folder)
                continue
            with suppress(StoreError):  # a damaged record is reported by whoever asks for it
                generation = self._record(folder.name).generation
                _remove_other_generations(folder, generation)
                # Readers write a file at the top of a shard as they open it, and one in each segment.
                for where in ("", "segments/*/"):
                    left = (folder / generation).glob(f"{where}{EDGE_UNFINISHED}*")
                    remove_unfinished(left, after=_EDGE_SECONDS)
        for leftover in [*self.path.glob(".*.tmp"), *(self.path / "aliases").glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)

    # Shards

    def _record(self, name: str) -> _Record:
        path = self.path / "collections" / name / _RECORD
        if not _NAME.fullmatch(name):
            raise NotFoundError(f"no collection {name!r} in store {self.path}")
        try:
            status = path.stat()
            state = (status.st_ino, status.st_mtime_ns, status.st_size)
            cached = self._records.get(name)
            if cached is not None and cached[0] == state:
                return cached[1]
            content = _read_json(self.path, f"collections/{name}/{_RECORD}", _SYNC_AGAIN, _RECORD_FIELDS)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(
                f"no collection {name!r} in store {self.path}; list them with `embedstore status`"
            ) from None
        except OSError as error:
            problem = f"{path} cannot be read: {error.strerror}"
            if error.errno in _IN_THE_WAY:
                raise StoreDamagedError(f"{problem}; {_SYNC_AGAIN}") from error
            raise StoreError(f"{problem}; look at its permissions and its disk") from error
        try:
            record = _Record(
                metadata=Metadata.from_dict(content["metadata"], name=name),
                generation=content["generation"],
                files=content["files"],
                edge_config=content["edge_config"],
            )
            config = content["edge_config"]
            usable = (
                _NAME.fullmatch(record.generation)
                and not (path.parent / record.generation).is_symlink()
                and (config is None or _is_config(parse_json(config.encode())))
                and all(
                    isinstance(entry["bytes"], int)
                    and isinstance(entry["sha256"], str)
                    and not {"", ".."} & set(key.split("/"))
                    for key, entry in record.files.items()
                )
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise StoreDamagedError(f"{path} is damaged ({error!r}); {_SYNC_AGAIN}") from error
        if not usable:
            raise StoreDamagedError(f"{path} is damaged; {_SYNC_AGAIN}")
        self._records[name] = (state, record)
        return record

    def _any_shard(self, name: str, *, doubtful: bool = False) -> edge.EdgeShard:
        """Return the shard that is being written, else the sealed one; a building one needs the lock.

        doubtful: even where its files were changed, for who compares what is read.
        """
        if name in self._writing:
            return self._writing[name].shard
        if self._lock_depth and not self._record(name).sealed:
            return self._writer_of(name).shard
        return self._reader(name, doubtful=doubtful)

    def _writer_of(self, name: str) -> _Writing:
        if name in self._writing:
            return self._writing[name]
        record = self._record(name)
        if record.sealed:
            raise StoreError(f"collection {name!r} is sealed; use revise to change it")
        folder = self.path / "collections" / name / record.generation
        expected = expected_bytes(record.metadata.count, record.metadata.spec, self.path)
        require_room(self.path, max(expected - allocated(folder), SHARD_BYTES))
        _try_to_load(name, folder, record)  # a kill or a power cut may have torn it
        shard = _load_shard(folder, record)
        _reindex(shard)
        self._writing[name] = _Writing(record.generation, shard)
        return self._writing[name]

    def _abandon(self, name: str) -> None:
        if (writing := self._writing.pop(name, None)) is not None:
            _close(writing.shard)

    def _update(self, name: str, operation: edge.UpdateOperation) -> None:
        with self.writer():
            writing = self._writer_of(name)
            writing.dirty = True
            with _engine(f"collection {name!r} cannot be written"):
                writing.shard.update(operation)

    def _reader(self, name: str, *, doubtful: bool = False) -> edge.EdgeShard:
        """Return the sealed shard, opened once per generation. doubtful: see _any_shard."""
        while True:
            record = self._record(name)
            if not record.sealed:
                raise StoreError(f"collection {name!r} is not finished; run `embedstore sync` to finish it")
            known = self._reading.get(name)
            if known is not None and known.generation == record.generation and (known.whole or doubtful):
                return known.shard
            try:
                opened = self._open_sealed(name, record, doubtful=doubtful)
            except StoreError:
                if self._record(name).generation == record.generation:
                    raise
                continue  # a repair replaced the generation between reading the record and opening it
            if self._record(name).generation != record.generation:
                _close(opened.shard)  # and of what is being removed, Edge may have found only a part
                continue
            if known is not None:
                known.close()
            self._reading[name] = opened
            return opened.shard

    def _open_sealed(self, name: str, record: _Record, *, doubtful: bool) -> _Reading:
        self._check_sizes(name, record)
        folder = self.path / "collections" / name / record.generation
        changed = self._changed_file(name, record)
        if changed is not None and not doubtful:
            raise _damaged(name, f"{changed} does not have the sha256 that was sealed")
        config = folder / EDGE_CONFIG
        with ExitStack() as copy:
            read_only = not os.access(folder, os.W_OK) or (config.exists() and not os.access(config, os.W_OK))
            full = not read_only and shutil.disk_usage(folder).free < _ROOM_TO_OPEN
            if read_only or full:
                home = home_of_scratch()
                with _disk(home):
                    scratch = copy.enter_context(scratch_folder(home))
                    if full:
                        link_tree(folder, scratch / record.generation)
                    else:
                        needed = allocated(folder) + expected_bytes(0, record.metadata.spec, home)
                        require_room(home, needed)
                        copy_tree(folder, scratch / record.generation)
                folder = scratch / record.generation
            if changed is not None:
                _try_to_load(name, folder, record, linked=full)
            shard = _load_shard(folder, record, linked=full)
            return _Reading(record.generation, shard, changed is None, copy.pop_all())

    def _check_sizes(self, name: str, record: _Record) -> None:
        """Raise StoreError where a file is missing or too short: opening it could end the process."""
        folder = self.path / "collections" / name / record.generation
        for key, entry in record.files.items():
            try:
                size = (folder / key).lstat().st_size
            except OSError as error:
                raise _damaged(name, f"{key}: {error.strerror}") from error
            if size < entry["bytes"]:  # a file that grew was written to by other hands, and opens
                raise _damaged(name, f"{key} has {size} bytes, expected {entry['bytes']}")

    def _changed_file(self, name: str, record: _Record) -> str | None:
        """Return a file of a sealed shard that is not as it was sealed, None where all are."""
        folder = self.path / "collections" / name
        known = _stamps(folder, record)
        with _disk(folder):
            paths = {key: folder / record.generation / key for key in record.files}
            stamps = {key: stamp(path) for key, path in paths.items()}
            unread = [key for key in paths if known.get(key) != stamps[key]]
            digests = digests_of({key: paths[key] for key in unread})
        changed = next((key for key in unread if digests[key] != record.files[key]["sha256"]), None)
        if changed is None and any(is_large(stamps[key]) for key in unread):
            with suppress(OSError):  # a store that cannot be written to is read in full each time
                _keep_stamps(folder, record, stamps)
        return changed


def _make_store(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StoreError(f"store {path} is a file; expected a folder")
    if path.is_dir() and any(not child.name.endswith(".tmp") for child in path.iterdir()):
        raise StoreError(f"folder {path} is not empty and not a store of embedstore; choose another --store")
    path.mkdir(parents=True, exist_ok=True)
    replace_file(path / _STORE_FILE, f"{_STORE_CONTENT}\n".encode())
    sync_path(path.parent)


def _check_store(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise StoreError(f"store {path} is a file; expected a folder")
    if not (path / _STORE_FILE).exists():
        if path.is_dir() and any(path.iterdir()):
            raise StoreError(f"folder {path} is not a store of embedstore; choose another --store")
        raise NotFoundError(f"no store at {path}; make one with `embedstore sync`")
    for part in ("collections", "aliases"):
        if (path / part).is_symlink():
            raise StoreError(
                f"{path / part} is a link, which is not followed; give the folder itself to --store"
            )
    advice = f"write {_STORE_CONTENT} into it"
    if not isinstance(_read_json(path, _STORE_FILE, advice).get("schema"), int):
        raise StoreError(f"{path / _STORE_FILE} is damaged: it has no schema; {advice}")


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Turn the errors of the file system into StoreError."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno == errno.EROFS:
            raise StoreError(f"store {path} is on a read-only file system; choose another --store") from error
        advice = "; something else is in its place, move it away" if error.errno in _IN_THE_WAY else ""
        raise StoreError(f"store {path}: {where}: {error.strerror or error}{advice}") from error


@contextmanager
def _engine(what: str) -> Iterator[None]:
    """Turn the errors and panics of Edge, which have no types of their own, into StoreError."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise StoreError(f"{what}: {' '.join(str(error).split()) or type(error).__name__}") from error
        raise


def _read_json(folder: Path, name: str, mend: str, fields: Sequence[str] = ()) -> dict[str, Any]:
    """Return a JSON object. Raises StoreDamagedError where the file holds another thing, OSError as open.

    mend: what to do then. fields: of a file with a digest, where one of an older version has none; see
    damage_of.
    """
    path = folder / name
    try:
        raw = read_small(folder, name)
        content = parse_json(raw)
    except ValueError as error:
        raise StoreDamagedError(f"{path} is damaged: not JSON ({error}); {mend}") from error
    if not isinstance(content, dict):
        raise StoreDamagedError(f"{path} is damaged: not a JSON object; {mend}")
    if isinstance(content.get("schema"), int) and content["schema"] > STORE_SCHEMA:
        raise StoreError(
            f"{path} has schema {content['schema']}, this embedstore reads up to {STORE_SCHEMA}; "
            "upgrade embedstore"
        )
    if fields and (damage := damage_of(raw, content, fields)) is not None:
        raise StoreDamagedError(f"{path} is damaged: it {damage}; {mend}")
    return content


def _read_alias(path: Path) -> dict[str, Any]:
    content = _read_json(path.parent, path.name, _PROMOTE_AGAIN, _ALIAS_FIELDS)
    if not isinstance(content.get("collection"), str):
        raise StoreDamagedError(f"{path} is damaged: it names no collection; {_PROMOTE_AGAIN}")
    return content


def _flips_of(alias_file: Mapping[str, Any]) -> list[Promotion]:
    noted = alias_file.get("promotions")
    flips = [Promotion.from_dict(entry) for entry in noted] if isinstance(noted, list) else []
    return [flip for flip in flips if flip is not None]


def _new_generation() -> str:
    return f"g{secrets.token_hex(4)}"


def _create_shard(folder: Path, spec: CollectionSpec) -> edge.EdgeShard:
    def params() -> edge.EdgeVectorParams:
        return edge.EdgeVectorParams(size=spec.dim, distance=edge.Distance.Dot)

    vectors = {"": params(), HISTORY_VECTOR: params()} if spec.additive else {"": params()}
    with _engine(f"{folder} cannot be made"):
        shard = edge.EdgeShard.create(
            str(folder), edge.EdgeConfig(vectors=vectors, hnsw_config=_EXACT, wal_enabled=False)
        )
        for key, kind in INDEXES.items():
            shard.update(edge.UpdateOperation.create_field_index(key, _INDEX_TYPES[kind]))
    return shard


def _load_shard(folder: Path, record: _Record, *, linked: bool = False) -> edge.EdgeShard:
    _mend_config(folder, record, linked=linked)
    with _engine(f"{folder} cannot be opened"):
        return edge.EdgeShard.load(str(folder))


def _mend_config(folder: Path, record: _Record, *, linked: bool = False) -> None:
    """Put back the configuration of a sealed shard: with another, Edge may misread it, or take a WAL.

    Raises StoreError where there is none that fits, and for a link in folder, which Edge would follow.
    linked: the links are those of link_tree.
    """
    if not folder.is_dir():
        return
    found: Any = None
    with _disk(folder):
        if not linked:
            refuse_links(folder)
        with suppress(StoreError, OSError):
            found = _read_json(folder, EDGE_CONFIG, "")
        if record.edge_config is not None and found != parse_json(record.edge_config.encode()):
            replace_file(folder / EDGE_CONFIG, record.edge_config.encode())
        elif not _is_config(found):
            raise StoreError(f"{folder / EDGE_CONFIG} is damaged; {_SYNC_AGAIN}")


def _is_config(content: Any) -> bool:
    """Whether a configuration is one that Edge writes for a collection of ours."""
    try:
        vectors = content["vectors"].items()
        ours = all(entry["distance"] == "Dot" and 0 < entry["size"] <= _WIDEST for _, entry in vectors)
        return ours and {"", HISTORY_VECTOR} >= dict(vectors).keys() and content["wal_enabled"] is False
    except (KeyError, TypeError, AttributeError):
        return False


def _try_to_load(name: str, folder: Path, record: _Record, *, linked: bool = False) -> None:
    """Load and read a doubtful shard in another process, where damage may hang or end it.

    Raises StoreError where that does not succeed in good time.
    """
    _mend_config(folder, record, linked=linked)
    count = record.metadata.count
    code = (
        "import sys, qdrant_edge as q; s = q.EdgeShard.load(sys.argv[1])\n"
        "s.scroll(q.ScrollRequest(limit=int(sys.argv[2]), with_payload=True, with_vector=True)); s.close()"
    )
    command = [sys.executable, "-c", code, str(folder), str(count)]
    try:
        run_program(command, timeout=_LOADING_SECONDS + count / 10_000).check_returncode()
    except (subprocess.SubprocessError, OSError) as error:
        raise StoreError(f"collection {name!r} is damaged and cannot be loaded") from error


def _reindex(shard: edge.EdgeShard) -> None:
    """Build the payload indexes anew from the payload: a comparison of points does not see them."""
    with _engine("payload indexes cannot be built"):
        for key in shard.info().payload_schema:
            shard.update(edge.UpdateOperation.delete_field_index(key))
        for key, kind in INDEXES.items():
            shard.update(edge.UpdateOperation.create_field_index(key, _INDEX_TYPES[kind]))


def _close(shard: edge.EdgeShard) -> None:
    with suppress(StoreError), _engine("close"):
        shard.close()


def _stamps(folder: Path, record: _Record) -> Mapping[str, Sequence[int]]:
    """Return the stamps that the large files of a collection had when they were found right."""
    try:
        content = _read_json(folder, _CHECKED, "")
    except (StoreError, OSError):
        return {}
    files = content.get("files")
    if content.get("generation") != record.generation or not isinstance(files, dict):
        return {}
    return files


def _keep_stamps(folder: Path, record: _Record, stamps: Mapping[str, Sequence[int]]) -> None:
    large = {key: stamp for key, stamp in stamps.items() if is_large(stamp)}
    replace_file(folder / _CHECKED, json.dumps({"generation": record.generation, "files": large}).encode())


def _damaged(name: str, what: str) -> StoreError:
    return StoreError(f"collection {name!r} is damaged: {what}; repair it with `embedstore sync`")


def _remove_other_generations(folder: Path, generation: str) -> None:
    kept = {_RECORD, _CHECKED, generation}
    for child in list(folder.iterdir()):
        if child.name not in kept:
            remove(child)


def _as_dict(payload: Mapping[str, Any]) -> dict[str, Any]:
    return payload if isinstance(payload, dict) else dict(payload)


def _filter_of(filters: Filters, exclude: Sequence[MovieId]) -> edge.Filter | None:
    must: list[Any] = [
        edge.FieldCondition("genres", match=edge.MatchValue(genre)) for genre in filters.genres
    ]
    for operator, year in filters.years:
        bound = {"=": "gte", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}[operator]
        bounds = {bound: float(year)} | ({"lte": float(year)} if operator == "=" else {})
        must.append(edge.FieldCondition("year", range=edge.RangeFloat(**bounds)))
    must_not: list[Any] = [edge.HasIdCondition({point_id(movie_id) for movie_id in exclude})]
    if not must and not exclude:
        return None
    return edge.Filter(must=must or None, must_not=must_not if exclude else None)


def _query(
    shard: edge.EdgeShard,
    name: str,
    queries: Sequence[tuple[list[float], edge.Filter | None]],
    limit: int,
    with_vectors: bool,
) -> list[list[Any]]:
    requests = [
        edge.QueryRequest(
            limit=limit,
            query=edge.Query.Nearest(vector),
            with_payload=True,
            with_vector=[""] if with_vectors else False,
            filter=condition,
        )
        for vector, condition in queries
    ]
    with _engine(f"collection {name!r} cannot be searched"):
        if len(requests) == 1:
            return [shard.query(requests[0])]
        return list(shard.query_batch(edge.QueryBatchRequest(requests)))


def _hit(name: str, point: Any, with_vectors: bool) -> Hit:
    vector = _unnamed(point.vector) if with_vectors else None
    return Hit.of(name, _plain_id(point.id), point.score, point.payload, vector)


def _unnamed(vector: Any) -> Any:
    return vector.get("") if isinstance(vector, dict) else vector


def _plain_id(value: Any) -> PointId:
    return value if isinstance(value, int) else str(value)


def _batch_of(records: Sequence[Any], spec: CollectionSpec, *, vectors: bool) -> PointBatch:
    ids = [_plain_id(record.id) for record in records]
    payloads = [record.payload or {} for record in records]
    if not vectors:
        none = np.zeros((len(ids), 0), np.float32)
        return PointBatch(ids, none, none if spec.additive else None, payloads)
    found = [record.vector for record in records]  # converted on every access
    if not spec.additive and not any(isinstance(value, dict) for value in found):
        return PointBatch(ids, rows_of(found, spec.dim), None, payloads)
    named = [value if isinstance(value, dict) else {"": value} for value in found]
    return PointBatch(
        ids,
        rows_of([value.get("") for value in named], spec.dim),
        rows_of([value.get(HISTORY_VECTOR) for value in named], spec.dim) if spec.additive else None,
        payloads,
    )
