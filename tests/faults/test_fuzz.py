from __future__ import annotations

from pathlib import Path

from tests.faults.campaigns import CAMPAIGNS
from tests.faults.fuzz import mutated_runs
from tests.faults.report import check


def test_the_run_of_a_stranger_is_read_or_refused(tmp_path: Path) -> None:
    size = next(campaign.normal for campaign in CAMPAIGNS if campaign.run is mutated_runs)
    check(mutated_runs(tmp_path, size))
