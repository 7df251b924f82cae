"""Fetching: from a server of our own, complete or not at all, and never twice."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from embedstore.errors import DataError, UsageError
from embedstore.loaders import fetch as module
from embedstore.loaders.fetch import PUBLISHED, Published, fetch


def archive(**files: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as opened:
        for name, text in files.items():
            opened.writestr(f"inner/{name.replace('_', '.')}", text)
        opened.writestr("inner/../../escape/u.data.sh", "never copied")
    return packed.getvalue()


GOOD = archive(u_data="1\t1\t5\t100\n2\t1\t4\t100\n", README="terms")


class Site(BaseHTTPRequestHandler):
    answers: ClassVar[list[tuple[int, bytes]]] = []
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        code, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Site]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(module, "OFFICIAL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    digest = hashlib.sha256(GOOD).hexdigest()
    monkeypatch.setitem(PUBLISHED, "tiny", Published("tiny.zip", ("u.data", "README*"), 2, 1, 2, digest))
    Site.answers, Site.asked = [(200, GOOD)], []
    yield Site
    server.shutdown()
    server.server_close()


def left_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_fetched_data_set_is_not_fetched_again(site: type[Site], tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = fetch("tiny", tmp_path / "data", progress=lambda *what: told.append(what))
    assert path == tmp_path / "data" / "tiny"
    assert left_in(tmp_path) == ["data", "data/tiny", "data/tiny/README", "data/tiny/u.data"]
    assert ("tiny.zip", len(GOOD), len(GOOD)) in told
    assert fetch("tiny", tmp_path / "data") == path
    assert site.asked == ["/tiny.zip"]


def test_a_server_that_stumbles_is_asked_again(site: type[Site], tmp_path: Path) -> None:
    site.answers = [(503, b""), (200, GOOD)]
    assert fetch("tiny", tmp_path).is_dir()
    assert len(site.asked) == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((404, b""), "no answer .*404"),
        ((200, GOOD[:-30]), "not the published file"),
        ((200, archive(u_data="1\t1\t5\t100\n")), "not the published file"),
    ],
)
def test_nothing_is_left_where_the_archive_is_wrong(
    site: type[Site], tmp_path: Path, answer: tuple[int, bytes], words: str
) -> None:
    site.answers = [answer]
    with pytest.raises(DataError, match=words):
        fetch("tiny", tmp_path)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (archive(u_data="1\t1\t5\t100\n"), "1 users, expected 2"),
        (archive(u_data="1\t1\tx\t100\n"), "line 1: rating 'x'"),
        (archive(other="1"), "holds no rating file"),
        (b"no archive", "damaged"),
    ],
)
def test_published_counts_are_checked(
    site: type[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, words: str
) -> None:
    monkeypatch.setitem(PUBLISHED, "tiny", Published("tiny.zip", ("u.data",), 2, 1, 2))
    site.answers = [(200, body)]
    with pytest.raises(DataError, match=words):
        fetch("tiny", tmp_path)
    assert left_in(tmp_path) == []


def test_ml_100k_needs_the_pinned_wheel(
    site: type[Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.answers = [(404, b"")]

    def other_wheel(folder: Path, no_answer: DataError) -> Path:
        wheel = folder / "recbole-1.2.1-py3-none-any.whl"
        wheel.write_bytes(b"something else")
        return wheel

    monkeypatch.setattr(module, "_download_wheel", other_wheel)
    with pytest.raises(DataError, match="not the published file"):
        fetch("ml-100k", tmp_path)
    assert left_in(tmp_path) == []


def test_a_folder_that_is_no_data_set_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ml-1m").mkdir()
    with pytest.raises(DataError, match="move it away"):
        fetch("ml-1m", tmp_path)
    assert (tmp_path / "ml-1m").is_dir()


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ml-100k, ml-1m"):
        fetch("netflix", tmp_path)
