"""Every fault campaign: one line each, in the order of docs/faults.md."""

from __future__ import annotations

from tests.faults.report import Campaign

__all__ = ["CAMPAIGNS"]

CAMPAIGNS: list[Campaign] = []
