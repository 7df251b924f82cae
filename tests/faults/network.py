"""Network faults: every command through a proxy that breaks its requests, then again without the proxy."""

from __future__ import annotations

import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run
from embedstore.stores.base import Store
from embedstore.stores.contract import collection_name
from embedstore.sync import sync, verify
from tests.faults.flips import HISTORY, Place, Readers, Truth, count_of, two_runs
from tests.faults.proxy import GRPC_FAULTS, REST_FAULTS, FaultProxy, at, at_random, from_then_on
from tests.faults.report import Count, Mixed, Tally
from tests.server_process import start_server

__all__ = ["broken_grpc", "broken_requests", "flaky_network", "silent_server"]

KEY = "no-message-may-show-this-key-0123456789"
EXIT_CODES = {0, 1, 3, 4, 5}  # of a command that a person has typed right
LONGEST = 60.0  # seconds, for a command of whose requests one goes wrong, or all from one on
LONGEST_SYNC = 300.0
_WAITING = {"stall", "no answer", "late answer", "drip"}  # faults that take their time
_SHORT_STALL, _LONG_STALL = 0.3, 10.0
_BEYOND_A_FLIP = 2.0
_LONG_FROM = 5  # requests, from which on the campaign takes its time
_RATE = 0.15


@dataclass(frozen=True)
class _Command:
    """A command of the program, what is there before it, and which run is live after it."""

    name: str
    arguments: Sequence[str]
    prepare: Callable[[Store, Run, Run], object]
    live_after: int  # the first run or the second
    gone_after: bool = False  # whether the other one's collection is

    def __str__(self) -> str:
        return self.name


def _synced(store: Store, first: Run, second: Run) -> None:
    """The second run has a collection, and the first is live."""
    sync(second, store, promote=False)
    sync(first, store)


def _not_synced(store: Store, first: Run, second: Run) -> None:
    sync(first, store)
    if store.exists(_name(second)):
        store.drop(_name(second))


def _second_live(store: Store, first: Run, second: Run) -> None:
    _synced(store, first, second)
    store.promote("movies", _name(second))


def _commands(second: Run) -> list[_Command]:
    history = ",".join(map(str, HISTORY))
    return [
        _Command("sync", ["sync", second.run_id], _not_synced, 1),
        _Command("promote", ["promote", second.run_id], _synced, 1),
        _Command("rollback", ["rollback"], _second_live, 0),
        _Command("query", ["query", "--history", history, "--json"], _second_live, 1),
        _Command("verify", ["verify"], _second_live, 1),
        _Command("gc", ["gc", "--keep", "0"], _second_live, 1, gone_after=True),
    ]


@dataclass(frozen=True)
class _Outcome:
    code: int
    out: str
    said: str
    seconds: float


class _Bench:
    """A server with a key and two runs, a proxy before it, and a store opened past the proxy."""

    def __init__(self, place: Place, proxy: FaultProxy, store: Store, runs: Sequence[Run]) -> None:
        self.place, self.proxy, self.store, self.runs = place, proxy, store, runs
        self.commands = _commands(runs[1])

    def attempt(self, command: _Command, *, grpc: bool = False, clean: bool = False) -> _Outcome:
        """Run a command in this process, through the proxy unless clean."""
        url = self.place.store if clean else self.proxy.url
        port = str(self.proxy.grpc_port) if grpc and not clean else "0"
        where = ["--store", url, "--grpc-port", port]
        if command.name != "gc" and command.name != "rollback":
            where += ["--runs", str(self.place.runs_dir)]
        started = time.perf_counter()
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as said:
            code = embedstore([*command.arguments, *where])
        return _Outcome(code, out.getvalue(), said.getvalue(), time.perf_counter() - started)

    def positions(self, command: _Command, way: str) -> list[int]:
        """Return where a command's requests are, those that repeat the one before left out."""
        command.prepare(self.store, *self.runs)
        before = len(self.proxy.requests)
        self.proxy.restart()
        done = self.attempt(command, grpc=way == "grpc")
        assert done.code == 0, done
        if way == "grpc":
            return list(range(1, self.proxy.seen[way] + 1))
        made = [(request.method, request.path) for request in self.proxy.requests[before:]]
        return [n for n, request in enumerate(made, start=1) if n == 1 or request != made[n - 2]]

    def try_it(
        self, tally: Tally, command: _Command, reproduction: str, **choices: Callable[[int], str | None]
    ) -> None:
        """Let the proxy do its worst to a command, and look at what must hold; see broken_requests."""
        with tally.attempt(f"{command}, {reproduction}"):
            command.prepare(self.store, *self.runs)
            self.proxy.restart(**choices)
            done = self.attempt(command, grpc="grpc" in choices)
            met = bool(self.proxy.done)
            self.proxy.restart()
            self._check_words(command, done)
            live = self._check_live()
            if done.code == 0:
                self._check_done(command, done)
                tally.outcome("done" if met else "met no fault, done")
                return
            # Where only the answer to a rollback was lost, another one would undo it.
            if not (command.name == "rollback" and live is self.runs[command.live_after]):
                again = self.attempt(command, clean=True)
                assert again.code == 0, again
                self._check_done(command, again)
            tally.outcome(f"said so ({done.code}), done by the next")

    def beyond_a_flip(self, tally: Tally, fault: str, position: int) -> None:
        """Let a request of `query`, or its answer, outlast a flip and the gc after it."""
        with tally.attempt(f"query, {fault} at request {position}, beyond a flip and gc"):
            _second_live(self.store, *self.runs)
            self.proxy.restart(rest=at(position, fault))
            first, second = self.runs
            query = next(command for command in self.commands if command.name == "query")

            def flip_and_delete() -> None:
                while not self.proxy.done:
                    time.sleep(0.001)
                self.store.promote("movies", _name(first))
                self.store.drop(_name(second))

            with ThreadPoolExecutor(1) as pool:
                flipping = pool.submit(flip_and_delete)
                done = self.attempt(query)
                flipping.result()
            self.proxy.restart()
            self._check_words(query, done)
            assert done.code == 0, done
            tally.outcome(
                f"answered by the {'old' if _check_answer(done, self.runs) is second else 'new'} run"
            )

    def _check_words(self, command: _Command, done: _Outcome) -> None:
        assert done.code in EXIT_CODES, done
        assert KEY not in done.said + done.out
        assert "Traceback" not in done.said, done
        assert "defect" not in done.said, done
        errors = [line for line in done.said.splitlines() if line.startswith("Error: ")]
        assert len(errors) == int(done.code != 0), done
        assert done.seconds < (LONGEST_SYNC if command.name == "sync" else LONGEST), done

    def _check_live(self) -> Run:
        """Return the run that is live. It has to be whole, and the last one of the history."""
        target = str(self.store.aliases().get("movies"))
        live = next((run for run in self.runs if target == _name(run)), None)
        assert live is not None, target
        verify(self.store, target, live)
        flips = self.store.promotions("movies")
        assert flips[-1].collection == target, flips[-3:]
        noted = [flip.at for flip in flips if flip.at]
        assert noted == sorted(set(noted)), flips
        assert all(one.collection != two.collection for one, two in itertools.pairwise(flips)), flips
        return live

    def _check_done(self, command: _Command, done: _Outcome) -> None:
        live, other = self.runs[command.live_after], self.runs[1 - command.live_after]
        assert self._check_live() is live, (command.name, done)
        if command.gone_after:
            assert not self.store.exists(_name(other)), done
        if command.name == "query":
            _check_answer(done, self.runs)


def _check_answer(done: _Outcome, runs: Sequence[Run]) -> Run:
    """Return the run that has answered, and alone."""
    answer = json.loads(done.out)
    (run,) = (run for run in runs if run.run_id == answer["run_id"])
    if [movie["movie_id"] for movie in answer["recommendations"]] != Truth.of(run).movie_ids:
        raise Mixed(done.out)
    return run


def _name(run: Run) -> str:
    return collection_name("movies", run.run_id)


@contextmanager
def _bench(folder: Path, stall: float) -> Iterator[_Bench]:
    runs = two_runs(folder)
    with (
        patch.dict(os.environ, EMBEDSTORE_QDRANT_API_KEY=KEY),
        start_server(folder / "server", env={"QDRANT__SERVICE__API_KEY": KEY}) as server,
        FaultProxy(server, stall=stall) as proxy,
    ):
        place = Place(runs[0].path.parent, server.url, KEY)
        with place.opened() as store:
            yield _Bench(place, proxy, store, runs)
        assert any(KEY in request.headers.values() for request in proxy.requests)


def _spread(positions: Sequence[int], size: int) -> list[int]:
    """Return size of the positions, evenly, or all."""
    size = min(size, len(positions))
    return [positions[int(len(positions) * (step + 0.5) / size)] for step in range(size)]


def broken_requests(folder: Path, size: int) -> list[Count]:
    """sync, promote, rollback, query, verify and gc go through a proxy that does one thing to one request
    of theirs, up to `size` of them for each fault and command, spread over all that it makes; to a fifth of
    these what takes long: a stall of ten seconds, one without an answer after it, a late answer (to a
    request that did arrive), a drip. Readers ask the server itself all the while. At last, requests of
    query stall, or their answers are late, while the alias moves and what it named is deleted.

    The command ends well, and then the collection equals its run, the alias and the history are right; or
    it says so in one sentence, with an exit code of the documented ones, within a minute, and the same
    command without the proxy ends well. What the alias names is whole at any time, readers see nothing
    else, and no word of it holds the key.
    """
    stall = _LONG_STALL if size >= _LONG_FROM else _SHORT_STALL
    with _bench(folder, stall) as bench:
        _synced(bench.store, *bench.runs)
        started = time.perf_counter()
        with Readers(bench.place, ["query", "raw history"], pause=0.02) as readers:
            tallies = {fault: Tally(f"{fault}, REST", "server") for fault in REST_FAULTS}
            for command in bench.commands:
                positions = bench.positions(command, "rest")
                for fault, tally in tallies.items():
                    for position in _spread(positions, -(-size // 5) if fault in _WAITING else size):
                        bench.try_it(
                            tally, command, f"{fault} at request {position}", rest=at(position, fault)
                        )
            bench.proxy.stall = _BEYOND_A_FLIP
            beyond = Tally("stall or late answer beyond a flip and gc, REST", "server")
            for fault in ("stall", "late answer"):
                for position in (1, 2, 3, 4):
                    bench.beyond_a_flip(beyond, fault, position)
        counts = [tally.count() for tally in [*tallies.values(), beyond]]
        return counts + [count_of(found, "network faults", "server", started) for found in readers.findings]


def silent_server(folder: Path, size: int) -> list[Count]:
    """A server that accepts requests and answers none, from the first, third or 15th of a command on:
    `size` of the commands query, promote, rollback, verify, gc and sync. Each has to give up in a sentence
    within a minute, sync within five, and to end well afterwards.
    """
    with _bench(folder, 2 * LONGEST_SYNC) as bench:
        tally = Tally("no answer any more, REST", "server")
        for command in sorted(bench.commands, key=lambda command: command.name == "sync")[:size]:
            for position in (1, 3, 15):
                bench.try_it(
                    tally,
                    command,
                    f"no answer from request {position} on",
                    rest=from_then_on(position, "no answer"),
                )
        return [tally.count()]


def broken_grpc(folder: Path, size: int) -> list[Count]:
    """The same where points travel by gRPC, whose bytes the proxy delays, drips or breaks off at one of the
    pieces that sync and verify send, up to `size` of them for each fault.
    """
    stall = _LONG_STALL if size >= _LONG_FROM else _SHORT_STALL
    with _bench(folder, stall) as bench:
        tallies = {fault: Tally(f"{fault}, gRPC", "server") for fault in GRPC_FAULTS}
        for command in bench.commands:
            if command.name not in ("sync", "verify"):
                continue
            positions = bench.positions(command, "grpc")
            for fault, tally in tallies.items():
                for position in _spread(positions, size):
                    bench.try_it(tally, command, f"{fault} at piece {position}", grpc=at(position, fault))
        return [tally.count() for tally in tallies.values()]


def flaky_network(folder: Path, size: int) -> list[Count]:
    """The same where every request has its own luck: one in seven meets a fault, drawn from a seed,
    for `size` seeds. A stall is short here.
    """
    with _bench(folder, _SHORT_STALL) as bench:
        tally = Tally(f"one of {len(REST_FAULTS)} faults for one request in seven", "server")
        for seed in range(size):
            for command in bench.commands:
                bench.try_it(tally, command, f"seed {seed}", rest=at_random(_RATE, [*REST_FAULTS], seed))
        return [tally.count()]
