"""`embedstore mlflow`: runs in MLflow."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedstore.cli.output import escape, print_json, say
from embedstore.cli.settings import run_at, runs_option, store_option

if TYPE_CHECKING:
    from embedstore.tracking import LogReport

__all__ = ["mlflow", "tracking_option"]

tracking_option = click.option(
    "--tracking-uri", metavar="URI", help="MLflow's tracking store.  [default: $MLFLOW_TRACKING_URI]"
)


@click.group()
def mlflow() -> None:
    """Write runs to MLflow; `sync mlflow:/NAME@ALIAS` takes them from there."""


@mlflow.command()
@click.argument("run", default="latest")
@click.option(
    "--experiment",
    metavar="NAME",
    envvar="MLFLOW_EXPERIMENT_NAME",
    show_envvar=True,
    default="embedstore",
    show_default=True,
    help="Experiment, made where it is missing.",
)
@click.option("--register", "model", metavar="NAME", help="Make a version of this registered model.")
@click.option("--set-alias", "alias", metavar="ALIAS", help="Point this alias of the model at the version.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@tracking_option
@runs_option
@store_option
def log(
    run: str,
    experiment: str,
    model: str | None,
    alias: str | None,
    tracking_uri: str | None,
    runs_dir: Path,
    store_location: str,
    *,
    as_json: bool,
) -> None:
    """Write params, metrics, curves and files of RUN (default: latest) to MLflow.

    A run is written once: another log finds it by its tag embedstore.run_id and writes what is missing
    or new, as an `evaluate` since then, so that after an interruption the same command carries on. The
    alias moves last. Nothing is sent to MLflow's makers: its telemetry is off, unless
    MLFLOW_DISABLE_TELEMETRY says otherwise. Names and limits: docs/mlflow.md.
    """
    from embedstore.tracking import log_run

    found = run_at(store_location, runs_dir, run)
    report = log_run(found, tracking_uri=tracking_uri, experiment=experiment, model=model, alias=alias)
    if report.cut:
        say(f"longer than MLflow takes, and cut: {', '.join(report.cut)}")
    if as_json:
        print_json(asdict(report))
    else:
        _print(report)


def _print(report: LogReport) -> None:
    what = "nothing to write"
    if report.state != "unchanged":
        what = (
            f"{report.params} params, {report.points} points of metrics, {report.tags} tags, "
            f"{report.files} files ({report.bytes:,} bytes)"
        )
    click.echo(escape(f"run {report.run_id} in {report.tracking_uri}: {report.state}, {what}"))
    click.echo(escape(f"experiment {report.experiment}, MLflow run {report.mlflow_run_id}"))
    if report.model is None:
        return
    made = "new" if report.version_made else "as before"
    click.echo(escape(f"model {report.model}: version {report.version}, {made}"))
    if report.alias is None:
        return
    target = f"mlflow:/{report.model}@{report.alias} -> version {report.version}"
    before = f" (before: {report.previous})" if report.previous else ""
    click.echo(escape(f"{target}{before}" if report.alias_moved else f"{target}, as before"))
