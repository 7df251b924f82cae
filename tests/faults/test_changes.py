"""A run that changes while it is synced is sealed as it was when it began, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.changes import changed_runs, changed_runs_on_a_server
from tests.faults.report import check


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_run_changed_while_it_is_synced(tmp_path: Path) -> None:
    check(changed_runs(tmp_path, 4))


@pytest.mark.server
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_run_changed_while_it_is_synced_to_a_server(tmp_path: Path) -> None:
    check(changed_runs_on_a_server(tmp_path, 6))
