"""`server init` and `access`: keys and tokens, and no key in what is printed."""

from __future__ import annotations

import subprocess
from itertools import count
from pathlib import Path

import jwt
import pytest

from embedstore.cli import run
from embedstore.cli.settings import KEY_VARIABLE
from tests.keys import KEY

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_keys_and_prints_none(folder: Path, capsys: Capture) -> None:
    assert run(["server", "init"]) == 0
    out, message = capsys.readouterr()
    assert out == "wrote .env: QDRANT_API_KEY and QDRANT_READ_ONLY_API_KEY, mode 600\n"
    assert "has no docker-compose.yml" in message
    written = (folder / ".env").read_text()
    assert not any(line.partition("=")[2] in out + message for line in written.splitlines())
    assert run(["server", "init"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (folder / ".env").read_text() == written


def test_init_warns_where_git_would_commit_the_keys(folder: Path, capsys: Capture) -> None:
    subprocess.run(["git", "init", "-q", folder], check=True)
    (folder / "docker-compose.yml").touch()
    assert run(["server", "init"]) == 0
    assert capsys.readouterr().err == "Warning: git does not ignore .env; add .env to .gitignore\n"


def test_init_needs_a_folder(capsys: Capture) -> None:
    assert run(["server", "init", "nowhere"]) == 2
    assert "'nowhere' does not exist" in capsys.readouterr().err


def test_access_prints_the_token_alone_and_says_what_it_may(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert run(["access", "--alias", "films", "--expires", "12h"]) == 0
    out, message = capsys.readouterr()
    claims = jwt.decode(out.strip(), KEY, algorithms=["HS256"])
    assert claims["access"] == [{"collection": "films", "access": "r"}]
    assert out.count("\n") == message.count("\n") == 1
    assert message.startswith("reads alias 'films' and nothing else, until 20")
    assert "was not tried" in message
    assert KEY not in out + message


@pytest.mark.parametrize(
    ("arguments", "key", "code", "sentence"),
    [
        ([], "", 2, "no API key signs the token"),
        ([], "short", 2, "shorter than 32 bytes"),
        (["--expires", "3y"], KEY, 2, "cannot expire in '3y'"),
        (["--alias", "a/b"], KEY, 2, "alias 'a/b' cannot be used"),
        (["--api-key-file", "nothing"], KEY, 2, "cannot be read"),
        (["--store", "http://qdrant.example"], KEY, 2, "would travel unencrypted"),
        (["--store", "http://127.0.0.1:9"], KEY, 5, "gives no answer"),
    ],
    ids=count(),
)
def test_no_token_is_printed_where_none_can_be_made(
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    arguments: list[str],
    key: str,
    code: int,
    sentence: str,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    assert run(["access", *arguments]) == code
    out, message = capsys.readouterr()
    assert out == ""
    assert sentence in message
    assert message.count("\n") == 1
