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
    import numpy as np
    import numpy.typing as npt

    from embedstore.query.explain import Contribution
    from embedstore.query.recommend import Answer, Embedding, Person, Recommendation
    from embedstore.runs.run import Run
    from embedstore.stores.base import Store
    from embedstore.stores.contract import Metadata

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
@click.option(
    "--vector",
    metavar="FILE",
    help="A psi(X) made elsewhere: .npy, JSON or numbers, of one or of many; - is standard input.",
)
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
    vector: str | None,
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
    """Recommend movies to one user, to a history, to a vector, or to many users.

    The user embedding psi(X) is computed by the tower of the run that the alias serves, and is the
    query vector of a search in that run's collection. Watched movies are left out.

    With --vector it is taken as it is: it must be of that run's tower, say --run to be sure. No folder of
    a run is needed, and nothing is known to be watched. Rows of one file are answered as JSON lines.

    --explain adds what each watched movie contributes to a score: exact where the score is a sum over
    the history, to which they add up; else an estimate, the score less that without the movie.
    --diverse chooses one movie after the other, by score less likeness to those before it.
    """
    from embedstore.query.filters import parse_filters
    from embedstore.query.people import parse_excluded, read_people
    from embedstore.query.recommend import Person, ask_live, recommend, recommend_batch
    from embedstore.query.resolve import resolve
    from embedstore.runs.run import Run

    _exactly_one(user=user, history=history, history_file=history_file, users_file=users_file, vector=vector)
    options: dict[str, Any] = {
        "k": k,
        "filters": parse_filters(filters),
        "exclude": parse_excluded(exclude),
        "include_seen": include_seen,
        "diverse": diverse,
        "explain": explain,
    }
    vectors, made_by = (None, None) if vector is None else _vectors(vector)
    # Not closed: the engine would sync every file of the shard, 15 ms for nothing; the process ends here.
    store = open_store_at(store_location)

    def look() -> tuple[Run | Metadata, str]:
        if vector is not None:
            return _collection_for(vector, made_by, store, runs_dir, reference, alias)
        run, collection = resolve(store, runs_dir, reference, alias=alias, restored=say)
        run.check_tower()
        return run, collection

    def ask(found: Run | Metadata, collection: str) -> tuple[str, Answer]:
        run = found if isinstance(found, Run) else None
        return found.reference, recommend(run, store, collection=collection, **who, **options)

    found, collection = look()
    if vectors is not None and len(vectors) > 1:
        format_of(output, as_csv=as_csv)
        rows = (Person(vector=row) for row in vectors)
        answers = recommend_batch(None, store, rows, collection=collection, **options)
        records = ({**answer.to_dict(), "vector": row} for row, answer in enumerate(answers))
        write_records(records, output, as_csv=as_csv, flatten=_movie_rows)
        return
    if users_file is not None and isinstance(found, Run):
        format_of(output, as_csv=as_csv)
        people = read_people(users_file, found, skip=skipping(skip_unknown))
        answers = recommend_batch(found, store, people, collection=collection, **options)
        records = (answer.to_dict() for answer in answers)
        write_records(_tracked(records, users_file), output, as_csv=as_csv, flatten=_movie_rows)
        return
    person = _person(found, user, history, history_file) if isinstance(found, Run) else Person(vector=vectors)
    who: dict[str, Any] = {"user_id": person.user_id, "history": person.history, "vector": person.vector}
    answered_by, answer = ask_live((found, collection), look, ask)
    _show(answer, answered_by, output, as_json=as_json, as_csv=as_csv)


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
    run.check_tower()
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
            click.echo(escape(_unknown(embedding.unknown_movies, run.run_id)), err=True)
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
            "say who is asked about: give one of "
            + ", ".join(f"--{name.replace('_', '-')}" for name in given)
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


def _collection_for(
    vector: str, made_by: str | None, store: Store, runs_dir: Path, reference: str | None, alias: str
) -> tuple[Metadata, str]:
    """Return the collection that vectors go to, and what it says of itself: no run is needed.

    Raises UsageError where they say by which run they were made, and it is another one.
    """
    from embedstore.query.resolve import resolve_collection

    collection = resolve_collection(store, runs_dir, reference, alias=alias)
    metadata = store.metadata(collection)
    if made_by not in (None, metadata.run_id):
        raise UsageError(
            f"vector {vector} is psi(X) of run {made_by}, {collection!r} holds run {metadata.run_id}; say "
            f"--run {made_by}, or make psi(X) anew"
        )
    return metadata, collection


def _vectors(name: str) -> tuple[npt.NDArray[np.float32], str | None]:
    """Return the vectors of a file or of standard input, (n, width), and the run that it names, if any."""
    import numpy as np

    from embedstore.query.people import read_vectors

    try:
        with click.open_file(name, "rb") as file:
            content = file.read()
    except OSError as error:
        raise UsageError(f"vector file {name} cannot be read: {error.strerror}") from error
    vectors, run_id = read_vectors(content, name="standard input" if name == "-" else name)
    return np.atleast_2d(vectors), run_id


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
    who = {name: record[name] for name in ("user_id", "history", "vector") if name in record}
    kind = {"explanation_kind": record["explanation_kind"]} if "explanation_kind" in record else {}
    for movie in record["recommendations"]:
        facts = {**movie, "cold": movie.get("cold", False)}
        yield {**who, "run_id": record["run_id"], **kind, **facts}


def _show(answer: Answer, reference: str, output: Path | None, *, as_json: bool, as_csv: bool) -> None:
    """Print what one person was recommended by the run of reference, or write it to output."""
    if output is not None:
        write_records([answer.to_dict()], output, flatten=_movie_rows)
    elif as_json:
        print_json(answer.to_dict())
    elif as_csv:
        Shown(sys.stdout).write(_csv_text(answer))
    else:
        click.echo(escape(_who(answer, reference)))
        if answer.unknown_movies:
            click.echo(escape(_unknown(answer.unknown_movies, answer.run_id)), err=True)
        _print_movies(answer.recommendations, answer.explanation_kind)
        if not answer.recommendations:
            click.echo("No movie of the catalog is left by the filters and exclusions.", err=True)


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


def _who(answer: Answer, reference: str) -> str:
    user_id = answer.person.user_id
    who = f"User {user_id}" if user_id is not None else "A history"
    watched = f"{who}: {answer.n_history} movies watched" if answer.person.vector is None else "A vector"
    how = "" if answer.diverse is None else f", diverse {answer.diverse:g}"
    return f"{watched}; answered by run {reference}{how}"


def _unknown(movies: Sequence[Any], run_id: str) -> str:
    shown = ", ".join(str(movie) for movie in movies[:5]) + (", ..." if len(movies) > 5 else "")
    return f"{len(movies)} movies of the history are unknown to run {run_id} and were left out: {shown}"


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
