"""watch: sync every newly sealed run, until a signal ends it."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

import click

from embedstore.cli.gates import gate_option, refuse_unasked
from embedstore.cli.output import escape
from embedstore.cli.settings import alias_option, connection, runs_option, store_option
from embedstore.cli.sync import no_promote_option

if TYPE_CHECKING:
    from embedstore.stores.base import Store
    from embedstore.sync import Gate

__all__ = ["watch"]


@click.command()
@gate_option
@no_promote_option
@click.option(
    "--interval",
    type=click.FloatRange(0.01, 3600),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds between two looks at the folder.",
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    metavar="N",
    help="After each promotion delete older collections but for N, as `gc` does.",
)
@click.option(
    "--health-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep JSON for a supervisor here, never older than two intervals.",
)
@click.option("--once", is_flag=True, help="Look once, then end: for cron.")
@runs_option
@store_option
@alias_option
def watch(
    runs_dir: Path,
    store_location: str,
    alias: str,
    *,
    gates: Sequence[Gate],
    no_promote: bool,
    interval: float,
    keep: int | None,
    health_file: Path | None,
    once: bool,
) -> None:
    """Follow the folder of the runs: sync the newest one, then each as soon as it is sealed.

    As `sync` does, through the same gates. A run that is older than the live one, or was live once, is
    left alone: a rollback stays. What fails is logged, and the next run awaited; a store that gives no
    answer or is being written is asked again. SIGTERM and SIGINT end it between two batches, and the
    next start carries on. One line per event goes to standard error.

    With --once exits with 4 where a gate failed, 5 where the store gives no answer.
    """
    from embedstore.stores.base import open_store
    from embedstore.stores.connection import NO_KEY, is_url
    from embedstore.sync.watch import Task
    from embedstore.sync.watch import watch as follow

    refuse_unasked(gates, no_promote=no_promote)

    def opened() -> Store:  # the key is read each time, so that it may change
        how = connection() if is_url(store_location) else NO_KEY
        return open_store(store_location, create=True, connection=how)

    task = Task(alias, promote=not no_promote, gates=gates, keep=keep)
    with _Signals() as signals:
        follow(
            runs_dir,
            opened,
            task,
            pause=signals.pause,
            log=_log,
            interval=interval,
            once=once,
            health_file=health_file,
        )
        _log(f"stopped by {signals.received.name}" if signals.received else "looked once")
    if signals.received == signal.SIGINT:
        raise KeyboardInterrupt


class _Signals:
    """SIGTERM and SIGINT, caught; a context manager that gives them back."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._woken, self._wake = os.pipe()  # an Event may be set by no handler that interrupts its wait

    def __enter__(self) -> Self:
        self._before = {
            number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._woken)
        os.close(self._wake)

    def pause(self, seconds: float) -> bool:
        """Wait so many seconds, or until a signal; return whether one has come."""
        select.select([self._woken], [], [], seconds)
        return self.received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        os.write(self._wake, b"\0")


def _log(event: str) -> None:
    click.echo(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {escape(event)}", err=True)
