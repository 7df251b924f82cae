"""copy: a collection from one store to another."""

from __future__ import annotations

import time
from pathlib import Path

import click

from embedstore.cli.settings import alias_option, connection, open_store_at, runs_option, store_option
from embedstore.cli.sync import no_promote_option, print_report, progress_line
from embedstore.errors import UsageError
from embedstore.stores.connection import is_url

__all__ = ["copy"]


@click.command()
@click.argument("run")
@click.option("--to", "target_location", metavar="PATH", required=True, help="The store to copy to.")
@no_promote_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_option
@store_option
@alias_option
def copy(
    run: str,
    target_location: str,
    runs_dir: Path,
    store_location: str,
    alias: str,
    *,
    no_promote: bool,
    as_json: bool,
) -> None:
    """Copy the collection of RUN from --store into another store, a folder or a URL; flip the alias there.

    RUN is a run id, a unique beginning of one, `@movies`, the name of an alias or of a collection of
    --store. Its folder is not needed. What is written is read back and compared, as by `sync`, and the
    same command carries on after an interruption. An API key is for whichever of the two is a server;
    from one server to another, go by way of a folder.
    """
    from embedstore.sync import copy as copy_collection
    from embedstore.sync import find_collection

    if is_url(store_location) and is_url(target_location) and connection().api_key is not None:
        raise UsageError(
            "the API key of one server would be sent to the other; copy to a folder, then from there"
        )
    started = time.perf_counter()
    with open_store_at(store_location) as source:
        find_collection(
            source, run, alias=alias
        )  # first: a mistyped run must not leave an empty store behind
        with open_store_at(target_location, create=True) as target, progress_line() as progress:
            report = copy_collection(
                source, target, run, runs_dir, alias=alias, promote=not no_promote, progress=progress
            )
    print_report(report, seconds=time.perf_counter() - started, no_promote=no_promote, as_json=as_json)
