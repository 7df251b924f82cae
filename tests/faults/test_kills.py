"""SIGKILL of commands, and of the server under them: see kills.py and server_kills.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaigns import CAMPAIGNS
from tests.faults.report import Campaign, check, counts_of

BY_NAME = {campaign.name: campaign for campaign in CAMPAIGNS}
ON_A_FOLDER = BY_NAME["kills of commands on a folder"]
WITH_A_SERVER = [BY_NAME["kills of commands on a server"], BY_NAME["kills of the server"]]


def test_sixty_kills(tmp_path: Path) -> None:
    check(counts_of(ON_A_FOLDER, tmp_path, ON_A_FOLDER.normal))


@pytest.mark.server
@pytest.mark.parametrize("campaign", WITH_A_SERVER, ids=lambda campaign: campaign.name)
def test_kills_with_a_server(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.normal))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_seven_hundred_kills(tmp_path: Path) -> None:
    check(counts_of(ON_A_FOLDER, tmp_path, ON_A_FOLDER.full))


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("campaign", WITH_A_SERVER, ids=lambda campaign: campaign.name)
def test_every_kill_with_a_server(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.full))
