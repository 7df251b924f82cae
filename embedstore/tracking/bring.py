"""The run that a name in MLflow's model registry stands for, brought into a folder of runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from embedstore.errors import NotFoundError, RunError, UsageError, VerificationError
from embedstore.runs.evaluation import evaluation_path, read_evaluation
from embedstore.runs.manifest import MANIFEST, read_manifest, replace_file, sync_folders, sync_path
from embedstore.runs.registry import MLFLOW, RUN_ID
from embedstore.runs.run import Run
from embedstore.runs.scratch import scratch_folder
from embedstore.tracking.client import absent, artefacts, masked, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["bring"]

Say = Callable[[str], None]

_REFERENCE = re.compile(r"/(?P<name>[^/:@]+)(?:@(?P<alias>[^/:@]+)|/(?P<version>\d+))")


def bring(
    reference: str,
    runs_dir: Path,
    *,
    into: Path | None = None,
    tracking_uri: str | None = None,
    say: Say | None = None,
) -> Run:
    """Return the run that reference names in MLflow's registry, downloaded into runs_dir if it is not there.

    reference: mlflow:/NAME@ALIAS or mlflow:/NAME/VERSION. The folder appears when it is whole and every
    digest is right, then the run's evaluation, unless there is one. into: put a run that runs_dir lacks
    here instead. tracking_uri: default as MLflow's own, as the registry's. say is told of a download.

    Raises UsageError for another text, NotFoundError for a model, alias, version or artefact that is not
    there, RunError for a model that is no run of embedstore, or where runs_dir has another run of this id,
    VerificationError where a file is not what was sealed, and what open_client does.
    """
    asked = _REFERENCE.fullmatch(reference.removeprefix(MLFLOW))
    if asked is None:
        raise UsageError(
            f"{reference!r} names no run in MLflow; expected mlflow:/NAME@ALIAS or mlflow:/NAME/VERSION"
        )
    with open_client(tracking_uri, create=False) as client:
        version = _version_of(client, asked["name"], asked["alias"], asked["version"])
        told = f"version {version.version} of model {version.name} in MLflow"
        uri = client.get_model_version_download_uri(version.name, str(version.version))
        with artefacts(uri):
            return _bring(_Artefact(uri, client.tracking_uri, told), runs_dir, into or runs_dir, say)


class _Artefact:
    """What is at uri, a folder of one run. told: what it is of, for a person; names: what is in it."""

    def __init__(self, uri: str, tracking_uri: str, told: str) -> None:
        self.uri, self.told, self._tracking_uri = uri, told, tracking_uri
        self.names = self._names(uri)

    def run_id(self) -> str:
        """Return the run's id. Raises NotFoundError where nothing is there, RunError for another model."""
        runs = [name for name in self.names if RUN_ID.fullmatch(name)]
        if not self.names:
            raise NotFoundError(
                f"the files of {self.told} are gone from {masked(self.uri)}; where the run is, "
                "`embedstore mlflow log` writes them again"
            )
        if len(runs) != 1:
            raise RunError(
                f"{self.told} is a model, and no run that `embedstore mlflow log` wrote; download it from "
                f"{masked(self.uri)} and make a run of it with `embedstore runs import`"
            )
        return runs[0]

    def download(self, name: str, folder: Path) -> None:
        """Put the file name into folder and make it durable. Raises VerificationError where it is missing."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        folder.mkdir(parents=True, exist_ok=True)
        uri = f"{self.uri}/{name}"
        try:
            download_artifacts(artifact_uri=uri, dst_path=str(folder), tracking_uri=self._tracking_uri)
        except MlflowException:  # one that does not tell what is missing from what went wrong
            if Path(name).name in self._names(uri.rpartition("/")[0]):
                raise
            raise VerificationError(
                f"{self.told} lacks the file {name}; where the run is, `embedstore mlflow log` writes it"
            ) from None
        sync_path(folder / Path(name).name)

    def _names(self, uri: str) -> list[str]:
        from mlflow.artifacts import list_artifacts
        from mlflow.exceptions import MlflowException

        try:
            found = list_artifacts(artifact_uri=uri, tracking_uri=self._tracking_uri)
        except MlflowException as error:
            if not absent(error):
                raise
            return []
        return [entry.path.rpartition("/")[2] for entry in found]

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Say of what is found damaged in the block whose it is."""
        try:
            yield
        except (RunError, KeyError) as error:
            raise VerificationError(
                f"{self.told} is not what was sealed: {str(error).partition(';')[0]}; delete its MLflow run, "
                "and log it again where the run is"
            ) from error


def _version_of(client: MlflowClient, name: str, alias: str | None, number: str | None) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    lacking = f"MLflow at {masked(client.tracking_uri)} has no registered model {name!r}"
    try:
        aliases = client.get_registered_model(name).aliases
        lacking = f"model {name!r} in MLflow has no version {number}"
        if alias is not None:
            known = ", ".join(sorted(aliases)) or "none"
            lacking = f"model {name!r} in MLflow has no alias {alias!r}; its aliases: {known}"
            if alias not in aliases:
                raise NotFoundError(lacking)
            number = str(aliases[alias])
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if not absent(error):
            raise
        raise NotFoundError(lacking) from None


def _bring(artefact: _Artefact, runs_dir: Path, into: Path, say: Say | None) -> Run:
    run_id = artefact.run_id()
    with scratch_folder(into) as scratch:
        path = scratch / run_id
        artefact.download(f"{run_id}/{MANIFEST}", path)
        with artefact.checked():
            manifest = read_manifest(path)
            fingerprint = manifest.fingerprint
        target = runs_dir / run_id
        if not target.exists():
            target = into / run_id
            for name in manifest.files:
                artefact.download(f"{run_id}/{name}", (path / name).parent)
            with artefact.checked():
                Run(path, manifest).verify()
            _put(path, target)
            if say is not None:
                say(f"{artefact.told}: run {run_id} downloaded into {into}")
        run = Run.load(target)
        if run.fingerprint != fingerprint:
            raise RunError(
                f"run {run_id} in {runs_dir} has other content (fingerprint {run.fingerprint[:12]}) than "
                f"{artefact.told} ({fingerprint[:12]}); give another --runs"
            )
        evaluation = evaluation_path(target)
        if evaluation.name in artefact.names and not evaluation.exists():
            artefact.download(evaluation.name, scratch)
            with artefact.checked():
                read_evaluation(path)
            replace_file(evaluation, (scratch / evaluation.name).read_bytes())
    return run


def _put(path: Path, target: Path) -> None:
    """Make the whole run at path durable and give it its place, unless another process was faster."""
    sync_folders(path)
    try:
        path.rename(target)
    except OSError:
        if not target.exists():
            raise
    sync_path(target.parent)
