"""query, embed and similar: the commands that serve."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.output import Column, Shown, escape, print_json, print_table, say
from embedstore.cli.records import cell_of, format_of, write_records
from embedstore.cli.settings import alias_option, open_store_at, run_at, runs_option, store_option
from embedstore.errors import EmbedstoreError, NotFoundError, UsageError

if TYPE_CHECKING:
    from embedstore.query.explain import Contribution
    from embedstore.query.recommend import Answer, Embedding, Person, Recommendation
    from embedstore.runs.run import Run

__all__ = ["embed", "query", "similar", "skipping", "users_file_options"]

_COLUMNS = (
    Column("rank", right=True),
    Column("score", right=True),
    Column("title", shrink=True),
    Column("year"),
    Column("genres", shrink=True),
)
_REASONS = 3  # of one movie, in text
_REASONS_INDENT = 6
_LONGEST_REASON = 50


def users_file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --users-file, as users_file, and --skip-unknown, as skip_unknown; see skipping."""
    for option in (
        click.option(
            "--skip-unknown", is_flag=True, help="Leave out users of --users-file that cannot be answered."
        ),
        click.option(
            "--users-file",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="Many people: a user id per line, or JSON lines (.jsonl) with user_id or history.",
        ),
    ):
        command = option(command)
    return command


def _person_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        users_file_options,
        click.option(
            "--history-file", metavar="FILE", help="A file of movie ids, oldest first; - is standard input."
        ),
        click.option("--history", metavar="IDS", help="Movie ids, oldest first, as in 50,181,258."),
        click.option("--user", metavar="ID", help="A user of the data set that the run was trained on."),
        click.option(
            "--run",
            "reference",
            metavar="RUN",
            help="A run id, a unique prefix, latest, @ALIAS or @ALIAS~N. [default: what the alias serves]",
        ),
    ):
        command = option(command)
    return command


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to this file: JSON lines, CSV or Parquet by its extension (.jsonl, .csv, .parquet).",
)


@click.command()
@_person_options
@click.option("-k", default=10, show_default=True, type=int, help="How many movies.")
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="CONDITION",
    help="genre=Comedy or year>=1990; repeatable, all must hold.",
)
@click.option("--exclude", metavar="IDS", default="", help="Movie ids to leave out.")
@click.option("--include-seen", is_flag=True, help="Do not leave out what the user watched.")
@click.option(
    "--diverse",
    type=float,
    metavar="D",
    help="From 0, by score alone, to 1, movies as different as possible.",
)
@click.option("--explain", is_flag=True, help="Say which watched movies make the score of each.")
@_json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@_output_option
@runs_option
@store_option
@alias_option
def query(
    user: str | None,
    history: str | None,
    history_file: str | None,
    users_file: Path | None,
    skip_unknown: bool,
    reference: str | None,
    k: int,
    filters: tuple[str, ...],
    exclude: str,
    include_seen: bool,
    diverse: float | None,
    explain: bool,
    as_json: bool,
    as_csv: bool,
    output: Path | None,
    runs_dir: Path,
    store_location: str,
    alias: str,
) -> None:
    """Recommend movies to one user, to a history, or to many users.

    The user embedding psi(X) is computed by the tower of the run that the alias serves, and is the
    query vector of a search in that run's collection. Watched movies are left out.

    --explain adds what each watched movie contributes to a score: exact where the score is a sum over
    the history, to which they add up; else an estimate, the score less that without the movie.
    --diverse chooses one movie after the other, by score less likeness to those before it.
    """
    from embedstore.query.filters import parse_filters
    from embedstore.query.people import parse_history, read_people
    from embedstore.query.recommend import ask_live, recommend, recommend_batch
    from embedstore.query.resolve import resolve

    _exactly_one(user=user, history=history, history_file=history_file, users_file=users_file)
    conditions = parse_filters(filters)
    # Not closed: the engine would sync every file of the shard, 15 ms for nothing; the process ends here.
    store = open_store_at(store_location)

    def look() -> tuple[Run, str]:
        return resolve(store, runs_dir, reference, alias=alias, restored=say)

    def ask(run: Run, collection: str) -> tuple[Run, Answer]:
        return run, recommend(run, store, collection=collection, **who, **options)

    run, collection = look()
    options: dict[str, Any] = {
        "k": k,
        "filters": conditions,
        "exclude": parse_history(exclude, run) if exclude.strip() else [],
        "include_seen": include_seen,
        "diverse": diverse,
        "explain": explain,
    }
    if users_file is not None:
        format_of(output, as_csv=as_csv)
        people = read_people(users_file, run, skip=skipping(skip_unknown))
        answers = recommend_batch(run, store, people, collection=collection, **options)
        records = (answer.to_dict() for answer in answers)
        write_records(_tracked(records, users_file), output, as_csv=as_csv, flatten=_movie_rows)
        return
    person = _person(run, user, history, history_file)
    who: dict[str, Any] = {"user_id": person.user_id, "history": person.history}
    run, answer = ask_live((run, collection), look, ask)
    if output is not None:
        write_records([answer.to_dict()], output, flatten=_movie_rows)
    elif as_json:
        print_json(answer.to_dict())
    elif as_csv:
        Shown(sys.stdout).write(_csv_text(answer))
    else:
        click.echo(escape(_who(answer, run)))
        if answer.unknown_movies:
            click.echo(escape(_unknown(answer.unknown_movies, run)), err=True)
        _print_movies(answer.recommendations, answer.explanation_kind)
        if not answer.recommendations:
            click.echo("No movie of the catalog is left by the filters and exclusions.", err=True)


@click.command()
@_person_options
@_json_option
@_output_option
@runs_option
@store_option
@alias_option
def embed(
    user: str | None,
    history: str | None,
    history_file: str | None,
    users_file: Path | None,
    skip_unknown: bool,
    reference: str | None,
    as_json: bool,
    output: Path | None,
    runs_dir: Path,
    store_location: str,
    alias: str,
) -> None:
    """Print the user embedding psi(X), shape (embedding_dim,).

    Its dot product with a movie vector V_j of the same run is the score of that movie. The run is
    the one that the alias serves; with --run no store is needed.
    """
    from embedstore.query.people import read_people
    from embedstore.query.recommend import embed as embed_person
    from embedstore.query.recommend import embed_batch

    _exactly_one(user=user, history=history, history_file=history_file, users_file=users_file)
    run = run_at(store_location, runs_dir, reference, alias=alias, restored=say)
    if users_file is not None:
        format_of(output)
        people = read_people(users_file, run, skip=skipping(skip_unknown))
        records = (embedding.to_dict() for embedding in embed_batch(run, people))
        write_records(_tracked(records, users_file), output, flatten=lambda record: [record])
        return
    person = _person(run, user, history, history_file)
    embedding = embed_person(run, user_id=person.user_id, history=person.history)
    if output is not None:
        write_records([embedding.to_dict()], output, flatten=lambda record: [record])
    elif as_json:
        print_json(embedding.to_dict())
    else:
        if embedding.unknown_movies:
            click.echo(escape(_unknown(embedding.unknown_movies, run)), err=True)
        _print_embedding(embedding)


@click.command()
@click.argument("movie")
@click.option("-k", default=10, show_default=True, type=int, help="How many movies.")
@click.option(
    "--metric",
    type=click.Choice(["cosine", "dot"]),
    default="cosine",
    show_default=True,
    help="dot favours popular movies, whose vectors are long.",
)
@click.option(
    "--run", "reference", metavar="RUN", help="A run id, a unique prefix, latest, @ALIAS or @ALIAS~N."
)
@_json_option
@runs_option
@store_option
@alias_option
def similar(
    movie: str,
    k: int,
    metric: str,
    reference: str | None,
    as_json: bool,
    runs_dir: Path,
    store_location: str,
    alias: str,
) -> None:
    """Show the movies nearest to MOVIE, a movie id."""
    from embedstore.query.similar import similar as neighbours_of

    run = run_at(store_location, runs_dir, reference, alias=alias, restored=say)
    movie_id = run.movies.parse(movie)
    if movie_id is None:
        raise NotFoundError(f"movie {movie!r} is not a movie id of run {run.run_id}; expected a whole number")
    neighbours = neighbours_of(run, movie_id, k=k, metric="dot" if metric == "dot" else "cosine")
    if as_json:
        print_json(neighbours.to_dict())
        return
    click.echo(f"Nearest to {escape(neighbours.title or movie)} by {metric}, run {run.run_id}")
    _print_movies(neighbours.movies)


def _exactly_one(**given: object) -> None:
    if sum(value is not None for value in given.values()) != 1:
        raise UsageError(
            "say who is asked about: give one of --user, --history, --history-file or --users-file"
        )


def _person(run: Run, user: str | None, history: str | None, history_file: str | None) -> Person:
    from embedstore.query.people import parse_history, parse_user, read_history
    from embedstore.query.recommend import Person

    if user is not None:
        return parse_user(user, run)
    if history is not None:
        return Person(history=parse_history(history, run))
    name = history_file or "-"
    try:
        with click.open_file(name, encoding="utf-8") as file:
            return Person(history=read_history(file, run, name="standard input" if name == "-" else name))
    except OSError as error:
        raise UsageError(f"history file {name} cannot be read: {error.strerror}") from error


def skipping(skip_unknown: bool) -> Callable[[EmbedstoreError], None] | None:
    """Return what to do about a person who cannot be answered; None is to stop."""
    return (lambda error: click.echo(f"skipped: {escape(str(error))}", err=True)) if skip_unknown else None


def _tracked(records: Iterator[dict[str, Any]], users_file: Path) -> Iterator[dict[str, Any]]:
    """Yield records with a progress bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield from records
        return
    from rich.console import Console
    from rich.progress import track

    with open(users_file, "rb") as file:
        total = sum(1 for line in file if line.strip())
    yield from track(records, "users", total=total, console=Console(stderr=True), transient=True)


def _movie_rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield one flat row per recommended movie, all with the same keys."""
    who = {"user_id": record["user_id"]} if "user_id" in record else {"history": record["history"]}
    kind = {"explanation_kind": record["explanation_kind"]} if "explanation_kind" in record else {}
    for movie in record["recommendations"]:
        facts = {**movie, "cold": movie.get("cold", False)}
        yield {**who, "run_id": record["run_id"], **kind, **facts}


def _print_movies(movies: Sequence[Recommendation], explanation_kind: str | None = None) -> None:
    decimals = _decimals(max((abs(movie.score) for movie in movies), default=0.0))
    rows = [
        (
            str(movie.rank),
            f"{movie.score:.{decimals}f}",
            _title(movie) + (" (new)" if movie.cold else ""),
            str(movie.year or ""),
            ", ".join(movie.genres),
        )
        for movie in movies
    ]
    notes = [_reasons(movie, explanation_kind) for movie in movies] if explanation_kind else ()
    print_table(_COLUMNS, rows, notes=notes, indent=_REASONS_INDENT)


def _decimals(largest: float) -> int:
    """Return how many decimals show four digits that matter of the largest score, four at least."""
    return 4 if largest == 0 else min(max(3 - math.floor(math.log10(largest)), 4), 12)


def _reasons(movie: Recommendation, kind: str) -> list[str]:
    """Return the parts of the line that explains a movie by the watched ones that speak for it most."""
    said = ["estimate:"] if kind == "estimate" else []
    best = [part for part in (movie.explanation or ())[:_REASONS] if part.contribution > 0]
    if not best:
        return [*said, "nothing that you watched speaks for it"]
    shown = [f"{_cut(_title(part))} ({_signed(part.contribution)})" for part in best]
    return [*said, "because you watched", *(f"{part}," for part in shown[:-1]), shown[-1]]


def _cut(title: str) -> str:
    return title if len(title) <= _LONGEST_REASON else title[: _LONGEST_REASON - 1] + "…"


def _signed(value: float) -> str:
    """Return a positive number with two digits that matter, of at most six decimals: +.82, +1.3, +.0041."""
    decimals = min(max(1 - math.floor(math.log10(value)), 0), 6)
    return f"{value:+.{decimals}f}".replace("+0.", "+.")


def _title(movie: Recommendation | Contribution) -> str:
    return movie.title or f"movie {movie.movie_id}"


def _who(answer: Answer, run: Run) -> str:
    user_id = answer.person.user_id
    who = f"User {user_id}" if user_id is not None else "A history"
    how = "" if answer.diverse is None else f", diverse {answer.diverse:g}"
    return f"{who}: {answer.n_history} movies watched; answered by run {run.reference}{how}"


def _unknown(movies: Sequence[Any], run: Run) -> str:
    shown = ", ".join(str(movie) for movie in movies[:5]) + (", ..." if len(movies) > 5 else "")
    return f"{len(movies)} movies of the history are unknown to run {run.run_id} and were left out: {shown}"


def _print_embedding(embedding: Embedding) -> None:
    import numpy as np

    vector = embedding.user_embedding
    click.echo(np.array2string(vector, max_line_width=79, precision=6, threshold=sys.maxsize))
    click.echo(
        f"psi(X), shape {vector.shape}, {embedding.n_history} movies, run {embedding.run_id}", err=True
    )


def _csv_text(answer: Answer) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["rank", "movie_id", "score", "title", "year", "genres", "cold"]
    if answer.explanation_kind is not None:
        names += ["explanation_kind", "explanation"]
    writer.writerow(names)
    for row in _movie_rows(answer.to_dict()):
        writer.writerow([cell_of(row[name]) for name in names])
    return text.getvalue()
