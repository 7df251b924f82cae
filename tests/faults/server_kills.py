"""SIGKILL of the server while a command writes to it: it says so or carries on, and nothing is lost."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from pathlib import Path

from tests.faults.forking import Forked, Forks, Instant
from tests.faults.kills import SCENES, SEED, Scene, World, arrange, hold, instant_of
from tests.faults.report import Count, Tally
from tests.server_process import Server, start_server

__all__ = ["of_the_server"]

COMMANDS = ("sync", "promote", "gc")
AWAY = 6  # every so many kills the server comes back only when the command has given up
UNREACHABLE = 5


def of_the_server(folder: Path, size: int) -> list[Count]:
    """The server is killed by SIGKILL while a command writes to it, and started again on its data.

    At a random instant or right before a request, so also around the flip of the alias. It is back a moment
    later, or only when the command has given up. The command ends with 0, or says in one sentence that the
    store gives no answer and ends with 5. What must hold of the store is what must hold where the command
    is killed.
    """
    shares = [size // len(COMMANDS) + (number < size % len(COMMANDS)) for number in range(len(COMMANDS))]
    with start_server(folder / "server") as server, Forks(folder / "forks") as forks:
        world = World(folder / "world", server.url)
        return [
            _kills_during(SCENES[command], world, server, forks, share)
            for command, share in zip(COMMANDS, shares, strict=True)
        ]


def _kills_during(scene: Scene, world: World, server: Server, forks: Forks, size: int) -> Count:
    chance = random.Random(f"{SEED} of the server, {scene.command}")  # noqa: S311 - instants, not secrets
    tally = Tally(f"SIGKILL of the server during `{scene.command}`", "server")
    arrange(scene, world)
    whole = forks.run(scene.arguments(world), world.environment)
    assert whole.code == 0, whole.said
    for number in range(size):
        instant, away = instant_of(chance, whole, by_time=number % 2 == 0), number % AWAY == AWAY - 1
        back = "after the command" if away else "at once"
        with tally.attempt(f"seed {SEED}, attempt {number}, `{scene.command}` at {instant}, back {back}"):
            before = arrange(scene, world)
            ended = _run(scene, world, server, forks, instant, away=away)
            done = hold(scene, world, before)
            assert ended.code in (0, UNREACHABLE), ended.said
            assert done or ended.code == UNREACHABLE, "what was reported is lost"
            if ended.code == UNREACHABLE:
                assert ended.said.startswith(f"Error: store {server.url} "), ended.said
                assert ended.said.count("\n") == 1, ended.said
            again = forks.run(scene.arguments(world), world.environment)
            assert again.code == 0, again.said
            assert hold(scene, world, before), "the same command did nothing"
            assert not (left := list(world.leftovers())), f"left behind: {left}"
            tally.outcome("said so, exit code 5" if ended.code else "carried on")
    return tally.count()


def _run(scene: Scene, world: World, server: Server, forks: Forks, instant: Instant, *, away: bool) -> Forked:
    """Run the command, kill the server at the instant or else at its end, and start the server again."""

    process = server.process

    def bring_back() -> None:
        process.wait()
        if not away:
            server.start()

    waiting = threading.Thread(target=bring_back)
    killing = threading.Timer(instant.seconds or 0.0, process.kill)
    waiting.start()
    try:
        if instant.seconds is not None:
            killing.start()
        at_step = replace(instant, seconds=None, process=process.pid)
        return forks.run(scene.arguments(world), world.environment, at_step)
    finally:
        killing.cancel()
        process.kill()
        waiting.join()
        if away:
            server.start()
