"""Bad input where the store is a server, one row a case: one sentence on stderr, the documented exit code.

The first table needs no server of Qdrant: a scripted one stands in its place. The second one does.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from embedstore.cli import run as embedstore
from embedstore.stores import rest
from tests.builders import tiny_run
from tests.scripted import HTML, QDRANT, Act, GrpcServer, HttpServer, answer, half_a_body, reset, stall

KEY = "s3cret-key-of-tests"
RUN = "20250101t000000-bbbb"
QUERY, SYNC = ["query", "--user", "3"], ["sync"]
EVERY_COMMAND = [
    QUERY,
    SYNC,
    ["embed", "--user", "3"],
    ["similar", "5"],
    ["plan"],
    ["status"],
    ["verify"],
    ["promote", RUN],
    ["rollback"],
    ["runs", "show", "@movies"],
    ["runs", "rm", RUN],
]
DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    tiny_run(folder, run_id=RUN)
    (folder / "users.txt").write_text("2\n3\n")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run, from which the commands are given; no pause is made."""
    copy = tmp_path / "work"
    shutil.copytree(prepared, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(rest, "_TIMEOUT", httpx.Timeout(0.2))
    monkeypatch.setattr(rest, "_TRIES", 2)
    return copy


@dataclass(frozen=True)
class Case:
    name: str
    arguments: Sequence[str]
    code: int
    sentence: str
    script: Sequence[Act] = ()
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], object] = lambda folder: None


def write(name: str, content: str, mode: int = 0o600) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        (folder / name).write_text(content)
        (folder / name).chmod(mode)

    return act


def at(url: str, *arguments: str) -> list[str]:
    return [*QUERY, "--store", url, *arguments]


PAGE = answer(200, HTML, content_type="text/html")
GATEWAY = answer(502, HTML, content_type="text/html")
VARIABLE = "EMBEDSTORE_QDRANT_API_KEY"
WITH_KEY = {VARIABLE: KEY}
CASES = [
    # who answers
    *[
        Case(f"dead server: {' '.join(c)}", [*c, "--store", DEAD], 5, "gives no answer")
        for c in EVERY_COMMAND
    ],
    Case("unknown name", at("http://nowhere.invalid"), 5, "the name is unknown"),
    Case("no name", at(f"http://{'a' * 70}.invalid"), 5, "the name is unknown"),
    Case("plain http on that port", at("https://localhost:PORT"), 5, "speak plain http", [QDRANT]),
    *[
        Case(f"{what}: {command[0]}", command, code, sentence, [act])
        for command in (QUERY, SYNC, ["status"])
        for what, code, sentence, act in [
            ("a page", 5, "is a proxy before the server", PAGE),
            ("a gateway's page", 5, "answers GET with 502 and text/html", GATEWAY),
            ("another service", 5, "not as Qdrant does", answer(200, {"hello": "world"})),
            ("too old", 1, "is Qdrant 1.9.0, expected 1.17.1 or newer", answer(200, {"version": "1.9.0"})),
            ("a stall", 5, "timed out", stall),
            ("a reset", 5, "gives no answer", reset),
            ("half a body", 5, "gives no answer", half_a_body),
            ("elsewhere", 1, "redirects to https://x/ (301)", answer(301, "", location="https://x/")),
        ]
    ],
    # what it answers
    *[
        Case(f"{what}: {command[0]}", command, code, sentence, [QDRANT, act])
        for command in (QUERY, SYNC, ["status"])
        for what, code, sentence, act in [
            (
                "no key",
                1,
                "refuses the key, or asks for one (401: Must",
                answer(401, "Must provide an API key"),
            ),
            ("no right", 1, "does not allow this (403", answer(403, {"status": {"error": "Forbidden"}})),
            (
                "overloaded",
                5,
                "(429: slow down); try again in 2 s",
                answer(429, "slow down", retry_after="2"),
            ),
            ("failing", 5, "(503: )", answer(503, "")),
            ("a page later", 5, "is a proxy before the server", PAGE),
            ("other JSON later", 5, "not as Qdrant does", answer(200, {})),
            ("a broken answer", 5, "not as Qdrant does", answer(200, '{"result": {"aliases": [')),
            ("a dying server", 5, "gives no answer", reset),
            ("disk full", 1, "make room", answer(500, "No space left on device")),
        ]
    ],
    # what was typed
    Case("another scheme", at("ftp://localhost"), 2, "is not the URL of a Qdrant server"),
    Case("no host", at("http://"), 2, "is not the URL of a Qdrant server"),
    Case("no port", at("http://localhost:http"), 2, "is not a URL"),
    Case("a password", at(f"http://me:{KEY}@localhost"), 2, "holds a password"),
    Case("a password with a slash", at(f"http://me:{KEY}/@localhost"), 2, "holds a password"),
    Case(
        "a key in the URL", at(f"http://localhost?api-key={KEY}"), 2, "'http://localhost?...' is not the URL"
    ),
    Case(
        "a password in the settings",
        QUERY,
        2,
        "a password",
        (),
        {},
        write("embedstore.toml", f"store = 'http://{KEY}@h'"),
    ),
    Case(
        "a key in the settings",
        QUERY,
        2,
        f"put it in {VARIABLE}",
        (),
        {},
        write("embedstore.toml", f"api_key = '{KEY}'"),
    ),
    Case("a key as an argument", at(DEAD, "--api-key", KEY), 2, "No such option '--api-key'"),
    Case("a key as an argument with =", at(DEAD, f"--api-key={KEY}"), 2, "No such option '--api-key'"),
    Case("a key unencrypted", at("http://example.org"), 2, "would travel unencrypted", (), WITH_KEY),
    Case(
        "a key unencrypted, from a file",
        at("http://example.org", "--api-key-file", "key"),
        2,
        "would travel",
        (),
        {},
        write("key", KEY),
    ),
    Case(
        "a key with blanks", at(DEAD), 2, "characters that a key cannot have", (), {VARIABLE: f"{KEY} {KEY}"}
    ),
    Case("a key of two lines", at(DEAD), 2, "characters that a key cannot have", (), {VARIABLE: f"{KEY}\nx"}),
    Case("no key file", at(DEAD, "--api-key-file", "key"), 2, "key file key cannot be read: No such"),
    Case(
        "an empty key file", at(DEAD, "--api-key-file", "key"), 2, "holds no key", (), {}, write("key", "\n")
    ),
    Case(
        "a key file for all",
        at(DEAD, "--api-key-file", "key"),
        2,
        "chmod 600",
        (),
        {},
        write("key", KEY, 0o644),
    ),
    Case(
        "a key file of words",
        at(DEAD, "--api-key-file", "key"),
        2,
        "holds no key",
        (),
        {},
        write("key", f"{KEY} x"),
    ),
    Case("no CA file", at("https://localhost:9", "--ca-file", "ca"), 2, "CA file ca is not there"),
    Case(
        "a CA file of text",
        at("https://localhost:9", "--ca-file", "ca"),
        2,
        "expected PEM",
        (),
        {},
        write("ca", "x"),
    ),
    Case("a gRPC port of letters", at(DEAD, "--grpc-port", "x"), 2, "grpc port 'x' is not a port"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_sentence_and_changes_nothing(
    case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    case.prepare(folder)
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    before = contents(folder)
    with HttpServer(*case.script or [QDRANT]) as server:
        if case.script:
            monkeypatch.setenv("EMBEDSTORE_STORE", server.url)
        port = server.url.rpartition(":")[2]
        code = embedstore([argument.replace("PORT", port) for argument in case.arguments])
    assert_one_sentence(code, case.code, case.sentence, capfd)
    assert contents(folder) == before


def test_the_port_of_grpc_is_recognised(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with GrpcServer() as server:
        code = embedstore(at(f"http://127.0.0.1:{server.port}"))
    assert_one_sentence(code, 5, "is this the port of its gRPC? REST is usually on 6333", capfd)


def assert_one_sentence(code: int, expected: int, sentence: str, capfd: pytest.CaptureFixture[str]) -> None:
    out, err = capfd.readouterr()
    assert (code, out, len(err.splitlines())) == (expected, "", 1), err
    assert err.startswith("Error: ")
    assert sentence in err
    assert "Traceback" not in err
    assert "defect" not in err
    assert KEY not in err


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
