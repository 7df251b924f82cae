"""The compose file starts a Qdrant that only this machine and only a key can reach."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture
def qdrant() -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    service: dict[str, Any] = content["services"]["qdrant"]
    return service


def test_image_is_pinned(qdrant: dict[str, Any]) -> None:
    assert qdrant["image"] == "qdrant/qdrant:v1.17.1"


def test_ports_are_on_loopback_only(qdrant: dict[str, Any]) -> None:
    assert qdrant["ports"] == ["127.0.0.1:6333:6333", "127.0.0.1:6334:6334"]


def test_keys_come_from_the_env_file_and_must_be_there(qdrant: dict[str, Any]) -> None:
    keys = {name: value for name, value in qdrant["environment"].items() if name.endswith("API_KEY")}
    assert set(keys) == {"QDRANT__SERVICE__API_KEY", "QDRANT__SERVICE__READ_ONLY_API_KEY"}
    wanted = {re.match(r"\$\{(\w+):\?", value)[1] for value in keys.values()}  # type: ignore[index]
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == wanted
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def test_data_is_in_a_named_volume(qdrant: dict[str, Any]) -> None:
    content = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    assert qdrant["volumes"] == ["qdrant:/qdrant/storage"]
    assert list(content["volumes"]) == ["qdrant"]


def test_health_is_checked_and_resources_are_limited(qdrant: dict[str, Any]) -> None:
    assert "readyz" in qdrant["healthcheck"]["test"][-1]
    assert {"mem_limit", "cpus", "pids_limit", "ulimits"} <= set(qdrant)
    assert qdrant["cap_drop"] == ["ALL"]
