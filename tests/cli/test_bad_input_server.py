"""Bad input where the store is a server, one row a case: one sentence on stderr, the documented exit code.

The first table needs no server of Qdrant: a scripted one stands in its place. The second one does.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import jwt
import numpy as np
import pytest

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run
from embedstore.stores import rest
from embedstore.stores.bulk import GrpcBulk
from embedstore.stores.connection import Connection, Secret, endpoints_of
from embedstore.stores.contract import points
from embedstore.stores.rest import READING_SECONDS
from embedstore.stores.server import ServerStore
from embedstore.sync import sync
from tests.builders import tiny_run, with_value
from tests.keys import KEY, OTHER_KEY
from tests.scripted import (
    HTML,
    QDRANT,
    Act,
    GrpcServer,
    HttpServer,
    answer,
    forward,
    half_a_body,
    reset,
    stall,
)
from tests.server import clean, server_store, server_url

Prepare = Callable[[Path, ServerStore], object]
FORGED = jwt.encode({"access": "m"}, OTHER_KEY, algorithm="HS256")
RUN, NEWER = "20250101t000000-bbbb", "20260101t000000-cccc"
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
    ["runs", "restore"],
    ["contract"],
    ["copy", RUN, "--to", "folder"],
]
DEAD = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    tiny_run(folder, run_id=RUN)
    tiny_run(folder, run_id=NEWER, seed=1)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs, from which the commands are given."""
    copy = tmp_path / "work"
    shutil.copytree(prepared, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after two tries, of 0.2 s where there is no answer, without a pause."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(rest, "_SHARE", READING_SECONDS / 0.2)
    monkeypatch.setattr(rest, "_TRIES", 2)


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
    Case(
        "a key unencrypted, --insecure", at("http://a.invalid", "--insecure"), 5, "the name is", (), WITH_KEY
    ),
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
        "a key for two servers",
        ["copy", RUN, "--store", DEAD, "--to", "http://127.0.0.1:8"],
        2,
        "would be sent to the other",
        (),
        WITH_KEY,
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


@pytest.mark.usefixtures("hasty")
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


@pytest.mark.usefixtures("folder", "hasty")
def test_the_port_of_grpc_is_recognised(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with GrpcServer() as server:
        code = embedstore(at(f"http://127.0.0.1:{server.port}"))
    assert_one_sentence(code, 5, "the port of its gRPC? REST is usually on 6333", capfd)


# With a real server


def admin_key() -> str:
    """Return the admin key of the server at QDRANT_URL; skips the test loudly where there is none."""
    server_url()
    key = os.environ.get("QDRANT_API_KEY")
    if not key or not os.environ.get("QDRANT_READ_ONLY_API_KEY"):
        pytest.skip(
            "NO KEYS: start the server with keys and JWT, and set QDRANT_API_KEY, QDRANT_READ_ONLY_API_KEY"
        )
    return key


def read_only_key() -> str:
    return os.environ["QDRANT_READ_ONLY_API_KEY"]


def token_for(alias: str, access: str = "r") -> Callable[[], str]:
    claims = {"access": [{"collection": alias, "access": access}]}
    return lambda: jwt.encode(claims, admin_key(), algorithm="HS256")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerStore]:
    """The store at QDRANT_URL, by the admin key."""
    admin_key()
    with server_store() as store:
        yield store


@pytest.fixture
def live(server: ServerStore, folder: Path) -> ServerStore:
    """The same, where RUN is live, and nothing else is there."""
    clean(server.location, but=f"movies__{RUN}")
    sync(Run.load(folder / "runs" / RUN), server)
    return server


def rest_of(store: ServerStore) -> httpx.Client:
    return httpx.Client(base_url=store.location, headers={"api-key": admin_key()}, timeout=60)


def collection(
    name: str, *, width: int = 4, distance: str = "Dot", metadata: dict[str, Any] | None = None
) -> Prepare:
    """Make a collection as another program might."""
    vectors = {key: {"size": width, "distance": distance} for key in ("", "history")}

    def act(folder: Path, store: ServerStore) -> None:
        with rest_of(store) as http:
            body = {"vectors": vectors, "metadata": metadata or {}}
            http.put(f"/collections/{name}", json=body).raise_for_status()

    return act


def alias_of_others(folder: Path, store: ServerStore) -> None:
    collection("movies__of_others")(folder, store)
    move = {"create_alias": {"alias_name": "films", "collection_name": "movies__of_others"}}
    with rest_of(store) as http:
        http.post("/collections/aliases", json={"actions": [move]}).raise_for_status()


def our_metadata(**changes: object) -> dict[str, Any]:
    made = {"schema": 1, "state": "building", "run_id": NEWER, "dim": 4, "count": 40, "tower": "additive"}
    return {**made, "fingerprint": "ab", **changes}


def number(run_id: str, name: str, value: float) -> Prepare:
    """Put NaN or the like into an array of a run."""
    return lambda folder, store: with_value(Run.load(folder / "runs" / run_id), name, (3, 2), value)


def nan_by_grpc(folder: Path, store: ServerStore) -> None:
    """Write NaN over the vector of movie 1, which gRPC takes from anybody."""
    batch = points(Run.load(folder / "runs" / RUN), 0, 1)
    endpoints = endpoints_of(store.location)
    with closing(GrpcBulk(endpoints, Connection(api_key=Secret(admin_key())))) as bulk:
        bulk.upsert(f"movies__{RUN}", replace(batch, movie_vectors=batch.movie_vectors * np.float32(np.nan)))


@dataclass(frozen=True)
class ServerCase:
    name: str
    key: Callable[[], str]
    arguments: Sequence[str]
    code: int
    sentence: str
    prepare: Prepare = lambda folder, store: None


NEW = f"movies__{NEWER}"
HISTORY = ["query", "--history", "4"]  # movie 4 is row 3
SERVER_CASES = [
    *[
        ServerCase(f"{what}: {command[0]}", key, command, 1, "refuses the key, or asks for one (401")
        for what, key in [
            ("wrong key", lambda: OTHER_KEY),
            ("no key", lambda: ""),
        ]
        for command in (QUERY, SYNC, ["status"], ["verify"], ["promote", RUN])
    ],
    *[
        ServerCase(f"{what}: {command[0]}", key, command, 1, "does not allow this (403")
        for what, key in [
            ("forged token", lambda: FORGED),
            ("read-only key", read_only_key),
            ("read token", token_for("movies")),
            ("a token for a collection", token_for(NEW, "rw")),
        ]
        for command in (SYNC,)
    ],
    *[
        ServerCase(
            f"a token for another alias: {command[0]}", token_for("films"), command, 1, "(403: Forbidden"
        )
        for command in (
            QUERY,
            SYNC,
            ["embed", "--user", "3"],
            ["verify"],
            ["rollback"],
            ["promote", RUN],
            ["plan"],
            ["runs", "rm", RUN],
        )
    ],
    ServerCase(
        "a token may not remove what it reads", token_for("movies"), ["runs", "rm", RUN], 2, "'movies' serves"
    ),
    ServerCase(
        "a token sees no history to roll back in",
        token_for("movies"),
        ["rollback"],
        3,
        "there is no other collection to return to",
    ),
    *[
        ServerCase(
            f"alias named like a collection: {command[0]}",
            admin_key,
            [*command, "--alias", "films"],
            1,
            "is the name of a collection",
            collection("films"),
        )
        for command in (SYNC, ["plan"])
    ],
    *[
        ServerCase(
            f"alias of others: {command[0]}",
            admin_key,
            [*command, "--alias", "films"],
            1,
            sentence,
            alias_of_others,
        )
        for sentence, commands in [
            ("'films' names 'movies__of_others', which is none of", (SYNC, ["plan"])),
            ("was not made by embedstore", (QUERY, ["verify"], ["rollback"])),
        ]
        for command in commands
    ],
    *[
        ServerCase(f"{what}: {command[0]}", admin_key, command, 1, sentence, prepare)
        for what, sentence, prepare in [
            ("made by others", "was not made by embedstore; choose another --alias", collection(NEW)),
            (
                "other width",
                "width 8, distance Dot and type float32, expected 4, Dot and float32",
                collection(NEW, width=8, metadata=our_metadata()),
            ),
            (
                "other distance",
                "distance Cosine and type float32, expected 4, Dot and float32",
                collection(NEW, distance="Cosine", metadata=our_metadata()),
            ),
            (
                "newer schema",
                "has schema 9, this embedstore reads up to 1",
                collection(NEW, metadata=our_metadata(schema=9)),
            ),
            (
                "half the metadata",
                "lack count",
                collection(
                    NEW,
                    metadata={
                        "schema": 1,
                        "run_id": NEWER,
                        "state": "sealed",
                        "dim": 4,
                        "tower": "x",
                        "fingerprint": "x",
                    },
                ),
            ),
            ("other content", "was made from other content", collection(NEW, metadata=our_metadata())),
        ]
        for command in (SYNC, ["plan"])
    ],
    *[
        ServerCase(
            f"{value} in {name}, {way}",
            admin_key,
            [*SYNC, *flags],
            1,
            "holds NaN or infinity; train again",
            number(NEWER, name, value),
        )
        for value in (math.nan, math.inf)
        for name in ("movie_vectors.npy", "history_vectors.npy")
        for way, flags in [("gRPC", []), ("REST", ["--grpc-port", "0"])]
    ],
    ServerCase(
        "NaN in a query",
        admin_key,
        HISTORY,
        1,
        "makes NaN or infinity of a history",
        number(RUN, "history_vectors.npy", math.nan),
    ),
    ServerCase(
        "infinity in a query",
        admin_key,
        HISTORY,
        1,
        "makes NaN or infinity of a history",
        number(RUN, "history_vectors.npy", math.inf),
    ),
    ServerCase(
        "NaN by other hands: query",
        admin_key,
        ["query", "--history", "5"],
        1,
        "point 1 of collection",
        nan_by_grpc,
    ),
    ServerCase("NaN by other hands: verify", admin_key, ["verify"], 4, "dimension 0 is nan", nan_by_grpc),
]


@pytest.mark.server
@pytest.mark.parametrize("case", SERVER_CASES, ids=lambda case: case.name)
def test_bad_input_is_one_sentence_and_changes_nothing_on_a_server(
    case: ServerCase,
    live: ServerStore,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    case.prepare(folder, live)
    monkeypatch.setenv("EMBEDSTORE_STORE", live.location)
    monkeypatch.setenv(VARIABLE, case.key())
    before = contents(folder), everything_on(live)
    code = embedstore(case.arguments)
    assert_one_sentence(code, case.code, case.sentence, capfd, case.key(), admin_key())
    assert (contents(folder), everything_on(live)) == before


@pytest.mark.server
def test_a_token_for_one_alias_asks_through_it_before_and_after_a_flip(
    live: ServerStore, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDSTORE_STORE", live.location)
    (folder / "users.txt").write_text("2\n3\n")
    commands = [
        [*QUERY, "--json"],
        [*QUERY, "--json", "--filter", "genre=Comedy", "-k", "3", "--include-seen", "--exclude", "1,2"],
        ["query", "--users-file", "users.txt"],
        ["embed", "--user", "3", "--json"],
        ["similar", "5", "--json"],
        ["verify", "--json"],
        ["runs", "show", "@movies", "--json"],
    ]

    def answers(key: str) -> list[str]:
        monkeypatch.setenv(VARIABLE, key)
        assert [embedstore(command) for command in commands] == [0] * len(commands)
        out, err = capfd.readouterr()
        assert err == ""
        return out.splitlines()

    for run_id in (RUN, NEWER):
        sync(Run.load(folder / "runs" / run_id), live)
        by_token = answers(token_for("movies")())
        assert any(run_id in line for line in by_token)
        named = [line.replace('"movies"', f'"movies__{run_id}"') for line in by_token]
        assert named == answers(admin_key())


@pytest.mark.server
def test_points_go_by_rest_where_the_port_of_grpc_is_that_of_rest(
    live: ServerStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDSTORE_STORE", live.location)
    monkeypatch.setenv(VARIABLE, admin_key())
    port = live.location.rpartition(":")[2]
    assert embedstore(["sync", "--grpc-port", port]) == 0
    assert embedstore(["verify", "--grpc-port", port]) == 0
    out, err = capfd.readouterr()
    assert "40 points read back and equal" in out
    assert err == ""


@pytest.mark.server
@pytest.mark.parametrize("hours", [-1, 1])
def test_a_server_whose_clock_differs_is_used_as_any(
    hours: int, live: ServerStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    date = formatdate(time.time() + 3600 * hours, usegmt=True)
    monkeypatch.setenv(VARIABLE, admin_key())
    with HttpServer(forward(live.location, date=date)) as proxy:
        with ServerStore(proxy.url, Connection(api_key=Secret(admin_key()))) as store:
            assert store.clock_skew() == pytest.approx(3600 * hours, abs=60)
        monkeypatch.setenv("EMBEDSTORE_STORE", proxy.url)
        for command in (SYNC, ["verify"], ["status"], QUERY, ["rollback"]):
            assert embedstore(command) == 0
    out, err = capfd.readouterr()
    assert out.endswith(f"alias movies -> movies__{RUN}\n")
    assert err == ""


@pytest.mark.server
def test_a_flip_by_a_machine_whose_clock_is_ahead_stays_before_the_next_one(
    live: ServerStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EMBEDSTORE_STORE", live.location)
    monkeypatch.setenv(VARIABLE, admin_key())
    ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="microseconds")
    with rest_of(live) as http:
        noted = {"metadata": {"promotions": [{"alias": "movies", "at": ahead}]}}
        http.patch(f"/collections/movies__{RUN}", json=noted).raise_for_status()
    assert embedstore(SYNC) == 0
    assert [flip.run_id for flip in live.promotions("movies")] == [RUN, NEWER]
    assert embedstore(["rollback"]) == 0
    assert [flip.run_id for flip in live.promotions("movies")] == [RUN, NEWER, RUN]
    assert embedstore(["status"]) == 0
    assert capfd.readouterr().err == ""


def everything_on(store: ServerStore) -> dict[str, Any]:
    """Return aliases, and settings, metadata and number of points of every collection."""
    with rest_of(store) as http:
        names = [entry["name"] for entry in http.get("/collections").json()["result"]["collections"]]
        found = {name: http.get(f"/collections/{name}").json()["result"] for name in sorted(names)}
        aliases = http.get("/aliases").json()["result"]["aliases"]
    return {"aliases": aliases} | {
        name: (info["config"], info["points_count"]) for name, info in found.items()
    }


def assert_one_sentence(
    code: int, expected: int, sentence: str, capfd: pytest.CaptureFixture[str], *secrets: str
) -> None:
    out, err = capfd.readouterr()
    assert (code, out, len(err.splitlines())) == (expected, "", 1), err
    assert err.startswith("Error: ")
    assert sentence in err
    assert "Traceback" not in err
    assert "defect" not in err
    assert not [secret for secret in (KEY, *secrets) if secret and secret in err]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
