"""The compose files start a Qdrant, or three, that only this machine and only a key can reach.

They are merged here by the rules of the Compose specification, and by Compose itself where it is
installed. What a service says is then run as a process: its settings, command and health check.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from embedstore.cli import run as embedstore
from embedstore.stores.base import open_store
from embedstore.stores.connection import Connection, Secret
from embedstore.sync import sync, verify
from tests.builders import tiny_run
from tests.certificates import make_certificate
from tests.keys import KEY, READ_ONLY_KEY
from tests.server_process import Server, free_port, start_server

ROOT = Path(__file__).parent.parent
BASE, TLS, CLUSTER = "docker-compose.yml", "docker-compose.tls.yml", "docker-compose.cluster.yml"
EVERY_WAY = pytest.mark.parametrize("files", [(BASE,), (BASE, TLS), (BASE, CLUSTER)], ids=" + ".join)
KEYS = {"QDRANT_API_KEY": KEY, "QDRANT_READ_ONLY_API_KEY": READ_ONLY_KEY}
STORAGE = "/qdrant/storage"

Model = dict[str, Any]


def load(file: str) -> Model:
    content: Model = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return content


def merged(*files: str) -> Model:
    """Return what Compose makes of the files: the last one wins, and lists of ports grow."""
    model: Model = {}
    for file in files:
        model = _merge(model, load(file))
    return model


def _merge(old: Model, new: Model) -> Model:
    both = {**old, **new}
    for name in old.keys() & new.keys():
        if isinstance(old[name], dict):
            both[name] = _merge(old[name], new[name])
        elif name == "volumes":
            by_target = {_target(volume): volume for volume in (*old[name], *new[name])}
            both[name] = list(by_target.values())
        elif isinstance(old[name], list) and name not in ("command", "test"):
            both[name] = [*old[name], *new[name]]
    return both


def _target(volume: str | Model) -> str:
    return volume["target"] if isinstance(volume, dict) else volume.split(":")[1]


def services(*files: str) -> dict[str, Model]:
    found: dict[str, Model] = merged(*files)["services"]
    return found


@EVERY_WAY
def test_image_is_pinned(files: tuple[str, ...]) -> None:
    assert {service["image"] for service in services(*files).values()} == {"qdrant/qdrant:v1.18.3"}


@EVERY_WAY
def test_ports_are_on_loopback_and_each_is_published_once(files: tuple[str, ...]) -> None:
    ports = [port.rpartition(":") for service in services(*files).values() for port in service["ports"]]
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", outside) for outside, _, _ in ports)
    assert len({outside for outside, _, _ in ports}) == len(ports)
    assert [inside for _, _, inside in ports] == ["6333", "6334"] * (len(ports) // 2)  # 6335 is not published


@EVERY_WAY
def test_keys_come_from_the_env_file_and_must_be_there(files: tuple[str, ...]) -> None:
    for service in services(*files).values():
        environment = service["environment"]
        keys = {name: value for name, value in environment.items() if name.endswith("API_KEY")}
        assert set(keys) == {"QDRANT__SERVICE__API_KEY", "QDRANT__SERVICE__READ_ONLY_API_KEY"}
        for name, value in keys.items():
            assert value.startswith(f"${{{name.replace('__SERVICE_', '')}:?")
        assert environment["QDRANT__TELEMETRY_DISABLED"] == "true"


def test_the_example_has_the_keys_and_git_ignores_what_is_secret() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == set(KEYS)
    assert {".env", "/tls/"} <= set((ROOT / ".gitignore").read_text(encoding="utf-8").split())


@EVERY_WAY
def test_data_of_each_node_is_in_a_named_volume_of_its_own(files: tuple[str, ...]) -> None:
    model = merged(*files)
    sources = [
        volume.partition(":")[0]
        for service in model["services"].values()
        for volume in service["volumes"]
        if _target(volume) == STORAGE
    ]
    assert len(set(sources)) == len(model["services"])
    assert set(sources) <= set(model["volumes"])


def test_the_cluster_leaves_the_volume_of_the_single_server_alone() -> None:
    used = str([service["volumes"] for service in services(BASE, CLUSTER).values()])
    assert f"'qdrant:{STORAGE}'" not in used


@EVERY_WAY
def test_health_is_checked_and_resources_are_limited(files: tuple[str, ...]) -> None:
    for service in services(*files).values():
        assert "readyz" in service["healthcheck"]["test"][-1]
        assert {"mem_limit", "cpus", "pids_limit", "ulimits"} <= set(service)
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_nodes_of_the_cluster_are_the_single_server_three_times() -> None:
    first, *others = services(BASE, CLUSTER).values()
    assert len(others) == 2
    own = {"ports", "command", "volumes", "depends_on"}
    for node in others:
        assert {k: v for k, v in node.items() if k not in own} == {
            k: v for k, v in first.items() if k not in own
        }
        assert node["depends_on"] == {"qdrant": {"condition": "service_healthy"}}


def test_certificates_are_mounted_read_only_where_the_server_looks() -> None:
    service = services(BASE, TLS)["qdrant"]
    mount = next(volume for volume in service["volumes"] if _target(volume) != STORAGE)
    assert mount["read_only"]
    assert not mount["bind"]["create_host_path"]
    for name in ("QDRANT__TLS__CERT", "QDRANT__TLS__KEY"):
        assert service["environment"][name].startswith(f"{mount['target']}/")


@EVERY_WAY
def test_compose_itself_reads_the_same(files: tuple[str, ...]) -> None:
    try:
        subprocess.run(["docker", "compose", "version"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("NO DOCKER COMPOSE: the compose files were merged by this test's own rules only")
    flags = [part for file in files for part in ("-f", file)]
    done = subprocess.run(
        ["docker", "compose", *flags, "config", "--format", "json"],
        cwd=ROOT,
        env={**os.environ, **KEYS},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)["services"]
    ours = services(*files)
    assert set(theirs) == set(ours)
    for name, service in ours.items():
        published = [
            f"{port['host_ip']}:{port['published']}:{port['target']}" for port in theirs[name]["ports"]
        ]
        assert published == service["ports"]
        assert [volume["target"] for volume in theirs[name]["volumes"]] == list(
            map(_target, service["volumes"])
        )
        assert theirs[name]["environment"] == settings_of(service)
        assert theirs[name].get("command") == service.get("command")
        assert theirs[name]["healthcheck"]["test"] == service["healthcheck"]["test"]


def settings_of(service: Model) -> dict[str, str]:
    """Return the environment of a service, with our keys in their places."""
    return {
        name: re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: KEYS[found[1]], value)
        for name, value in service["environment"].items()
    }


def check_health(service: Model, server: Server) -> int:
    """Run the health check of a service against a server, with its port."""
    kind, *command = service["healthcheck"]["test"]
    assert kind == "CMD"
    return subprocess.run(
        [part.replace("6333", str(server.port)) for part in command],
        timeout=20,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ).returncode


@pytest.mark.server
def test_the_single_server_starts_and_asks_for_a_key(tmp_path: Path) -> None:
    service = services(BASE)["qdrant"]
    with start_server(tmp_path / "qdrant", env=settings_of(service)) as server:
        assert check_health(service, server) == 0
        assert httpx.get(f"{server.url}/collections").status_code == 401
        for key in KEYS.values():
            assert httpx.get(f"{server.url}/collections", headers={"api-key": key}).is_success
    assert check_health(service, server) != 0


@pytest.mark.server
def test_the_server_with_tls_takes_a_sync_and_makes_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = make_certificate(tmp_path)
    service = services(BASE, TLS)["qdrant"]
    settings = {
        name: value.replace("/qdrant/tls", str(tmp_path)) for name, value in settings_of(service).items()
    }
    run = tiny_run(tmp_path)
    with start_server(tmp_path / "qdrant", env=settings) as server:
        assert check_health(service, server) == 0
        admin = Connection(api_key=Secret(KEYS["QDRANT_API_KEY"]), ca_file=authority)
        with open_store(server.url, connection=admin) as store:
            sync(run, store)
        monkeypatch.setenv("EMBEDSTORE_QDRANT_API_KEY", KEYS["QDRANT_API_KEY"])
        assert embedstore(["access", "--store", server.url, "--ca-file", str(authority)]) == 0
        token = capsys.readouterr().out.strip()
        answer = httpx.get(
            f"{server.url}/collections/movies",
            headers={"api-key": token},
            verify=ssl.create_default_context(cafile=authority),
        )
        assert answer.json()["result"]["config"]["metadata"]["run_id"] == run.run_id
    assert check_health(service, server) != 0


@pytest.mark.server
def test_the_three_nodes_are_one_cluster(tmp_path: Path) -> None:
    nodes = services(BASE, CLUSTER)
    ports = {name: free_port() for name in nodes}

    def start(name: str) -> Server:
        program, *arguments = nodes[name]["command"]
        assert program == "./qdrant"
        args = [
            re.sub(r"http://([\w-]+):6335", lambda found: f"http://127.0.0.1:{ports[found[1]]}", argument)
            for argument in arguments
        ]
        env = {**settings_of(nodes[name]), "QDRANT__CLUSTER__P2P__PORT": str(ports[name])}
        return running.enter_context(start_server(tmp_path / name, env=env, args=args))

    run = tiny_run(tmp_path)
    admin = Connection(api_key=Secret(KEYS["QDRANT_API_KEY"]))
    first, *others = nodes
    with ExitStack() as running, ThreadPoolExecutor() as threads:
        node = start(first)
        assert check_health(nodes[first], node) == 0
        second, third = threads.map(start, others)  # both at once, as Compose does
        with open_store(node.url, connection=admin) as store:
            sync(run, store)
        for server in (node, second, third):
            peers = httpx.get(f"{server.url}/cluster", headers={"api-key": KEYS["QDRANT_API_KEY"]})
            assert len(peers.json()["result"]["peers"]) == 3
            with open_store(server.url, connection=admin) as store:
                verify(store, "movies", run)
        third.stop()
        second.stop()
        node.restart()  # alone: it must be healthy before Compose starts the others
        assert check_health(nodes[first], node) == 0
