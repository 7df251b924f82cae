"""How MLflow is reached: quietly, not for ever, and without showing a password."""

from __future__ import annotations

import json
import os
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embedstore.errors import EmbedstoreError, StoreError, StoreUnreachableError, UsageError
from embedstore.tracking.client import masked, open_client
from tests.keys import KEY
from tests.mlflow_store import new_store


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_store(tmp_path, monkeypatch)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@contextmanager
def answering(status: int, body: object) -> Iterator[str]:
    """Yield the URL, with a password in it, of a server that gives this answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://anna:{KEY}@127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def error_of(uri: str) -> EmbedstoreError:
    with pytest.raises(EmbedstoreError) as caught, open_client(uri, create=True) as client:
        client.get_experiment_by_name("x")
    assert KEY not in "".join(traceback.format_exception(caught.value))
    return caught.value


@pytest.mark.parametrize(
    ("status", "body", "kind", "told"),
    [
        (
            401,
            {"error_code": "UNAUTHENTICATED", "message": "No. Go"},
            StoreError,
            "set MLFLOW_TRACKING_TOKEN",
        ),
        (403, {"error_code": "PERMISSION_DENIED", "message": "no"}, StoreError, "refuses"),
        (503, "busy", StoreUnreachableError, "does not answer"),
        (500, {"error_code": "TEMPORARILY_UNAVAILABLE"}, StoreUnreachableError, "does not answer"),
        (400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "bad"}, UsageError, "does not take this"),
        (404, "no such page", StoreError, "fails: API request to endpoint .* failed with error code 404"),
    ],
)
def test_an_answer_of_a_server_is_our_error(
    status: int, body: object, kind: type[EmbedstoreError], told: str
) -> None:
    with answering(status, body) as uri:
        error = error_of(uri)
    assert type(error) is kind
    assert str(error).startswith("MLflow at http://***@127.0.0.1:")
    assert error.args[0] == str(error)
    with pytest.raises(kind, match=told):
        raise error


def test_a_server_that_is_away_is_unreachable() -> None:
    error = error_of(f"http://anna:{KEY}@127.0.0.1:9")
    assert isinstance(error, StoreUnreachableError)
    assert str(error) == (
        "MLflow at http://***@127.0.0.1:9 does not answer ([Errno 111] Connection refused); is it running?"
    )


@pytest.mark.parametrize(
    ("uri", "kind", "told"),
    [
        ("sqlite:///mlflow.db/other.db", StoreError, "MLflow's database mlflow.db/other.db cannot be made: "),
        ("nonsense://anna:KEY@host", UsageError, "does not take this"),
        ("postgresql+nodriver://anna:KEY@host/db", StoreError, "nodriver"),
    ],
)
def test_a_store_that_cannot_be_opened_is_one_sentence(
    uri: str, kind: type[EmbedstoreError], told: str
) -> None:
    error = error_of(uri.replace("KEY", KEY))
    assert type(error) is kind
    assert told in str(error)


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "junk.db").write_bytes(b"junk" * 1000)
    assert "fails: file is not a database" in str(error_of(f"sqlite:///{tmp_path}/junk.db"))


def test_retries_are_few_and_telemetry_is_off_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    with open_client(None, create=False):
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "30"
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://anna:p@ss:w@host:5000/a@b", "http://***@host:5000/a@b"),
        ("API request to https://token@host failed", "API request to https://***@host failed"),
        ("403 for url: https://b/k?X-Amz-Signature=abc&x=1", "403 for url: https://b/k?***"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_credentials_of_a_uri_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown
