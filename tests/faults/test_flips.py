"""Readers during flips: see flips.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaigns import CAMPAIGNS
from tests.faults.report import Campaign, check, counts_of

BY_NAME = {campaign.name: campaign for campaign in CAMPAIGNS}
OF_A_FOLDER = BY_NAME["flips under readers of a folder"]
OF_A_SERVER = BY_NAME["flips under readers of a server"]


def test_readers_of_a_folder_see_one_run_or_the_other(tmp_path: Path) -> None:
    check(counts_of(OF_A_FOLDER, tmp_path, OF_A_FOLDER.normal))


@pytest.mark.server
def test_readers_of_a_server_see_one_run_or_the_other(tmp_path: Path) -> None:
    check(counts_of(OF_A_SERVER, tmp_path, OF_A_SERVER.normal))


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("campaign", [OF_A_FOLDER, OF_A_SERVER], ids=lambda campaign: campaign.name)
def test_two_hundred_flips(tmp_path: Path, campaign: Campaign) -> None:
    check(counts_of(campaign, tmp_path, campaign.full))
