"""doctor: what a person on call asks first. Reads, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from embedstore.errors import EmbedstoreError, NotFoundError, StoreError
from embedstore.runs.manifest import reference_of
from embedstore.stores.base import Store
from embedstore.stores.edge import EdgeStore
from embedstore.stores.rest import ForbiddenError, UnknownKeyError
from embedstore.stores.server import ServerStore
from embedstore.sync.lifecycle import Status, status

__all__ = ["Finding", "Level", "doctor", "finding_of"]

Level = Literal["problem", "warning", "note", "ok"]

_STALE_SECONDS = 15 * 60.0  # a sync notes that it lives every ten seconds, but not while an index is built
_SKEW_SECONDS = 5.0
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. advice: what to do, None where there is nothing to do."""

    name: str
    level: Level
    text: str
    advice: str | None = None


def doctor(
    store: Store, run_ids: Collection[str], *, alias: str = "movies", now: datetime | None = None
) -> list[Finding]:
    """Return what was found about store: the worst first, else in the order of looking.

    alias is the one that should serve; run_ids are those of the runs at hand.
    """
    moment = now or datetime.now(UTC)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        **_checks_of(store),
        "aliases": lambda: _aliases(store, alias),
        "collections": lambda: _collections(store, run_ids, moment),
    }
    findings: list[Finding] = []
    for name, check in checks.items():
        try:
            findings += check()
        except UnknownKeyError as error:
            findings.append(finding_of(error, name))
            break  # it would be every answer
        except ForbiddenError:
            findings.append(Finding(name, "note", "the key does not allow to look"))
        except EmbedstoreError as error:
            findings.append(finding_of(error, name))
    worst = ("problem", "warning", "note", "ok")
    return sorted(findings, key=lambda finding: worst.index(finding.level))


def finding_of(error: EmbedstoreError, name: str) -> Finding:
    """Return an error as the problem that it is."""
    text, _, advice = str(error).partition("; ")
    return Finding(name, "problem", text, advice or None)


def _checks_of(store: Store) -> dict[str, Callable[[], Iterator[Finding]]]:
    if isinstance(store, ServerStore):
        return {
            "server": lambda: _server(store),
            "key": lambda: _key(store),
            "bulk": lambda: _bulk(store),
            "clock": lambda: _clock(store),
            "cluster": lambda: _cluster(store),
        }
    if isinstance(store, EdgeStore):
        return {"disk": lambda: _disk(store), "lock": lambda: _lock(store)}
    return {}


def _server(store: ServerStore) -> Iterator[Finding]:
    yield Finding("server", "ok", f"Qdrant {store.version} at {store.location}")
    for sentence in store.silent_nodes():
        text, _, advice = sentence.partition("; ")
        yield Finding("server", "problem", text, advice or None)


def _key(store: ServerStore) -> Iterator[Finding]:
    if store.may_write():
        yield Finding("key", "ok", "may read and write")
    else:
        store.aliases()  # an unknown key may not even read
        yield Finding("key", "note", "may only read", "`embedstore sync` needs the admin key")


def _bulk(store: ServerStore) -> Iterator[Finding]:
    way = store.bulk_way()
    yield Finding("bulk", "ok" if way.startswith("gRPC") else "note", way)


def _clock(store: ServerStore) -> Iterator[Finding]:
    skew = store.clock_skew()
    if skew is None:
        yield Finding("clock", "note", "the server does not tell its time")
    elif abs(skew) <= _SKEW_SECONDS:
        yield Finding("clock", "ok", "the server's agrees with ours")
    else:
        ahead = "ahead of" if skew > 0 else "behind"
        yield Finding(
            "clock", "warning", f"the server's is {abs(skew):.0f} s {ahead} ours", "set both by NTP"
        )


def _cluster(store: ServerStore) -> Iterator[Finding]:
    peers = store.peers()
    silent = [peer for peer in peers if not peer.answers]
    for peer in silent:
        yield Finding("cluster", "problem", f"node {peer.id} ({peer.uri}) gives no answer", "start it again")
    if peers and not silent:
        yield Finding("cluster", "ok", f"{len(peers)} nodes, all answer")


def _disk(store: EdgeStore) -> Iterator[Finding]:
    free, needed = store.room()
    text = f"{free / 1e6:,.0f} MB free in {store.location}"
    if free >= needed:
        yield Finding("disk", "ok", text)
    else:
        advice = "make room before the next `embedstore sync`"
        yield Finding("disk", "warning", f"{text}, a new collection needs {needed / 1e6:,.0f} MB", advice)


def _lock(store: EdgeStore) -> Iterator[Finding]:
    if store.locked():
        yield Finding("lock", "note", "another process is writing to the store")
    else:
        yield Finding("lock", "ok", "nobody is writing")


def _aliases(store: Store, alias: str) -> Iterator[Finding]:
    aliases, ours = store.aliases(), store.collections()
    if alias not in aliases:
        try:  # a token sees no list, but reads through its alias
            yield Finding("aliases", "ok", f"{alias} -> run {store.live(alias).run_id}")
        except NotFoundError:
            known = ", ".join(aliases) or "none"
            text = f"there is no alias {alias!r} (aliases: {known})"
            yield Finding("aliases", "warning", text, "make it by `embedstore sync`")
    for name, target in aliases.items():
        if target in ours:
            yield from _alias(store, name, target)
        else:
            level: Level = "problem" if name == alias else "note"
            yield Finding("aliases", level, f"{name} -> {target}, which is no collection of embedstore")


def _alias(store: Store, name: str, target: str) -> Iterator[Finding]:
    state = store.metadata(target).state
    if state == "sealed":
        yield Finding("aliases", "ok", f"{name} -> {target}")
    else:
        advice = "point it elsewhere by `embedstore rollback`, or finish the run by `embedstore sync`"
        yield Finding("aliases", "problem", f"{name} -> {target}, which is {state}", advice)


def _collections(store: Store, run_ids: Collection[str], now: datetime) -> Iterator[Finding]:
    ours = set(store.collections())
    lines = [line for line in status(store, now=now) if line.collection in ours]
    bad = 0
    for line in lines:
        found = [*_state(store, line, now), *_replicas(line)]
        bad += bool(found)
        yield from found
    if lines and not bad:
        copies = sum(len(line.replicas) for line in lines)
        replicas = f", {copies} replicas Active" if copies else ""
        yield Finding("collections", "ok", f"{len(lines)}, all sealed and counted{replicas}")
    strange = [line.collection for line in lines if line.run_id and line.run_id not in run_ids]
    if strange:
        text = f"no run at hand for {len(strange)} of {len(lines)} collections: {_first(strange)}"
        yield Finding("runs", "note", text, "`query --user` and `verify` need the run: look at --runs")


def _state(store: Store, line: Status, now: datetime) -> Iterator[Finding]:
    """Yield what is wrong with a collection itself."""
    if line.state == "building":
        silence = _seconds_since(store.metadata(line.collection).heartbeat, now)
        if silence is not None and silence <= _STALE_SECONDS:
            yield Finding("collections", "note", f"{line.collection} is being written")
        else:
            since = "ever" if silence is None else f"for {silence / 60:,.0f} min"
            advice = (
                f"finish it by `embedstore sync {reference_of(str(line.run_id), line.debias)}`, or delete it"
            )
            yield Finding(
                "collections", "warning", f"{line.collection} is unfinished, no sign of life {since}", advice
            )
    elif line.problem:
        yield finding_of(StoreError(f"{line.collection}: {line.problem}"), "collections")


def _replicas(line: Status) -> Iterator[Finding]:
    lost = [replica for replica in line.replicas if replica.state != "Active"]
    if lost:
        what = _first(f"shard {part.shard} on {part.peer}: {part.state}" for part in lost)
        yield Finding(
            "replicas",
            "problem",
            f"{line.collection}: {len(lost)} of {len(line.replicas)} not Active ({what})",
            "wait while a node recovers; start one that is down",
        )


def _first(texts: Iterable[str]) -> str:
    shown = list(texts)
    return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")


def _seconds_since(moment: str, now: datetime) -> float | None:
    try:
        return (now - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return None
