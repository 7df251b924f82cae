"""Of two commands that write at once, one succeeds, the other succeeds or says who writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.races import races, races_on_a_server
from tests.faults.report import check


def test_two_commands_at_once(tmp_path: Path) -> None:
    check(races(tmp_path, 1))


@pytest.mark.server
def test_two_commands_at_once_on_a_server(tmp_path: Path) -> None:
    check(races_on_a_server(tmp_path, 5))
