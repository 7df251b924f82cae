"""examples/nightly.sh, as cron runs it: nights that follow each other, are held back, and are killed."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from embedstore.query.recommend import recommend
from embedstore.runs.registry import list_runs
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.sync import pin, sync, verify
from tests.builders import tiny_run
from tests.examples.tastes import EXAMPLES, FIRST_USER, environment, executable, write_ratings

NIGHTLY = EXAMPLES / "nightly.sh"

# V and E as any trainer might leave them: the largest singular vectors of who liked what.
TRAINER = """\
import os
import numpy as np
rated = np.loadtxt(os.environ["DATA"] + "/ratings.csv", delimiter=",", skiprows=1)
users, row = np.unique(rated[:, 0], return_inverse=True)
movies, column = np.unique(rated[:, 1].astype(int), return_inverse=True)
likes = np.zeros((users.size, movies.size), np.float32)
likes[row, column] = rated[:, 2] >= 4
vectors = np.linalg.svd(likes, full_matrices=False)[2][:4].T
spoilt = os.environ.get("SPOILT")
rows = vectors if spoilt != "psi" else -vectors
movies = movies if spoilt != "order" else np.random.default_rng(0).permutation(movies)
os.chdir(os.environ["MODEL"])
np.save("V.npy", vectors)
np.save("E.npy", rows)
with open("movies.csv", "w") as file:
    file.write("movieId,title,genres\\n")
    file.writelines(f"{movie},Movie {movie} (1990),Drama\\n" for movie in movies)
"""


class Job:
    """The job of one team, in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home, self.runs, self.store = home, home / "nightly" / "runs", home / "nightly" / "store"
        trainer = executable(home / "trainer.py", TRAINER)
        self.settings = {
            "NIGHTLY_HOME": str(home / "nightly"),
            "DATA": str(write_ratings(home / "data")),
            "FETCH_COMMAND": "true",
            "TRAIN_COMMAND": f"python '{trainer}'",
        }

    def night(self, expected: int = 0, **settings: str) -> str:
        """Run the script to its end, in a session of its own, and return what it printed."""
        done = subprocess.run(
            [NIGHTLY],
            env=environment(self.home / "bin", **self.settings, **settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            timeout=120,
        )
        assert done.returncode == expected, done.stdout
        return done.stdout

    def live(self) -> str | None:
        """Return the run that is served, of which every point was read back; None where none is."""
        if not self.store.exists():
            return None
        with open_store(self.store) as store:
            if "movies" not in store.aliases():
                return None
            run_id = store.live("movies").run_id
            verify(store, f"movies__{run_id}", Run.load(self.runs / run_id))
        return run_id

    def there(self) -> list[str]:
        """Return the runs whose collections are in the store."""
        with open_store(self.store) as store:
            return sorted(name.removeprefix("movies__") for name in store.collections())

    def folders(self) -> list[str]:
        return [summary.run_id for summary in list_runs(self.runs)]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_second_night_goes_live_and_a_spoilt_third_is_held_back(job: Job) -> None:
    job.night()
    first = job.live()
    assert first is not None
    job.settings["DATA"] = str(write_ratings(job.home / "newer", seed=1))
    printed = job.night()
    second = job.live()
    assert second is not None
    assert second > first
    assert "gate overlap@10>=0.3 passed" in printed
    printed = job.night(expected=4, SPOILT="psi")
    assert "gate ndcg@100>=popularity failed" in printed
    assert job.live() == second
    assert job.folders() == job.there()  # the one that was held back can be looked at
    with open_store(job.store) as store:
        answer = recommend(Run.load(job.runs / second), store, user_id=FIRST_USER, k=5)
    assert len(answer.recommendations) == 5


def test_vectors_of_other_movies_are_held_back_before_they_are_a_run(job: Job) -> None:
    assert "nothing was imported" in job.night(expected=4, SPOILT="order")
    assert job.live() is None
    assert job.folders() == []


@pytest.mark.tf
def test_by_default_the_model_is_the_two_tower_example(job: Job) -> None:
    del job.settings["TRAIN_COMMAND"]
    assert "Epoch 6/6" in job.night(GATES="")
    live = job.live()
    assert live is not None
    assert Run.load(job.runs / live).manifest.tower == "additive"


@pytest.mark.parametrize(
    "step",
    [
        pytest.param("runs import", marks=pytest.mark.slow),
        "sync",
        pytest.param("gc --keep", marks=pytest.mark.slow),
    ],
)
def test_a_night_that_was_killed_is_made_good_by_the_next(job: Job, step: str) -> None:
    job.night(expected=-signal.SIGKILL, KILL_BEFORE=step)
    killed = job.live()
    assert (killed is not None) == (step == "gc --keep")
    job.night()
    assert job.live() == job.there()[-1]
    assert job.live() != killed
    assert job.folders() == job.there()  # what the killed night trained and nobody serves is gone


def test_gc_and_the_folders_leave_what_is_live_pinned_or_next_in_a_rollback(job: Job) -> None:
    old = [tiny_run(job.runs.parent, run_id=f"20260101t00000{n}-0000", seed=n) for n in range(4)]
    pinned, dropped, before, other = (run.run_id for run in old)
    with open_store(job.store, create=True) as store:
        for run in old[:3]:
            sync(run, store)
        pin(store, pinned)
    (job.runs.parent / "runs.txt").write_text(f"{pinned}\n{dropped}\n{before}\n")
    job.night(expected=-signal.SIGKILL, KEEP="1", GATES="", KILL_BEFORE="runs rm")
    tonight = job.live()
    assert tonight is not None
    assert job.there() == [pinned, before, tonight]
    assert dropped in job.folders()
    job.night(KEEP="1", GATES="")
    again = job.live()
    assert again is not None
    assert job.there() == [pinned, tonight, again]
    # before was the job's, and no rollback returns to it any more; the other one is not the job's
    assert job.folders() == [pinned, other, tonight, again]


def test_a_second_job_does_not_begin(job: Job) -> None:
    job.runs.parent.mkdir()
    with (job.runs.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another night is still at work" in job.night(expected=75)
    assert not job.runs.exists()


def test_what_fails_is_named_and_nothing_is_live(job: Job) -> None:
    for setting, command, said in (
        ("TRAIN_COMMAND", "true", "training left neither"),
        ("TRAIN_COMMAND", "exit 7", "training failed with 7: exit 7"),
        ("FETCH_COMMAND", "exit 6", "fetching failed with 6: exit 6"),
    ):
        job.settings[setting] = command
        assert said in job.night(expected=10)
    assert job.live() is None


def test_shellcheck_has_nothing_to_say() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("NO SHELLCHECK: install it by `apt install shellcheck`")
    done = subprocess.run(["shellcheck", NIGHTLY], capture_output=True, text=True)
    assert done.stdout == ""
    assert done.returncode == 0
