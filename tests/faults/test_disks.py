"""A full disk is one sentence; what was live serves on, and the same command finishes once there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.disks import full_disk, read_only
from tests.faults.report import check


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_full_disk(tmp_path: Path) -> None:
    check(full_disk(tmp_path, 4))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_read_only_folder(tmp_path: Path) -> None:
    check(read_only(tmp_path, 8))
