"""`embedstore runs`: what is in the folder of runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.compare import compare
from embedstore.cli.imports import import_command
from embedstore.cli.output import (
    Column,
    escape,
    format_options,
    one_format,
    print_csv,
    print_json,
    print_table,
)
from embedstore.cli.settings import (
    alias_option,
    open_store_at,
    run_at,
    runs_option,
    setting,
    store_option,
)
from embedstore.errors import NotFoundError, RunError, UsageError
from embedstore.runs.debias import split_reference
from embedstore.runs.evaluation import read_evaluation
from embedstore.runs.manifest import Manifest
from embedstore.runs.registry import RunSummary, find_run, list_runs, remove_run
from embedstore.stores.connection import is_url

if TYPE_CHECKING:
    from embedstore.runs.run import Run

__all__ = ["runs"]

HEADLINE = ("ndcg@100", "recall@20")

FIELDS = ("run_id", "state", "created_at", "preset", "dataset", "n_users", "n_movies", "n_ratings")


@click.group()
def runs() -> None:
    """List, show, compare, import, restore and remove runs: the sealed folders that training writes.

    A RUN is a full id, a unique beginning of one, or `latest`; `show` and `compare` also take
    `@movies`, the run that the alias serves, and `@movies~1`, the one before it.
    """


runs.add_command(compare)
runs.add_command(import_command)


@runs.command("list")
@runs_option
@format_options
def list_command(runs_dir: Path, *, as_json: bool, as_csv: bool) -> None:
    """List the runs, oldest first, the unfinished and damaged ones too."""
    one_format(as_json, as_csv)
    summaries = list_runs(runs_dir)
    records = [_record(summary) for summary in summaries]
    if as_json:
        print_json(records)
        return
    names = sorted({name for record in records for name in record["metrics"]})
    if as_csv:
        print_csv(
            [*FIELDS, "embedding_dim", "tower", *names],
            (
                [*(record[name] for name in (*FIELDS, "embedding_dim", "tower"))]
                + [record["metrics"].get(name) for name in names]
                for record in records
            ),
        )
        return
    if not records:
        click.echo(
            f"no run in {escape(str(runs_dir))}; make one with `embedstore train` or `runs import`",
            err=True,
        )
        return
    shown = [name for name in HEADLINE if name in names]
    print_table(
        [
            Column("run"),
            Column("state", shrink=True),
            Column("preset"),
            Column("data", shrink=True),
            Column("movies", right=True),
            Column("dim", right=True),
            Column("tower"),
            *(Column(name, right=True) for name in shown),
        ],
        (
            [
                record["run_id"],
                record["state"],
                record["preset"],
                record["dataset"],
                _grouped(record["n_movies"]),
                record["embedding_dim"],
                record["tower"],
                *(_short(record["metrics"].get(name)) for name in shown),
            ]
            for record in records
        ),
    )


@runs.command("show")
@click.argument("run", default="latest")
@click.option(
    "--norms", "with_norms", is_flag=True, help="Show how long V_j is by popularity, and what users see."
)
@runs_option
@store_option
@alias_option
@format_options
def show(
    run: str,
    runs_dir: Path,
    store_location: str,
    alias: str,
    *,
    with_norms: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Show the manifest of RUN (default: latest): data, settings, metrics, versions, files.

    And the headline of every protocol that `evaluate` measured.

    With --norms instead: the norm of V_j in tenths of the catalog by popularity, and the share of the catalog
    that is in the first 10 and 100 movies of the run's own users, without what they watched. Long
    vectors win dot products; `sync --debias` makes them shorter.
    """
    one_format(as_json, as_csv)
    found = run_at(store_location, runs_dir, run)
    if with_norms:
        _show_norms(found, as_json=as_json, as_csv=as_csv)
        return
    manifest, evaluation = found.manifest, read_evaluation(found.path.with_name(found.reference))
    if as_json:
        import json

        print_json({"path": str(found.path), **json.loads(manifest.to_json()), "evaluation": evaluation})
        return
    lines = [*_lines_of(found.path, manifest), *_headlines(evaluation)]
    if as_csv:
        print_csv(["field", "value"], lines)
        return
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        click.echo(f"{escape(name):<{width}}  {escape(_short(value))}".rstrip())


@runs.command("restore")
@click.argument("collection", metavar="[ALIAS|COLLECTION]", default="")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_option
@store_option
@alias_option
def restore(collection: str, runs_dir: Path, store_location: str, alias: str, *, as_json: bool) -> None:
    """Rebuild the run of a collection (default: what the alias serves) from the store alone.

    It serves as the original does: `query --history` answers the same. It knows no users and has no
    log. A dense tower is in the folder of its run alone, which cannot be restored.
    """
    from embedstore.sync import restore as restore_run

    with open_store_at(store_location) as store:
        report = restore_run(store, collection or alias, runs_dir, alias=alias)
    if as_json:
        print_json(asdict(report))
        return
    if report.written:
        click.echo(
            f"{escape(report.path)}: restored from {report.collection}, {report.count:,} movies, no users"
        )
    else:
        click.echo(f"{escape(report.path)}: is there already, with the content of {report.collection}")


@runs.command("allow")
@click.argument("run", default="latest")
@runs_option
def allow_(run: str, runs_dir: Path) -> None:
    """Let the Keras model or SavedModel that computes psi of RUN (default: latest) run, as you.

    Such a model is a program: with it, whoever made it can read and write the files that you can. An import
    allows its own; a run that was made elsewhere asks for this, once for each model and user. Runs whose psi
    NumPy or onnxruntime computes need it not.
    """
    from embedstore.runs.consent import allow, is_program

    manifest = find_run(runs_dir, run).manifest
    if not is_program(manifest):
        click.echo(f"psi of run {manifest.run_id} is computed by no program: there is nothing to allow")
        return
    click.echo(f"the model of run {manifest.run_id} may run, noted in {escape(str(allow(manifest)))}")


@runs.command("rm")
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="Remove also what an alias of the store serves.")
@runs_option
@store_option
def rm(run_ids: tuple[str, ...], runs_dir: Path, store_location: str, *, force: bool) -> None:
    """Remove the folders of runs, unfinished ones too.

    A run that an alias serves is kept unless --force is given: its collection could no longer
    answer for users. Collections are not touched.
    """
    targets = [_target(runs_dir, reference) for reference in dict.fromkeys(run_ids)]
    served = {} if force else _served(store_location)
    for run_id in targets:
        if run_id in served:
            raise UsageError(
                f"run {run_id} is what alias {served[run_id]!r} serves; sync another run or say --force"
            )
    for run_id in targets:
        click.echo(f"removed {escape(str(remove_run(runs_dir, run_id)))}")


def _show_norms(run: Run, *, as_json: bool, as_csv: bool) -> None:
    from embedstore.evaluation.norms import SHOWN, norms

    found = norms(run)
    if as_json:
        print_json(found.to_dict())
        return
    names = ["decile", "movies", "mean popularity", "mean norm", "mean bias"]
    rows = [
        [number, part.n_movies, part.popularity, part.norm, part.bias]
        for number, part in enumerate(found.deciles, start=1)
    ]
    if as_csv:
        print_csv([name.replace(" ", "_") for name in names], rows)
        return
    biased = found.correlation_without_bias is not None
    kept = len(names) - (not biased)
    click.echo(f"Norm of V_j by popularity, run {found.reference}, {found.n_movies:,} movies\n")
    print_table(
        [Column(name, right=True) for name in names[:kept]],
        (
            [number, movies, f"{ratings:.1f}", *(f"{value:.3f}" for value in values[: kept - 3])]
            for number, movies, ratings, *values in rows
        ),
    )
    click.echo(f"\ncorrelation of log norm with log popularity: {_signed(found.correlation)}")
    if biased:
        click.echo(
            f"without the item bias, the last number of V_j: {_signed(found.correlation_without_bias)}\n"
            "(whatever its sign, the bias counts in the norm: a movie that is rarely liked is long by it; "
            "--debias\nscales it, too)"
        )
    if not found.n_users:
        click.echo("The run has no users to show movies to.")
        return
    for k in (10, 100):
        coverage, gini = (found.shown[name] for name in SHOWN if name.endswith(f"@{k}"))
        click.echo(
            f"in the first {k} of {found.n_users:,} users: {coverage:.1%} of the catalog, Gini {gini:.3f}"
        )


def _signed(value: float | None) -> str:
    return "not defined" if value is None else f"{value:+.3f}"


def _target(runs_dir: Path, reference: str) -> str:
    """Return the id of one run folder, sealed or not."""
    if reference.startswith("@"):
        raise UsageError(f"{reference} is what the store serves; give the id of the run to remove")
    if reference == "latest":
        return find_run(runs_dir, reference).run_id
    names = [summary.run_id for summary in list_runs(runs_dir)]
    fitting = [name for name in names if reference and name.startswith(reference)]
    if not fitting:
        raise NotFoundError(f"no run {reference!r} in {runs_dir}; list them with `embedstore runs list`")
    if len(fitting) > 1:
        raise UsageError(
            f"run {reference!r} fits {len(fitting)} runs ({fitting[0]}, {fitting[1]}); give more of the id"
        )
    return fitting[0]


def _served(location: str) -> dict[str, str]:
    """Return the runs that the aliases of the store serve, with the alias; none where there is no store."""
    if not is_url(location) and not Path(location).exists():
        return {}
    with open_store_at(location) as store:
        served = {
            split_reference(collection.rpartition("__")[2])[0]: alias
            for alias, collection in store.aliases().items()
        }
        if not served:  # a token for one alias sees no list of them
            alias = setting("alias")
            with suppress(NotFoundError):
                served[store.live(alias).run_id] = alias
        return served


def _record(summary: RunSummary) -> dict[str, Any]:
    manifest = summary.manifest
    if manifest is None:
        empty = dict.fromkeys((*FIELDS, "embedding_dim", "tower"))
        return {
            **empty,
            "run_id": summary.run_id,
            "state": summary.problem,
            "path": str(summary.path),
            "metrics": {},
        }
    return {
        "run_id": summary.run_id,
        "state": "sealed",
        "created_at": manifest.created_at,
        "preset": manifest.config.get("preset"),
        "dataset": manifest.dataset.get("name"),
        "n_users": manifest.dataset.get("n_users"),
        "n_movies": manifest.dataset.get("n_movies"),
        "n_ratings": manifest.dataset.get("n_ratings"),
        "embedding_dim": manifest.embedding_dim,
        "tower": manifest.tower,
        "path": str(summary.path),
        "metrics": _flat(manifest.metrics),
    }


def _lines_of(path: Path, manifest: Manifest) -> list[tuple[str, object]]:
    """Return name and value of everything in the manifest, one line each."""
    lines: list[tuple[str, object]] = [
        ("run_id", manifest.run_id),
        ("path", str(path)),
        ("created_at", manifest.created_at),
        ("schema_version", manifest.schema_version),
        ("embedding_dim", manifest.embedding_dim),
        ("tower", manifest.tower),
        ("git_commit", manifest.git_commit),
    ]
    for group in ("dataset", "config", "metrics", "versions"):
        values = getattr(manifest, group)
        lines += [(f"{group}.{name}", value) for name, value in sorted(_flat(values).items())]
    total = sum(entry["bytes"] for entry in manifest.files.values())
    return [*lines, ("files", f"{len(manifest.files)} files, {total:,} bytes")]


def _headlines(evaluation: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, object]]:
    """Return name and value of the headline of every protocol that was evaluated."""
    lines: list[tuple[str, object]] = []
    for protocol, entry in evaluation.items():
        try:
            name = entry["headline"]
            low, high = entry["intervals"][name]
            said = f"{name} {entry[name]:.4f} (95% {low:.4f} to {high:.4f}, {entry['users']['scored']} users)"
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RunError(f"the evaluation of {protocol} has no headline; evaluate the run again") from error
        lines.append((f"evaluation.{protocol}", said))
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) and 1e-3 <= abs(value) < 1e6 else str(value)


def _grouped(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
