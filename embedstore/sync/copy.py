"""copy: a collection from one store to another, by the way of its run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from embedstore.errors import NotFoundError, RunError, UsageError, VerificationError
from embedstore.runs.registry import find_run
from embedstore.runs.run import Run
from embedstore.stores.base import Progress, Store
from embedstore.stores.contract import Metadata
from embedstore.stores.restore import rebuilt
from embedstore.sync.restore import find_collection
from embedstore.sync.upsert import SyncReport, sync

__all__ = ["copy"]


def copy(
    source: Store,
    target: Store,
    reference: str,
    runs_dir: Path,
    *,
    alias: str = "movies",
    promote: bool = True,
    progress: Progress | None = None,
) -> SyncReport:
    """Sync the run of a collection of source into target, under the same name and alias; see sync.

    The run is the one in runs_dir where its content is that of the collection, else it is rebuilt from
    the collection for the time of the copy. reference: see find_collection.

    Raises UsageError where both are one store, and what find_collection, rebuilt and sync raise.
    """
    name, metadata = find_collection(source, reference, alias=alias)
    if Path(source.location).resolve() == Path(target.location).resolve():
        raise UsageError(f"both stores are {source.location}; give another one to --to")
    own_alias = name.removesuffix(f"__{metadata.reference}")
    run = _local(runs_dir, metadata) or rebuilt(source, name, metadata, progress=progress)
    report = sync(run, target, alias=own_alias, promote=promote, progress=progress)
    made = target.metadata(report.collection)
    for key in ("run_id", "fingerprint", "count", "tower", "debias"):
        if getattr(made, key) != getattr(metadata, key):
            raise VerificationError(
                f"collection {name!r} has {key} {getattr(made, key)} in {target.location}, expected "
                f"{getattr(metadata, key)} as in {source.location}; delete it there and copy again"
            )
    return report


def _local(runs_dir: Path, metadata: Metadata) -> Run | None:
    """Return the run of a collection where it is in runs_dir, whole and with the same content."""
    with suppress(RunError, NotFoundError):
        run = find_run(runs_dir, metadata.reference)
        if run.fingerprint == metadata.fingerprint:
            return run
    return None
