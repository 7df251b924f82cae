"""What a campaign that fails counts, and where a person finds how to reproduce it."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedstore.errors import StoreError
from tests.faults.report import Campaign, Count, Mixed, Tally, check, counts_of, page


def three_of_four_fail(_: Path, size: int) -> Count:
    """Things are broken on purpose."""
    tally = Tally("breaking", "embedded")
    errors = [None, AssertionError("gone"), Mixed("two runs"), StoreError("refused")]
    for number in range(size):
        with tally.attempt(f"attempt {number}"):
            if (error := errors[number % 4]) is not None:
                raise error
            tally.outcome("held")
    return tally.count()


def test_a_failed_attempt_is_counted_and_the_campaign_goes_on(tmp_path: Path) -> None:
    campaign = Campaign("breakages", three_of_four_fail, full=8, normal=4)
    counts = counts_of(campaign, tmp_path, campaign.full)
    assert [(count.tried, count.lost, count.mixed) for count in counts] == [(8, 4, 2)]
    assert counts[0].outcomes == {"held": 2, "lost": 4, "mixed": 2}
    assert counts[0].failures[:3] == ("attempt 1: gone", "attempt 2: two runs", "attempt 3: refused")
    with pytest.raises(AssertionError, match="attempt 1: gone"):
        check(counts)
    check(counts_of(campaign, tmp_path, 1))


def test_the_page_tells_the_counts_what_is_done_and_what_did_not_hold(tmp_path: Path) -> None:
    campaign = Campaign("breakages", three_of_four_fail, full=8, normal=4)
    text = page([(campaign, counts_of(campaign, tmp_path, 4))], "Printed by hand.")
    assert "| breaking | embedded | 4 | lost 2, held 1, mixed 1 | 2 | 1 | 0.0 |" in text
    assert (
        "## breakages\n\nThings are broken on purpose.\n\nWhat did not hold:\n\n- attempt 1: gone\n" in text
    )


def test_nothing_tried_or_untold_is_no_success() -> None:
    with pytest.raises(AssertionError, match="nothing was tried"):
        check(Tally("breaking", "-").count())
    tally = Tally("breaking", "-")
    with tally.attempt("attempt 0"):
        pass
    with pytest.raises(AssertionError, match="breaking"):
        check(tally.count())
