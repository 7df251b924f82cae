"""MLflow's client, opened quietly: nothing printed, no telemetry, bounded retries, our errors."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from embedstore.errors import (
    EmbedstoreError,
    NotFoundError,
    StoreError,
    StoreUnreachableError,
    UsageError,
)
from embedstore.runs.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["absent", "artefacts", "masked", "open_client"]

# What holds while we use MLflow, where the user has not set it otherwise. Its own defaults: 7 retries with
# waits of up to 2 minutes, each after 2 minutes of silence.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}
_LOGGERS = ("mlflow", "alembic")
_PACKAGES = r"(mlflow|alembic|sqlalchemy|databricks|google|opentelemetry|pydantic)\b"
_AWAY = ("TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")
_REFUSED = ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED")
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


@contextmanager
def open_client(tracking_uri: str | None, *, create: bool) -> Iterator[MlflowClient]:
    """Yield MLflow's client for tracking_uri, or for what MLflow's own settings name.

    create: a database file that is not there is made. In the block, what MLflow raises becomes an
    EmbedstoreError without the credentials that a URI may hold: UsageError where MLflow is not
    installed or refuses a name, NotFoundError without create, StoreUnreachableError where nothing
    answers, else StoreError.
    """
    with ExitStack() as stack:
        stack.enter_context(_settings())
        try:
            import mlflow
            import sqlalchemy
            from mlflow.exceptions import MlflowException
            from requests import RequestException
        except ImportError as error:
            raise UsageError(
                f"MLflow is missing ({error}); install with `pip install mlflow-skinny sqlalchemy alembic`"
            ) from error
        stack.enter_context(_silence())
        uri = tracking_uri or mlflow.get_tracking_uri()
        try:
            _look(uri, create=create)
            yield mlflow.MlflowClient(uri)
        except ImportError as error:
            raise UsageError(f"MLflow at {masked(uri)} needs a package that is missing: {error}") from error
        # None of these in the traceback: their texts hold the URI, and that may hold a password.
        except (MlflowException, RequestException, sqlalchemy.exc.SQLAlchemyError) as error:
            raise _told(error, uri) from None


@contextmanager
def artefacts(uri: str) -> Iterator[None]:
    """Turn what the store of the artefacts at uri raises, each kind its own exceptions, into StoreError.

    What MLflow itself raises, and an OSError of this machine, passes.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (EmbedstoreError, MlflowException, RequestException):
        raise
    except ImportError as error:
        raise UsageError(f"the artefacts at {masked(uri)} need a package that is missing: {error}") from error
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - boto, google, azure ...: no common root
        raise StoreError(f"the artefacts at {masked(uri)}: {_sentence(error)}") from None


def absent(error: Exception) -> bool:
    """Whether an exception of MLflow says that what was asked for is not there."""
    text = str(error).lower()
    return getattr(error, "error_code", None) in _ABSENT or "not found" in text or "does not exist" in text


def masked(text: str) -> str:
    """Return text without the user, password and query that a URL in it may have."""
    return re.sub(r"(://[^\s?'\"]*\?)[^\s'\"]*", r"\1***", re.sub(r"(?<=//)[^/\s]*@", "***@", text))


@contextmanager
def _settings() -> Iterator[None]:
    """Have _ENVIRONMENT hold in the block, and no warning of MLflow's be one."""
    set_here = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(set_here)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_PACKAGES)
            yield
    finally:
        for name in set_here:
            os.environ.pop(name, None)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the loggers silent in the block; to be entered after MLflow, which sets its own up."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _look(uri: str, *, create: bool) -> None:
    """Connect to the database that uri names, if it does: MLflow would try for minutes."""
    import sqlalchemy

    kind = uri.partition(":")[0].partition("+")[0]
    if kind not in ("sqlite", "postgresql", "mysql", "mssql"):
        return
    file = sqlalchemy.make_url(uri).database if kind == "sqlite" else None
    if file and file != ":memory:" and not Path(file).exists():
        if not create:
            raise NotFoundError(
                f"no MLflow database {file}; name the tracking store by MLFLOW_TRACKING_URI or --tracking-uri"
            )
        _make_database(Path(file))
    engine = sqlalchemy.create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _make_database(path: Path) -> None:
    """Have MLflow make an empty database, which appears when it is whole.

    A kill in the middle of its migrations leaves a file with which MLflow fails ever after.
    """
    from mlflow import MlflowClient

    try:
        with scratch_folder(path.parent) as scratch:
            new = scratch / path.name
            MlflowClient(f"sqlite:///{new.absolute()}")
            with suppress(FileExistsError):  # another process was faster
                os.link(new, path)
    except OSError as error:
        raise StoreError(f"MLflow's database {path} cannot be made: {error.strerror or error}") from error


def _told(error: Exception, uri: str) -> EmbedstoreError:
    from requests import RequestException
    from sqlalchemy.exc import OperationalError

    code, where = getattr(error, "error_code", None), f"MLflow at {masked(uri)}"
    chain = list(_chain(error))
    if code in _REFUSED:
        return StoreError(
            f"{where} refuses ({_sentence(error)}); set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD"
        )
    away = isinstance(error, OperationalError) and not uri.startswith("sqlite")
    if away or code in _AWAY or any(isinstance(cause, RequestException) for cause in chain):
        return StoreUnreachableError(f"{where} does not answer ({_sentence(chain[-1])}); is it running?")
    if code == "INVALID_PARAMETER_VALUE":
        return UsageError(f"{where} does not take this: {_sentence(error)}")
    return StoreError(f"{where} fails: {_sentence(chain[-1])}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield error and what it came of, that last."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _sentence(error: BaseException) -> str:
    """Return the first two sentences of an error: what is wrong, and often what to do, as one."""
    text = "; ".join(" ".join(masked(str(error)).split()).split(". ")[:2])
    return text.rstrip(".") or type(error).__name__
