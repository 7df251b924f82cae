"""The `export` command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from embedstore.cli.output import Column, escape, print_json, print_table, say
from embedstore.cli.settings import run_at, runs_option, store_option
from embedstore.errors import UsageError

__all__ = ["export"]


@click.command()
@click.argument("run", default="latest")
@click.option("--onnx", is_flag=True, help="model.onnx, opset 13, for any onnxruntime.")
@click.option("--saved-model", is_flag=True, help="saved_model/, for TensorFlow and its servers.")
@click.option("--npz", is_flag=True, help="tower.npz and tower.json: arrays for any language.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where to write.  [default: export/RUN]",
)
@click.option("--force", is_flag=True, help="Replace the export that is in the folder.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_option
@store_option
def export(
    run: str,
    output: Path | None,
    runs_dir: Path,
    store_location: str,
    *,
    onnx: bool,
    saved_model: bool,
    npz: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write psi of RUN (default: latest) for applications without our Python.

    In one format or several, beside vocabulary.json, which says which movie is which row. Each is
    read back and compared with the tower of the run on random histories, to 1e-6, before the
    folder appears. docs/export.md shows how to use it. RUN may be @ALIAS, what the alias serves.
    """
    given = {"onnx": onnx, "saved-model": saved_model, "npz": npz}
    formats = [name for name, wanted in given.items() if wanted]
    if not formats:
        raise UsageError("say in which format: one or more of --onnx, --saved-model and --npz")
    from embedstore.export import VOCABULARY, export_run, require

    found = run_at(store_location, runs_dir, run, restored=say)
    if saved_model:
        from embedstore.runs.quiet import start_tensorflow

        require("saved-model")
        start_tensorflow()
    report = export_run(found, formats, output or Path("export", found.run_id), force=force)
    if as_json:
        print_json(asdict(report))
        return
    click.echo(f"psi of run {report.run_id} written to {escape(report.path)}")
    click.echo(f"compared with the run's tower on {report.n_histories:,} random histories\n")
    columns = [
        Column("format"),
        Column("files"),
        Column("bytes", right=True),
        Column("difference", right=True),
    ]
    print_table(
        columns,
        [
            [made.format, ", ".join(made.files), f"{made.bytes:,}", f"{made.largest_difference:.1g}"]
            for made in report.formats
        ],
    )
    click.echo(f"\n{VOCABULARY}: which of the {report.n_movies:,} movies is which row")
