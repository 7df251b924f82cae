"""A disk that is full, to every level, and folders that cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from embedstore.loaders import load
from embedstore.runs.registry import find_run
from embedstore.stores.base import open_store
from embedstore.sync import sync
from embedstore.training.config import TrainConfig
from tests.builders import tiny_dataset, tiny_run, written
from tests.faults.forked import told
from tests.faults.report import Count, Tally

__all__ = ["full_disk", "read_only", "small_disk"]

LIVE, NEW = "20260101t000000-aaaa", "20260102t000000-bbbb"
MEGABYTES = 100
MOVIES = 400

# What writes to the disk, the room that it takes at most, and what it leaves there.
COMMANDS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "sync": (("sync", NEW), 6_000_000, ""),
    "a resumed sync": (("sync", NEW, "--store", "begun"), 6_000_000, ""),
    "copy": (("copy", LIVE, "--to", "other"), 6_000_000, ""),
    "restore": (("runs", "restore", "--runs", "restored"), 120_000, ""),
    "train": (("train", "--preset", "linear", "--data", "small"), 300_000, ""),
    "evaluate": (
        ("evaluate", LIVE, "--no-baselines", "--protocol", "serving"),
        6_000,
        f"runs/{LIVE}.evaluation.json",
    ),
    "query -o": (("query", "--users-file", "users", "-k", "100", "-o", "out.csv"), 60_000, "out.csv"),
    "export -o": (("export", LIVE, "--npz", "-o", "out"), 40_000, "out"),
    "promote": (("promote", NEW, "--store", "two"), 3_000, ""),
    "rollback": (("rollback", "--store", "two"), 3_000, ""),
    "pin": (("pin", NEW, "--store", "two"), 8_000, ""),
}


def full_disk(folder: Path, size: int) -> Count:
    """A disk of 100 MB is filled to a random level, from no byte left to more than a command needs.

    Then a command that writes to it is run. It succeeds, or ends with code 1 and one sentence; what it was
    to write is not there or whole. The alias serves the run that it named, to `query` on the full disk. Once
    there is room, the same command succeeds, and all runs and collections verify.
    """
    tally, rng = Tally("a full disk", "embedded"), np.random.default_rng(7)
    pristine, disk = folder / "pristine", folder / "disk"
    _fill(pristine)
    with small_disk(disk):
        for number in range(size):
            what = list(COMMANDS)[number % len(COMMANDS)]
            arguments, most, made = COMMANDS[what]
            left = int(rng.integers(0, most)) if rng.random() < 0.8 else int(rng.integers(0, 5)) * 4096
            work = disk / "work"
            shutil.rmtree(work, ignore_errors=True)
            subprocess.run(["cp", "-a", "--sparse=always", pristine, work], check=True)
            before = told(work, "query", "--history", "1,2,3", "--json")[:2]
            with tally.attempt(f"{what}, {left} bytes left"):
                with _ballast(disk / "ballast", left):
                    code, _, err = told(work, *arguments)
                    if code:
                        assert (code, err.count("\n")) == (1, 1), err
                        assert err.startswith("Error: "), err
                        assert not (made and (work / made).exists()), f"{made} is half there: {err}"
                        asked, out, err = told(work, "query", "--history", "1,2,3", "--json")
                        assert (asked, out) == before, f"does not serve on: {err}"
                again, _, err_again = told(work, *arguments)
                assert again == 0 or (not code and what in ("export -o", "rollback")), err_again
                _check(work)
                tally.outcome(f"{what}: refused, then done" if code else f"{what}: done")
    return tally.count()


READING = (
    ("query", "--user", "3", "--json"),
    ("query", "--user", "3", "--run", NEW, "--json"),
    ("embed", "--user", "3"),
    ("similar", "3", "--json"),
    ("contract",),
    ("verify",),
    ("plan", NEW),
    ("history", "--json"),
    ("gc", "--dry-run"),
    ("runs", "list", "--json"),
    ("runs", "show", "--json"),
    ("runs", "compare", LIVE, NEW, "--data", "small", "--json"),
    ("data", "describe", "small"),
)
# By the folder that is read-only: what it stops, and what it does not.
WRITING = {
    "store": (
        ("sync", NEW),
        ("promote", NEW),
        ("rollback",),
        ("pin", NEW),
        ("gc", "--keep", "0"),
        ("copy", NEW, "--store", "two", "--to", "store"),
    ),
    "runs": (
        ("train", "--preset", "linear", "--data", "small"),
        ("evaluate", LIVE, "--no-baselines", "--protocol", "serving"),
        ("runs", "rm", NEW),
        ("query", "--user", "3", "-o", "runs/out.csv"),
        ("export", LIVE, "--npz", "-o", "runs/out"),
    ),
    "data": (),
    ".": (("sync", NEW), ("train", "--preset", "linear", "--data", "small"), ("export", LIVE, "--npz")),
}
STILL = {
    "store": (("evaluate", LIVE, "--no-baselines", "--protocol", "serving"),),
    "runs": (("sync", NEW, "--store", "begun"), ("promote", NEW, "--store", "two")),
    "data": (("train", "--preset", "linear", "--data", "small"), ("sync", NEW)),
    ".": (),
}


def read_only(folder: Path, size: int) -> Count:
    """The folder of the runs, of the store, of the data, or of embedstore.toml is mounted read-only.

    Every command that only reads answers as before. Every one that would write there ends with code 1 and
    one sentence, and writes nothing; one that writes elsewhere succeeds.
    """
    tally, work = Tally("a read-only folder", "embedded"), folder / "work"
    _fill(work)
    (work / "embedstore.toml").write_text('alias = "movies"\n', encoding="utf-8")
    assert told(work, "sync", NEW)[0] == 0
    assert told(work, "sync", LIVE)[0] == 0
    cases = [
        (place, command, kind)
        for place in WRITING
        for kind, commands in (("reads", READING), ("refused", WRITING[place]), ("goes on", STILL[place]))
        for command in commands
    ]
    for place, command, kind in cases[:: max(1, len(cases) // size)]:
        with tally.attempt(f"{place} is read-only, `embedstore {' '.join(command)}`"):
            before = told(work, *command)[:2] if kind == "reads" else None
            with _mounted_read_only(work / place):
                code, out, err = told(work, *command)
            if kind == "reads":
                assert (code, out) == before, (code, err)
            elif kind == "goes on":
                assert code == 0, err
            else:
                assert (code, err.count("\n"), err[:7]) == (1, 1, "Error: "), (code, err)
            tally.outcome({"reads": "answers as before", "goes on": "writes elsewhere"}.get(kind, kind))
    return tally.count()


@contextmanager
def _mounted_read_only(path: Path) -> Iterator[None]:
    """Bind path to itself, read-only: root may write whatever the modes say. Skips where that cannot be."""
    for command in (("mount", "--bind", path, path), ("mount", "-o", "remount,bind,ro", path)):
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("NO READ-ONLY FOLDER: only root may mount one, and not in every container")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def _check(work: Path) -> None:
    """Raise AssertionError where a run or a live collection does not verify, or a temporary file is there."""
    for folder in (work / "runs", work / "restored"):
        for path in folder.glob("2*t*-????"):
            find_run(folder, path.name).verify()
    for name in ("store", "begun", "other", "two"):
        if (work / name / "aliases").exists():
            code, _, err = told(work, "verify", "--store", name)
            assert code == 0, err
    left = [path.name for path in work.rglob("*") if path.name.endswith(".tmp") or "scratch" in path.name]
    assert not left, left


def _fill(folder: Path) -> None:
    """Make a data set, two runs of it, and three stores: one live, one begun, one with both."""
    dataset = tiny_dataset(n=MOVIES, n_users=200)
    data = load(written(folder / "data" / "small", dataset))
    config = TrainConfig(test_share=0.4).to_dict()
    live, new = (
        tiny_run(folder, run_id=run_id, dataset=data, config=config, seed=seed)
        for run_id, seed in ((LIVE, 0), (NEW, 1))
    )
    for name, runs in (("store", [live]), ("begun", [live]), ("two", [new, live])):
        with open_store(folder / name, create=True) as store:
            for run in runs:
                sync(run, store)
    with open_store(folder / "begun") as store, suppress(KeyboardInterrupt):
        sync(new, store, progress=_stop)
    (folder / "users").write_text("".join(f"{user}\n" for user in data.users.values[:20].tolist()))


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _ballast(path: Path, left: int) -> Iterator[None]:
    """Fill the disk of path until left bytes are free, for the time of the block."""
    os.sync()
    with open(path, "wb") as file:
        while (free := shutil.disk_usage(path.parent).free) > left:
            try:
                os.posix_fallocate(file.fileno(), file.tell(), min(free - left, 1 << 20))
                file.seek(min(free - left, 1 << 20), os.SEEK_CUR)
            except OSError:
                break
    try:
        yield
    finally:
        path.unlink()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mount a file system of 100 MB at folder, of the kind that real disks have: ext4 in a file.

    Skips the test where that is not possible: only root may, and not in every container.
    """
    folder.mkdir()
    image = folder.with_suffix(".img")
    commands = (
        ("truncate", "-s", f"{MEGABYTES}M", image),
        ("mkfs.ext4", "-q", "-F", "-m", "0", image),
        ("mount", "-o", "loop", image, folder),
    )
    for command in commands:
        if not shutil.which(command[0]) or subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"NO SMALL DISK: {command[0]} does not work here; it takes root and a loop device")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
