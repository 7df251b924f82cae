"""restore: the run folder of a collection, rebuilt from the collection alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedstore.errors import NotFoundError, RunError, StoreError, UsageError
from embedstore.runs.registry import find_run, parse_live
from embedstore.runs.scratch import remove_abandoned
from embedstore.stores.base import Progress, Store
from embedstore.stores.contract import Metadata, collection_name
from embedstore.stores.restore import bring, rebuild

__all__ = ["RestoreReport", "find_collection", "restore"]


@dataclass(frozen=True)
class RestoreReport:
    """The run that a collection was restored to; written is False where it was there already."""

    collection: str
    run_id: str
    path: str
    count: int
    written: bool


def restore(
    store: Store,
    reference: str,
    runs_dir: Path,
    *,
    alias: str = "movies",
    progress: Progress | None = None,
) -> RestoreReport:
    """Rebuild the run of a collection in runs_dir, for serving: it knows no users.

    Its movie_ids.npy, movie_vectors.npy, history_vectors.npy and movies.jsonl are those of the
    original, byte by byte, so that it answers any history exactly as the original does.

    Raises RunError where the tower is dense, so that the collection lacks it, the vectors are
    debiased, or another run of this id is in runs_dir; otherwise what find_collection and rebuild raise.
    """
    name, metadata = find_collection(store, reference, alias=alias)
    path = Path(runs_dir) / metadata.run_id
    if path.exists():
        found = find_run(runs_dir, metadata.reference).fingerprint
        if found != metadata.fingerprint:
            raise RunError(
                f"run {metadata.run_id} in {runs_dir} has other content (fingerprint {found[:12]}) than "
                f"collection {name!r} ({metadata.fingerprint[:12]}); give another --runs"
            )
        remove_abandoned(path.parent)  # a kill at the very end leaves an empty folder beside the run
        return RestoreReport(name, metadata.run_id, str(path), metadata.count, written=False)
    if metadata.tower == "dense":
        raise RunError(
            f"collection {name!r} is of a run whose tower is {metadata.tower}, which is in its folder alone; "
            f"{bring(metadata, runs_dir)}"
        )
    if metadata.debias is not None:
        raise RunError(
            f"collection {name!r} is debiased, and the vectors of run {metadata.run_id} cannot be made from "
            "its own; restore the run from its undebiased collection, or copy its folder"
        )
    rebuild(store, name, metadata, Path(runs_dir), progress=progress)
    return RestoreReport(name, metadata.run_id, str(path), metadata.count, written=True)


def find_collection(store: Store, reference: str, *, alias: str = "movies") -> tuple[str, Metadata]:
    """Return the name of a sealed collection, and its metadata.

    reference: an alias, a collection, @ALIAS or @ALIAS~N (N promotions ago), or a run id or the
    beginning of one, which means its collection for alias.

    Raises NotFoundError where there is none, UsageError where several fit, StoreError where it is
    not finished.
    """
    names = store.collections()
    if live := parse_live(reference):
        name = store.live(*live).collection
    else:
        name = store.aliases().get(reference, reference)
    own = collection_name(alias, reference)
    fitting = [n for n in (name, own) if n in names][:1] or [n for n in names if n.startswith(own)]
    if not fitting or not reference:
        raise NotFoundError(
            f"no alias, collection or run {reference!r} in {store.location}; see `embedstore status`"
        )
    if len(fitting) > 1:
        raise UsageError(f"{reference!r} fits {fitting[0]} and {fitting[1]}; give more of the run id")
    metadata = store.metadata(fitting[0])
    if metadata.state != "sealed":
        raise StoreError(f"collection {fitting[0]!r} is not finished; run `embedstore sync` to finish it")
    return fitting[0], metadata
