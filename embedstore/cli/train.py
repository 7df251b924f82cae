"""The `train` command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.output import Column, print_json, print_table
from embedstore.cli.settings import data_option, runs_option, setting, train_settings
from embedstore.errors import NotFoundError, UsageError
from embedstore.runs.quiet import start_tensorflow
from embedstore.training.config import PRESETS, TrainConfig, assigned, field_infos

if TYPE_CHECKING:
    from embedstore.data.dataset import Dataset
    from embedstore.training.prepared import TrainProgress

__all__ = ["load_dataset", "print_metrics", "train"]


class _TrainCommand(click.Command):
    """A command whose help ends with the settings of TrainConfig."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for info in field_infos():
            if info.name == "preset":
                continue
            only = "" if len(info.presets) == len(PRESETS) else f" Only {', '.join(info.presets)}."
            text = f"{info.text}{only} {info.expected.capitalize()}.  [default: {info.shown_default}]"
            rows.append((info.name, text))
        with formatter.section("Settings, each as -P KEY=VALUE"):
            formatter.write_dl(rows)


@click.command(cls=_TrainCommand)
@data_option
@runs_option
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default=None,
    show_default="that of embedstore.toml, or softmax",
    help="softmax: the softmax DNN trained well; linear: in closed form; blend: several in one; colab: the "
    "course's own.",
)
@click.option("-P", "assignments", multiple=True, metavar="KEY=VALUE", help="Change a setting; repeatable.")
@click.option("--seed", type=int, default=None, help="The same as -P seed=N.")
@click.option("--columns", default=None, metavar="MAPPING", help="Columns of a CSV: user=uid,movie=iid,...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def train(
    data_dir: Path,
    runs_dir: Path,
    preset: str | None,
    assignments: tuple[str, ...],
    seed: int | None,
    columns: str | None,
    as_json: bool,
) -> None:
    """Train a model on a data set and write a sealed run.

    --data is the name of a data set (`ml-100k`, as fetched), or the path of its folder or file;
    without it, the only data set in the folder of the data sets is taken. Prints the run id, where
    it was written, and NDCG@100 and Recall@20 of held-out users beside popularity and EASE.

    Settings come from -P, then from the table [train] of embedstore.toml where its preset is the one
    that is trained (`embedstore tune --write` makes it), then from the defaults below.
    """
    preset, settings = train_settings(preset)
    given = assigned([*assignments, *([] if seed is None else [f"seed={seed}"])])
    config = TrainConfig.of(preset, {**settings, **given})
    dataset = load_dataset(data_dir, columns)
    if config.uses_tensorflow:
        start_tensorflow()
    from embedstore.training import train as train_run

    with _progress_bar() as progress:
        path = train_run(dataset, config, runs_dir=runs_dir, progress=progress)
    _print_result(path, as_json)


def load_dataset(data: Path, columns: str | None) -> Dataset:
    """Return the data set that --data names, without it the only one there.

    Raises NotFoundError where there is none, UsageError where there are several.
    """
    from embedstore.loaders import load, resolve

    home = Path(setting("data"))
    if data != home:
        return load(resolve(str(data), home), columns=columns)
    if not home.exists():
        raise NotFoundError(
            f"there is no {home}; run `embedstore data fetch ml-100k`, or name a data set with --data"
        )
    if home.is_dir():
        entries = sorted(entry for entry in home.iterdir() if not entry.name.startswith("."))
        if len(entries) > 1 and all(entry.is_dir() for entry in entries):
            names = ", ".join(entry.name for entry in entries)
            raise UsageError(f"{home} holds {names}; choose one with --data {entries[0].name}")
    return load(home, columns=columns)


def _print_result(path: Path, as_json: bool) -> None:
    from embedstore.runs.manifest import read_manifest

    manifest = read_manifest(path)
    metrics = manifest.metrics
    if as_json:
        print_json(
            {
                "run_id": manifest.run_id,
                "path": str(path),
                "tower": manifest.tower,
                "embedding_dim": manifest.embedding_dim,
                "dataset": dict(manifest.dataset),
                "config": dict(manifest.config),
                "metrics": dict(metrics),
            }
        )
        return
    users, best = metrics["users"], metrics["best"]
    kept = f", epoch {best['epoch']} of {best['epochs']} kept" if "epoch" in best else ""
    if "parts" in best:
        kept = ", " + " + ".join(f"{weight:g} {name}" for name, weight in best["parts"].items())
    click.echo(f"run {manifest.run_id} written to {path}")
    click.echo(
        f"preset {manifest.config['preset']}, {manifest.tower} tower, "
        f"embedding_dim {manifest.embedding_dim}{kept}"
    )
    click.echo(f"liked: a rating of {metrics['target']:g} or more (target)")
    if "cold" in metrics:
        click.echo(_cold_lines(metrics["cold"]))
    if not users["scored"]:
        click.echo(f"no metrics: {users['train']} users train and none of the others can be tested")
        return
    click.echo(
        f"users: {users['train']} to train, {users['validation']} to validate; "
        f"metrics of {users['scored']} others from what they liked\namong a hidden fifth of their ratings\n"
    )
    print_metrics(metrics)


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print NDCG@100 and Recall@20 of a run, EASE and popularity as a table."""
    names = [("this run", metrics), ("EASE", metrics["ease"]), ("popularity", metrics["popularity"])]
    rows = [
        [name, f"{values['ndcg@100']:.4f}", f"{values['recall@20']:.4f}"]
        for name, values in names
        if values is not None
    ]
    print_table([Column("model"), Column("NDCG@100", right=True), Column("Recall@20", right=True)], rows)


def _cold_lines(cold: Mapping[str, Any]) -> str:
    """Say how many movies without ratings are in the run, and how well such movies are ranked."""
    n, untold, found = cold["n"], cold["n_untold"], cold["measured"]
    counts = f"cold: vectors of {n:,} movie{'s' * (n != 1)} without ratings predicted"
    if untold:
        counts += f"; {untold:,} {'has' if untold == 1 else 'have'} nothing to predict from"
    if found is None:
        return f"{counts}\nnot measured: the recipe cannot be trained without a tenth of the movies"
    return (
        f"{counts}\n{found['users']:,} users' order of {found['held_out']:,} rated movies held out whole: "
        f"NDCG@10 {found['ndcg@10']:.4f} (random {found['random']['ndcg@10']:.4f})"
    )


@contextmanager
def _progress_bar() -> Iterator[Callable[[TrainProgress], None] | None]:
    """Show loss, validation NDCG and the time left on standard error, where it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns: list[Any] = [
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(bar_width=20),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("NDCG@100 {task.fields[ndcg]}"),
        TextColumn("at most"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("train", total=None, epoch=0, loss=0.0, ndcg="-")

        def show(state: TrainProgress) -> None:
            ndcg = "-" if state.ndcg is None else f"{state.ndcg:.4f} (best {state.best_ndcg:.4f})"
            bar.update(
                task,
                total=state.n_steps,
                completed=state.step,
                epoch=state.epoch,
                loss=state.loss,
                ndcg=ndcg,
            )

        yield show
