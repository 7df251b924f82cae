"""`embedstore runs import`: a run from a model that was trained elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedstore.cli.output import escape, print_json, print_table, say, status
from embedstore.cli.settings import runs_option, setting
from embedstore.errors import EmbedstoreError, UsageError, VerificationError

if TYPE_CHECKING:
    from embedstore.data.dataset import Dataset, MovieTable
    from embedstore.data.features import Ids
    from embedstore.importing import Imported
    from embedstore.runs.declaration import Declaration, InputRule

__all__ = ["import_command"]

_SERVED_BY = {"numpy": "NumPy", "onnxruntime": "onnxruntime", "tensorflow": "TensorFlow"}
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command("import")
@click.option(
    "--vectors",
    metavar="SOURCE",
    help="V, a row per movie: FILE.npy, FILE.npz:NAME, or model:NAME, a layer, variable or initializer of "
    "the tower.  [default: the only weight of the tower that fits]",
)
@click.option("--movies", type=_FILE, metavar="FILE", help="Movies with titles, in the order of V's rows.")
@click.option("--ids", type=_FILE, metavar="FILE", help="Only their ids in that order: .txt, .npy or .json.")
@click.option(
    "--tower",
    metavar="PATH",
    help="psi: a .keras file, the folder of a SavedModel, .onnx; or .npy, a row per movie whose mean it is.",
)
@click.option(
    "--input", "declaration", type=_FILE, metavar="FILE", help="How a history becomes the model's inputs."
)
@click.option(
    "--write-input",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write that as it was told, to edit.",
)
@click.option("--output", metavar="NAME", help="Which output, or layer, of the model is psi.")
@click.option("--signature", metavar="NAME", help="Which signature of a SavedModel.")
@click.option("--ratings", metavar="PATH", help="A data set: its users are known to the run, and measure it.")
@click.option("--columns", metavar="MAPPING", help="Columns of a CSV of ratings: user=uid,movie=iid,...")
@click.option("--anyway", is_flag=True, help="Import also what looks wrong.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_option
def import_command(
    vectors: str | None,
    movies: Path | None,
    ids: Path | None,
    tower: str | None,
    declaration: Path | None,
    write_input: Path | None,
    output: str | None,
    signature: str | None,
    ratings: str | None,
    columns: str | None,
    runs_dir: Path,
    *,
    anyway: bool,
    as_json: bool,
) -> None:
    """Seal a run from a model that was trained elsewhere.

    \b
    embedstore runs import --vectors V.npy --movies movies.csv
    embedstore runs import --vectors V.npy --movies movies.csv --tower psi.onnx
    embedstore runs import --movies u.item --tower model.keras --ratings ml-100k

    V_j is a row of --vectors, and psi(X) the output of --tower; without one, `similar` and `query
    --vector` work with the run. How a history becomes the inputs of the tower is told by their names and
    tables, else by --input (docs/import.md). The run is written after all that can be checked was.
    """
    from embedstore.importing import SeriousError, import_run
    from embedstore.importing.infer import UntoldError

    _check_options(tower, declaration, write_input, output, signature, ratings, columns)
    dataset = None if ratings is None else _ratings(ratings, columns)
    movie_ids, table = _movies(movies, ids, dataset)
    with status() as progress:
        try:
            imported = import_run(
                vectors,
                movie_ids,
                runs_dir=runs_dir,
                movies=table,
                tower=tower,
                declaration=declaration,
                output=output,
                signature=signature,
                ratings=dataset,
                anyway=anyway,
                progress=progress,
            )
        except UntoldError as error:
            if write_input is None:
                raise
            _write(error.draft, write_input)
            raise UsageError(f"{error}; what could be told is in {write_input}, correct the rest") from error
        except SeriousError as error:
            if write_input is None or error.declaration is None:
                raise
            _write(error.declaration, write_input)
            raise VerificationError(f"{error}; how its inputs were told is in {write_input}") from error
    if as_json:
        print_json(imported.to_dict())
    else:
        _print_imported(imported, runs_dir)
    if write_input is not None and imported.declaration is not None:
        _write(imported.declaration, write_input)
        say(f"the declaration of its inputs is in {write_input}")


def _check_options(
    tower: str | None,
    declaration: Path | None,
    write_input: Path | None,
    output: str | None,
    signature: str | None,
    ratings: str | None,
    columns: str | None,
) -> None:
    """Raise UsageError where an option has nothing to speak of, or --write-input nowhere to write."""
    from embedstore.importing.vectors import is_array

    about_model = {"input": declaration, "write-input": write_input, "output": output, "signature": signature}
    given = [name for name, value in about_model.items() if value is not None]
    if given and (tower is None or is_array(tower)):
        raise UsageError(f"--{given[0]} is about a model, and none is given; name its file with --tower")
    if columns is not None and ratings is None:
        raise UsageError("--columns is about ratings, and none are given; name their file with --ratings")
    if write_input is None:
        return
    if declaration is not None:
        raise UsageError(
            "--input is a declaration already, so there is none to write; leave --write-input out"
        )
    if write_input.exists():
        raise UsageError(f"{write_input} exists; give it with --input, or another name to --write-input")
    if not write_input.absolute().parent.is_dir():
        raise UsageError(f"the folder of {write_input} does not exist; make it first")


def _ratings(name: str, columns: str | None) -> Dataset:
    from embedstore.loaders import load, resolve

    return load(resolve(name, Path(setting("data"))), columns=columns)


def _movies(movies: Path | None, ids: Path | None, dataset: Dataset | None) -> tuple[Ids, MovieTable]:
    """Return the ids of the movies in the order of V's rows, and what is known of them.

    Raises UsageError where nothing names the rows, or two files do and share no movie.
    """
    if movies is None and ids is None:
        raise UsageError("say which movie each row of V is: give --movies or --ids, in the order of the rows")
    table: MovieTable = {}
    if movies is not None:
        from embedstore.loaders.layout import movie_list

        found, table = movie_list(movies)
    elif dataset is not None:
        table = dict(zip(dataset.movies.values.tolist(), dataset.catalog, strict=True))
    if ids is None:
        return found, table
    from embedstore.importing.vectors import read_ids

    found = read_ids(ids)
    if movies is not None and table.keys().isdisjoint(found.tolist()):
        raise UsageError(
            f"none of the {found.size:,} ids of {ids} is a movie of {movies}; expected ids of the same kind"
        )
    return found, table


def _write(declaration: Declaration, path: Path) -> None:
    from embedstore.runs.manifest import replace_file

    try:
        replace_file(path, declaration.to_json().encode())
    except OSError as error:
        raise EmbedstoreError(f"declaration {path} cannot be written: {error.strerror or error}") from error


def _print_imported(imported: Imported, runs_dir: Path) -> None:
    n_users = f", {imported.n_users:,} users" if imported.n_users else ", no users"
    click.echo(f"run {imported.run_id} written to {escape(imported.path)}")
    click.echo(f"{imported.n_movies:,} movies, embedding_dim {imported.embedding_dim}{n_users}")
    click.echo(f"psi: {_psi(imported)}")
    if imported.declaration is not None:
        click.echo(f"\nInputs of the model, vocabulary {escape(imported.declaration.vocabulary)}")
        columns = ("input", "from", "form", "vocabulary", "padding")
        print_table(columns, [_input(rule) for rule in imported.declaration.inputs])
    if imported.findings:
        click.echo("")
    for finding in imported.findings:
        click.echo(f"{'warning' if finding.serious else 'note'}: {escape(finding.text)}")
    metrics = imported.metrics
    if metrics and metrics["users"]["scored"]:
        from embedstore.cli.train import print_metrics

        click.echo(
            f"\nto find among a hidden fifth of their ratings: {metrics['target']:g} or more (target)\n"
        )
        print_metrics(metrics)
    elsewhere = "" if runs_dir == Path(setting("runs")) else f" --runs {shlex.quote(str(runs_dir))}"
    click.echo("")
    click.echo(escape(f"next: embedstore sync {imported.run_id}{elsewhere}"))


def _psi(imported: Imported) -> str:
    if imported.served_by is None:
        return "none; `embedstore similar` and `embedstore query --vector` work without"
    by = _SERVED_BY[imported.served_by]
    if imported.served_by != "numpy":
        return f"the model itself, by {by}"
    what = "a stack of layers" if imported.tower == "dense" else "the mean of one vector per movie watched"
    if imported.difference is None:
        return f"{what}, by {by}"
    return (
        f"{what}, by {by}; at most {imported.difference:.1g} off the model, of the largest value of a "
        "dimension, on 1,000 random histories"
    )


def _input(rule: InputRule) -> tuple[str, str, str, str, str]:
    """Return what a rule says, as a row of a table."""
    vocabulary = padding = ""
    form = f"{rule.form}, {rule.dtype}"
    if rule.form in ("indices", "multi_hot"):
        what = f"{len(rule.labels)} {rule.feature}" if rule.labels else rule.feature
        unknown = "" if rule.unknown is None else f", unknown {rule.unknown}"
        vocabulary = f"{what} from {rule.first}{unknown}"
    if rule.form in ("indices", "ids"):
        length = "to the longest" if rule.length is None else f"to {rule.length:,}, {rule.keep} kept"
        padding = f"{rule.padding!r} on the {rule.side} {length}, {rule.order.replace('_', ' ')}"
    if rule.form == "multi_hot":
        form = f"{rule.form} of {rule.size:,}, {rule.values}, {rule.dtype}"
    return rule.name, rule.feature, form, vocabulary, padding
