"""After sync: what is live, and moving the alias to another sealed run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from embedstore.errors import EmbedstoreError, NotFoundError
from embedstore.runs.debias import split_reference
from embedstore.stores.base import Promotion, Replica, Store
from embedstore.stores.contract import collection_name

__all__ = ["Status", "promote_run", "rollback", "status"]


@dataclass(frozen=True)
class Status:
    """One collection, and the aliases that name it. Ages are in seconds; problem is None where all is well.

    count: the points that it should have; points: those that it has, None where it cannot be read.
    replicas: none where the store is no cluster.
    """

    collection: str
    aliases: tuple[str, ...]
    run_id: str | None
    state: str | None
    count: int | None
    points: int | None
    dim: int | None
    tower: str | None
    created_at: str | None
    age_seconds: float | None
    promoted_at: str | None
    debias: float | None = None
    problem: str | None = None
    replicas: Sequence[Replica] = ()


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


def promote_run(store: Store, reference: str, *, alias: str = "movies") -> bool:
    """Point alias at the collection of a run, see Run.reference; False where it did already.

    Raises NotFoundError where the run was never synced, StoreError where its collection is not finished.
    """
    name, run_id = collection_name(alias, reference), split_reference(reference)[0]
    try:
        return store.promote(alias, name)
    except NotFoundError:
        others = [other for other in store.collections() if other.startswith(collection_name(alias, run_id))]
        if not others:
            raise
        raise NotFoundError(
            f"no collection {name!r} in store {store.location}, but {others[0]!r} of the same run; promote "
            f"{others[0].removeprefix(collection_name(alias, ''))}, or make the other by `embedstore sync`"
        ) from None


def rollback(store: Store, *, alias: str = "movies") -> Promotion:
    """Point alias at the collection before the present one, and return what it names now.

    It is a promotion like any other, so a second rollback returns to where the first began.
    Raises NotFoundError where there is no earlier one, or its collection is gone.
    """
    with store.writer():
        now = store.live(alias)
        earlier = [flip for flip in store.promotions(alias) if flip.collection != now.collection]
        if not earlier:
            raise NotFoundError(f"alias {alias!r} has named no other collection than {now.collection!r}")
        store.promote(alias, earlier[-1].collection)
        return store.live(alias)


def _status_of(store: Store, name: str, aliases: tuple[str, ...], now: datetime) -> Status:
    try:
        metadata = store.metadata(name)
        flips = store.promotions(aliases[0]) if aliases else []
    except EmbedstoreError as error:
        return Status(name, aliases, None, None, None, None, None, None, None, None, None, problem=str(error))
    points, problem = None, None
    if metadata.state != "sealed":
        problem = "not finished; run `embedstore sync` to finish it"
    else:
        try:
            points = store.count(name)
        except EmbedstoreError as error:
            problem = str(error)
        if points is not None and points != metadata.count:
            problem = f"has {points} points, expected {metadata.count}; repair it with `embedstore sync`"
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
        age_seconds=_age(metadata.created_at, now),
        promoted_at=flips[-1].at or None if flips else None,
        debias=metadata.debias,
        problem=problem,
    )


def _age(moment: str, now: datetime) -> float | None:
    try:
        return (now - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return None
