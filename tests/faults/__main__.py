"""Run the fault campaigns in full and print their counts: `python -m tests.faults [-o FILE] [--only NAME]`.

docs/faults.md comes from here (`make faults`). The server campaigns start servers of their own from the
program that QDRANT_BIN names. Exits 1 where something was lost or mixed, after all campaigns.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click

from benchmarks.__main__ import machine
from tests.faults.campaigns import CAMPAIGNS, run_in_full
from tests.faults.report import Campaign, Count, page


def main() -> int:
    names = [campaign.name for campaign in CAMPAIGNS]
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("-o", "--output", type=Path, help="also write the page to this file")
    parser.add_argument("--only", action="append", choices=names, help="this campaign; may be repeated")
    options = parser.parse_args()
    chosen = [campaign for campaign in CAMPAIGNS if campaign.name in (options.only or names)]
    if any(campaign.server for campaign in chosen) and not os.environ.get("QDRANT_BIN"):
        parser.error("set QDRANT_BIN to the program of a Qdrant server, or choose other campaigns by --only")
    results = []
    for campaign in chosen:
        click.echo(f"{campaign.name} ...", err=True)
        counts = in_process_of_its_own(campaign)
        for count in counts:
            click.echo(f"  {count}", err=True)
        results.append((campaign, counts))
    command = shlex.join(["python", "-m", "tests.faults", *(f"--only={name}" for name in options.only or [])])
    made = page(results, f"Printed by `{command}` on {machine()}.")
    click.echo(made)
    if options.output:
        options.output.write_text(made, encoding="utf-8")
    return int(any(count.failures or count.lost or count.mixed for _, counts in results for count in counts))


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
