"""Addresses and keys: what is refused, and that no key or password is ever shown."""

from __future__ import annotations

import copy
import os
import pickle
import threading
import traceback
from dataclasses import asdict
from itertools import count
from pathlib import Path

import pytest

from embedstore.errors import UsageError
from embedstore.stores.base import open_store
from embedstore.stores.connection import Connection, Secret, endpoints_of, is_url, read_key_file
from tests.keys import KEY

WITH_KEY = Connection(api_key=Secret(KEY))


@pytest.mark.parametrize(
    ("location", "url", "grpc_port"),
    [
        ("http://127.0.0.1", "http://127.0.0.1:6333", 6334),
        ("http://LOCALHOST:7000/", "http://localhost:7000", 7001),
        ("HTTPS://qdrant.example.org", "https://qdrant.example.org:6333", 6334),
        ("https://example.org:443/qdrant/", "https://example.org:443/qdrant", 444),
        ("http://[::1]:6333", "http://[::1]:6333", 6334),
    ],
)
def test_an_address(location: str, url: str, grpc_port: int) -> None:
    (found,) = endpoints_of(location, WITH_KEY)
    assert (found.url, found.grpc_port) == (url, grpc_port)
    assert found.secure == url.startswith("https:")


def test_several_nodes_and_a_grpc_port_of_its_own() -> None:
    assert [e.url for e in endpoints_of("http://a, http://b:1")] == ["http://a:6333", "http://b:1"]
    assert endpoints_of("http://a", Connection(grpc_port=9))[0].grpc_port == 9
    assert endpoints_of("http://a", Connection(grpc_port=0))[0].grpc_port is None


@pytest.mark.parametrize(
    ("location", "sentence"),
    [
        ("http://", "is not the URL of a Qdrant server"),
        ("ftp://localhost", "is not the URL of a Qdrant server"),
        ("file:///store", "is not the URL of a Qdrant server"),
        ("http://localhost,", "is not the URL of a Qdrant server"),
        ("http://localhost:x", "is not a URL (Port could not be cast"),
        ("http://localhost:99999", "is not a URL (Port out of range"),
        ("http://[::1", "is not a URL (Invalid IPv6"),
        (f"http://localhost?api-key={KEY}", "'http://localhost?...' is not the URL"),
        (f"http://localhost#{KEY}", "'http://localhost?...' is not the URL"),
        (f"http://localhost:x?{KEY}", "'http://localhost:x?...' is not a URL"),
        (f"http://me:{KEY}@localhost", "holds a password (***@); give the key in EMBEDSTORE_QDRANT"),
        (f"http://{KEY}@localhost", "holds a password"),
        (f"http://me:{KEY}/x@localhost", "holds a password"),
        (f"http://me:{KEY},x@localhost", "holds a password"),
        (f"http://me:{KEY}?x#y@localhost:z", "holds a password"),
        (f"https://one,ftp://me:{KEY}@[two", "holds a password"),
    ],
    ids=count(),
)
def test_an_address_that_cannot_be_meant(location: str, sentence: str) -> None:
    assert is_url(location)
    with pytest.raises(UsageError) as caught:
        open_store(location)
    assert sentence in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("host", ["10.0.0.1", "example.org", "localhost.example.org", "[fe80::1]", "127.1"])
def test_a_key_does_not_cross_a_network_unencrypted(host: str) -> None:
    with pytest.raises(UsageError, match="the key would travel unencrypted"):
        endpoints_of(f"http://localhost,http://{host}", WITH_KEY)
    assert endpoints_of(f"http://{host}")
    assert endpoints_of(f"https://{host}", WITH_KEY)
    assert endpoints_of(f"http://{host}", Connection(api_key=Secret(KEY), insecure=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "LocalHost.", "[::1]"])
def test_a_key_may_go_to_this_machine(host: str) -> None:
    assert endpoints_of(f"http://{host}:6333", WITH_KEY)


@pytest.mark.parametrize(
    "content",
    [
        KEY,
        f"{KEY}\n",
        f"\n  {KEY}  \r\n",
        f"\ufeff{KEY}\n",
        f"QDRANT_API_KEY={KEY}",
        f"# keys\nQDRANT_READ_ONLY_API_KEY=other\n export QDRANT_API_KEY = '{KEY}'\r\nOTHER=x\n",
        f'QDRANT_API_KEY="{KEY}"\nQDRANT_API_KEY_OLD=x',
    ],
    ids=lambda content: "content",
)
def test_the_key_in_a_file(content: str, tmp_path: Path) -> None:
    assert read_key_file(file_of(tmp_path, content.encode())).reveal() == KEY


def test_a_key_of_base64(tmp_path: Path) -> None:
    assert read_key_file(file_of(tmp_path, b"YWJj==\n")).reveal() == "YWJj=="


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "holds no key"),
        (b" \n", "holds no key"),
        (b"two words", "holds no key"),
        (b"one\ntwo\n", "holds no key"),
        (f"OTHER={KEY}".encode(), "holds no key"),
        (f"QDRANT_API_KEY=\nOTHER={KEY}".encode(), "holds no key"),
        (b"QDRANT_API_KEY=''", "holds no key"),
        (f"\x00\x01{KEY}".encode(), "characters that a key cannot have"),
        (f"{KEY}é".encode(), "characters that a key cannot have"),
        (b"\xff\xfe" + KEY.encode(), "is not text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_a_file_without_a_key(content: bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_key_file(file_of(tmp_path, content))
    assert sentence in str(caught.value)
    assert KEY not in str(caught.value)


def test_who_may_read_a_key_file(tmp_path: Path) -> None:
    path = file_of(tmp_path, KEY.encode())
    for mode in (0o644, 0o604, 0o666):
        path.chmod(mode)
        with pytest.raises(UsageError, match=f"can be read by everybody; run `chmod 600 {path}`"):
            read_key_file(path)
    for mode in (0o400, 0o640):
        path.chmod(mode)
        assert read_key_file(path).reveal() == KEY


def test_a_key_file_that_is_none(tmp_path: Path) -> None:
    for path, reason in [(tmp_path / "none", "No such file"), (tmp_path, "Is a directory")]:
        with pytest.raises(UsageError, match=f"cannot be read: {reason}"):
            read_key_file(path)


def test_a_key_from_another_program(tmp_path: Path) -> None:
    """As in --api-key-file <(pass show qdrant)."""
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)
    writer = threading.Thread(target=path.write_text, args=(KEY,))
    writer.start()
    assert read_key_file(path).reveal() == KEY
    writer.join()


def test_a_key_shows_itself_to_nobody() -> None:
    secret = WITH_KEY.api_key
    assert secret is not None
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>20}", repr(WITH_KEY), str([secret])]
    for write in (pickle.dumps, copy.deepcopy, asdict):
        with pytest.raises(TypeError, match="a key is not written anywhere") as caught:
            write(WITH_KEY)
        shown += traceback.format_exception(caught.value)
    assert not [text for text in shown if KEY in text]


def test_text_is_told_without_the_key() -> None:
    assert WITH_KEY.without_key(f"a {KEY}, b {KEY}") == "a ***, b ***"
    assert Connection().without_key(KEY) == KEY


def file_of(folder: Path, content: bytes) -> Path:
    path = folder / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    return path
