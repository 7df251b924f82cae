"""A clock that goes back changes neither what is latest, nor what was live before, nor what gc keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.clocks import clocks, clocks_with_a_server
from tests.faults.report import check


def test_a_clock_set_back(tmp_path: Path) -> None:
    check(clocks(tmp_path, 4))


@pytest.mark.server
def test_a_clock_set_back_with_a_server(tmp_path: Path) -> None:
    check(clocks_with_a_server(tmp_path, 8))
