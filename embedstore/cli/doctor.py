"""doctor: is the store all right, and if not, what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedstore.cli.output import escape, print_json, print_lines
from embedstore.cli.settings import alias_option, open_store_at, runs_option, store_option
from embedstore.cli.sync import progress_line

if TYPE_CHECKING:
    from embedstore.stores.base import Store
    from embedstore.sync.doctor import Finding

__all__ = ["doctor"]

_COLORS = {"problem": "red", "warning": "yellow", "note": "cyan", "ok": "green"}


@click.command()
@click.option("--deep", is_flag=True, help="Read every file of the runs, and every point of what is live.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_option
@store_option
@alias_option
def doctor(runs_dir: Path, store_location: str, alias: str, *, deep: bool, as_json: bool) -> None:
    """Look at the store and the runs, and say what is wrong, the worst first; change nothing.

    A server: whether each node answers, its version and clock, what the key may do, how bulk travels,
    the nodes of a cluster and its replicas. A folder: whether it can be written, its disk and lock.
    Both: aliases, collections that are unfinished, half deleted, damaged or without their run, clocks.
    Runs: whether their files are there, and folders that were never finished.

    Exits with 1 where there is a problem; warnings and notes alone are 0.
    """
    from embedstore.sync.doctor import doctor as examine

    def opened() -> Store:
        return open_store_at(store_location, patient=False)

    with progress_line() as progress:
        findings = examine(opened, runs_dir, alias=alias, deep=deep, progress=progress)
    healthy = all(finding.level != "problem" for finding in findings)
    if as_json:
        print_json({"healthy": healthy, "findings": [asdict(finding) for finding in findings]})
    else:
        print_lines(_lines(findings))
    if not healthy:
        raise click.exceptions.Exit(1)


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    for finding in findings:
        level = click.style(finding.level.ljust(7), fg=_COLORS[finding.level])
        yield f"{level}  {finding.name.ljust(11)}  {escape(finding.text)}"
        if finding.advice:
            yield f"{' ' * 22}→ {escape(finding.advice)}"
