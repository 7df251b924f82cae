"""The `tune` command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from embedstore.cli.output import Column, escape, print_json, print_table
from embedstore.cli.settings import (
    SETTINGS_FILE,
    data_option,
    runs_option,
    train_settings,
    write_train_settings,
)
from embedstore.cli.train import load_dataset
from embedstore.runs.quiet import start_tensorflow
from embedstore.training.config import PRESETS, TrainConfig, assigned, show_value
from embedstore.training.tune import PROTOCOLS, Tuned, TuneProgress, require
from embedstore.training.tune import tune as search

__all__ = ["tune"]


@click.command()
@data_option
@runs_option
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="softmax",
    show_default=True,
    help="Whose settings; linear takes a second a trial, softmax some ten.",
)
@click.option("--trials", type=int, default=40, show_default=True, help="Configurations in all.")
@click.option("--minutes", type=float, default=10, show_default=True, help="End the search after so long.")
@click.option(
    "-P", "assignments", multiple=True, metavar="KEY=VALUE", help="Fix a setting; it is not searched."
)
@click.option("--seed", type=int, default=None, help="The same as -P seed=N; the search draws from it too.")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="serving",
    show_default=True,
    help="What to be best at.",
)
@click.option("--columns", default=None, metavar="MAPPING", help="Columns of a CSV: user=uid,movie=iid,...")
@click.option("--write", is_flag=True, help=f"Put the best settings into {SETTINGS_FILE}, for `train`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def tune(
    data_dir: Path,
    runs_dir: Path,
    preset: str,
    trials: int,
    minutes: float,
    assignments: tuple[str, ...],
    seed: int | None,
    protocol: str,
    columns: str | None,
    *,
    write: bool,
    as_json: bool,
) -> None:
    """Search the settings of a preset that are best on the validation users.

    Trains the default configuration, then others that Optuna proposes, and prints the best beside
    the default. Those that fall behind the median of the others are stopped early; no test user is
    asked or learned from. Settings and their meaning: `embedstore train --help`.

    A search can be interrupted or killed at any instant: the same command continues it, from a file
    in the folder tune of the runs. --trials counts the trials that are there already.
    """
    fixed = assigned([*assignments, *([] if seed is None else [f"seed={seed}"])])
    config = TrainConfig.of(preset, fixed)
    require("optuna")
    if write:
        require("tomlkit")
        train_settings(None)  # a file that cannot be read is said now, not after the search
    dataset = load_dataset(data_dir, columns)
    if config.uses_tensorflow:
        start_tensorflow()
    try:
        with _progress_bar() as progress:
            found = search(
                dataset,
                preset,
                fixed,
                runs_dir=runs_dir,
                trials=trials,
                minutes=minutes,
                protocol=protocol,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo("The finished trials are kept; the same command continues.", err=True)
        raise
    changes = write_train_settings(preset, found.settings) if write else None
    if as_json:
        print_json(_document(found, changes))
    else:
        _print(found, changes)


def _document(found: Tuned, changes: list[str] | None) -> dict[str, Any]:
    return {
        "study": str(found.study),
        "preset": found.default.config.preset,
        "protocol": found.protocol,
        "metric": found.metric,
        "n_users": int(found.default.per_user.size),
        "trials": {"finished": found.trials, "pruned": found.pruned, "failed": found.failed},
        "default": {"value": found.default.value, "config": found.default.config.to_dict()},
        "best": {
            "value": found.best.value,
            "trial": found.best.number,
            "settings": found.settings,
            "config": found.best.config.to_dict(),
        },
        "difference": found.difference and asdict(found.difference),
        "written": changes,
    }


def _print(found: Tuned, changes: list[str] | None) -> None:
    best, default = found.best, found.default
    rows = [
        [name, show_value(getattr(default.config, name)), show_value(getattr(best.config, name))]
        for name in found.searched
    ]
    rows.append([f"validation {found.metric}", f"{default.value:.4f}", f"{best.value:.4f}"])
    print_table(["setting", Column("default", right=True), Column("best", right=True)], rows)
    click.echo(
        f"\n{found.trials} trials on {default.per_user.size} validation users, protocol {found.protocol}; "
        f"{found.pruned} stopped early, {found.failed} failed; kept in {escape(str(found.study))}"
    )
    if found.difference is None:
        click.echo("No trial was better than the default.")
    else:
        mean, low, high = found.difference.mean, found.difference.low, found.difference.high
        click.echo(
            f"The best, trial {best.number}: {mean:+.4f} [{low:+.4f}, {high:+.4f}] to the default, paired "
            f"bootstrap over users.\nThat is optimistic, the highest of {found.trials} on the same users; "
            "`embedstore train` measures it on test users,\nwhom no trial has seen."
        )
    if changes is None:
        flags = "".join(f" -P {name}={show_value(value)}" for name, value in found.settings.items())
        click.echo(f"To train it: embedstore train --preset {best.config.preset}{flags}")
    elif changes:
        click.echo("\n".join([f"{SETTINGS_FILE}, table [train]:", *(f"  {change}" for change in changes)]))
    else:
        click.echo(f"{SETTINGS_FILE} had these settings already")


@contextmanager
def _progress_bar() -> Iterator[Callable[[TuneProgress], None] | None]:
    """Show trials, the running epoch and the best so far on standard error, where it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns: list[Any] = [
        TextColumn("trial {task.fields[trial]}"),
        BarColumn(bar_width=20),
        TextColumn("best {task.fields[best]} (default {task.fields[default]})"),
        TextColumn("{task.fields[now]}"),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("tune", total=None, trial="0", best="-", default="-", now="")

        def show(state: TuneProgress) -> None:
            training = state.training
            done = training.step / training.n_steps if training else 0.0
            ndcg = "" if training is None or training.ndcg is None else f", NDCG@100 {training.ndcg:.4f}"
            bar.update(
                task,
                total=state.trials,
                completed=state.finished + done,
                trial=f"{min(state.finished + 1, state.trials)} of {state.trials}",
                best="-" if state.best is None else f"{state.best:.4f}",
                default="-" if state.default is None else f"{state.default:.4f}",
                now=f"epoch {training.epoch}{ndcg}" if training else "",
            )

        yield show
