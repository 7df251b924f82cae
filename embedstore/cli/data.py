"""`embedstore data`: fetch, check and describe data sets."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from embedstore.cli.output import Column, escape, print_json, print_table
from embedstore.cli.settings import data_option

__all__ = ["data"]


@click.group()
def data() -> None:
    """Fetch, check and describe data sets of ratings.

    A data set is a folder or a rating file: MovieLens in any of its layouts, RecBole's atomic files,
    or a CSV, TSV or Parquet file with a user and a movie column. A DATASET is a path, or the name of
    a folder in --data.
    """


def _dataset(command: Callable[..., Any]) -> Callable[..., Any]:
    argument = click.argument("dataset", default="ml-100k", metavar="[DATASET]")
    columns = click.option(
        "--columns",
        metavar="ROLE=NAME,…",
        help="Columns of a table (user, movie, rating, timestamp, title, year, genres); else guessed.",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    decorated: Callable[..., Any] = argument(columns(data_option(as_json(command))))
    return decorated


@data.command()
@click.argument("name", metavar="NAME")
@data_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fetch(name: str, data_dir: Path, *, as_json: bool) -> None:
    """Download the data set NAME into the data folder, unless it is there.

    \b
    ml-100k          943 users,     1,682 movies,    100,000 ratings
    ml-latest-small  610 users,     9,742 movies,    100,836 ratings
    ml-1m            6,040 users,   3,883 movies,  1,000,209 ratings
    ml-10m           69,878 users, 10,681 movies, 10,000,054 ratings
    ml-20m, ml-25m, ml-32m

    From the official site of MovieLens; ml-100k, where that gives no answer, from the recbole package
    through pip. Digest and counts are checked, and the folder appears complete or not at all.
    """
    from embedstore.loaders.fetch import PUBLISHED, is_fetched
    from embedstore.loaders.fetch import fetch as fetch_dataset

    there = is_fetched(name, data_dir)
    with _Bar() as bar:
        path = fetch_dataset(name, data_dir, progress=bar)
    published = PUBLISHED[name]
    counts = {"n_users": published.n_users, "n_movies": published.n_movies, "n_ratings": published.n_ratings}
    if as_json:
        print_json({"name": name, "path": str(path), "fetched": not there, **counts})
        return
    numbers = ", ".join(f"{count:,} {what.removeprefix('n_')}" for what, count in counts.items())
    click.echo(f"{escape(str(path))}: {numbers}{' (was there already)' if there else ''}")
    if not there:
        click.echo("Mind the terms of use of MovieLens: grouplens.org/datasets/movielens", err=True)


class _Bar:
    """Progress of a download on standard error: a line that moves on a terminal, else only what happens."""

    def __init__(self) -> None:
        self._open = False
        self._last = ""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if not done:
            self._end()
            click.echo(what, err=True)
            return
        if not sys.stderr.isatty():
            return
        share = f" of {total / 1e6:.1f}" if total else ""
        text = f"{what}: {done / 1e6:.1f}{share} MB"
        if text != self._last:
            click.echo(f"\r{text}", err=True, nl=False)
            self._last, self._open = text, True

    def _end(self) -> None:
        if self._open:
            click.echo(err=True)
            self._open = False


@data.command()
@_dataset
@click.option(
    "--limit", type=click.IntRange(min=0), default=100, show_default=True, help="Problems to print."
)
@click.pass_context
def validate(
    context: click.Context, dataset: str, columns: str | None, data_dir: Path, *, as_json: bool, limit: int
) -> None:
    """List every problem of a data set, with file and line.

    Errors keep it from being loaded (exit code 1); warnings do not (exit code 0).
    """
    from embedstore.loaders import detect, resolve
    from embedstore.loaders.validate import validate as find_problems

    path = resolve(dataset, data_dir)
    problems = find_problems(path, columns=columns)
    n_errors = sum(problem.severity == "error" for problem in problems)
    n_warnings = len(problems) - n_errors
    shown = problems[:limit]
    if as_json:
        print_json(
            {
                "path": str(path),
                "format": "table" if columns else detect(path),
                "n_errors": n_errors,
                "n_warnings": n_warnings,
                "problems": [
                    {"file": str(p.file), "line": p.line, "severity": p.severity, "message": p.message}
                    for p in shown
                ],
            }
        )
    else:
        for problem in shown:
            click.echo(escape(f"{problem.severity}: {problem}"))
        if len(problems) > limit:
            click.echo(f"… and {len(problems) - limit:,} more; --limit shows more of them")
        if not problems:
            click.echo(f"{escape(str(path))}: no problem found")
        else:
            click.echo(f"{escape(str(path))}: {n_errors:,} errors, {n_warnings:,} warnings", err=True)
    if n_errors:
        context.exit(1)


@data.command()
@_dataset
def describe(dataset: str, columns: str | None, data_dir: Path, *, as_json: bool) -> None:
    """Print counts, density, dates, quantiles and the top genres of a data set."""
    from embedstore.loaders import load, resolve
    from embedstore.loaders.describe import describe as numbers_of

    found = numbers_of(load(resolve(dataset, data_dir), columns=columns))
    if as_json:
        print_json(found)
        return
    _print_description(found)


def _print_description(found: dict[str, Any]) -> None:
    dates = f"{found['first_date']} to {found['last_date']}" if found["first_date"] else "no timestamps"
    rows = [
        ("data set", f"{found['name']} ({found['format']})"),
        ("users", f"{found['n_users']:,}"),
        ("movies", f"{found['n_movies']:,}, {found['n_rated_movies']:,} of them rated"),
        ("ratings", f"{found['n_ratings']:,}, mean {found['mean_rating']:.3f}"),
        ("older duplicates", f"{found['n_duplicates']:,}, left out"),
        ("density", f"{found['density']:.4%}"),
        ("dates", dates),
        ("without title", f"{found['n_movies_without_title']:,} movies"),
        ("without year", f"{found['n_movies_without_year']:,} movies"),
        ("without genres", f"{found['n_movies_without_genres']:,} movies"),
    ]
    print_table(["", Column("", shrink=True)], rows)
    click.echo()
    keys = list(found["ratings"])
    quantiles = {
        "rating": found["ratings"],
        "ratings per user": found["ratings_per_user"],
        "ratings per movie": found["ratings_per_movie"],
    }
    print_table(
        ["quantile", *(Column({"0": "min", "100": "max"}.get(key, f"{key}%"), right=True) for key in keys)],
        [
            [name, *(f"{values[key]:,g}" if values[key] < 1e6 else f"{values[key]:,.0f}" for key in keys)]
            for name, values in quantiles.items()
        ],
    )
    if found["top_genres"]:
        click.echo()
        print_table(
            ["genre", Column("movies", right=True), Column("ratings", right=True)],
            [[row["genre"], f"{row['n_movies']:,}", f"{row['n_ratings']:,}"] for row in found["top_genres"]],
        )
