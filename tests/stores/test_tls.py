"""TLS with an authority of one's own, on a server process of the test's own (QDRANT_BIN)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from embedstore.cli import run as embedstore
from embedstore.stores.base import open_store
from embedstore.stores.connection import Connection
from embedstore.stores.server import ServerStore
from embedstore.sync import sync
from tests.builders import tiny_run
from tests.certificates import make_certificate
from tests.server_process import Server, start_server

pytestmark = pytest.mark.server


def start(folder: Path, **certificate: Any) -> Server:
    """Start a server with TLS; its authority is ca.pem in folder."""
    folder.mkdir()
    make_certificate(folder, **certificate)
    settings = {
        "QDRANT__SERVICE__ENABLE_TLS": "true",
        "QDRANT__TLS__CERT": str(folder / "cert.pem"),
        "QDRANT__TLS__KEY": str(folder / "key.pem"),
    }
    return start_server(folder / "data", env=settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with start(folder / "good") as running:
        yield running


@pytest.mark.parametrize(("grpc_port", "way"), [(None, "gRPC"), (0, "REST")])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_authority_of_ones_own(
    host: str, grpc_port: int | None, way: str, server: Server, folder: Path, tmp_path: Path
) -> None:
    connection = Connection(ca_file=folder / "good" / "ca.pem", grpc_port=grpc_port)
    with open_store(server.url.replace("127.0.0.1", host), connection=connection) as store:
        assert isinstance(store, ServerStore)
        assert store.bulk_way().startswith(way)
        assert sync(tiny_run(tmp_path), store).state == "created"


def test_an_authority_that_the_machine_trusts(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "good" / "ca.pem"))
    with ServerStore(server.url) as store:
        assert store.bulk_way().startswith("gRPC")


def test_an_authority_that_is_unknown_or_another(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for flags in ([], ["--ca-file", str(make_certificate(tmp_path))]):
        assert "; give its certificate authority to --ca-file" in refused(server.url, flags, capfd)


def test_plain_http_to_the_port_of_tls(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    assert "is it https there" in refused(server.url.replace("https", "http"), [], capfd)


@pytest.mark.parametrize(
    ("certificate", "sentence"),
    [
        ({"days": 0}, "certificate has expired"),
        ({"names": "DNS:elsewhere.example"}, "name it as its certificate does"),
    ],
    ids=["expired", "another name"],
)
def test_a_certificate_that_is_not_for_here_and_now(
    certificate: dict[str, Any], sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with start(tmp_path / "bad", **certificate) as server:
        time.sleep(1)  # until zero days are over
        assert sentence in refused(server.url, ["--ca-file", str(tmp_path / "bad" / "ca.pem")], capfd)


def refused(url: str, flags: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Return the sentence by which status ends."""
    assert embedstore(["status", "--store", url, *flags]) == 5
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.rstrip()
