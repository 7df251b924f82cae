"""The `evaluate` command."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.output import (
    Column,
    escape,
    format_options,
    one_format,
    print_csv,
    print_json,
    print_table,
    status,
    terminal_width,
)
from embedstore.cli.settings import (
    alias_option,
    data_option,
    open_store_at,
    run_at,
    runs_option,
    setting,
    store_option,
)
from embedstore.cli.train import load_dataset
from embedstore.runs.quiet import start_tensorflow

if TYPE_CHECKING:
    from embedstore.data.dataset import Dataset
    from embedstore.evaluation.report import Evaluation, ProtocolScores
    from embedstore.runs.run import Run

__all__ = [
    "PROTOCOLS",
    "WIDER",
    "dataset_of",
    "evaluate",
    "metric_option",
    "print_in_parts",
    "ready_to_train",
]

WIDTH = 100  # of a table of scores where there is no terminal; what does not fit follows in another
PROTOCOLS = ("serving", "strong", "next-session", "global-time", "leave-last-one-out")
WIDER = "* the interval is wider than the difference: so few users do not tell how large it is"


def metric_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --metric, repeatable, as metrics."""
    return click.option(
        "--metric",
        "metrics",
        multiple=True,
        metavar="NAME@K|all",
        help="A metric, as ndcg@10, in place of the protocol's own, or all; repeatable. The headline stays.",
    )(command)


@click.command()
@click.argument("reference", metavar="[RUN]", default="latest")
@click.option(
    "--protocol",
    "protocols",
    type=click.Choice(PROTOCOLS),
    multiple=True,
    help="What is asked; repeatable.  [default: serving, strong, next-session]",
)
@metric_option
@click.option(
    "--baselines",
    metavar="LIST",
    default=None,
    help="Baselines, with commas; all but input where none are given.",
)
@click.option("--no-baselines", is_flag=True, help="The run alone.")
@click.option("--through-store", is_flag=True, help="Measure what the store answers, too.")
@click.option(
    "--debias-trade",
    is_flag=True,
    help="Show instead what `sync --debias A` costs and gains, for A in 0 to 1. [default protocol: serving]",
)
@click.option("--any-data", is_flag=True, help="Allow other data than the run was trained on.")
@click.option("--columns", default=None, metavar="MAPPING", help="Columns of a CSV: user=uid,movie=iid,...")
@format_options
@data_option
@runs_option
@store_option
@alias_option
def evaluate(
    reference: str,
    protocols: tuple[str, ...],
    metrics: tuple[str, ...],
    baselines: str | None,
    no_baselines: bool,
    through_store: bool,
    debias_trade: bool,
    any_data: bool,
    columns: str | None,
    as_json: bool,
    as_csv: bool,
    data_dir: Path,
    runs_dir: Path,
    store_location: str,
    alias: str,
) -> None:
    """Measure RUN (default: latest) on users whom it never saw, beside baselines.

    A sealed run is scored as it is, on the users that its training held out; only global-time trains
    its settings again, on the past. Every mean stands with its 95% interval and the number of users.
    What was measured is added beside the run, in <RUN>.evaluation.json; the run itself stays as it
    is. Protocols, metrics and their formulas: docs/evaluation.md. The trade of --debias-trade is not kept.
    """
    one_format(as_json, as_csv)
    if no_baselines and baselines is not None:
        raise click.UsageError("--baselines and --no-baselines exclude each other; give one")
    if debias_trade and (metrics or baselines or through_store):
        raise click.UsageError("--debias-trade has metrics of its own, and neither baselines nor a store")
    if through_store and set(protocols) == {"global-time"}:
        raise click.UsageError(
            "global-time trains again, and the store has the sealed run; choose another protocol"
        )
    from embedstore.evaluation.debias import trade_of_run
    from embedstore.evaluation.report import DEFAULT_BASELINES, evaluate_run
    from embedstore.query.resolve import resolve
    from embedstore.runs.evaluation import add_evaluation

    names = DEFAULT_BASELINES if baselines is None else [name.strip() for name in baselines.split(",")]
    with ExitStack() as stack:
        through = None
        if through_store:
            store = stack.enter_context(open_store_at(store_location))
            run, collection = resolve(store, runs_dir, reference, alias=alias)
            through = store, collection
        else:
            run = run_at(store_location, runs_dir, reference)
        dataset = dataset_of(run, data_dir, columns)
        ready_to_train(protocols, run)
        progress = stack.enter_context(status())
        if debias_trade:
            found = trade_of_run(run, dataset, protocols=protocols or PROTOCOLS[:1], any_data=any_data)
        else:
            found = evaluate_run(
                run,
                dataset,
                protocols=protocols,
                metrics=metrics,
                baselines=[] if no_baselines else names,
                through=through,
                any_data=any_data,
                progress=progress,
            )
    path = None if debias_trade else add_evaluation(run.path.with_name(run.reference), found.entries())
    if as_json:
        print_json(found.to_dict())
    elif as_csv:
        print_csv(*_csv(found))
    else:
        _print(found, path)


def dataset_of(run: Run, data_dir: Path, columns: str | None) -> Dataset:
    """Return the data set that --data names, without it the one of the run's name, or the only one."""
    home, name = Path(setting("data")), run.manifest.dataset.get("name")
    if data_dir == home and name and (home / name).exists():
        return load_dataset(home / name, columns)
    return load_dataset(data_dir, columns)


def ready_to_train(protocols: Sequence[str], *runs: Run) -> None:
    """Import TensorFlow, quietly, where a protocol trains again what TensorFlow trained."""
    from embedstore.evaluation.scoring import recipe_of

    if "global-time" in protocols and any(recipe_of(run).uses_tensorflow for run in runs):
        start_tensorflow()


def print_in_parts(header: Sequence[str], rows: Sequence[Sequence[str]], *, first: int) -> None:
    """Print a table; columns beyond the terminal go to a table of their own, each with the column of names.

    first: how many columns stay together at the beginning.
    """
    width = terminal_width() or WIDTH
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    taken, parts = sum(widths[:first]) + 2 * (first - 1), [list(range(first))]
    for column in range(first, len(header)):
        if taken + 2 + widths[column] > width:
            parts.append([0])
            taken = widths[0]
        parts[-1].append(column)
        taken += 2 + widths[column]
    for number, part in enumerate(parts):
        if number:
            click.echo()
        print_table(
            [Column(header[i], right=i > 0) for i in part],
            [[row[i] for i in part] for row in rows],
        )


def _print(found: Evaluation, path: Path | None) -> None:
    data = found.scores[0].question.data
    name = escape(data.dataset.name)
    click.echo(f"run {found.run_id}, data set {name}; liked: a rating of {data.target:g} or more\n")
    for number, scores in enumerate(found.scores):
        if number:
            click.echo()
        _print_scores(scores)
    for protocol, reason in found.left_out.items():
        click.echo()
        _say(f"{protocol} is left out: {reason}")
    if path is not None:
        click.echo(f"\nadded to {escape(str(path))}")


def _print_scores(scores: ProtocolScores) -> None:
    from embedstore.evaluation.report import TITLES, score_table

    asked = scores.question
    _say(f"{asked.protocol.name}: {asked.protocol.text}")
    _say(asked.asked)
    if scores.retrained:
        _say(
            f"trained again, for this alone, on {int(asked.learn.sum()):,} of {asked.learn.size:,} ratings; "
            "the sealed run knows the others too"
        )
    click.echo()
    header, rows = score_table(scores)
    print_in_parts(header, rows, first=5 if scores.leads else 3)
    if any(lead[scores.headline].wider_than_mean for lead in scores.leads.values()):
        click.echo(WIDER)
    for name, reason in scores.left_out.items():
        _say(f"{TITLES.get(name, name)} is left out: {reason}")
    if bands := scores.by_gap():
        click.echo(f"\n{scores.headline} by the time since the last known rating\n")
        models = list(scores.models)
        print_in_parts(
            ["gap", "users", *(TITLES.get(model, model) for model in models)],
            [[band, str(n), *(f"{means[model]:.4f}" for model in models)] for band, n, means in bands],
            first=2,
        )
    if (stored := scores.stored) is not None:
        own, differs = scores.models[scores.subject].overall, stored.measured.overall
        figures = ", ".join(
            f"{name} {differs[name]:.4f} ({differs[name] - own[name]:+.4f})" for name in scores.metrics
        )
        click.echo()
        _say(
            f"through the store, {stored.collection}: {figures}; "
            f"{stored.n_same:,} of {len(asked.held_out):,} lists are those of the run itself"
        )


def _say(text: str) -> None:
    """Print text in lines that the terminal has room for."""
    click.echo(
        textwrap.fill(escape(text), terminal_width() or WIDTH, break_long_words=False, break_on_hyphens=False)
    )


def _csv(found: Evaluation) -> tuple[list[str], list[list[object]]]:
    """Return one row per protocol, model and metric."""
    header = ["run_id", "protocol", "model", "metric", "value", "low", "high", "users"]
    header += ["lead", "lead_low", "lead_high"]
    rows: list[list[object]] = []
    for scores in found.scores:
        measured = dict(scores.models)
        if scores.stored is not None:
            measured["store"] = scores.stored.measured
        for model, values in measured.items():
            for name in scores.metrics:
                row: list[object] = [found.run_id, scores.question.protocol.name, model, name]
                row.append(values.overall[name])
                interval = scores.intervals.get(model, {}).get(name)
                lead = scores.leads.get(model, {}).get(name)
                row += [None, None] if interval is None else [interval.low, interval.high]
                row.append(len(scores.question.held_out))
                row += [None] * 3 if lead is None else [lead.mean, lead.low, lead.high]
                rows.append(row)
    return header, rows
