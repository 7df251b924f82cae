"""A run, written to MLflow: what it was trained with, what was measured of it, and the run folder itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from embedstore.errors import UsageError, VerificationError
from embedstore.runs.debias import refuse_debiased
from embedstore.runs.evaluation import evaluation_path
from embedstore.runs.manifest import MANIFEST, digest_of
from embedstore.runs.run import Run
from embedstore.tracking.client import absent, artefacts, masked, open_client
from embedstore.tracking.content import FINGERPRINT_TAG, RUN_TAG, Content, content_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

__all__ = ["ARTEFACTS", "EXPERIMENT", "LogReport", "log_run"]

ARTEFACTS = "embedstore"  # the folder of the artefacts: it holds what a folder of runs does
EXPERIMENT = "embedstore"
_EVALUATION_TAG = "embedstore.evaluation_sha256"
_MODEL = re.compile(r"[^/:@]+")
_ALIAS = re.compile(r"(?!(?i:latest|v\d+)$)[A-Za-z0-9_-]+")
_POINTS, _TEXTS = 1000, 100  # that MLflow takes in one request

T = TypeVar("T")


@dataclass(frozen=True)
class LogReport:
    """What a log wrote. state: created, resumed (an earlier one was cut short), repaired or unchanged.

    params, points (of metrics), tags, files: how many were written. cut: names of params and tags whose
    text is longer than MLflow takes. version: of the registered model. alias_moved: whether the
    alias named previous, another version or None, before.
    """

    run_id: str
    tracking_uri: str
    experiment: str
    mlflow_run_id: str
    state: str
    params: int
    points: int
    tags: int
    files: int
    bytes: int
    cut: tuple[str, ...]
    model: str | None = None
    version: str | None = None
    version_made: bool = False
    alias: str | None = None
    alias_moved: bool = False
    previous: str | None = None


def log_run(
    run: Run,
    *,
    tracking_uri: str | None = None,
    experiment: str = EXPERIMENT,
    model: str | None = None,
    alias: str | None = None,
) -> LogReport:
    """Write run to an MLflow experiment, once: another log writes what is missing or different.

    The MLflow run is found by its tag embedstore.run_id. Its artefacts are the files of the run folder and
    its evaluation, below embedstore/, a folder of runs as this one; a file is written again where it is
    missing or has another size. model: make a version of this registered model from them, unless there is
    one; alias: point this alias of the model at it, last. tracking_uri: default as MLflow's own. Of two
    that log one run for the first time at the same instant, each makes an MLflow run.

    Raises RunError where the run is damaged, UsageError for a debiased run or a name that MLflow does not
    allow, VerificationError where the experiment has another run of this id, or the artefacts are not what
    was written, and what open_client does.
    """
    _check_names(model, alias)
    refuse_debiased(run)
    run.verify()
    content = content_of(run)
    with open_client(tracking_uri, create=True) as client:
        found, created = _find_or_create(client, run, content.tags, experiment)
        params, points, tags = _write_content(client, found, content)
        files = _write_files(client, found, run)
        finished = found.info.status == "FINISHED"
        if not finished:
            client.set_terminated(found.info.run_id)
        wrote = bool(params or points or tags or files)
        report = LogReport(
            run_id=run.run_id,
            tracking_uri=masked(client.tracking_uri),
            experiment=experiment,
            mlflow_run_id=found.info.run_id,
            state="created"
            if created
            else "resumed"
            if not finished
            else "repaired"
            if wrote
            else "unchanged",
            params=params,
            points=points,
            tags=tags + (len(content.tags) if created else 0),
            files=len(files),
            bytes=sum(path.stat().st_size for path in files),
            cut=content.cut,
        )
        return report if model is None else _register(client, found, report, model, alias)


def _check_names(model: str | None, alias: str | None) -> None:
    """Raise UsageError for what mlflow:/MODEL@ALIAS cannot name, or MLflow refuses."""
    if model is not None and not _MODEL.fullmatch(model):
        raise UsageError(f"{model!r} cannot name a registered model; leave out the characters / : @")
    if alias is not None and model is None:
        raise UsageError("an alias points at a version of a registered model; name it with --register")
    if alias is not None and not _ALIAS.fullmatch(alias):
        raise UsageError(
            f"{alias!r} cannot be an alias in MLflow; use letters, digits, _ and -, but neither latest nor v1"
        )


def _find_or_create(
    client: MlflowClient, run: Run, tags: Mapping[str, str], experiment: str
) -> tuple[MlflowRun, bool]:
    """Return the MLflow run of run in experiment, and whether it was made now."""
    there = client.get_experiment_by_name(experiment)
    if there is not None and there.lifecycle_stage != "active":
        raise UsageError(f"experiment {experiment!r} is deleted in MLflow; restore it there, or name another")
    experiment_id = client.create_experiment(experiment) if there is None else there.experiment_id
    found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run.run_id}'", max_results=1)
    if not found:
        return client.create_run(experiment_id, tags=dict(tags), run_name=run.run_id), True
    fingerprint = found[0].data.tags.get(FINGERPRINT_TAG)
    if fingerprint != run.fingerprint:
        raise VerificationError(
            f"experiment {experiment!r} has another run {run.run_id} (fingerprint {fingerprint}, here "
            f"{run.fingerprint}); name another experiment"
        )
    return found[0], False


def _write_content(client: MlflowClient, found: MlflowRun, content: Content) -> tuple[int, int, int]:
    """Write what found lacks of content, and return how many params, points and tags that was."""
    from mlflow.entities import Metric, Param, RunTag

    run_id, data = found.info.run_id, found.data
    params = [Param(*item) for item in content.params.items() if item[0] not in data.params]
    tags = [RunTag(*item) for item in content.tags.items() if data.tags.get(item[0]) != item[1]]
    points = [point for point in content.metrics if data.metrics.get(point.name) != point.value]
    for name in dict.fromkeys(point.name for point in content.curves):
        known = {}
        if name in data.metrics:
            known = {metric.step: metric.value for metric in client.get_metric_history(run_id, name)}
        points += [
            point for point in content.curves if point.name == name and known.get(point.step) != point.value
        ]
    for some_params in _batches(params, _TEXTS):
        client.log_batch(run_id, params=some_params)
    for some_tags in _batches(tags, _TEXTS):
        client.log_batch(run_id, tags=some_tags)
    for some in _batches(points, _POINTS):
        client.log_batch(run_id, [Metric(point.name, point.value, point.at, point.step) for point in some])
    return len(params), len(points), len(tags)


def _write_files(client: MlflowClient, found: MlflowRun, run: Run) -> list[Path]:
    """Write the files of the run folder, and the evaluation, that the artefacts lack; return them."""
    run_id = found.info.run_id
    files = {f"{run.run_id}/{name}": run.path / name for name in (*run.manifest.files, MANIFEST)}
    evaluation = evaluation_path(run.path)
    digest = digest_of(evaluation) if evaluation.exists() else None
    if digest is not None:
        files[evaluation.name] = evaluation
    with artefacts(found.info.artifact_uri):
        lacking = _lacking(client, run_id, files)
        if digest is not None and digest != found.data.tags.get(_EVALUATION_TAG):
            lacking[evaluation.name] = evaluation
        for name, path in lacking.items():
            client.log_artifact(run_id, str(path), f"{ARTEFACTS}/{name}".rpartition("/")[0])
        if lacking and (missing := _lacking(client, run_id, files)):
            raise VerificationError(
                f"artefact {next(iter(missing))} of MLflow run {run_id} was written and is not there, or has "
                "another size; log the run again"
            )
    if evaluation.name in lacking and digest is not None:
        client.set_tag(run_id, _EVALUATION_TAG, digest)
    return list(lacking.values())


def _lacking(client: MlflowClient, run_id: str, files: Mapping[str, Path]) -> dict[str, Path]:
    """Return those of files, by their path among the artefacts, that are missing there or of another size."""
    folders = dict.fromkeys(f"{ARTEFACTS}/{name}".rpartition("/")[0] for name in files)
    sizes = {
        there.path: there.file_size for folder in folders for there in client.list_artifacts(run_id, folder)
    }
    return {
        name: path
        for name, path in files.items()
        if sizes.get(f"{ARTEFACTS}/{name}", -1) not in (path.stat().st_size, None)  # None: not told
    }


def _register(
    client: MlflowClient, found: MlflowRun, report: LogReport, model: str, alias: str | None
) -> LogReport:
    """Make a version of model from the artefacts of found, unless there is one, then move alias to it."""
    from mlflow.exceptions import MlflowException

    source = f"{found.info.artifact_uri.rstrip('/')}/{ARTEFACTS}"
    try:
        aliases = client.get_registered_model(model).aliases
    except MlflowException as error:
        if not absent(error):
            raise
        aliases = client.create_registered_model(model).aliases
    of_run = client.search_model_versions(f"run_id='{found.info.run_id}'")
    version = next((known for known in of_run if known.name == model and known.source == source), None)
    made = version is None
    if version is None:
        tags = {name: found.data.tags[name] for name in (RUN_TAG, FINGERPRINT_TAG)}
        version = client.create_model_version(model, source, found.info.run_id, tags=tags)
    number = str(version.version)
    before = None if alias is None or alias not in aliases else str(aliases[alias])
    if alias is not None and before != number:
        client.set_registered_model_alias(model, alias, number)
    return replace(
        report,
        model=model,
        version=number,
        version_made=made,
        alias=alias,
        alias_moved=alias is not None and before != number,
        previous=before,
    )


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
