"""SIGKILL of a command at any instant: what readers see is whole, and the same command again finishes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from embedstore.errors import NotFoundError
from embedstore.runs.debias import debiased
from embedstore.runs.manifest import MANIFEST
from embedstore.runs.registry import find_run
from embedstore.runs.run import Run
from embedstore.stores.base import Store, open_store
from embedstore.stores.connection import Connection, is_url
from embedstore.stores.contract import collection_name
from embedstore.sync import pin, sync, verify
from tests.builders import tiny_dataset, tiny_run, written
from tests.faults.forking import Forked, Forks, Instant
from tests.faults.report import Count, StoreKind, Tally
from tests.server_process import start_server

__all__ = [
    "SCENES",
    "SEED",
    "Scene",
    "World",
    "arrange",
    "hold",
    "instant_of",
    "of_commands",
    "of_commands_on_a_server",
]

SEED = 7
MOVIES = 30
ALIAS = "movies"
PROBE = re.compile("[a-z0-9_]{8}")  # the file by which its tempfile sees whether TMPDIR can be written
DEBIAS = 0.5
KILLED_AGAIN = 0.5  # of what a kill left unfinished


class World:
    """A store, a folder or a server, with runs of every kind in it, and what a command is given.

    old and older: what gc may take; pinned; canary: what another alias names; live: what movies names;
    coming: the run that is synced or promoted.
    """

    def __init__(self, folder: Path, location: str) -> None:
        self.location = location
        self._verified = set[bytes]()
        self.runs, self.temporary = folder / "runs", folder / "tmp"
        self.made, self.copied = folder / "made", folder / "copied"  # by train and restore; by copy
        self.temporary.mkdir(parents=True)
        self.data = written(folder / "data", tiny_dataset(n=MOVIES, n_users=30))
        names = ("older", "old", "pinned", "canary", "live", "coming")
        self.older, self.old, self.pinned, self.canary, self.live, self.coming = (
            tiny_run(folder, n=MOVIES, seed=day, run_id=f"2026010{day}t000000-000{day}")
            for day, _ in enumerate(names, start=1)
        )
        self.environment = {
            "TMPDIR": str(self.temporary),
            "EMBEDSTORE_STORE": location,
            "EMBEDSTORE_RUNS": str(self.runs),
        }
        with self.open() as store:
            for run in (self.canary, self.pinned, self.live):
                sync(run, store)
            store.promote("canary", name_of(self.canary))
            pin(store, self.pinned.run_id, why="a test")

    def open(self, location: str | None = None) -> Store:
        location = location or self.location
        return open_store(location, create=True, connection=Connection(grpc_port=0))

    @property
    def kind(self) -> StoreKind:
        return "server" if is_url(self.location) else "embedded"

    def verify(self, store: Store, name: str) -> None:
        """Verify a collection. A folder that is intact since it was verified is not read again."""
        record = Path(self.location) / "collections" / name / "collection.json"
        sealed = record.read_bytes() if record.exists() else b""
        if sealed not in self._verified or not store.intact(name):  # that is never known of a server's
            found = verify(store, name, find_run(self.runs, name.rpartition("__")[2]))
            assert found.count == MOVIES, found
            self._verified.add(sealed)

    def made_runs(self) -> list[Run]:
        """Return the sealed runs that train or restore made; raises RunError where one is damaged."""
        runs = [Run.load(path.parent) for path in self.made.glob(f"[!.]*/{MANIFEST}")]
        for run in runs:
            run.verify()
        return runs

    def a_minute_later(self) -> None:
        """Take the writer lock after the time for which what readers leave in a shard may be in use."""
        for left in Path(self.location).rglob(".atomicwrite*"):
            os.utime(left, (0, 0))
        with self.open() as store, store.writer():
            pass

    def leftovers(self) -> Iterator[str]:
        """Yield what no finished command leaves behind, by path or name."""
        for home in (self.made, self.runs, self.copied, Path(self.location)):
            for folder, folders, files in os.walk(home):
                yield from (f"{folder}/{name}" for name in [*folders, *files] if is_temporary(name))
        yield from (str(path) for path in self.temporary.iterdir() if not PROBE.fullmatch(path.name))
        yield from (str(path) for path in self.made.glob("*") if not (path / MANIFEST).exists())
        for store in (Path(self.location), self.copied):
            for collection in store.glob("collections/*"):
                record, kept = collection / "collection.json", set[str]()
                if record.exists():
                    kept = {record.name, "checked.json", json.loads(record.read_bytes())["generation"]}
                yield from (str(path) for path in collection.iterdir() if path.name not in kept)
                if not kept:
                    yield str(collection)
        with self.open() as opened:
            states = {name: opened.metadata(name).state for name in opened.collections()}
        yield from (f"{name} is {state}" for name, state in states.items() if state != "sealed")


@dataclass(frozen=True)
class Scene:
    """A command, how the world is before it, and how it is when it is done.

    turns: whether the command, given again, turns back what it did. deletes: whether it may take collections
    that are neither live nor pinned.
    """

    command: str
    arguments: Callable[[World], Sequence[str]]
    arrange: Callable[[World, Store], None]
    done: Callable[[World, Store], bool]
    turns: bool = False
    deletes: bool = False


@dataclass(frozen=True)
class Before:
    """What must still be there after a kill: sealed collections, and the history of the alias."""

    sealed: frozenset[str]
    flips: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, store: Store) -> Before:
        names = (name for name in store.collections() if store.metadata(name).state == "sealed")
        flips = [(flip.at, flip.collection) for flip in store.promotions(ALIAS)]
        return cls(frozenset(names), frozenset(flips[-50:]))  # the oldest of a hundred may go


def name_of(run: Run) -> str:
    return collection_name(ALIAS, run.reference)


def is_temporary(name: str) -> bool:
    return name.endswith(".tmp") or name.startswith((".atomicwrite", ".embedstore-scratch-"))


def is_live(run: Run, store: Store) -> bool:
    """Whether the alias names the collection of run."""
    return store.aliases().get(ALIAS) == name_of(run)


def without(run: Run, store: Store) -> None:
    for name in (name_of(run), name_of(debiased(run, DEBIAS))):
        with suppress(NotFoundError):
            store.drop(name)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# How the world is before each command


def only_live(world: World, store: Store) -> None:
    store.promote(ALIAS, name_of(world.live))
    without(world.coming, store)


def both_synced(world: World, store: Store) -> None:
    sync(world.coming, store, promote=False)
    store.promote(ALIAS, name_of(world.live))


def came_after_live(world: World, store: Store) -> None:
    both_synced(world, store)
    store.promote(ALIAS, name_of(world.coming))


def with_old_ones(world: World, store: Store) -> None:
    store.promote(ALIAS, name_of(world.live))
    for run in (world.older, world.old):
        sync(run, store, promote=False)


def nothing_made(world: World, store: Store) -> None:
    store.promote(ALIAS, name_of(world.live))
    emptied(world.made)
    emptied(world.copied)


def restored(world: World, _: Store) -> bool:
    return [run.fingerprint for run in world.made_runs()] == [world.live.fingerprint]


def copied(world: World, _: Store) -> bool:
    if not (world.copied / "embedstore.json").exists():
        return False
    with world.open(str(world.copied)) as store:
        if ALIAS not in store.aliases():
            return False
        return verify(store, ALIAS, world.live).count == MOVIES


def old_ones_gone(world: World, store: Store) -> bool:
    return not {name_of(run) for run in (world.older, world.old)} & set(store.collections())


SCENES = {
    scene.command: scene
    for scene in (
        Scene(
            "train",
            lambda world: ["train", "--data", str(world.data), "--preset=linear", "--runs", str(world.made)],
            nothing_made,
            lambda world, _: len(world.made_runs()) > 0,
        ),
        Scene(
            "sync",
            lambda world: ["sync", world.coming.run_id],
            only_live,
            lambda world, store: is_live(world.coming, store),
        ),
        Scene(
            "sync --debias",
            lambda world: ["sync", world.coming.run_id, "--debias", str(DEBIAS)],
            only_live,
            lambda world, store: is_live(debiased(world.coming, DEBIAS), store),
        ),
        Scene(
            "promote",
            lambda world: ["promote", world.coming.run_id],
            both_synced,
            lambda world, store: is_live(world.coming, store),
        ),
        Scene(
            "rollback",
            lambda _: ["rollback"],
            came_after_live,
            lambda world, store: is_live(world.live, store),
            turns=True,
        ),
        Scene(
            "gc",
            lambda _: ["gc", "--keep", "0"],
            with_old_ones,
            old_ones_gone,
            deletes=True,
        ),
        Scene(
            "copy",
            lambda world: ["copy", "@movies", "--to", str(world.copied), "--runs", str(world.made)],
            nothing_made,
            copied,
        ),
        Scene(
            "restore",
            lambda world: ["runs", "restore", "@movies", "--runs", str(world.made)],
            nothing_made,
            restored,
        ),
    )
}


def of_commands(folder: Path, size: int) -> list[Count]:
    """A command is killed by SIGKILL at a random instant: of time, or at one of its writes.

    After each kill the alias names a sealed collection that verifies against its run, and what was there or
    was reported is there still: the other collections, the pinned one and what another alias names, the
    history of the alias, the run that `train` sealed. The same command again ends with 0, and after it
    there is no temporary file, no folder that no record names, no collection that is half made or deleted;
    what a killed reader left within a shard is removed by the next command that writes, a minute later.
    Some of what was left unfinished is killed again before that.
    """
    with Forks(folder / "forks") as forks:
        return kills_of(World(folder / "world", str(folder / "store")), forks, size)


def of_commands_on_a_server(folder: Path, size: int) -> list[Count]:
    """The same of commands that write to a server, killed at a random instant or request."""
    with start_server(folder / "server") as server, Forks(folder / "forks") as forks:
        return kills_of(World(folder / "world", server.url), forks, size)


def kills_of(world: World, forks: Forks, size: int) -> list[Count]:
    """Kill size commands, in equal shares."""
    shares = [size // len(SCENES) + (number < size % len(SCENES)) for number in range(len(SCENES))]
    return [
        _kills_of(scene, world, forks, share) for scene, share in zip(SCENES.values(), shares, strict=True)
    ]


def _kills_of(scene: Scene, world: World, forks: Forks, size: int) -> Count:
    chance = random.Random(f"{SEED} {world.kind} {scene.command}")  # noqa: S311 - instants, not secrets
    tally = Tally(f"SIGKILL of `{scene.command}`", world.kind)
    arguments = scene.arguments(world)
    before = arrange(scene, world)
    whole = forks.run(arguments, world.environment | {"EMBEDSTORE_GRPC_PORT": "0"})
    assert whole.code == 0, whole.said
    finished = True
    for number in range(size):
        instant = instant_of(chance, whole, by_time=number % 2 == 0)
        command = f"`embedstore {' '.join(arguments)}` on an {world.kind} store"
        with tally.attempt(f"seed {SEED}, attempt {number}, {command}, killed at {instant}"):
            before = arrange(scene, world) if finished else before
            finished = True  # the next attempt begins anew, also where this one fails
            # By gRPC, many points travel without a step.
            rest = {} if instant.step is None else {"EMBEDSTORE_GRPC_PORT": "0"}
            killed = forks.run(arguments, world.environment | rest, instant)
            done = hold(scene, world, before)
            assert killed.code in (0, None), killed.said
            assert done or killed.code is None, "what was reported is lost"
            outcome = "half done" if any(world.leftovers()) else "not begun"
            if not done and number + 1 < size and chance.random() < KILLED_AGAIN:
                finished = False
            else:
                again = forks.run(arguments, world.environment)
                assert again.code == 0, again.said
                assert hold(scene, world, before) != (scene.turns and done), "the same command did nothing"
                world.a_minute_later()
                assert not (left := list(world.leftovers())), f"left behind: {left}"
                if outcome == "not begun" and not done:
                    whole = replace(whole, seconds=again.seconds)
            if done:
                outcome = "done, unreported" if killed.code is None else "reported before"
            tally.outcome(outcome)
    return tally.count()


def instant_of(chance: random.Random, whole: Forked, *, by_time: bool) -> Instant:
    if by_time:
        return Instant(seconds=chance.uniform(0, whole.seconds))
    return Instant(step=chance.randint(1, whole.steps))


def arrange(scene: Scene, world: World) -> Before:
    """Make the world as scene begins; return what must outlive it."""
    with world.open() as store:
        history = _history(store)
        scene.arrange(world, store)
        # What was live is in the history, also where its flip was killed before it was noted.
        assert " ".join(history[-50:]) in " ".join(_history(store)), "a flip that was reported is forgotten"
        return Before.of(store)


def _history(store: Store) -> list[str]:
    return [flip.collection for flip in store.promotions(ALIAS)]


def hold(scene: Scene, world: World, before: Before) -> bool:
    """Assert what must hold at any instant; return whether the command is done."""
    with world.open() as store:
        aliases = store.aliases()
        assert aliases.keys() == {ALIAS, "canary"}, aliases
        world.verify(store, aliases[ALIAS])
        assert aliases["canary"] == name_of(world.canary), aliases
        assert store.metadata(name_of(world.pinned)).pinned is not None, "the pin is lost"
        kept = {name_of(run) for run in (world.live, world.pinned, world.canary)}
        for name in kept if scene.deletes else before.sealed:
            assert store.metadata(name).state == "sealed", f"{name} is {store.metadata(name).state}"
        flips = {(flip.at, flip.collection) for flip in store.promotions(ALIAS)}
        assert before.flips <= flips, f"forgotten: {before.flips - flips}"
        return scene.done(world, store)
