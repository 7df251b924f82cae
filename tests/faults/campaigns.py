"""Every fault campaign: one line each, in the order of docs/faults.md."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.faults import (
    bits,
    changes,
    clocks,
    disks,
    flips,
    foreign,
    fuzz,
    kills,
    network,
    races,
    server_kills,
)
from tests.faults.report import Campaign, Count, counts_of

__all__ = ["CAMPAIGNS", "run_in_full"]

CAMPAIGNS: list[Campaign] = [
    Campaign("kills of commands on a folder", kills.of_commands, full=700, normal=60),
    Campaign(
        "kills of commands on a server", kills.of_commands_on_a_server, full=300, normal=16, server=True
    ),
    Campaign("kills of the server", server_kills.of_the_server, full=60, normal=6, server=True),
    Campaign("flips under readers of a folder", flips.flips_of_a_folder, full=200, normal=20),
    Campaign("flips under readers of a server", flips.flips_on_a_server, full=200, normal=20, server=True),
    Campaign("foreign hands", foreign.single_acts, full=300, normal=2),
    Campaign("foreign hands on a server", foreign.single_acts_on_a_server, full=300, normal=6, server=True),
    Campaign("foreign hands in any order", foreign.any_order, full=40, normal=2),
    Campaign(
        "foreign hands in any order on a server",
        foreign.any_order_on_a_server,
        full=20,
        normal=2,
        server=True,
    ),
    Campaign("broken requests", network.broken_requests, full=6, normal=1, server=True),
    Campaign("broken gRPC", network.broken_grpc, full=5, normal=1, server=True),
    Campaign("a silent server", network.silent_server, full=3, normal=1, server=True),
    Campaign("a flaky network", network.flaky_network, full=20, normal=3, server=True),
    Campaign("runs from strangers", fuzz.mutated_runs, full=10_000, normal=200),
    Campaign("full disk", disks.full_disk, full=66, normal=4),
    Campaign("read-only folders", disks.read_only, full=1000, normal=8),
    Campaign("clock set back", clocks.clocks, full=30, normal=4),
    Campaign("clock set back, with a server", clocks.clocks_with_a_server, full=20, normal=8, server=True),
    Campaign("a run changed while it is synced", changes.changed_runs, full=60, normal=4),
    Campaign(
        "a run changed while it is synced to a server",
        changes.changed_runs_on_a_server,
        full=30,
        normal=6,
        server=True,
    ),
    Campaign("two commands at once", races.races, full=30, normal=1),
    Campaign("two commands at once on a server", races.races_on_a_server, full=30, normal=5, server=True),
    Campaign("bits of a run", bits.bits_of_a_run, full=200, normal=6),
    Campaign("bits of a store", bits.bits_of_a_store, full=200, normal=4),
    Campaign("bits of an unfinished collection", bits.bits_of_a_building_collection, full=60, normal=2),
]


def run_in_full(name: str) -> list[Count]:
    """Run a campaign in full, in a folder of its own."""
    campaign = next(campaign for campaign in CAMPAIGNS if campaign.name == name)
    with tempfile.TemporaryDirectory(prefix="embedstore-faults-") as folder:
        return counts_of(campaign, Path(folder), campaign.full)
