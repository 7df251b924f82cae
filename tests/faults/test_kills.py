"""SIGKILL of commands, and of the server under them: see kills.py and server_kills.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaigns import CAMPAIGNS
from tests.faults.report import Campaign, check, counts_of

KILLS = {campaign.name: campaign for campaign in CAMPAIGNS if campaign.name.startswith("kills")}
SERVER = [
    pytest.param(campaign, id=campaign.name, marks=pytest.mark.server)
    for campaign in KILLS.values()
    if campaign.server
]


def test_sixty_kills(tmp_path: Path) -> None:
    check(counts_of(KILLS["kills"], tmp_path, KILLS["kills"].normal))


@pytest.mark.parametrize("campaign", SERVER)
def test_kills_with_a_server(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.normal))


@pytest.mark.slow
def test_seven_hundred_kills(tmp_path: Path) -> None:
    check(counts_of(KILLS["kills"], tmp_path, KILLS["kills"].full))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("campaign", SERVER)
def test_every_kill_with_a_server(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.full))
