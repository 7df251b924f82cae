"""Which run answers, and from which collection: both from one look at the alias."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from embedstore.errors import NotFoundError, RunError
from embedstore.query.recommend import live_collection
from embedstore.runs.debias import split_reference
from embedstore.runs.manifest import reference_of
from embedstore.runs.registry import RUN_ID, find_run, parse_live
from embedstore.runs.run import Run
from embedstore.stores.base import Store
from embedstore.stores.contract import collection_name

__all__ = ["Say", "resolve", "resolve_collection"]

Say = Callable[[str], None]


def resolve(
    store: Store,
    runs_dir: Path,
    reference: str | None = None,
    *,
    alias: str = "movies",
    restored: Say | None = None,
) -> tuple[Run, str]:
    """Return the run that reference names, by default what alias serves, and the name of its collection.

    reference: as for find_run, or @ALIAS, what that alias serves now, or @ALIAS~N, N promotions ago. A
    run that no alias named here has its collection for alias, whether that is there or not.

    A run whose folder is not in runs_dir is restored from its collection, which holds an additive tower,
    too, but no other; restored is told so in a sentence, None restores nothing. It knows no users, and
    lives in runs_dir, or for this process alone where that cannot be written or the collection is debiased.

    Raises NotFoundError where there is no such alias, promotion or run, else what find_run and
    stores.restore.rebuild raise.
    """
    asked = parse_live(reference or "")
    if reference is None or asked:
        name, own = live_collection(store, *(asked or (alias, 0)))
        try:
            return find_run(runs_dir, own), name
        except NotFoundError:
            return _restored(store, name, runs_dir, restored), name
    try:
        run = find_run(runs_dir, reference)
    except NotFoundError:
        run_id, amount = split_reference(reference)
        name = collection_name(alias, reference_of(run_id, amount))
        if not RUN_ID.fullmatch(run_id) or not store.exists(name):
            raise
        return _restored(store, name, runs_dir, restored), name
    return run, collection_name(alias, run.reference)


def resolve_collection(
    store: Store, runs_dir: Path, reference: str | None = None, *, alias: str = "movies"
) -> str:
    """Return the name of the collection of resolve, for who needs no run: none has to be in runs_dir.

    Raises NotFoundError where there is no such alias, promotion or run, and neither its collection.
    """
    asked = parse_live(reference or "")
    if reference is None or asked:
        return live_collection(store, *(asked or (alias, 0)))[0]
    run_id, amount = split_reference(reference)
    name = collection_name(alias, reference_of(run_id, amount))
    if RUN_ID.fullmatch(run_id) and store.exists(name):
        return name
    return collection_name(alias, find_run(runs_dir, reference).reference)


def _restored(store: Store, name: str, runs_dir: Path, say: Say | None) -> Run:
    from embedstore.stores.restore import bring, rebuild, rebuilt

    metadata = store.metadata(name)
    lacking = f"run {metadata.run_id} is not in {runs_dir}"
    if metadata.tower == "dense":
        raise NotFoundError(
            f"{lacking}, and its {metadata.tower} tower is in its folder alone; {bring(metadata, runs_dir)}"
        )
    if say is None:
        raise NotFoundError(f"{lacking}; `embedstore runs restore {name}`, or {bring(metadata, runs_dir)}")
    if metadata.debias is not None or not _writable(runs_dir):
        say(f"{lacking}; rebuilt from {name} for this command alone, it knows no users")
        return rebuilt(store, name, metadata)
    try:
        rebuild(store, name, metadata, runs_dir)
        say(f"{lacking}; restored there from {name}, it knows no users")
    except RunError:
        if not (runs_dir / metadata.run_id).exists():  # else another process was faster
            raise
    return find_run(runs_dir, metadata.run_id)


def _writable(folder: Path) -> bool:
    """Whether folder, or the first one above it that is there, can be written to."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return os.access(there, os.W_OK | os.X_OK)
