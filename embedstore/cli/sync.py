"""plan, sync, status, verify: from a run to the live collection."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.gates import gate_option, print_gates, refuse_failed, refuse_unasked
from embedstore.cli.lifecycle import why_option
from embedstore.cli.mlflow import tracking_option
from embedstore.cli.output import Column, escape, print_json, print_table, say
from embedstore.cli.settings import alias_option, open_store_at, runs_option, store_option
from embedstore.errors import NotFoundError
from embedstore.runs.registry import MLFLOW

if TYPE_CHECKING:
    from embedstore.runs.run import Run
    from embedstore.stores.base import Peer, Replica, Store
    from embedstore.sync import Gate, Progress, Status, SyncReport

__all__ = [
    "no_promote_option",
    "plan",
    "print_report",
    "progress_line",
    "status",
    "sync",
    "verify",
]

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
no_promote_option = click.option(
    "--no-promote", is_flag=True, help="Stop before the alias moves: readers keep what they have."
)
_debias_option = click.option(
    "--debias",
    type=float,
    metavar="A",
    help="Scale V_j by norm(V_j)^-A, 0 < A <= 1, in a collection of its own.",
)


@click.command()
@click.argument("run", default="latest")
@_debias_option
@gate_option
@no_promote_option
@_json_option
@tracking_option
@runs_option
@store_option
@alias_option
def plan(
    run: str,
    runs_dir: Path,
    store_location: str,
    alias: str,
    *,
    debias: float | None,
    gates: Sequence[Gate],
    no_promote: bool,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Show what `sync` would create, write, delete and flip for RUN (default: latest); write nothing.

    With --gate also what the gates say now; exits with 0 whatever they say. RUN may be
    mlflow:/NAME@ALIAS, as for `sync`; the run is downloaded for this command alone.
    """
    from embedstore.runs.scratch import scratch_folder
    from embedstore.sync import plan as plan_sync

    refuse_unasked(gates, no_promote=no_promote)
    with ExitStack() as stack:
        if run.startswith(MLFLOW):
            into = stack.enter_context(scratch_folder(Path(tempfile.gettempdir())))
            found = _brought(run, runs_dir, tracking_uri, debias, into=into)
            store = stack.enter_context(_store_if_there(store_location))
        else:
            store = stack.enter_context(_store_if_there(store_location))
            found = _find(runs_dir, run, store, debias)
        made = plan_sync(found, store, alias=alias, promote=not no_promote, gates=gates, runs_dir=runs_dir)
    if as_json:
        print_json(asdict(made))
        return
    at_most = " at most" if made.state == "resume" else ""
    deleted = f", delete {made.delete:,}" if made.delete else ""
    click.echo(escape(f"collection {made.collection}: {made.state}"))
    click.echo(f"points: {made.count:,} in all, write {made.write:,}{at_most}{deleted}")
    if made.flip:
        click.echo(escape(f"alias {made.alias}: {made.flip_from or 'new'} -> {made.collection}"))
    else:
        click.echo(escape(f"alias {made.alias}: stays on {made.flip_from or 'nothing'}"))
    print_gates(made.gates)
    _print_changes(made.changes)


@click.command()
@click.argument("run", default="latest")
@_debias_option
@gate_option
@why_option("`history`")
@no_promote_option
@_json_option
@click.option("--shards", type=int, metavar="N", help="Shards of a new collection on a server.")
@click.option("--replicas", type=int, metavar="N", help="Copies of each shard on the nodes of a cluster.")
@click.option(
    "--write-consistency", type=int, metavar="N", help="Copies that must have a write before it counts."
)
@tracking_option
@runs_option
@store_option
@alias_option
def sync(
    run: str,
    runs_dir: Path,
    store_location: str,
    alias: str,
    *,
    debias: float | None,
    gates: Sequence[Gate],
    why: str,
    no_promote: bool,
    as_json: bool,
    shards: int | None,
    replicas: int | None,
    write_consistency: int | None,
    tracking_uri: str | None,
) -> None:
    """Put the movie vectors of RUN (default: latest) into the store and point the alias at them.

    The collection ALIAS__RUN is created, filled, read back and sealed; the alias moves last, in one
    step. What is there already is compared, not written again: after an interruption, the same
    command carries on; after damage, it repairs point by point.

    With --gate the alias moves only if every gate passes, else the command exits with 4. A metric is
    named as in `runs show`, or PROTOCOL:NAME as in `evaluate`; after the comparison stands a number, a
    share of the live run's (0.98*live, live) or of a baseline's (ease, popularity).

    With --debias the collection is ALIAS__RUN_debiasA. Wherever a RUN is given, RUN_debiasA (as in
    latest_debias0.50) is the run with these vectors.

    RUN may be mlflow:/NAME@ALIAS or mlflow:/NAME/VERSION, a run that `mlflow log --register` put
    into MLflow: it is downloaded into the folder of the runs, unless it is there, and its digests checked.
    """
    from embedstore.stores.contract import Spread
    from embedstore.sync import sync as sync_run

    refuse_unasked(gates, no_promote=no_promote)
    started = time.perf_counter()
    spread = Spread(shards, replicas, write_consistency)
    # The run first: a mistyped run must not leave an empty store behind.
    found = None
    if run.startswith(MLFLOW):
        found = _brought(run, runs_dir, tracking_uri, debias)
    elif not run.startswith("@"):
        found = _find(runs_dir, run, None, debias)
    with open_store_at(store_location, create=found is not None) as store, progress_line() as progress:
        found = found or _find(runs_dir, run, store, debias)
        report = sync_run(
            found,
            store,
            alias=alias,
            promote=not no_promote,
            gates=gates,
            why=why,
            runs_dir=runs_dir,
            spread=spread,
            progress=progress,
        )
    print_report(report, seconds=time.perf_counter() - started, no_promote=no_promote, as_json=as_json)
    refuse_failed(report.gates, alias=alias, before=report.previous, reference=found.reference)


def print_report(report: SyncReport, *, seconds: float, no_promote: bool, as_json: bool) -> None:
    """Print what a sync did."""
    if as_json:
        print_json({**asdict(report), "seconds": round(seconds, 3)})
        return
    if report.state == "unchanged":
        click.echo(f"{report.collection}: unchanged, {report.count:,} points, nothing to write")
    else:
        what = f"{report.written:,} written" + (f", {report.deleted:,} deleted" if report.deleted else "")
        click.echo(f"{report.collection}: {report.state}, {what}, {report.count:,} verified, {seconds:.1f} s")
    print_gates(report.gates)
    if report.promoted:
        before = f" (before: {report.previous})" if report.previous else ""
        click.echo(escape(f"alias {report.alias} -> {report.collection}{before}"))
    elif no_promote or not all(result.passed for result in report.gates):
        click.echo(escape(f"alias {report.alias} stays on {report.previous or 'nothing'}"))
    else:
        click.echo(f"alias {report.alias} -> {report.collection}, as before")
    if report.state != "resumed":  # that points are missing is why it was
        _print_changes(report.changes)


@click.command()
@_json_option
@store_option
def status(store_location: str, *, as_json: bool) -> None:
    """Show every collection: its alias, run, state, number of points and age; of a server, its nodes too."""
    from embedstore.sync import status as status_of

    with open_store_at(store_location, patient=False) as store:
        found, peers, version = status_of(store), store.peers(), store.version
    if as_json:
        nodes = [asdict(peer) for peer in peers]
        print_json({"version": version, "nodes": nodes, "collections": [asdict(line) for line in found]})
        return
    if version is not None:
        click.echo(escape(f"Qdrant {version}" + (f", {_nodes_in_words(peers)}" if peers else "")))
    if not found:
        hidden = "" if version is None else " that this key may list (a token for one alias lists none)"
        text = f"no collection{hidden} in {escape(store_location)}; make one with `embedstore sync`"
        click.echo(text, err=True)
        return
    print_table(
        [
            Column("alias"),
            Column("collection"),
            Column("state"),
            Column("points", right=True),
            Column("dim", right=True),
            Column("tower"),
            Column("age", right=True),
            *([Column("replicas")] if peers else []),
        ],
        ([*_status_row(line), *([_replicas_in_words(line.replicas)] if peers else [])] for line in found),
    )
    for line in found:
        if line.problem:
            click.echo(f"{escape(line.collection)}: {escape(line.problem)}", err=True)


@click.command()
@click.argument("run", default="")
@_json_option
@runs_option
@store_option
@alias_option
def verify(run: str, runs_dir: Path, store_location: str, alias: str, *, as_json: bool) -> None:
    """Read a collection back and compare every point with RUN (default: what the alias serves).

    Exits with 4 at the first difference and names the point.
    """
    from embedstore.query.resolve import resolve
    from embedstore.sync import verify as verify_collection

    with open_store_at(store_location) as store, progress_line() as progress:
        found, name = resolve(store, runs_dir, run or None, alias=alias)
        report = verify_collection(store, name, found, progress=progress)
    if as_json:
        print_json(asdict(report))
        return
    click.echo(
        f"{report.collection}: {report.count:,} points read back and equal; "
        f"recall@{report.recall['k']} {report.recall['value']:.3f}"
    )


@contextmanager
def _store_if_there(location: str) -> Iterator[Store | None]:
    try:
        store = open_store_at(location)
    except NotFoundError:
        yield None
        return
    with store:
        yield store


def _find(runs_dir: Path, reference: str, store: Store | None, debias: float | None = None) -> Run:
    from embedstore.query.resolve import resolve
    from embedstore.runs.debias import debiased
    from embedstore.runs.registry import find_run

    if not reference.startswith("@"):
        run = find_run(runs_dir, reference)
    elif store is None:
        raise NotFoundError(f"{reference} asks the store, and there is none yet; give a run id")
    else:
        run, _ = resolve(store, runs_dir, reference)
    return run if debias is None else debiased(run, debias)


def _brought(
    reference: str,
    runs_dir: Path,
    tracking_uri: str | None,
    debias: float | None,
    *,
    into: Path | None = None,
) -> Run:
    from embedstore.runs.debias import debiased
    from embedstore.tracking import bring

    told = say if into is None else None
    run = bring(reference, runs_dir, into=into, tracking_uri=tracking_uri, say=told)
    return run if debias is None else debiased(run, debias)


@contextmanager
def progress_line() -> Iterator[Progress | None]:
    """Yield a callback that keeps one line on standard error, where that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    last = [0.0, 0.0]  # when a line was shown, how long it was

    def show(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - last[0] < 0.1 and done < total:
            return
        text = f"{what} {done:,} of {total:,} points"
        click.echo("\r" + text.ljust(int(last[1])), nl=False, err=True)
        last[:] = [now, len(text)]

    try:
        yield show
    finally:
        if last[1]:
            click.echo("\r" + " " * int(last[1]) + "\r", nl=False, err=True)


def _print_changes(changes: Any) -> None:
    for change in changes:
        click.echo(f"  {escape(change)}")


def _status_row(line: Status) -> list[object]:
    points = line.points if line.points is not None else line.count
    return [
        ", ".join(line.aliases),
        line.collection,
        (line.state or "damaged") + (", pinned" if line.pinned else ""),
        None if points is None else f"{points:,}",
        line.dim,
        line.tower,
        None if line.age_seconds is None else _age(line.age_seconds),
    ]


def _nodes_in_words(peers: Sequence[Peer]) -> str:
    silent = [peer.uri for peer in peers if not peer.answers]
    return f"{len(peers)} nodes" + (f", no answer from {', '.join(silent)}" if silent else "")


def _replicas_in_words(replicas: Sequence[Replica]) -> str:
    active = sum(replica.state == "Active" for replica in replicas)
    return f"{active}/{len(replicas)} active"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
