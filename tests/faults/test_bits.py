"""Flipped bits are refused by name, or change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.bits import bits_of_a_building_collection, bits_of_a_run, bits_of_a_store
from tests.faults.report import check


def test_bits_of_a_run(tmp_path: Path) -> None:
    check(bits_of_a_run(tmp_path, 6))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_bits_of_a_store(tmp_path: Path) -> None:
    check(bits_of_a_store(tmp_path, 4))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_bits_of_a_building_collection(tmp_path: Path) -> None:
    check(bits_of_a_building_collection(tmp_path, 2))
