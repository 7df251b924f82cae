"""plan: what sync would do, without doing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embedstore.errors import StoreError
from embedstore.runs.run import Run
from embedstore.stores.base import Progress, Store
from embedstore.stores.contract import collection_name, valid_alias
from embedstore.sync.compare import compare
from embedstore.sync.gates import Gate, GateResult, check_gates
from embedstore.sync.upsert import existing, refuse_clash, validate_run
from embedstore.sync.verify import wrong_metadata

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What sync would do. state: create, resume, repair, rebuild or unchanged.

    write and delete count points; where state is resume, or the metadata are wrong, write is the most it
    can be, since an unfinished collection is read by its writer alone. flip_from is None where alias is new.
    gates: what they say now; none where the alias would stay.
    """

    collection: str
    run_id: str
    alias: str
    state: str
    count: int
    write: int
    delete: int
    flip: bool
    flip_from: str | None
    changes: Sequence[str] = field(default_factory=tuple)
    gates: Sequence[GateResult] = ()


def plan(
    run: Run,
    store: Store | None,
    *,
    alias: str = "movies",
    promote: bool = True,
    gates: Sequence[Gate] = (),
    runs_dir: Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Return what sync would do with the same arguments; writes nothing. store: None where there is none yet.

    Raises what sync would raise before its first write, but for StoreLockedError.
    """
    name = collection_name(valid_alias(alias), run.reference)
    validate_run(run)
    n = len(run.movies)
    state, write, delete = "create", n, 0
    live: str | None = None
    changes: Sequence[str] = ()
    if store is not None:
        refuse_clash(store, alias, name)
        aliases = store.aliases()
        live = aliases.get(alias)
        metadata = existing(run, store, name)
        if metadata is not None and metadata.state == "deleting" and name not in aliases.values():
            metadata = None  # sync finishes the deletion first
        if metadata is not None and metadata.state != "sealed":
            state = "resume"
        elif metadata is not None and (wrong := wrong_metadata(metadata, run)):
            state, changes = "repair", tuple(wrong)
        elif metadata is not None and store.intact(name):
            state, write = "unchanged", 0
        elif metadata is not None:
            try:
                difference = compare(run, store, name, progress=progress)
                state, write, delete = "repair", int(difference.rows.size), len(difference.extra)
                if store.in_place and not difference:  # nobody can tell by its files, as on a folder
                    state = "unchanged"
                changes = tuple(difference.reasons)
            except StoreError as error:
                state, changes = "rebuild", (str(error),)
    flip = promote and live != name
    said = check_gates(gates, run, store, alias=alias, runs_dir=runs_dir) if flip else []
    return Plan(name, run.run_id, alias, state, n, write, delete, flip, live, changes, tuple(said))
