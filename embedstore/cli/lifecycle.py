"""promote, rollback, pin, unpin, gc, history: what is live, what is kept, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.gates import gate_option, print_gates, refuse_failed
from embedstore.cli.output import Column, escape, print_json, print_table, say
from embedstore.cli.settings import alias_option, open_store_at, runs_option, store_option
from embedstore.errors import NotFoundError, StoreDamagedError

if TYPE_CHECKING:
    from embedstore.stores.base import Promotion, Store
    from embedstore.sync import Gate, GateResult

__all__ = ["gc", "history", "pin", "promote", "rollback", "unpin", "why_option"]

_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_INDENT = 4


def why_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add --why, as why: str, for what shows it."""
    return click.option("--why", default="", metavar="TEXT", help=f"Why, for {what}.")


@click.command()
@click.argument("run")
@gate_option
@why_option("`history`")
@_json_option
@runs_option
@store_option
@alias_option
def promote(
    run: str,
    runs_dir: Path,
    store_location: str,
    alias: str,
    *,
    gates: Sequence[Gate],
    why: str,
    as_json: bool,
) -> None:
    """Point the alias at the collection of RUN, which `sync --no-promote` has made.

    The folder of the run is not needed, but for gates. Undo it by `rollback`. Exits with 4 where a gate
    failed; the alias stays then.
    """
    from embedstore.query.resolve import resolve
    from embedstore.stores.base import Note
    from embedstore.stores.contract import collection_name
    from embedstore.sync import check_gates, promote_run

    results: list[GateResult] = []
    before = None
    with open_store_at(store_location) as store:
        with suppress(StoreDamagedError):  # a flip writes the alias anew
            before = store.aliases().get(alias)
        reference = _reference(store, runs_dir, run, alias)
        name = collection_name(alias, reference)
        if gates and before != name:
            found = resolve(store, runs_dir, reference, alias=alias, restored=say)[0]
            results = check_gates(gates, found, store, alias=alias, runs_dir=runs_dir)
        moved, passed = False, all(result.passed for result in results)
        if passed:
            note = Note(why, [result.to_dict() for result in results])
            moved = promote_run(store, reference, alias=alias, note=note)
    now = name if passed else before
    _print_flip(alias, now, before, moved=moved, gates=results, as_json=as_json)
    refuse_failed(results, alias=alias, before=before, reference=reference)


@click.command()
@click.argument("back", metavar="[N]", type=int, default=1)
@why_option("`history`")
@_json_option
@store_option
@alias_option
def rollback(back: int, store_location: str, alias: str, *, why: str, as_json: bool) -> None:
    """Point the alias at what it named N promotions ago (default: 1).

    `history` numbers them. It is a promotion, too: a second `rollback` undoes the first. The tower moves
    along with the vectors, since every query takes the run of the collection that it asks.
    """
    from embedstore.stores.base import Note
    from embedstore.sync import rollback as roll_back

    with open_store_at(store_location) as store:
        now = roll_back(store, back, alias=alias, note=Note(why))
    _print_flip(alias, now.collection, now.previous, moved=True, as_json=as_json)


@click.command()
@click.argument("run")
@why_option("`gc` and `status --json`")
@_json_option
@runs_option
@store_option
@alias_option
def pin(run: str, runs_dir: Path, store_location: str, alias: str, *, why: str, as_json: bool) -> None:
    """Keep the collection of RUN from `gc`, until `unpin`."""
    from embedstore.sync import pin as pin_run

    with open_store_at(store_location) as store:
        name = pin_run(store, _reference(store, runs_dir, run, alias), alias=alias, why=why)
        pinned = store.metadata(name).pinned
    if as_json:
        print_json({"collection": name, "pinned": pinned})
    else:
        click.echo(f"{name}: pinned")


@click.command()
@click.argument("run")
@_json_option
@runs_option
@store_option
@alias_option
def unpin(run: str, runs_dir: Path, store_location: str, alias: str, *, as_json: bool) -> None:
    """Leave the collection of RUN to `gc` again."""
    from embedstore.sync import unpin as unpin_run

    with open_store_at(store_location) as store:
        name, was_pinned = unpin_run(store, _reference(store, runs_dir, run, alias), alias=alias)
    if as_json:
        print_json({"collection": name, "pinned": None})
    else:
        click.echo(f"{name}: {'no longer' if was_pinned else 'was not'} pinned")


@click.command()
@click.option(
    "--keep", type=int, default=3, show_default=True, metavar="N", help="Keep the N newest of the alias."
)
@click.option("--unfinished", is_flag=True, help="Delete also what was begun and nobody is building now.")
@click.option("--dry-run", is_flag=True, help="Print the same and delete nothing.")
@_json_option
@store_option
@alias_option
def gc(store_location: str, alias: str, *, keep: int, unfinished: bool, dry_run: bool, as_json: bool) -> None:
    """Delete the collections that the alias no longer needs.

    These are sealed, named by no alias, not pinned, and not among the N that were begun last; and those
    whose deletion was interrupted. Run folders are not touched, see `runs rm`. What is deleted comes
    back by `sync`, if its run folder is still there.
    """
    from embedstore.sync import gc as collect

    with open_store_at(store_location) as store:
        report = collect(store, alias=alias, keep=keep, dry_run=dry_run, unfinished=unfinished)
    if as_json:
        print_json(asdict(report))
        return
    if report.verdicts:
        print_table(
            [
                "",
                "collection",
                Column("points", right=True),
                Column("MB", right=True),
                Column("why", shrink=True),
            ],
            (
                [
                    "delete" if verdict.deleted else "keep",
                    verdict.collection,
                    None if verdict.points is None else f"{verdict.points:,}",
                    None if verdict.bytes is None else f"{verdict.bytes / 1e6:.1f}",
                    verdict.why,
                ]
                for verdict in report.verdicts
            ),
        )
        for verdict in report.verdicts:
            if verdict.problem:
                say(f"{verdict.collection} is kept: {verdict.problem}")
    deleted = [verdict for verdict in report.verdicts if verdict.deleted]
    freed = f"{sum(verdict.points or 0 for verdict in deleted):,} points"
    if sizes := [verdict.bytes for verdict in deleted if verdict.bytes is not None]:
        freed += f", {sum(sizes) / 1e6:.1f} MB"
    click.echo(f"{len(deleted)} of {len(report.verdicts)} collections of alias {alias} deleted: {freed}")
    if dry_run:
        say("dry run: nothing was deleted")


@click.command()
@click.option("-n", "count", type=click.IntRange(1), default=10, show_default=True, help="How many flips.")
@_json_option
@store_option
@alias_option
def history(count: int, store_location: str, alias: str, *, as_json: bool) -> None:
    """Show the flips of the alias, the newest first: when, from where to where, who, why, the gates.

    The number of a flip is what `rollback` and `--run @ALIAS~N` take. The store keeps the last 100, for
    every machine.
    """
    with open_store_at(store_location) as store:
        flips = store.promotions(alias)[::-1]
        if not flips:
            store.live(alias)  # says which aliases there are
        there = set(store.collections())
    shown = list(enumerate(flips))[:count]
    if as_json:
        print_json([{"n": n, **asdict(flip), "there": flip.collection in there} for n, flip in shown])
        return
    print_table(
        [Column("N", right=True), "when (UTC)", "to", "from", Column("who", shrink=True)],
        (
            [
                n,
                flip.at[:19].replace("T", " ") or "not noted",
                _short(flip.collection, alias),
                _short(flip.previous or "", alias),
                flip.who,
            ]
            for n, flip in shown
        ),
        notes=[_notes(flip, gone=flip.collection not in there) for _, flip in shown],
        indent=_INDENT,
    )


def _reference(store: Store, runs_dir: Path, asked: str, alias: str) -> str:
    """Return the reference of the run that a person asks for, whose folder need not be here."""
    from embedstore.query.recommend import live_collection
    from embedstore.runs.debias import split_reference
    from embedstore.runs.manifest import reference_of
    from embedstore.runs.registry import RUN_ID, find_run, parse_live
    from embedstore.sync import find_collection

    if live := parse_live(asked):
        return live_collection(store, *live)[1]
    run_id, amount = split_reference(asked)
    if RUN_ID.fullmatch(run_id):
        return reference_of(run_id, amount)
    try:
        return find_run(runs_dir, asked).reference
    except NotFoundError:
        with suppress(NotFoundError):
            return find_collection(store, asked, alias=alias)[1].reference
        raise


def _print_flip(
    alias: str,
    now: str | None,
    before: str | None,
    *,
    moved: bool,
    as_json: bool,
    gates: Sequence[GateResult] = (),
) -> None:
    if as_json:
        told = {"gates": [result.to_dict() for result in gates]} if gates else {}
        print_json({"alias": alias, "collection": now, "previous": before, "promoted": moved, **told})
        return
    print_gates(gates)
    if all(result.passed for result in gates):
        click.echo(f"alias {alias} -> {escape(now or 'nothing')}" + ("" if moved else ", as before"))
    else:
        click.echo(f"alias {alias} stays on {escape(now or 'nothing')}")


def _short(collection: str, alias: str) -> str:
    return collection.removeprefix(f"{alias}__")


def _notes(flip: Promotion, *, gone: bool) -> list[str]:
    """Return the parts of the lines under a flip."""
    told = [
        "" if flip.at else "by other hands, or by a process that was killed",
        "its collection is gone" if gone else "",
        f"why: {flip.why}" if flip.why else "",
        *(f"gate: {gate.get('text') or gate.get('gate')}" for gate in flip.gates),
        f"embedstore {flip.tool_version}" if flip.tool_version else "",
    ]
    parts = [part for part in told if part]
    return [f"{part};" for part in parts[:-1]] + parts[-1:]
