"""The runs in a folder, and the names by which a person asks for one."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from embedstore.errors import NotFoundError, RunError, UsageError
from embedstore.runs.debias import debiased, split_reference
from embedstore.runs.evaluation import evaluation_path
from embedstore.runs.manifest import MANIFEST, Manifest, read_manifest
from embedstore.runs.run import Run

__all__ = [
    "MLFLOW",
    "RUN_ID",
    "RunSummary",
    "find_run",
    "list_runs",
    "parse_live",
    "remove_run",
    "run_folders",
]

MLFLOW = "mlflow:"  # how a name in MLflow's registry begins, see embedstore.tracking
RUN_ID = re.compile(r"\d{8}t\d{6}-[0-9a-f]{4}")
_LIVE = re.compile(r"@(?P<alias>[^~]+)(?:~(?P<back>\d+))?")


@dataclass(frozen=True)
class RunSummary:
    """One folder of the registry; manifest is None where problem says why it cannot be used."""

    run_id: str
    path: Path
    manifest: Manifest | None
    problem: str | None = None


def run_folders(runs_dir: Path) -> list[Path]:
    """Return the folders in runs_dir that are named like a run, oldest first; none where it is missing."""
    return sorted(path for path in Path(runs_dir).glob("*") if RUN_ID.fullmatch(path.name) and path.is_dir())


def list_runs(runs_dir: Path) -> list[RunSummary]:
    """Return every run folder in runs_dir, oldest first, the unfinished and damaged ones too.

    A missing runs_dir holds no run.
    """
    summaries = []
    for path in run_folders(runs_dir):
        try:
            summaries.append(RunSummary(path.name, path, read_manifest(path)))
        except RunError as error:
            unfinished = not (path / MANIFEST).exists()
            summaries.append(RunSummary(path.name, path, None, "unfinished" if unfinished else str(error)))
    return summaries


def find_run(runs_dir: Path, reference: str = "latest") -> Run:
    """Return the run that reference names.

    reference: a full id, a unique prefix or latest (the newest sealed one). What ends in _debias0.50 is
    the run before it, debiased by 0.50. What an alias serves is found by query.resolve.

    Raises NotFoundError where there is none, UsageError where a prefix fits several.
    """
    if parse_live(reference):
        raise UsageError(f"{reference} asks the store which run is live; give a run id here")
    if reference.startswith(MLFLOW):
        raise UsageError(
            f"only `plan` and `sync` take {reference}, a name in MLflow; sync it, then give the id of its run"
        )
    plain, amount = split_reference(reference)
    if amount is not None:
        return debiased(find_run(runs_dir, plain), amount)
    if RUN_ID.fullmatch(reference):
        return _local(Path(runs_dir), reference)
    summaries = list_runs(runs_dir)
    if reference == "latest":
        sealed = [summary for summary in summaries if summary.manifest is not None]
        if not sealed:
            raise NotFoundError(
                f"no finished run in {runs_dir}; make one with `embedstore train` or `runs import`"
            )
        return Run.load(sealed[-1].path)
    fitting = [summary for summary in summaries if reference and summary.run_id.startswith(reference)]
    if len(fitting) > 1:
        raise UsageError(
            f"run {reference!r} fits {len(fitting)} runs ({fitting[0].run_id}, {fitting[1].run_id}); "
            "give more of the id"
        )
    if not fitting:
        raise NotFoundError(f"no run {reference!r} in {runs_dir}; list them with `embedstore runs list`")
    return Run.load(fitting[0].path)


def parse_live(reference: str) -> tuple[str, int] | None:
    """Return the alias that @ALIAS or @ALIAS~N asks, and of how many promotions ago; None for another."""
    match = _LIVE.fullmatch(reference)
    return (match["alias"], int(match["back"] or 0)) if match else None


def remove_run(runs_dir: Path, run_id: str) -> Path:
    """Delete a run and its evaluation, the manifest first, so that a half-deleted run is an unfinished one.

    Raises NotFoundError where there is none.
    """
    path = Path(runs_dir) / run_id
    if not RUN_ID.fullmatch(run_id) or not path.is_dir():
        raise NotFoundError(f"no run {run_id!r} in {runs_dir}; list them with `embedstore runs list`")
    try:
        (path / MANIFEST).unlink(missing_ok=True)
        for name in (run_id, f"{run_id}_debias*"):
            for evaluation in path.parent.glob(evaluation_path(path.with_name(name)).name):
                evaluation.unlink()
        shutil.rmtree(path)
    except OSError as error:
        raise RunError(f"run folder {path} cannot be removed: {error.strerror}") from error
    return path


def _local(runs_dir: Path, run_id: str) -> Run:
    path = runs_dir / run_id
    if not RUN_ID.fullmatch(run_id) or not path.is_dir():
        raise NotFoundError(
            f"run {run_id} is not in {runs_dir}; copy its folder here from the machine that trained it, "
            "or try `embedstore runs restore`"
        )
    return Run.load(path)
