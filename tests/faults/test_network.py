"""Every command through a proxy that breaks its requests: see network.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaigns import CAMPAIGNS
from tests.faults.report import Campaign, check, counts_of

BY_NAME = {campaign.name: campaign for campaign in CAMPAIGNS}
ALL = [BY_NAME[name] for name in ("broken requests", "broken gRPC", "a flaky network")]

pytestmark = pytest.mark.server


@pytest.mark.parametrize("campaign", ALL[1:], ids=lambda campaign: campaign.name)
def test_a_few_faults(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.normal))


@pytest.mark.slow
def test_every_fault_once_for_every_command(tmp_path: Path) -> None:
    check(counts_of(ALL[0], tmp_path, ALL[0].normal))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("campaign", ALL, ids=lambda campaign: campaign.name)
def test_many_faults(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.full))
