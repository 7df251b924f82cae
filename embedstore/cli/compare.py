"""The `runs compare` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedstore.cli.evaluate import (
    PROTOCOLS,
    WIDER,
    dataset_of,
    metric_option,
    ready_to_train,
)
from embedstore.cli.output import (
    Column,
    format_options,
    one_format,
    print_csv,
    print_json,
    print_table,
    status,
)
from embedstore.cli.settings import alias_option, data_option, run_at, runs_option, store_option

if TYPE_CHECKING:
    from embedstore.evaluation.compare import Change, Comparison

__all__ = ["compare"]


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--protocol", type=click.Choice(PROTOCOLS), default="serving", show_default=True, help="What is asked."
)
@metric_option
@click.option("--columns", default=None, metavar="MAPPING", help="Columns of a CSV: user=uid,movie=iid,...")
@format_options
@data_option
@runs_option
@store_option
@alias_option
def compare(
    a: str,
    b: str,
    protocol: str,
    metrics: tuple[str, ...],
    columns: str | None,
    as_json: bool,
    as_csv: bool,
    data_dir: Path,
    runs_dir: Path,
    store_location: str,
    alias: str,
) -> None:
    """Show what run B changes against run A, on the users whom both held out.

    Differences are B - A of the same user, with 95% intervals: for all, by the length of the known
    history, by favourite genre; then the users who gained and who lost most.
    """
    one_format(as_json, as_csv)
    from embedstore.evaluation.compare import compare_runs

    one, two = (run_at(store_location, runs_dir, reference) for reference in (a, b))
    dataset = dataset_of(one, data_dir, columns)
    ready_to_train([protocol], one, two)
    with status():
        found = compare_runs(one, two, dataset, protocol=protocol, metrics=metrics)
    if as_json:
        print_json(found.to_dict())
    elif as_csv:
        print_csv(*_csv(found))
    else:
        _print(found)


def _print(found: Comparison) -> None:
    asked, headline = found.question, found.headline
    click.echo(f"A {found.names[0]}, B {found.names[1]}; liked: a rating of {asked.data.target:g} or more")
    click.echo(f"{asked.protocol.name}: {asked.protocol.text}")
    click.echo(asked.asked)
    if found.retrained:
        click.echo("both were trained again, for this alone, on the past")
    click.echo()
    numbers = [Column(name, right=True) for name in ("users", "A", "B", "B - A", "95% interval")]
    print_table(
        ["metric", *numbers],
        [[name, *_cells(change, len(asked.held_out))] for name, change in found.changes.items()],
    )
    click.echo(f"\n{headline} by group\n")
    print_table(
        ["group", "", *numbers],
        [[group.by, group.label, *_cells(group.changes[headline], group.n_users)] for group in found.groups],
    )
    everything = [*found.changes.values(), *(group.changes[headline] for group in found.groups)]
    if any(change.difference and change.difference.wider_than_mean for change in everything):
        click.echo(WIDER)
    for word, users in (("gained", found.gained), ("lost", found.lost)):
        click.echo(f"\nusers who {word} most, {headline}{'' if users else ': none'}")
        if users:
            click.echo()
            print_table(
                ["user", *(Column(name, right=True) for name in ("known movies", "A", "B", "B - A"))],
                [[u.user_id, u.n_history, f"{u.a:.4f}", f"{u.b:.4f}", f"{u.b - u.a:+.4f}"] for u in users],
            )


def _cells(change: Change, n_users: int) -> list[object]:
    from embedstore.evaluation.report import between, number

    found = change.difference
    difference = change.b - change.a if found is None else found.mean
    return [
        n_users if found is None else found.n_users,
        number(change.a),
        number(change.b),
        f"{difference:+.4f}",
        "" if found is None else between(found, signed=True),
    ]


def _csv(found: Comparison) -> tuple[list[str], list[list[object]]]:
    """Return one row per group and metric; the group of all has no name."""
    rows: list[list[object]] = []
    groups = [("", "", len(found.question.held_out), found.changes)]
    groups += [(group.by, group.label, group.n_users, group.changes) for group in found.groups]
    for by, label, n_users, changes in groups:
        for name, change in changes.items():
            values = change.to_dict()
            row: list[object] = [*found.names, found.question.protocol.name, by, label, name]
            row += [values.get(key) for key in ("a", "b", "difference", "low", "high")]
            rows.append([*row, values.get("users", n_users)])
    header = ["run_a", "run_b", "protocol", "group", "label", "metric"]
    return [*header, "a", "b", "difference", "low", "high", "users"], rows
