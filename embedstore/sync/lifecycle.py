"""After sync: what is live, moving the alias to another sealed run, and deleting what is old."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from embedstore.errors import EmbedstoreError, NotFoundError, StoreError, StoreUnreachableError, UsageError
from embedstore.runs.debias import split_reference
from embedstore.stores.base import Note, Promotion, Replica, Store
from embedstore.stores.contract import Metadata, collection_name, moment_of, now, valid_alias
from embedstore.sync.verify import mending

__all__ = [
    "GcReport",
    "Status",
    "Verdict",
    "gc",
    "pin",
    "promote_run",
    "rollback",
    "status",
    "unpin",
]

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Status:
    """One collection, and the aliases that name it. Ages are in seconds; problem is None where all is well.

    count: the points that it should have; points: those that it has, None where it cannot be read.
    replicas: none where the store is no cluster.
    """

    collection: str
    aliases: tuple[str, ...]
    run_id: str | None = None
    state: str | None = None
    count: int | None = None
    points: int | None = None
    dim: int | None = None
    tower: str | None = None
    created_at: str | None = None
    age_seconds: float | None = None
    promoted_at: str | None = None
    debias: float | None = None
    problem: str | None = None
    replicas: Sequence[Replica] = ()
    pinned: Mapping[str, Any] | None = None  # at, who, why


@dataclass(frozen=True)
class Verdict:
    """What gc made of one collection, and why. points and bytes are its own, None where they are not known.

    problem: what a person should know of a collection that was kept, one sentence.
    """

    collection: str
    deleted: bool
    why: str
    points: int | None = None
    bytes: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class GcReport:
    """What gc did, or would do where dry_run, with every collection of alias, the newest first."""

    alias: str
    keep: int
    dry_run: bool
    verdicts: Sequence[Verdict]


def status(store: Store, *, now: datetime | None = None) -> list[Status]:
    """Return every collection of embedstore, those that an alias names first, also where it is gone."""
    aliases = store.aliases()
    ours = store.collections()
    named = [name for name in dict.fromkeys(aliases.values()) if name in ours or not store.exists(name)]
    names = named + [name for name in ours if name not in named]
    moment = now or datetime.now(UTC)
    found = [
        _status_of(store, name, tuple(a for a, n in aliases.items() if n == name), moment) for name in names
    ]
    if not store.peers():
        return found
    return [replace(line, replicas=store.replicas(line.collection)) for line in found]


def promote_run(store: Store, reference: str, *, alias: str = "movies", note: Note | None = None) -> bool:
    """Point alias at the collection of a run, see Run.reference; False where it did already.

    Raises NotFoundError where the run was never synced, StoreError where its collection is not finished.
    """
    return store.promote(alias, _collection_of(store, alias, reference), note)


def rollback(store: Store, back: int = 1, *, alias: str = "movies", note: Note | None = None) -> Promotion:
    """Point alias at the collection that it named back promotions ago, and return what it names now.

    It is a promotion like any other, so a second rollback returns to where the first began.
    Raises NotFoundError where that is what alias names already, or is gone.
    """
    if back < 1:
        raise UsageError(f"{back} promotions ago is not in the past; expected 1 or more")
    with store.writer():
        past = [flip.collection for flip in reversed(store.promotions(alias))]
        live = past[0] if past else store.live(alias).collection
        if problem := _no_way_back(store, past, live, back):
            ways = [n for n in range(1, len(past)) if _no_way_back(store, past, live, n) is None]
            advice = "there is no other collection to return to"
            if ways:
                nearest = min(ways, key=lambda n: abs(n - back))
                advice = f"`embedstore rollback {nearest} --alias {alias}` returns to {past[nearest]!r}"
            raise NotFoundError(f"alias {alias!r} {problem}; {advice}")
        note = note or Note()
        store.promote(alias, past[back], replace(note, why=note.why or f"rollback {back}"))
        return replace(store.live(alias), previous=live)


def _no_way_back(store: Store, past: Sequence[str], live: str, back: int) -> str | None:
    """Return why an alias cannot return to what it named back promotions ago; None where it can."""
    ago = f"{back} promotion{'s' * (back > 1)} ago"
    if back >= len(past):
        return f"was promoted {len(past)} time{'s' * (len(past) != 1)}, so there is nothing {ago}"
    named = f"named {past[back]!r} {ago}, which"
    if past[back] == live:
        return f"{named} it names now"
    try:
        state = store.metadata(past[back]).state
    except NotFoundError:
        return f"{named} is gone"
    except StoreUnreachableError:
        raise
    except StoreError as error:
        return f"{named} cannot be read ({error})"
    return None if state == "sealed" else f"{named} is {state}"


def pin(store: Store, reference: str, *, alias: str = "movies", why: str = "") -> str:
    """Keep the collection of a run from gc until unpin; return its name. A second pin replaces the first.

    Raises NotFoundError where the run was never synced, StoreError where its collection is being deleted.
    """
    name, note = _collection_of(store, alias, reference), Note(why).to_dict()
    store.pin(name, {"at": now(), "who": note["who"], "why": note["why"]})
    # Looked at afterwards: whoever deletes marks the collection first and looks for a pin then.
    if store.metadata(name).state == "deleting":
        store.pin(name, None)
        raise StoreError(f"collection {name!r} is being deleted; make it again by `embedstore sync`")
    return name


def unpin(store: Store, reference: str, *, alias: str = "movies") -> tuple[str, bool]:
    """Leave the collection of a run to gc again; return its name, and whether it was pinned."""
    name = _collection_of(store, alias, reference)
    pinned = store.metadata(name).pinned is not None
    if pinned:
        store.pin(name, None)
    return name, pinned


def gc(
    store: Store, *, alias: str = "movies", keep: int = 3, dry_run: bool = False, unfinished: bool = False
) -> GcReport:
    """Delete what is sealed, not pinned, named by no alias and not of the newest keep of alias.

    Finishes deletions that were begun; with unfinished, deletes what nobody goes on building. Each
    collection is looked at anew right before it is deleted, see Store.drop, and what cannot be read is
    kept. Newest by when a collection was begun, then by name. dry_run writes nothing.

    Raises StoreError, with nothing deleted, where it cannot be told what an alias names.
    """
    if keep < 0:
        raise UsageError(f"{keep} collections cannot be kept; expected 0 or more")
    valid_alias(alias)
    with nullcontext() if dry_run else store.writer():
        try:
            aliases = store.aliases()
        except StoreUnreachableError:
            raise
        except StoreError as error:
            raise StoreError(f"gc deletes nothing while it cannot tell what is live: {error}") from error
        verdicts = _judged(store, alias, aliases, keep, unfinished)
        if not dry_run:
            verdicts = [_carried_out(store, verdict) if verdict.deleted else verdict for verdict in verdicts]
    return GcReport(alias, keep, dry_run, verdicts)


def _judged(
    store: Store, alias: str, aliases: Mapping[str, str], keep: int, unfinished: bool
) -> list[Verdict]:
    """Return what is to become of every collection of alias, the newest first."""
    kept: list[Verdict] = []
    found: dict[str, Metadata] = {}
    for name in store.collections():
        if name.startswith(collection_name(alias, "")):
            told = _told(store, alias, name)
            if isinstance(told, Metadata):
                found[name] = told
            elif told is not None:
                kept.append(Verdict(name, False, "cannot be judged", problem=told))
    order = sorted(found, key=lambda name: (_begun(found[name]), name), reverse=True)
    newest = [name for name in order if found[name].state == "sealed"][:keep]

    def fate(name: str) -> tuple[bool, str]:
        metadata = found[name]
        if naming := [other for other, target in aliases.items() if target == name]:
            return False, f"live: {', '.join(naming)}"
        if metadata.pinned is not None:
            return False, f"pinned: {_pin_in_words(metadata.pinned)}"
        if metadata.state == "deleting":
            return True, "its deletion was begun"
        if metadata.state == "building":
            return unfinished, "unfinished"
        if _begun(metadata) == _NEVER:
            return False, "does not say when it was begun"
        return (False, f"of the newest {keep}") if name in newest else (True, f"not of the newest {keep}")

    return kept + [Verdict(name, *fate(name), found[name].count, store.size(name)) for name in order]


def _told(store: Store, alias: str, name: str) -> Metadata | str | None:
    """Return the metadata of a collection of alias, or why it is kept without; None where it is none."""
    try:
        metadata = store.metadata(name)
    except NotFoundError:  # deleted since
        return None
    except StoreUnreachableError:
        raise
    except StoreError as error:
        return str(error)
    if name == collection_name(alias, metadata.reference):
        return metadata
    if name.endswith(collection_name("", metadata.reference)):  # of an alias that begins like this one
        return None
    return f"collection {name!r} says that it is of run {metadata.reference}; see `embedstore doctor`"


def _carried_out(store: Store, verdict: Verdict) -> Verdict:
    """Delete a collection; return what became of it."""
    try:
        store.drop(verdict.collection)
    except NotFoundError:  # another gc was faster
        return verdict
    except StoreUnreachableError:
        raise
    except StoreError as error:  # an alias names it by now, or somebody pinned, promotes or builds it
        return replace(verdict, deleted=False, why="needed by now", problem=str(error))
    return verdict


def _pin_in_words(pinned: Mapping[str, Any]) -> str:
    """Return why a collection is pinned, by whom and since which day."""
    by = f"{pinned.get('who') or 'somebody'}, {str(pinned.get('at'))[:10]}"
    return f"{pinned['why']} ({by})" if pinned.get("why") else by


def _begun(metadata: Metadata) -> datetime:
    """Return when a collection was begun, _NEVER where it does not say."""
    return moment_of(metadata.created_at) or _NEVER


def _collection_of(store: Store, alias: str, reference: str) -> str:
    """Return the name of the collection of a run, see Run.reference.

    Raises NotFoundError where only another one of the same run is there.
    """
    name, own = collection_name(alias, reference), collection_name(alias, split_reference(reference)[0])
    if not store.exists(name):
        for other in store.collections():
            if other.startswith(own):
                wanted = other.removeprefix(collection_name(alias, ""))
                raise NotFoundError(
                    f"no collection {name!r} in store {store.location}, but {other!r} of the same run; give "
                    f"{wanted}, or make the other by `embedstore sync`"
                )
    return name


def _status_of(store: Store, name: str, aliases: tuple[str, ...], now: datetime) -> Status:
    try:
        metadata = store.metadata(name)
        flips = store.promotions(aliases[0]) if aliases else []
    except EmbedstoreError as error:
        return Status(name, aliases, problem=str(error))
    begun = moment_of(metadata.created_at)
    points, problem = None, None
    again = mending(name, metadata.reference)
    if metadata.state == "deleting":
        problem = f"its deletion was begun; `embedstore gc` finishes it, {again} makes it anew"
    elif metadata.state != "sealed":
        problem = f"not finished; run {again} to finish it"
    else:
        try:
            points = store.count(name)
        except EmbedstoreError as error:
            problem = str(error)
        if points is not None and points != metadata.count:
            problem = f"has {points} points, expected {metadata.count}; repair it by {again}"
    return Status(
        collection=name,
        aliases=aliases,
        run_id=metadata.run_id,
        state=metadata.state,
        count=metadata.count,
        points=points,
        dim=metadata.dim,
        tower=metadata.tower,
        created_at=metadata.created_at,
        age_seconds=None if begun is None else (now - begun).total_seconds(),
        promoted_at=flips[-1].at or None if flips else None,
        debias=metadata.debias,
        problem=problem,
        pinned=metadata.pinned,
    )
