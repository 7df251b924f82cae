"""Flipped bits: over every file of a run, of an embedded store, and of a collection that is being built."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from embedstore.errors import RunError
from embedstore.loaders import load
from embedstore.runs.evaluation import add_evaluation
from embedstore.runs.run import Run
from embedstore.stores.base import Store, open_store
from embedstore.sync import sync, verify
from embedstore.training.config import TrainConfig
from tests.builders import tiny_dataset, tiny_run, written
from tests.faults.forked import answer_of, printed
from tests.faults.report import Count, Tally

__all__ = ["bits_of_a_building_collection", "bits_of_a_run", "bits_of_a_store"]

SUM, BENT = "20260101t000000-aaaa", "20260102t000000-bbbb"  # psi of the one is additive, of the other dense
USERS = (1, 2, 5)


def bits_of_a_run(folder: Path, size: int) -> Count:
    """A bit is flipped in a file of a run or in its evaluation, then every command that reads runs is run.

    Each command either answers as before, or refuses in one sentence that names the file; and where any
    command reads the file, one refuses. `Run.verify` names every file of the folder. The manifest and the
    evaluation carry a digest of their own. The other digests are in the manifest, and a file is compared
    with them before its first use.
    """
    tally, rng = Tally("a flipped bit in a run", "-"), _rng()
    data = load(written(folder / "data" / "small", tiny_dataset(n=60, n_users=40)))
    kept = {
        "headline": "ndcg@10",
        "ndcg@10": 0.25,
        "intervals": {"ndcg@10": [0.2, 0.3]},
        "users": {"scored": 9},
    }
    before: dict[tuple[str, ...], tuple[int, str, str]] = {}
    config = TrainConfig(test_share=0.4).to_dict()
    runs = [
        tiny_run(folder, run_id=run_id, dataset=data, config=config, additive=run_id == SUM)
        for run_id in (SUM, BENT)
    ]
    with _inside(folder), open_store("store", create=True) as store:
        for run in runs:
            sync(run, store)
            add_evaluation(run.path, {"serving": kept})
        for run in runs:
            before |= {command: _told(command) for command in _commands(run.run_id)}
        for number in range(size):
            run = runs[number % 2]
            files = sorted(path for path in run.path.parent.rglob("*") if _is_of(path, run))
            path = rng.choice([path for path in files if path.stat().st_size])
            name = str(path.relative_to(run.path)) if path.is_relative_to(run.path) else path.name
            with _flipped(path, rng) as bit, tally.attempt(f"bit {bit} of {name} of {run.run_id}"):
                refused = 0
                for command in _commands(run.run_id):
                    code, out, err = _told(command)
                    if (code, out) != before[command][:2]:
                        assert name in out + err or (name == "manifest.json" and run.run_id in err), (
                            command,
                            err,
                        )
                        assert code != 0 or command == ("runs", "list"), command
                        assert err.count("\n") == (code != 0), err
                        refused += 1
                if path.is_relative_to(run.path):
                    with pytest.raises(
                        RunError, match=re.escape(name if name != "manifest.json" else run.run_id)
                    ):
                        Run.load(run.path).verify()
                unread = ["metrics.json", "training.jsonl"] + ["tower.json"] * run.additive
                assert refused or name in unread, f"{name} is used as it is"
                tally.outcome("refused by name" if refused else "read by no command, verify names it")
    return tally.count()


def bits_of_a_store(folder: Path, size: int) -> Count:
    """A bit is flipped in a file of an embedded store with two runs, one of them live; a new process asks it.

    It gives every movie with its score to several users, and the payload, exactly as before, or refuses in
    one sentence; it does not crash or hang. After a refusal, `sync` (of a damaged alias: `promote`)
    mends it in the same process or the next, and it answers as before.
    """
    tally, rng = Tally("a flipped bit in a store", "embedded"), _rng()
    older, run = tiny_run(folder, run_id=SUM, seed=1), tiny_run(folder, run_id=BENT)
    home, damaged = folder / "store", folder / "damaged"
    with open_store(home, create=True) as store:
        sync(older, store)
        sync(run, store)
    before = _asked(home, lambda store: _everything(store, run))
    assert isinstance(before, list), before
    for _ in range(size):
        shutil.rmtree(damaged, ignore_errors=True)
        _copy(home, damaged)
        files = sorted(path for path in damaged.rglob("*") if path.is_file() and path.stat().st_size)
        path = rng.choice(files)
        with (
            _flipped(path, rng, keep=True) as bit,
            tally.attempt(f"bit {bit} of {path.relative_to(damaged)}"),
        ):
            answer = _asked(damaged, lambda store: _everything(store, run))
            if answer == before:
                tally.outcome("answers unchanged")
                continue
            assert isinstance(answer, str), "the answers differ"
            assert "\n" not in answer, answer
            if path.name == "embedstore.json":
                tally.outcome("refused, the file is to be restored")
                continue
            mended = _asked(damaged, partial(_mend, older=older, run=run, path=path))
            assert mended == "mended", mended
            assert _asked(damaged, lambda store: _everything(store, run)) == before, "not mended"
            tally.outcome("refused, then mended")
    return tally.count()


def bits_of_a_building_collection(folder: Path, size: int) -> Count:
    """A sync ends after its first batch, a bit is flipped in what it wrote, and the same sync is run again.

    It finishes, and the collection verifies: what is there is read in another process first, where it may
    crash or hang, then compared point by point.
    """
    tally, rng = Tally("a flipped bit in an unfinished collection", "embedded"), _rng()
    run = tiny_run(folder)
    home, damaged = folder / "store", folder / "damaged"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with open_store(home, create=True) as store:
        try:
            sync(run, store, progress=stop)
        except KeyboardInterrupt:
            store.close()
    for _ in range(size):
        shutil.rmtree(damaged, ignore_errors=True)
        _copy(home, damaged)
        files = sorted(path for path in (damaged / "collections").rglob("*") if path.is_file())
        path = rng.choice([path for path in files if path.stat().st_size])
        with (
            _flipped(path, rng, keep=True) as bit,
            tally.attempt(f"bit {bit} of {path.relative_to(damaged)}"),
        ):
            done = _asked(damaged, lambda store: _finish(store, run))
            assert done in ("created", "resumed", "rebuilt"), done
            tally.outcome(f"finished, {done}")
    return tally.count()


def _rng() -> random.Random:
    return random.Random(7)  # noqa: S311 - places, not secrets


def _commands(run_id: str) -> list[tuple[str, ...]]:
    reading = [
        ("runs", "list"),
        ("runs", "show", run_id, "--json"),
        ("runs", "show", run_id, "--norms"),
        ("sync", run_id, "--no-promote"),
        ("plan", run_id, "--no-promote"),
        ("verify", run_id),
        ("embed", "--user", "2", "--run", run_id),
        ("query", "--history", "3,9,27", "--run", run_id, "--json"),
        ("query", "--user", "2", "--run", run_id, "--json"),
        ("similar", "3", "--run", run_id, "--json"),
        ("export", run_id, "--npz", "-o", "exported"),
    ]
    return [tuple(command) for command in reading]


def _told(command: tuple[str, ...]) -> tuple[int, str, str]:
    shutil.rmtree("exported", ignore_errors=True)
    return printed(*command)


def _is_of(path: Path, run: Run) -> bool:
    return path.is_file() and run.run_id in str(path)


def _everything(store: Store, run: Run) -> list[Any]:
    """Return what users of a live run are given, to the last movie, and the vectors of some movies."""
    name = store.live("movies").collection
    assert store.metadata(name).run_id == run.run_id
    n = len(run.movies)
    vectors = [run.tower(run.history(user)) for user in USERS]
    hits = [hit for vector in vectors for hit in store.search(name, vector, limit=n)]
    told = [[hit.movie_id, hit.score, dict(hit.payload)] for hit in hits]
    return [told, store.vectors_of(name, [1, n // 2, n]).tolist(), store.promotions("movies")[-1].collection]


def _mend(store: Store, older: Run, run: Run, path: Path) -> str:
    """Do what the sentence of a damaged file says, as the person on call does."""
    if path.parent.name == "aliases":
        store.promote("movies", f"movies__{run.run_id}")
    else:
        sync(older if older.run_id in str(path) else run, store, promote=False)
    return "mended"


def _finish(store: Store, run: Run) -> str:
    state = sync(run, store).state
    assert verify(store, "movies", run).count == len(run.movies)
    return state


def _asked(folder: Path, ask: Callable[[Store], Any]) -> Any:
    """Return what ask says of a store in a process of its own, or how it was refused."""

    def opened() -> Any:
        with open_store(folder) as store:
            return ask(store)

    return answer_of(opened)


@contextmanager
def _flipped(path: Path, rng: random.Random, *, keep: bool = False) -> Iterator[int]:
    """Flip a bit of a file, for the time of the block unless keep, and yield which."""
    content = path.read_bytes()
    # The larger part of a shard's files is zeros without a meaning: every second bit is one of the rest.
    used = [at for at, byte in enumerate(content[: 1 << 20]) if byte]
    at = rng.choice(used) if used and rng.random() < 0.5 else rng.randrange(len(content))
    bit = 8 * at + rng.randrange(8)
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes([content[at] ^ 1 << bit % 8]))
    try:
        yield bit
    finally:
        if not keep:
            path.write_bytes(content)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder, its holes as holes, and the times of its files with them."""
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
