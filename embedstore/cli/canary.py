"""The `compare-live` command: what users would see if the alias moved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedstore.cli.output import Column, escape, print_json, print_table, say
from embedstore.cli.query import skipping, users_file_options
from embedstore.cli.settings import alias_option, open_store_at, runs_option, store_option

if TYPE_CHECKING:
    from embedstore.evaluation.canary import LiveComparison, MovieChange, Share
    from embedstore.query.recommend import Person

__all__ = ["compare_live"]

_GENRES = 8  # shown, those that change most
_SAMPLE = 500  # as evaluation.canary.SAMPLE, which is not imported for a help text


@click.command()
@click.argument("run")
@users_file_options
@click.option("-k", type=click.IntRange(1), default=10, show_default=True, help="Length of the lists.")
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=_SAMPLE,
    show_default=True,
    metavar="N",
    help="Users of RUN who are asked without --users-file, the same every time.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_option
@store_option
@alias_option
def compare_live(
    run: str,
    users_file: Path | None,
    k: int,
    sample: int,
    runs_dir: Path,
    store_location: str,
    alias: str,
    *,
    skip_unknown: bool,
    as_json: bool,
) -> None:
    """Show what users would see if the alias moved to RUN, beside what they see now.

    RUN and the live run answer the same users, from the same histories: RUN by its collection where
    `sync --no-promote` has made one, else by its own vectors. Nothing is written; to hold the alias back,
    `sync --gate 'overlap@10>=0.3'`.
    """
    from embedstore.evaluation.canary import compare_live as compare
    from embedstore.query.people import read_people
    from embedstore.query.resolve import resolve

    with open_store_at(store_location) as store:
        candidate = resolve(store, runs_dir, run, alias=alias, restored=say)[0]
        people: Iterable[Person] | None = None
        if users_file is not None:
            people = read_people(users_file, candidate, skip=skipping(skip_unknown))
        found = compare(candidate, store, alias=alias, runs_dir=runs_dir, people=people, k=k, sample=sample)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)


def _print(found: LiveComparison) -> None:
    where = "its own vectors, not in the store yet" if found.collection is None else found.collection
    left_out = (
        f", {found.n_left_out:,} left out, whom one of the two cannot answer" if found.n_left_out else ""
    )
    click.echo(f"live       {found.live} ({escape(found.live_collection)})")
    click.echo(f"candidate  {found.candidate} ({escape(where)})")
    click.echo(f"asked      {found.n_users:,} users for {found.k} movies each{left_out}\n")
    low, middle, high = (found.overlap_deciles[at] for at in (0, 4, 8))
    click.echo(
        f"overlap@{found.k}  {found.overlap:.3f} on average; a tenth of the users keep at most {low:.0%}, "
        f"half {middle:.0%}, nine tenths {high:.0%}"
    )
    click.echo(
        f"lists       {_part(found.n_same, found.n_users)} stay as they are, "
        f"{_part(found.n_disjoint, found.n_users)} keep nothing"
    )
    shift = found.shift
    if shift.places is not None:
        click.echo(
            f"rank shift  {shift.places:.1f} places on average for a movie that stays: "
            f"{shift.up:.0%} go up, {shift.down:.0%} down"
        )
    click.echo(f"movies      {found.movies_live:,} different ones shown -> {found.movies_candidate:,}")
    _print_movies("appears most", found.appears)
    _print_movies("vanishes most", found.vanishes)
    more = len(found.genres) - _GENRES
    _print_shares("genre" if more <= 0 else f"genre (--json: {more} more)", found.genres[:_GENRES])
    _print_shares("popularity", found.popularity)


def _print_movies(title: str, movies: tuple[MovieChange, ...]) -> None:
    if not movies:
        return
    click.echo()
    numbers = [Column(name, right=True) for name in ("movie", "live", "candidate", "change")]
    print_table(
        [*numbers, Column(title, shrink=True), ""],
        [
            [
                movie.movie_id,
                movie.live,
                movie.candidate,
                f"{movie.candidate - movie.live:+,}",
                movie.title,
                "new" if movie.new else "gone" if movie.gone else "",
            ]
            for movie in movies
        ],
    )


def _print_shares(title: str, shares: tuple[Share, ...]) -> None:
    if not shares:
        return
    click.echo()
    print_table(
        [title, *(Column(name, right=True) for name in ("live", "candidate", "change"))],
        [
            [
                share.label,
                f"{share.live:.1%}",
                f"{share.candidate:.1%}",
                f"{100 * (share.candidate - share.live):+.1f}",
            ]
            for share in shares
        ],
    )


def _part(n: int, of: int) -> str:
    return f"{n:,} ({n / of:.0%})"
