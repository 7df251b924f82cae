"""sync: from a run to a sealed, verified collection, and the alias last."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.errors import NotFoundError, RunError, StoreDamagedError, StoreError, VerificationError
from embedstore.runs.private import private
from embedstore.runs.run import Run
from embedstore.runs.scratch import remove_abandoned
from embedstore.stores.base import Note, Progress, Store, moment_after
from embedstore.stores.contract import (
    ANY_SPREAD,
    EXACT,
    Metadata,
    SearchIndex,
    Spread,
    collection_name,
    moment_of,
    now,
    points_at,
    valid_alias,
)
from embedstore.sync.compare import Difference, compare, everything
from embedstore.sync.gates import Gate, GateResult, check_gates, measures_of
from embedstore.sync.verify import check, check_recall, good, measure_recall, told_of, wrong_metadata

__all__ = ["SyncReport", "existing", "refuse_clash", "sync", "validate_run"]

_BATCH = 1000
_BLOCK = 1 << 14  # rows checked at a time
# Up to here exact search takes some 20 ms; beyond, HNSW, with more links while the recall is too low.
_LARGEST_EXACT = 80 << 20
_LADDER = (SearchIndex(32, 256), SearchIndex(48, 384), SearchIndex(64, 512))


@dataclass(frozen=True)
class SyncReport:
    """What a sync did. written and deleted count points; changes tells of the first, one sentence each.

    state: created, resumed, repaired, rebuilt or unchanged. gates: what they said; none where the alias was
    not to move.
    """

    collection: str
    run_id: str
    alias: str
    state: str
    count: int
    written: int
    deleted: int
    promoted: bool
    previous: str | None  # the collection that alias named before
    recall: dict[str, Any] | None
    changes: Sequence[str] = field(default_factory=tuple)
    gates: Sequence[GateResult] = ()


def sync(
    run: Run,
    store: Store,
    *,
    alias: str = "movies",
    promote: bool = True,
    gates: Sequence[Gate] = (),
    why: str = "",
    runs_dir: Path | None = None,
    spread: Spread = ANY_SPREAD,
    progress: Progress | None = None,
) -> SyncReport:
    """Upsert the movie vectors of run, verify them, and point alias at them.

    Only points that are missing or different are written, so a second sync writes nothing and
    an interrupted one carries on where it stopped. The alias moves last and in one step:
    readers see the old run or the new run, never a mixture. Does not delete older collections.
    spread is that of a new collection on a cluster.

    Where the alias would move, gates are asked first, see check_gates (runs_dir is for them): where one
    fails, the alias stays, and the collection, sealed, is there to be promoted. What they said is noted with
    the flip, and why.

    Raises RunError where the run is damaged, StoreError where a collection of this name was made
    from other content or the disk lacks the room, StoreLockedError where another process writes,
    VerificationError where what was read back is not what was written.
    """
    name = collection_name(valid_alias(alias), run.reference)
    validate_run(run)
    with store.writer():
        refuse_clash(store, alias, name)
        before = existing(run, store, name)
        if before is not None and before.state == "deleting":  # by a gc that was killed
            if name in store.aliases().values():  # by other hands: readers wait for it
                before = replace(before, state="building")
                store.set_metadata(name, before)
            else:
                store.drop(name)
                before = None
        wrong = [] if before is None else wrong_metadata(before, run)
        if before is not None and wrong:
            before = replace(before, **told_of(run))
            store.set_metadata(name, before)
        if before is not None and before.state == "sealed" and store.intact(name):
            state, difference, recall = "unchanged", None, before.recall
            remove_abandoned(run.path.parent)  # by a sync that was killed between its seal and its end
        else:
            state, difference, recall = _build(run, store, name, before, spread, progress)
        if wrong and state == "unchanged":
            state = "repaired"
        previous = store.aliases().get(alias)
        results: list[GateResult] = []
        if promote and previous != name:
            results = check_gates(gates, run, store, alias=alias, runs_dir=runs_dir)
        promoted = promote and all(result.passed for result in results)
        if promoted:  # on a server, another machine may have moved the alias while the gates were asked
            note = Note(why=why, gates=[result.to_dict() for result in results])
            promoted = store.promote(alias, name, note)
    return SyncReport(
        collection=name,
        run_id=run.run_id,
        alias=alias,
        state=state,
        count=len(run.movies),
        written=0 if difference is None else int(difference.rows.size),
        deleted=0 if difference is None else len(difference.extra),
        promoted=promoted,
        previous=previous,
        recall=None if recall is None else dict(recall),
        changes=(*wrong, *(() if difference is None else difference.reasons)),
        gates=tuple(results),
    )


def validate_run(run: Run) -> None:
    """Raise RunError where a vector of run is not finite or there is no movie."""
    if not len(run.movies):
        raise RunError(f"run {run.run_id} has no movie; train again")
    for what, vectors in (("movie", run.movie_vectors), ("history", run.history_vectors)):
        if vectors is None:
            continue
        for start in range(0, len(run.movies), _BLOCK):
            finite = np.isfinite(vectors[start : start + _BLOCK]).all(axis=1)
            if not finite.all():
                movie_id = run.movies.ids(start + np.flatnonzero(~finite)[:1])[0]
                raise RunError(
                    f"the {what} vector of movie {movie_id} in run {run.run_id} holds NaN or infinity; "
                    "train again"
                )
            run.release()


def refuse_clash(store: Store, alias: str, name: str) -> None:
    """Raise StoreError where alias is the name of a collection or of others, or name that of an alias."""
    if store.exists(alias):
        raise StoreError(f"alias {alias!r} is the name of a collection; choose another --alias")
    aliases = store.aliases()
    if name in aliases:
        raise StoreError(f"collection {name!r} would have the name of an alias; choose another --alias")
    target = aliases.get(alias)
    if target is not None and not target.startswith(collection_name(alias, "")):
        raise StoreError(
            f"alias {alias!r} names {target!r}, which is none of embedstore's collections; "
            "choose another --alias"
        )


def existing(run: Run, store: Store, name: str) -> Metadata | None:
    """Return the metadata of the collection of run, None where there is none that can be read.

    Raises StoreError where it was made from other content.
    """
    try:
        found = store.metadata(name)
    except (NotFoundError, StoreDamagedError):
        return None
    if found.fingerprint != run.fingerprint:
        raise StoreError(
            f"collection {name!r} was made from other content (fingerprint {found.fingerprint[:12]}, run "
            f"{run.reference} has {run.fingerprint[:12]}); choose another --alias or delete the collection"
        )
    return found


def _build(
    run: Run, store: Store, name: str, before: Metadata | None, spread: Spread, progress: Progress | None
) -> tuple[str, Difference, dict[str, Any]]:
    """Bring the collection into the state of run and seal it; return what was done."""
    metadata = _metadata(run, _begun(store, name)) if before is None else before
    if before is None:
        store.create(name, replace(metadata.spec, spread=spread), metadata)
    with store.writing(name) as still_ours:
        with private(run) as own:
            state, difference, index, recall = _fill(own, store, name, before, progress, still_ours)
        if index is not None:
            still_ours()
            made = replace(
                metadata, heartbeat=now(), recall=recall, count=len(run.movies), search=index.to_dict()
            )
            store.seal(name, made)
    return state, difference, recall


def _fill(
    run: Run,
    store: Store,
    name: str,
    before: Metadata | None,
    progress: Progress | None,
    still_ours: Callable[[], None],
) -> tuple[str, Difference, SearchIndex | None, dict[str, Any]]:
    """Bring the points into the state of run; return what was done, no index where nothing is to seal."""
    difference = everything(run)
    state = "created"
    if before is not None:
        state = "resumed" if before.state == "building" else "repaired"
        try:
            store.revise(name)
            difference = compare(run, store, name, progress=progress)
        except StoreError:  # it cannot be opened or read
            if store.in_place:
                raise
            state = "rebuilt"
            store.revise(name, empty=True)
    if store.in_place and state == "repaired" and not difference:
        # What is in the payload indexes is the server's own doing; how it searches may be other hands'.
        with suppress(VerificationError):  # mended below
            return "unchanged", difference, None, check_recall(run, store, name)
    _apply(run, store, name, difference, progress, still_ours)
    try:
        index, recall = _index_and_check(run, store, name, progress)
    except (StoreError, VerificationError):
        if store.in_place or state in ("created", "rebuilt"):
            raise
        # Mending did not help, so the shard itself is damaged.
        state, difference = "rebuilt", replace(everything(run), reasons=difference.reasons)
        store.revise(name, empty=True)
        _apply(run, store, name, difference, progress, still_ours)
        index, recall = _index_and_check(run, store, name, progress)
    return state, difference, index, recall


def _index_and_check(
    run: Run, store: Store, name: str, progress: Progress | None
) -> tuple[SearchIndex, dict[str, Any]]:
    """Give the collection the least index whose measured recall is good, and return what check returns."""
    index = EXACT
    if store.approximate:
        ladder = (EXACT,) if run.movie_vectors.nbytes <= _LARGEST_EXACT else _LADDER
        for index in ladder:
            store.tune(name, index)
            if index is ladder[-1] or good(measure_recall(run, store, name)):
                break
    return index, check(run, store, name, progress=progress)


def _apply(
    run: Run,
    store: Store,
    name: str,
    difference: Difference,
    progress: Progress | None,
    still_ours: Callable[[], None],
) -> None:
    """Write what is missing or different, delete what is extra, and flush."""
    rows = difference.rows
    if difference.indexes_missing:
        store.create_indexes(name)
    for start in range(0, len(difference.extra), _BATCH):
        store.delete(name, difference.extra[start : start + _BATCH])
    for start in range(0, rows.size, _BATCH):
        store.upsert(name, points_at(run, rows[start : start + _BATCH]))
        if progress is not None:
            progress("writing", min(start + _BATCH, rows.size), int(rows.size))
        still_ours()
    store.flush(name)


def _begun(store: Store, name: str) -> str:
    """Return the time at which a collection is begun: after that of every other of its alias, see gc."""
    times = []
    for other in store.collections():
        if other.startswith(collection_name(name.rpartition("__")[0], "")):
            with suppress(StoreError, NotFoundError):  # reported by who asks for it
                times.append(moment_of(store.metadata(other).created_at))
    last = max((time for time in times if time is not None), default=None)
    return moment_after(None if last is None else last.isoformat())


def _metadata(run: Run, begun: str) -> Metadata:
    from embedstore import __version__

    metrics, measured_on = measures_of(run)
    return Metadata(
        state="building",
        run_id=run.run_id,
        dim=run.embedding_dim,
        count=len(run.movies),
        tower=run.manifest.tower,
        fingerprint=run.fingerprint,
        created_at=begun,
        heartbeat=now(),
        tool_version=__version__,
        debias=run.manifest.debias,
        origin=run.manifest.config.get("origin") or f"{socket.gethostname()}:{run.path}",
        metrics=metrics,
        measured_on=measured_on,
    )
