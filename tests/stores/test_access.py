"""Keys of a server are written for their owner alone; a token reads one alias and nothing else."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from embedstore import sync
from embedstore.errors import NotFoundError, StoreError, StoreUnreachableError, UsageError
from embedstore.stores.access import check_token, ignored_by_git, lifetime_of, read_token, write_keys
from embedstore.stores.base import open_store
from embedstore.stores.connection import Connection, Secret, read_key_file
from tests.builders import tiny_run
from tests.keys import KEY, OTHER_KEY, READ_ONLY_KEY
from tests.server import clean
from tests.server_process import free_port, start_server

ADMIN = Secret(KEY)
SOON = datetime.now(UTC) + timedelta(hours=5)  # longer than any suite


def test_keys_are_random_and_for_their_owner_alone(tmp_path: Path) -> None:
    seen = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = write_keys(tmp_path / name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        lines = dict(line.split("=") for line in path.read_text().splitlines())
        assert list(lines) == ["QDRANT_API_KEY", "QDRANT_READ_ONLY_API_KEY"]
        assert read_key_file(path).reveal() == lines["QDRANT_API_KEY"]
        seen |= set(lines.values())
    assert len(seen) == 4
    assert {len(value) for value in seen} == {43}  # 32 bytes in base64


def test_keys_that_are_there_stay(tmp_path: Path) -> None:
    for target in (tmp_path / ".env", tmp_path / "elsewhere"):
        (tmp_path / ".env").unlink(missing_ok=True)
        target.write_text("mine")
        if target.name != ".env":
            (tmp_path / ".env").symlink_to(target)
        with pytest.raises(UsageError, match=r"\.env is there already and was not changed"):
            write_keys(tmp_path)
        assert target.read_text() == "mine"


def test_git_is_asked_whether_it_ignores_the_keys(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert ignored_by_git(path)  # no work tree
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert not ignored_by_git(path)
    (tmp_path / ".gitignore").write_text(".env\n")
    assert ignored_by_git(path)


@pytest.mark.parametrize(
    ("text", "lifetime"),
    [
        ("90d", timedelta(days=90)),
        ("12h", timedelta(hours=12)),
        ("1m", timedelta(minutes=1)),
        ("730d", timedelta(days=730)),
        ("never", None),
    ],
)
def test_lifetimes(text: str, lifetime: timedelta | None) -> None:
    assert lifetime_of(text) == lifetime


@pytest.mark.parametrize("text", ["", "0d", "-1d", "731d", "17521h", "9999999999h", "90", "1y", "90 d", "١d"])
def test_other_lifetimes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected 90d, 12h, 30m, at most 730d, or never"):
        lifetime_of(text)


def test_a_token_says_what_it_may_and_until_when() -> None:
    def content(token: Secret) -> Any:
        return jwt.decode(token.reveal(), ADMIN.reveal(), algorithms=["HS256"])

    grant = [{"collection": "movies", "access": "r"}]
    assert content(read_token(ADMIN, "movies", SOON)) == {"access": grant, "exp": int(SOON.timestamp())}
    assert content(read_token(ADMIN, "movies", None)) == {"access": grant}


def test_a_short_key_signs_nothing_and_is_not_shown() -> None:
    with pytest.raises(UsageError, match="shorter than 32 bytes") as caught:
        read_token(Secret("x" * 31), "movies", SOON)
    assert "xxx" not in str(caught.value)


def test_a_token_for_what_cannot_be_an_alias_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        read_token(ADMIN, "movies/../all", SOON)


def test_a_dead_server_is_no_refusal() -> None:
    with pytest.raises(StoreUnreachableError):
        check_token(ADMIN, "movies", f"http://127.0.0.1:{free_port()}", Connection(api_key=ADMIN))


@pytest.fixture(scope="module")
def admin() -> Connection:
    key = os.environ.get("QDRANT_API_KEY") if "QDRANT_JWT_URL" in os.environ else None
    return Connection(api_key=Secret(key) if key else ADMIN)


@pytest.fixture
def url(tmp_path: Path, admin: Connection) -> Iterator[str]:
    """Yield the URL of a server with JWT RBAC on: QDRANT_JWT_URL, or one of its own (QDRANT_BIN)."""
    given = os.environ.get("QDRANT_JWT_URL")
    if given:
        clean(given)
        yield given
        clean(given)
        return
    assert admin.api_key is not None
    settings = {
        "QDRANT__SERVICE__API_KEY": admin.api_key.reveal(),
        "QDRANT__SERVICE__READ_ONLY_API_KEY": READ_ONLY_KEY,
        "QDRANT__SERVICE__JWT_RBAC": "true",
    }
    with start_server(tmp_path / "qdrant", env=settings) as server:
        yield server.url


@pytest.mark.server
def test_an_application_reads_its_alias_across_a_flip_and_nothing_else(
    url: str, admin: Connection, tmp_path: Path
) -> None:
    old = tiny_run(tmp_path, run_id="20240101t000000-aaaa")
    new = tiny_run(tmp_path, run_id="20250101t000000-bbbb", seed=1)
    with open_store(url, connection=admin) as store:
        sync(old, store)
        sync(old, store, alias="films")
    assert admin.api_key is not None
    token = read_token(admin.api_key, "movies", SOON)
    check_token(token, "movies", url, admin)

    with httpx.Client(base_url=url, headers={"api-key": token.reveal()}) as http:

        def live() -> str:
            found = http.get("/collections/movies").json()["result"]["config"]["metadata"]["run_id"]
            query = {"query": [1.0, 0.0, 0.0, 0.0], "limit": 3, "with_payload": True}
            hits = http.post("/collections/movies/points/query", json=query).json()["result"]["points"]
            assert [hit["payload"]["run_id"] for hit in hits] == [found] * 3
            return str(found)

        assert live() == old.run_id
        with open_store(url, connection=admin) as store:
            sync(new, store)
        assert live() == new.run_id

        for other in ("films", f"movies__{new.run_id}", f"films__{old.run_id}"):
            assert http.get(f"/collections/{other}").status_code == 403
            assert http.post(f"/collections/{other}/points/query", json={"limit": 1}).status_code == 403
        point = {"id": 1, "vector": [1.0, 0.0, 0.0, 0.0]}
        flip = {"create_alias": {"alias_name": "movies", "collection_name": f"movies__{old.run_id}"}}
        for method, path, body in (
            ("PUT", "/collections/movies/points?wait=true", {"points": [point]}),
            ("POST", "/collections/movies/points/delete?wait=true", {"points": [1]}),
            ("POST", "/collections/movies/points/payload", {"points": [1], "payload": {"title": ""}}),
            ("PATCH", "/collections/movies", {"metadata": {"run_id": "x"}}),
            ("DELETE", "/collections/movies", None),
            ("POST", "/collections/aliases", {"actions": [flip]}),
        ):
            assert http.request(method, path, json=body).status_code == 403, (method, path)
        assert http.get("/collections").json()["result"]["collections"] == []
        assert live() == new.run_id


@pytest.mark.server
def test_a_token_ends_and_a_forged_one_never_begins(url: str, admin: Connection, tmp_path: Path) -> None:
    with open_store(url, connection=admin) as store:
        sync(tiny_run(tmp_path), store)
    assert admin.api_key is not None
    past = datetime.now(UTC) - timedelta(minutes=2)  # the server allows a minute for clocks that differ
    for token in (read_token(admin.api_key, "movies", past), read_token(Secret(OTHER_KEY), "movies", SOON)):
        answer = httpx.get(f"{url}/collections/movies", headers={"api-key": token.reveal()})
        assert answer.status_code == 403
        with pytest.raises(StoreError, match="refuses a token of this key"):
            check_token(token, "movies", url, admin)
    forever = read_token(admin.api_key, "movies", None)
    check_token(forever, "movies", url, admin)
    with pytest.raises(NotFoundError, match="has no alias 'books'"):
        check_token(forever, "books", url, admin)


@pytest.mark.server
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"QDRANT__SERVICE__API_KEY": ADMIN.reveal()}, "QDRANT__SERVICE__JWT_RBAC=true"),
        ({"QDRANT__SERVICE__JWT_RBAC": "true"}, "lets everybody in"),
        (
            {
                "QDRANT__SERVICE__API_KEY": OTHER_KEY,
                "QDRANT__SERVICE__READ_ONLY_API_KEY": ADMIN.reveal(),
                "QDRANT__SERVICE__JWT_RBAC": "true",
            },
            "give its admin key",
        ),
    ],
    ids=["no tokens", "no keys", "the read-only key"],
)
def test_a_server_that_cannot_take_the_token_is_named(
    settings: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    with start_server(tmp_path / "qdrant", env=settings) as server:
        key = settings.get("QDRANT__SERVICE__API_KEY", ADMIN.reveal())
        with open_store(server.url, connection=Connection(api_key=Secret(key))) as store:
            sync(tiny_run(tmp_path), store)
        with pytest.raises(StoreError, match=sentence):
            check_token(read_token(ADMIN, "movies", SOON), "movies", server.url, Connection(api_key=ADMIN))
