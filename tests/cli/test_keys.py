"""Where a key may not be: anything printed, logged or written, by any command, whether it works or fails."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from embedstore.cli import cli
from tests.builders import tiny_run
from tests.server import server_store, server_url

RUN, NEWER = "20250101t000000-bbbb", "20260101t000000-cccc"
WORKING = [
    ["sync", RUN],
    ["plan"],
    ["sync", "--json"],
    ["sync", RUN, "--grpc-port", "0"],
    ["status"],
    ["status", "--json"],
    ["verify"],
    ["query", "--user", "3"],
    ["query", "--users-file", "users.txt", "-o", "answers.csv"],
    ["embed", "--user", "3"],
    ["similar", "5"],
    ["promote", NEWER],
    ["rollback"],
    ["runs", "show", "@movies"],
    ["access", "--alias", "movies", "--expires", "1h"],
    ["contract"],
    ["contract", "--json"],
    ["doctor"],
    ["copy", RUN, "--to", "copied"],
    ["watch", "--once"],
]
FAILING = [
    ["sync", NEWER, "--alias", "films"],
    ["promote", NEWER],
    ["rollback", "--alias", "films"],
    ["access", "--alias", "films"],
    ["query", "--user", "999"],
    ["query", "--user", "3", "--alias", "films"],
    ["query", "--user", "3", "--store", "http://127.0.0.1:9"],
    ["query", "--user", "3", "--store", "https://localhost:9"],
    ["query", "--user", "3", "--store", "http://example.org"],
    ["runs", "rm", RUN],
]
# Everything that any library has to say, the traceback of every error, then the exit code of each command.
SCRIPT = """
import json, logging, sys
logging.basicConfig(level=logging.DEBUG)
from embedstore.cli import run
codes = [run(command) for command in json.loads(sys.argv[1])]
print(codes)
"""


def commands_with_a_key(group: click.Group, *names: str) -> Iterator[list[str]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands_with_a_key(command, *names, name)
        elif command is not None and "api_key_file" in [parameter.name for parameter in command.params]:
            yield [*names, name]


def other_commands() -> list[list[str]]:
    """Return the commands that take a key and are in no list above, without arguments."""
    listed = WORKING + FAILING
    return [path for path in commands_with_a_key(cli) if path not in [line[: len(path)] for line in listed]]


def talk(commands: Sequence[Sequence[str]], folder: Path, **environment: str) -> tuple[list[int], str]:
    """Run commands in a process of their own that logs all it can; return exit codes and all it said."""
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=folder,
        env={
            **os.environ,
            "EMBEDSTORE_DEBUG": "1",
            "GRPC_VERBOSITY": "DEBUG",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    codes: list[int] = json.loads(told.stdout.splitlines()[-1])
    return codes, told.stdout + told.stderr


def forms_of(key: str) -> list[bytes]:
    """Return a key as it might be written: itself, its base64, its beginning as in a truncated text."""
    return [key.encode(), base64.b64encode(key.encode())[:-4], key[: len(key) // 2].encode()]


@pytest.mark.server
@pytest.mark.parametrize("way", ["environment", "file"])
def test_a_key_is_nowhere(way: str, tmp_path: Path) -> None:
    url = server_url()
    admin, reader = os.environ.get("QDRANT_API_KEY"), os.environ.get("QDRANT_READ_ONLY_API_KEY")
    if not admin or not reader:
        pytest.skip("NO KEYS: set QDRANT_API_KEY and QDRANT_READ_ONLY_API_KEY to run this test")
    server_store().close()
    folder = tmp_path / "work"
    for seed, run_id in enumerate((RUN, NEWER)):
        tiny_run(folder, run_id=run_id, seed=seed)
    (folder / "users.txt").write_text("2\n3\n")

    def given(key: str) -> dict[str, str]:
        if way == "environment":
            return {"EMBEDSTORE_STORE": url, "EMBEDSTORE_QDRANT_API_KEY": key}
        path = tmp_path / "key"
        path.write_text(f"{key}\n")
        path.chmod(0o600)
        return {"EMBEDSTORE_STORE": url, "EMBEDSTORE_API_KEY_FILE": str(path)}

    codes, said = talk(WORKING, folder, **given(admin))
    assert codes == [0] * len(WORKING), said
    assert "httpcore" in said  # the logs are there
    said += talk(other_commands(), folder, **given(admin))[1]
    codes, failed = talk(FAILING, folder, **given(reader))
    assert 0 not in codes
    assert failed.count("Traceback") >= len(FAILING)
    said += failed + talk([["status"], ["sync"]], folder, **given("no-such-key-0123456789abcdefghij"))[1]
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for key in (admin, reader, "no-such-key-0123456789abcdefghij"):
        for form in forms_of(key):
            assert form not in said.encode()
            assert form not in written
