"""SIGKILL at random instants of a training by TensorFlow; see tests/faults for the other commands."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedstore.runs.registry import find_run, list_runs
from embedstore.runs.run import Run

pytestmark = pytest.mark.tf

# Imports TensorFlow once, then forks a training for every line that it reads: a start costs 5 s, a fork none.
# Neither process has run an operation before the fork, so no thread of TensorFlow is lost in it.
FORKING = """
import os, sys
from pathlib import Path
import keras, tensorflow
from embedstore.training import train
from embedstore.training.config import TrainConfig
from tests.builders import tiny_dataset
config = TrainConfig.parse(sys.argv[2], sys.argv[3:])
dataset = tiny_dataset(n=60, n_users=30)
print("ready", flush=True)
while sys.stdin.readline():
    child = os.fork()
    if child == 0:
        train(dataset, config, runs_dir=Path(sys.argv[1]))
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()  # reap it only when asked: until then the number stays its own
    print(os.waitpid(child, 0)[1], flush=True)
"""
SETTINGS = {"softmax": ["epochs=3", "embedding_dim=8"], "colab": ["steps=5"]}


def kill_trainings(runs: Path, kills: int, preset: str) -> tuple[int, int]:
    """Kill that many trainings; return how many were killed and how many had sealed a run before."""
    chance = random.Random(0)  # noqa: S311  (instants, not secrets)
    command = [sys.executable, "-c", FORKING, str(runs), preset, *SETTINGS[preset]]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    killed = 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def ask(what: str) -> int:
            server.stdin.write(f"{what}\n")  # type: ignore[union-attr]
            server.stdin.flush()  # type: ignore[union-attr]
            return int(server.stdout.readline())  # type: ignore[union-attr]

        assert server.stdout.readline() == "ready\n"
        started = time.perf_counter()
        ask("start")
        assert ask("wait") == 0
        whole = time.perf_counter() - started
        for _ in range(kills):
            child = ask("start")
            time.sleep(chance.uniform(0, 1.1 * whole))
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(ask("wait"))
            check(runs)
        ask("start")  # the same command again finishes
        assert ask("wait") == 0
        server.stdin.close()
    return killed, sum(summary.manifest is not None for summary in list_runs(runs))


def check(runs: Path) -> None:
    """Every run is sealed and verifies: what is not whole is in no folder of a run."""
    for summary in list_runs(runs):
        Run.load(summary.path).verify()
    assert find_run(runs).manifest.schema_version == 1


def test_a_killed_training_leaves_a_sealed_run_or_none(tmp_path: Path) -> None:
    killed, sealed = kill_trainings(tmp_path / "runs", 50, "softmax")
    assert killed >= 25
    assert sealed >= 2


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["softmax", "colab"])
def test_250_killed_trainings_of_each_preset(tmp_path: Path, preset: str) -> None:
    killed, _ = kill_trainings(tmp_path / "runs", 250, preset)
    assert killed >= 125
