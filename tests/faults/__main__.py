"""Run the fault campaigns in full and print their counts: `python -m tests.faults [-o FILE] [--only NAME]`.

docs/faults.md comes from here (`make faults`). The server campaigns start servers of their own from the
program that QDRANT_BIN names. What a campaign counted last is kept in build/faults.json, and the page is
made of that, so that one can be run again without the others. Exits 1 where something was lost or mixed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from benchmarks.__main__ import machine
from tests.faults.campaigns import CAMPAIGNS, run_in_full
from tests.faults.report import Campaign, Count, page

KEPT = Path("build/faults.json")


def main() -> int:
    names = [campaign.name for campaign in CAMPAIGNS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("-o", "--output", type=Path, help="also write the page to this file")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="campaigns at a time (default: 1)")
    parser.add_argument("--only", action="append", choices=names, help="this campaign; may be repeated")
    options = parser.parse_args()
    chosen = [campaign for campaign in CAMPAIGNS if campaign.name in (options.only or names)]
    if any(campaign.server for campaign in chosen) and not os.environ.get("QDRANT_BIN"):
        parser.error("set QDRANT_BIN to the program of a Qdrant server, or choose other campaigns by --only")
    failed = False
    with ThreadPoolExecutor(options.jobs) as threads:
        for campaign, counts in zip(chosen, threads.map(in_process_of_its_own, chosen), strict=True):
            failed |= any(count.failures or count.lost or count.mixed for count in counts)
            for count in counts:
                click.echo(f"{campaign.name}: {count}", err=True)
            keep(campaign, counts)
    made = page(kept(), f"Printed by `python -m tests.faults` on {machine()}.")
    click.echo(made)
    if options.output:
        options.output.write_text(made, encoding="utf-8")
    return int(failed)


def keep(campaign: Campaign, counts: list[Count]) -> None:
    """Note what a campaign counted, for the page."""
    KEPT.parent.mkdir(exist_ok=True)
    found = {other.name: [asdict(count) for count in others] for other, others in kept()}
    KEPT.write_text(json.dumps({**found, campaign.name: [asdict(count) for count in counts]}, indent=1))


def kept() -> list[tuple[Campaign, list[Count]]]:
    """Return what every campaign counted last, those that were never run left out."""
    found: dict[str, list[dict[str, Any]]] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    made = {name: [Count(**count) for count in counts] for name, counts in found.items()}
    return [(campaign, made[campaign.name]) for campaign in CAMPAIGNS if campaign.name in made]


def in_process_of_its_own(campaign: Campaign) -> list[Count]:
    """Run a campaign in full; one that ends by itself counts as lost, with what it said."""
    started = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(run_in_full, campaign.name).result()
        except Exception as error:  # noqa: BLE001 - the other campaigns shall run
            command = shlex.join(["python", "-m", "tests.faults", f"--only={campaign.name}"])
            told = f"`{command}` stopped: {type(error).__name__}: {error}"
            return [Count(campaign.name, "-", 0, {}, 1, 0, time.perf_counter() - started, (told,))]


if __name__ == "__main__":
    sys.exit(main())
