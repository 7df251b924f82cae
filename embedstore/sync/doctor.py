"""doctor: what a person on call asks first. Reads, and writes nothing.

Quick by default: of runs the sizes of their files; of an embedded store the digests, since a damaged shard is
better not opened; of a server exact counts. deep reads the files of runs too, and every live point.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

from embedstore.errors import EmbedstoreError, NotFoundError, RunError, StoreError
from embedstore.runs.registry import RunSummary, find_run, list_runs
from embedstore.runs.run import Run
from embedstore.stores.base import Progress, Replica, Store
from embedstore.stores.contract import STALE_SECONDS, Metadata, collection_name, moment_of
from embedstore.stores.edge import EdgeStore
from embedstore.stores.rest import ForbiddenError, UnknownKeyError
from embedstore.stores.server import ServerStore
from embedstore.sync.verify import verify

__all__ = ["Finding", "Level", "doctor"]

Level = Literal["problem", "warning", "note", "ok"]
Findings = Iterator["Finding"]

_SKEW = timedelta(seconds=5)
_UNFINISHED = timedelta(days=1)
_SHOWN = 3
_DEFAULT_ALIAS = "movies"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. advice: what to do, None where there is nothing to do."""

    name: str
    level: Level
    text: str
    advice: str | None = None


@dataclass(frozen=True)
class _Patient:
    """What is looked at. alias is the one that should serve."""

    store: Store
    runs: Sequence[RunSummary]
    runs_dir: Path
    alias: str
    now: datetime
    progress: Progress | None


def doctor(
    opened: Callable[[], AbstractContextManager[Store]],
    runs_dir: Path,
    *,
    alias: str = _DEFAULT_ALIAS,
    deep: bool = False,
    now: datetime | None = None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Return what was found about a store and the runs in runs_dir: the worst first, else in order.

    opened opens the store. What is too damaged to be looked at is a finding too. Raises UsageError where
    it cannot be known which store is meant.
    """
    moment = now or datetime.now(UTC)
    runs = list_runs(runs_dir)
    findings: list[Finding] = []
    try:
        with opened() as store:
            patient = _Patient(store, runs, runs_dir, alias, moment, progress)
            for name, check in _checks_of(store, deep):
                findings += _survived(name, partial(check, patient))
    except UnknownKeyError as error:  # it would be every answer
        findings.append(_finding_of(error, "key"))
    except (NotFoundError, StoreError) as error:
        findings.append(_finding_of(error, "store"))
    broken = [finding for run in runs for finding in _survived("runs", partial(_run, run, moment, deep))]
    if runs and not broken:
        how = "equals its digest" if deep else "has its size; --deep reads them"
        broken = [Finding("runs", "ok", f"{len(runs)} at hand, every file {how}")]
    findings += broken
    worst = ("problem", "warning", "note", "ok")
    return sorted(findings, key=lambda finding: worst.index(finding.level))


def _survived(name: str, check: Callable[[], Findings]) -> Findings:
    """Yield what a check finds; where damage ends it, that is the last finding."""
    try:
        yield from check()
    except UnknownKeyError:
        raise
    except ForbiddenError:
        yield Finding(name, "note", "the key does not allow to look")
    except EmbedstoreError as error:
        yield _finding_of(error, name)
    except Exception as error:  # noqa: BLE001 - what other hands have left may be anything
        text = f"cannot be looked at ({type(error).__name__}: {error})"
        yield Finding(name, "problem", text, "undo what another tool did to it; if none did, it is a defect")


def _finding_of(error: EmbedstoreError, name: str) -> Finding:
    text, _, advice = str(error).partition("; ")
    return Finding(name, "problem", text, advice or None)


def _checks_of(store: Store, deep: bool) -> list[tuple[str, Callable[[_Patient], Findings]]]:
    own: list[tuple[str, Callable[[_Patient], Findings]]] = []
    if isinstance(store, ServerStore):
        own = [
            ("server", lambda _: _server(store)),
            ("key", lambda _: _key(store)),
            ("bulk", lambda _: _bulk(store)),
            ("clock", lambda _: _clock(store)),
            ("disk", lambda _: _disk_of_server()),
            ("cluster", lambda _: _cluster(store)),
        ]
    elif isinstance(store, EdgeStore):
        own = [
            ("store", lambda _: _folder(store)),
            ("disk", lambda _: _disk(store)),
            ("lock", lambda _: _lock(store)),
        ]
    common = [
        ("clock", _stamps),
        ("aliases", _aliases),
        ("collections", _collections),
        ("runs", _missing_runs),
    ]
    return [*own, *common, *([("live", _live)] if deep else [])]


# A server


def _server(store: ServerStore) -> Findings:
    yield Finding("server", "ok", f"Qdrant {store.version} at {store.location}")
    for sentence in store.silent_nodes():
        text, _, advice = sentence.partition("; ")
        yield Finding("server", "problem", text, advice or None)


def _key(store: ServerStore) -> Findings:
    if store.may_write():
        yield Finding("key", "ok", "may read and write")
    else:
        store.aliases()  # an unknown key may not even read
        yield Finding("key", "note", "may only read", "`embedstore sync` needs the admin key")


def _bulk(store: ServerStore) -> Findings:
    way = store.bulk_way()
    yield Finding("bulk", "ok" if way.startswith("gRPC") else "note", way)


def _clock(store: ServerStore) -> Findings:
    skew = store.clock_skew()
    if skew is None:
        yield Finding("clock", "note", "the server does not tell its time")
    elif abs(skew) <= _SKEW.total_seconds():
        yield Finding("clock", "ok", "the server's agrees with ours")
    else:
        ahead = "ahead of" if skew > 0 else "behind"
        yield Finding(
            "clock", "warning", f"the server's is {abs(skew):.0f} s {ahead} ours", "set both by NTP"
        )


def _disk_of_server() -> Findings:
    text = "Qdrant's API does not tell how much room is left on the server's disk"
    yield Finding("disk", "note", text, "look there, by `df`; a full one shows as a collection that is red")


def _cluster(store: ServerStore) -> Findings:
    peers = store.peers()
    silent = [peer for peer in peers if not peer.answers]
    for peer in silent:
        yield Finding("cluster", "problem", f"node {peer.id} ({peer.uri}) gives no answer", "start it again")
    if peers and not silent:
        yield Finding("cluster", "ok", f"{len(peers)} nodes, all answer")


# A folder


def _folder(store: EdgeStore) -> Findings:
    version = importlib.metadata.version("qdrant-edge-py")
    folders = [store.path, store.path / "collections", store.path / "aliases"]
    closed = [path for path in folders if path.exists() and not os.access(path, os.W_OK)]
    if closed:
        advice = "`embedstore sync` needs to write there: run it as the owner"
        yield Finding("store", "note", f"{closed[0]} may only be read", advice)
    else:
        yield Finding("store", "ok", f"Qdrant Edge {version} at {store.location}, may be read and written")


def _disk(store: EdgeStore) -> Findings:
    free, needed = store.room()
    text = f"{free / 1e6:,.0f} MB free in {store.location}"
    if free >= needed:
        yield Finding("disk", "ok", text)
    else:
        advice = "make room before the next `embedstore sync`, as by `embedstore gc`"
        yield Finding("disk", "warning", f"{text}, a new collection needs {needed / 1e6:,.0f} MB", advice)


def _lock(store: EdgeStore) -> Findings:
    if store.locked():
        yield Finding("lock", "note", "another process is writing to the store")
    else:
        yield Finding("lock", "ok", "nobody is writing")
        if left := store.leftovers():
            text = f"a killed sync or gc left {len(left)} folders behind: {_first(left)}"
            yield Finding("lock", "note", text, "the next `embedstore sync` or `gc` removes them")


# Any store


def _stamps(patient: _Patient) -> Findings:
    """Look for times ahead of our clock: runs go by age, and whoever builds by its last sign of life."""
    stamps = {f"run {run.run_id}": _made_at(run.run_id) for run in patient.runs}
    for name in patient.store.collections():
        with suppress(EmbedstoreError):  # see collections
            stamps[f"collection {name}"] = moment_of(patient.store.metadata(name).created_at)
    ahead = {
        what: at - patient.now for what, at in stamps.items() if at is not None and at - patient.now > _SKEW
    }
    if ahead:
        what = max(ahead, key=lambda key: ahead[key])
        text = f"{what} is from {_age(ahead[what])} ahead of our clock"
        yield Finding("clock", "warning", text, "set it by NTP: `latest` and `watch` go by these times")


def _aliases(patient: _Patient) -> Findings:
    store, alias = patient.store, patient.alias
    damaged: dict[str, StoreError] = {}
    if isinstance(store, EdgeStore):
        targets, damaged = store.readable_aliases()
    else:
        targets = store.aliases()
    for name, error in damaged.items():
        text = str(error).partition("; ")[0]
        yield Finding("aliases", "problem", text, f"{_way_back(store, name)} writes it anew")
    if alias not in targets and alias not in damaged:
        try:  # a token sees no list, but reads through its alias
            yield Finding("aliases", "ok", f"{alias} -> run {store.live(alias).run_id}")
        except NotFoundError:
            known = ", ".join(targets) or "none"
            text = f"there is no alias {alias!r} (aliases: {known})"
            yield Finding("aliases", "warning", text, f"make it by {_command('sync', '', alias)}")
    for name in dict.fromkeys([alias, *targets]):
        if store.exists(name):
            text = f"{name!r} is the name of a collection too, so that nothing can be promoted to it"
            yield Finding("aliases", "problem", text, "take another --alias, or delete that collection")
    ours = store.collections()
    for name, target in targets.items():
        yield from _survived("aliases", partial(_alias, patient, name, target, target in ours))


def _alias(patient: _Patient, name: str, target: str, is_ours: bool) -> Findings:
    store = patient.store
    if not is_ours:
        there = store.exists(target)
        what = "which is no collection of embedstore" if there else "which is not there"
        if there and name != patient.alias:
            yield Finding("aliases", "note", f"{name} -> {target}, {what}")
        else:
            advice = f"point it elsewhere by {_way_back(store, name)}"
            yield Finding("aliases", "problem", f"{name} -> {target}, {what}", advice)
        return
    metadata = store.metadata(target)
    owner = _owner(target, metadata)
    if metadata.state != "sealed":
        finish = _command("sync", metadata.reference, owner, "--no-promote")
        advice = f"finish the run by {finish}, or point it elsewhere by {_command('rollback', '', name)}"
        yield Finding("aliases", "problem", f"{name} -> {target}, which is {metadata.state}", advice)
    elif owner != name:
        text = f"{name} -> {target}, which belongs to alias {owner!r}: sync refuses to move it"
        yield Finding("aliases", "problem", text, f"give it its own collection by {_way_back(store, name)}")
    else:
        yield Finding("aliases", "ok", f"{name} -> {target}")


def _collections(patient: _Patient) -> Findings:
    store = patient.store
    names = store.collections()
    replicated = bool(store.peers())
    copies = bad = 0
    for name in names:
        found = [*_survived("collections", partial(_collection, patient, name))]
        if replicated:
            replicas = store.replicas(name)
            copies += len(replicas)
            found += _lost(name, [replica for replica in replicas if replica.state != "Active"])
        bad += bool(found)
        yield from found
    if names and not bad:
        looked = "no file changed" if isinstance(store, EdgeStore) else "all counted"
        text = f"{len(names)}, all sealed, {looked}" + (f", {copies} replicas Active" if copies else "")
        yield Finding("collections", "ok", text)


def _collection(patient: _Patient, name: str) -> Findings:
    """Yield what is wrong with a collection itself."""
    store = patient.store
    metadata = store.metadata(name)
    mend = _command("sync", metadata.reference, _owner(name, metadata), "--no-promote")
    if metadata.state == "building":
        yield _building(patient, name, metadata)
    elif metadata.state == "deleting":
        finish = _command("gc", "", _owner(name, metadata))
        yield Finding("collections", "warning", f"{name} is half deleted", f"delete it by {finish}")
    elif isinstance(store, EdgeStore):
        if not store.intact(name):
            text = f"{name}: its files are not those that were sealed"
            yield Finding("collections", "problem", text, f"mend it by {mend}")
    else:
        if isinstance(store, ServerStore):
            store.require_maintained(name)
        points = store.count(name)
        if points != metadata.count:
            text = f"{name}: has {points} points, expected {metadata.count}"
            yield Finding("collections", "problem", text, f"mend it by {mend}")


def _building(patient: _Patient, name: str, metadata: Metadata) -> Finding:
    store, last = patient.store, moment_of(metadata.heartbeat)
    if isinstance(store, EdgeStore):
        alive = store.locked()
    else:
        recent = last is not None and patient.now - last <= timedelta(seconds=STALE_SECONDS)
        alive = metadata.writer is not None and recent
    if alive:
        return Finding("collections", "note", f"{name} is being written")
    since = (
        "without a sign of life" if last is None else f"its last sign of life {_age(patient.now - last)} ago"
    )
    owner = _owner(name, metadata)
    finish = _command("sync", metadata.reference, owner, "--no-promote")
    delete = _command("gc", "", owner, "--unfinished")
    advice = f"finish it by {finish}, or delete it by {delete}"
    return Finding("collections", "warning", f"{name} is unfinished, {since}", advice)


def _lost(name: str, replicas: Sequence[Replica]) -> Findings:
    if replicas:
        what = _first(f"shard {part.shard} on {part.peer}: {part.state}" for part in replicas)
        text = f"{name}: {len(replicas)} replicas are not Active ({what})"
        yield Finding("replicas", "problem", text, "wait while a node recovers; start one that is down")


def _missing_runs(patient: _Patient) -> Findings:
    at_hand = {run.run_id for run in patient.runs if run.manifest is not None}
    missing: dict[str, Metadata] = {}
    names = patient.store.collections()
    for name in names:
        with suppress(EmbedstoreError):  # see collections
            metadata = patient.store.metadata(name)
            if metadata.run_id not in at_hand:
                missing[name] = metadata
    if missing:
        name, metadata = next(iter(missing.items()))
        if metadata.tower != "dense":
            advice = f"`embedstore runs restore {shlex.quote(name)}` makes it of the collection"
        else:
            advice = f"copy its folder from {metadata.origin or 'where it was trained'}"
        text = f"no run at hand for {len(missing)} of {len(names)} collections: {_first(missing)}"
        yield Finding("runs", "note", text, f"{advice}; or look at --runs")


def _live(patient: _Patient) -> Findings:
    """Compare every point of the live collection with its run."""
    store = patient.store
    with suppress(NotFoundError):  # no alias, or no run: both are told of by now
        live = store.live(patient.alias)
        run = find_run(patient.runs_dir, live.reference)
        if isinstance(store, EdgeStore) and not store.intact(live.collection):
            return  # told of, too, and better not opened
        report = verify(store, live.collection, run, progress=patient.progress)
        yield Finding("live", "ok", f"{report.count:,} points equal run {run.reference}")


# Runs


def _run(run: RunSummary, now: datetime, deep: bool) -> Findings:
    """Yield what is wrong with a run folder."""
    if run.manifest is not None:
        Run(run.path, run.manifest).verify(size_alone=not deep)
    elif run.problem != "unfinished":
        yield _finding_of(RunError(str(run.problem)), "runs")
    else:
        last = max(path.lstat().st_mtime for path in [run.path, *run.path.rglob("*")])
        age = now - datetime.fromtimestamp(last, UTC)
        if age > _UNFINISHED:
            text = f"run {run.run_id} is unfinished, and was not written to for {_age(age)}"
            yield Finding("runs", "warning", text, f"remove it by `embedstore runs rm {run.run_id}`")


# Words


def _command(verb: str, reference: str, alias: str, *flags: str) -> str:
    """Return a command to paste: names of the server are quoted, since others chose them."""
    words = ["embedstore", verb, *([reference] if reference else []), *flags]
    return f"`{shlex.join(words if alias == _DEFAULT_ALIAS else [*words, '--alias', alias])}`"


def _way_back(store: Store, alias: str) -> str:
    """Return the command that makes alias name a collection of its own, the newest that is sealed."""
    for name in reversed(store.collections()):
        if name.startswith(collection_name(alias, "")):
            with suppress(EmbedstoreError):
                metadata = store.metadata(name)
                if metadata.state == "sealed" and _owner(name, metadata) == alias:
                    return _command("promote", metadata.reference, alias)
    return _command("sync", "", alias)


def _owner(name: str, metadata: Metadata) -> str:
    """Return the alias that a collection was made for."""
    return name.removesuffix(collection_name("", metadata.reference))


def _first(texts: Iterable[str]) -> str:
    shown = list(texts)
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def _age(age: timedelta) -> str:
    seconds = age.total_seconds()
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _made_at(run_id: str) -> datetime | None:
    with suppress(ValueError):
        return datetime.strptime(run_id[:15], "%Y%m%dt%H%M%S").replace(tzinfo=UTC)
    return None
