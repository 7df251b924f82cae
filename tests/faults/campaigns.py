"""Every fault campaign: one line each, in the order of docs/faults.md."""

from __future__ import annotations

from tests.faults.fuzz import mutated_runs
from tests.faults.report import Campaign

__all__ = ["CAMPAIGNS"]

CAMPAIGNS = [
    Campaign("strangers", mutated_runs, full=10_000, normal=200),
]
