"""Every command through a proxy that breaks its requests: see network.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaigns import CAMPAIGNS
from tests.faults.report import Campaign, check, counts_of

BY_NAME = {campaign.name: campaign for campaign in CAMPAIGNS}
QUICK = [BY_NAME[name] for name in ("broken gRPC", "a flaky network")]
SLOW = [BY_NAME[name] for name in ("broken requests", "a silent server")]

pytestmark = pytest.mark.server


@pytest.mark.parametrize("campaign", QUICK, ids=lambda campaign: campaign.name)
def test_a_few_faults(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.normal))


@pytest.mark.slow
@pytest.mark.parametrize("campaign", SLOW, ids=lambda campaign: campaign.name)
def test_what_takes_a_minute(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.normal))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("campaign", [*QUICK, *SLOW], ids=lambda campaign: campaign.name)
def test_many_faults(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.full))
