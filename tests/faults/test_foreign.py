"""Foreign hands: named, mended or refused with advice that works, on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import foreign
from tests.faults.report import check


def test_acts_of_foreign_hands_on_a_folder(tmp_path: Path) -> None:
    check(foreign.single_acts(tmp_path, 2))


def test_acts_of_foreign_hands_in_local_mode(tmp_path: Path) -> None:
    check(foreign.each_act("local", tmp_path, 8))


@pytest.mark.server
def test_acts_of_foreign_hands_on_a_server(tmp_path: Path) -> None:
    check(foreign.single_acts_on_a_server(tmp_path, 6))


@pytest.mark.parametrize(("way", "runs"), [("edge", 2), ("local", 4)])
def test_foreign_hands_in_any_order(tmp_path: Path, way: str, runs: int) -> None:
    check(foreign.drawn(way, tmp_path, runs, steps=8))


@pytest.mark.server
def test_foreign_hands_in_any_order_on_a_server(tmp_path: Path) -> None:
    check(foreign.any_order_on_a_server(tmp_path, 2))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["edge", "local"])
def test_foreign_hands_at_length(tmp_path: Path, way: str) -> None:
    check(foreign.each_act(way, tmp_path, 1000))
    check(foreign.drawn(way, tmp_path, 50, steps=30, first=1))
