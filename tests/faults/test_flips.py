"""Readers during flips, in the sizes of the normal suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.flips import flips_of_a_folder, flips_on_a_server
from tests.faults.report import check

FLIPS = 20


def test_readers_of_a_folder_see_one_run_or_the_other(tmp_path: Path) -> None:
    check(flips_of_a_folder(tmp_path, FLIPS))


@pytest.mark.server
def test_readers_of_a_server_see_one_run_or_the_other(tmp_path: Path) -> None:
    check(flips_on_a_server(tmp_path, FLIPS))
