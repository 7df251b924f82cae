"""A clock that is set back, again and again, under a pipeline that runs every night."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from unittest import mock

import numpy as np

from embedstore.runs import writer
from embedstore.runs.registry import find_run
from embedstore.stores import base, contract
from embedstore.stores.base import Store, open_store
from embedstore.sync import gc, rollback, sync
from tests.builders import tiny_run
from tests.faults.report import Count, Tally
from tests.server_process import start_server

__all__ = ["clocks", "clocks_with_a_server"]

KEPT = 2
JUMPS = (*(timedelta(days=days) for days in (-4000, -30, -1, 0, 1, 40)), timedelta(hours=-1), timedelta(0))


def clocks(folder: Path, size: int) -> Count:
    """Each night the clock is set to another time, a run is trained, `latest` is synced, and gc is run.

    Whatever the clock says: `latest` is the run that was trained last, it becomes live, the history tells
    the flips in their order, `@movies~1` is the run of the night before, a rollback returns to it, and gc
    keeps the two newest. A run id, the time at which a collection is begun and that of a flip are each
    later than the last one in the same folder of runs or store.
    """
    tally = Tally("a clock set back", "embedded")
    _nights(tally, folder, size, lambda: open_store(folder / "store", create=True))
    return tally.count()


def clocks_with_a_server(folder: Path, size: int) -> Count:
    """The same on a server, whose own clock stays."""
    tally = Tally("a clock set back", "server")
    with start_server(folder / "qdrant") as server:
        _nights(tally, folder, size, lambda: open_store(server.url))
    return tally.count()


def _nights(tally: Tally, folder: Path, size: int, opened: Callable[[], Store]) -> None:
    rng = np.random.default_rng(7)
    trained: list[str] = []
    flips: list[str] = []
    for night in range(size):
        jump = JUMPS[int(rng.integers(0, len(JUMPS)))]
        with _clock(jump), tally.attempt(f"night {night}, the clock {jump} from now"):
            trained.append(tiny_run(folder, seed=night).run_id)
            run = find_run(folder / "runs")
            assert run.run_id == trained[-1], "latest is an older run"
            with opened() as store:
                assert sync(run, store).promoted
                flips.append(run.run_id)
                _check_history(store, flips)
                if night % 3 == 1:
                    assert rollback(store).run_id == flips[-2]
                    flips.append(flips[-2])
                    _check_history(store, flips)
                gc(store, keep=KEPT)
                kept = {f"movies__{run_id}" for run_id in [*trained[-KEPT:], flips[-1]]}
                assert set(store.collections()) == kept, "gc kept others than the newest"
            tally.outcome("set back" if jump < timedelta(0) else "set forward" if jump else "as it is")


def _check_history(store: Store, flips: list[str]) -> None:
    told = store.promotions("movies")
    there = [flip.run_id for flip in told]
    assert there == flips[-len(there) :], f"the history says {there}, it was {flips}"
    times = [flip.at for flip in told]
    assert times == sorted(times), times
    if len(flips) > 1:
        assert store.live("movies", 1).run_id == flips[-2]


@contextmanager
def _clock(jump: timedelta) -> Iterator[None]:
    """Let every module that asks for the time be told another one, for the time of the block."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            moment = datetime.now(tz) + jump
            return cls.fromisoformat(moment.isoformat())

    with (
        mock.patch.object(writer, "datetime", Clock),
        mock.patch.object(base, "datetime", Clock),
        mock.patch.object(contract, "datetime", Clock),
    ):
        yield
