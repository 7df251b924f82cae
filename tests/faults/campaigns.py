"""Every fault campaign: one line each, in the order of docs/faults.md."""

from __future__ import annotations

from tests.faults import flips, foreign, fuzz, kills, server_kills
from tests.faults.report import Campaign

__all__ = ["CAMPAIGNS"]

CAMPAIGNS: list[Campaign] = [
    Campaign("kills of commands on a folder", kills.of_commands, full=700, normal=60),
    Campaign(
        "kills of commands on a server", kills.of_commands_on_a_server, full=300, normal=16, server=True
    ),
    Campaign("kills of the server", server_kills.of_the_server, full=60, normal=6, server=True),
    Campaign("flips under readers of a folder", flips.flips_of_a_folder, full=200, normal=20),
    Campaign("flips under readers of a server", flips.flips_on_a_server, full=200, normal=20, server=True),
    Campaign("foreign hands", foreign.single_acts, full=1000, normal=2),
    Campaign("foreign hands on a server", foreign.single_acts_on_a_server, full=1000, normal=6, server=True),
    Campaign("foreign hands in any order", foreign.any_order, full=100, normal=2),
    Campaign(
        "foreign hands in any order on a server",
        foreign.any_order_on_a_server,
        full=50,
        normal=2,
        server=True,
    ),
    Campaign("runs from strangers", fuzz.mutated_runs, full=10_000, normal=200),
]
