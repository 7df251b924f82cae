"""Foreign hands: named, mended or refused with advice that works, on every backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.foreign import drawn, each_act
from tests.faults.report import check

_REAL = [pytest.param(way, marks=pytest.mark.server) for way in ("rest", "grpc")]


@pytest.mark.parametrize(("way", "most"), [("edge", 6), ("local", 30)])
def test_single_acts_of_foreign_hands(tmp_path: Path, way: str, most: int) -> None:
    check(each_act(way, tmp_path, most))


@pytest.mark.parametrize(("way", "runs"), [("edge", 2), ("local", 8)])
def test_foreign_hands_among_all_that_a_store_does(tmp_path: Path, way: str, runs: int) -> None:
    check(drawn(way, tmp_path, runs, steps=12))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["edge", "local", *_REAL])
def test_every_act_of_foreign_hands(tmp_path: Path, way: str) -> None:
    check(each_act(way, tmp_path, 10_000))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["edge", "local", *_REAL])
def test_foreign_hands_at_length(tmp_path: Path, way: str) -> None:
    check(drawn(way, tmp_path, 50, steps=30))
