"""A search: who is asked, what counts, what survives an interrupt, a kill and a damaged file."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore.data.dataset import Dataset
from embedstore.errors import DataError, EmbedstoreError, RunError, UsageError
from embedstore.training import fit
from embedstore.training import tune as module
from embedstore.training.config import PRESETS, TrainConfig, field_infos
from embedstore.training.prepared import prepare
from embedstore.training.tune import PROTOCOLS, Tuned, TuneProgress, search_space, tune
from tests.builders import tiny_dataset

SHARES = {"validation_share": 0.3, "test_share": 0.3}
FIXED: dict[str, dict[str, Any]] = {
    "linear": {"embedding_dim": 8, "genre_weight": 0.0, **SHARES},
    "softmax": {"embedding_dim": 8, "batch_size": 40, "epochs": 2, **SHARES},
    "blend": SHARES,
}
SEARCHED = {name: {info.name for info in search_space(TrainConfig.of(name), FIXED[name])} for name in FIXED}


def dataset(**change: Any) -> Dataset:
    return tiny_dataset(**{"n": 60, "n_users": 24, **change})


def search(
    folder: Path, trials: int = 2, data: Dataset | None = None, *, preset: str = "linear", **change: Any
) -> Tuned:
    settings = {**FIXED[preset], **change.pop("settings", {})}
    return tune(data or dataset(), preset, settings, runs_dir=folder, trials=trials, **change)


def states(study: Path) -> list[str]:
    """Return the states of the trials in a journal, as Optuna reads them."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(study)))
    (name,) = optuna.get_all_study_names(storage)
    return [trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_range_holds_values_that_the_field_takes_and_the_default_of_the_preset(preset: str) -> None:
    default = TrainConfig.of(preset)
    space = search_space(default, ())
    assert space
    for info in space:
        values = info.tune[:2] if info.tune[-1] in ("log", "linear") else info.tune
        for value in values:
            info.check(value)
        assert values[0] != values[-1]
        assert info.tune[-1] != "log" or values[0] > 0
    free = [info for info in search_space(default, ["embedding_dim"]) if info.name == "embedding_dim"]
    assert free == []


def test_what_says_who_is_measured_is_never_searched() -> None:
    searched = {info.name for info in field_infos() if info.tune}
    assert not searched & {"preset", "target", "validation_share", "test_share", "split_seed", "seed"}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"trials": 0}, UsageError, "trials is 0; expected 1 or more"),
        ({"minutes": 0}, UsageError, "minutes is 0; expected more than 0"),
        ({"minutes": float("nan")}, UsageError, "minutes is nan"),
        ({"protocol": "global-time"}, UsageError, "expected one of serving, strong, next-session"),
        ({"settings": {"steps": 3}}, UsageError, "'steps' does not belong to preset linear"),
        (
            {"preset": "blend", "settings": {"parts": "linear,2024"}},
            UsageError,
            "a blend of run 2024, which has",
        ),
        ({"settings": {"softness": "much"}}, UsageError, "softness must be a number"),
        (
            {"settings": dict.fromkeys(SEARCHED["linear"], 0.1)},
            UsageError,
            "nothing is left to search in preset linear",
        ),
        ({"settings": {"validation_share": 0.0}}, DataError, "asks validation users, and none of the"),
        ({"data": dataset(n_users=9)}, DataError, "none of the 9 users of"),
        (
            {"settings": {"validation_share": 0.04}},
            DataError,
            "validation users of data set",
        ),
    ],
)
def test_a_search_that_cannot_be_meant_gets_one_sentence(
    tmp_path: Path, change: dict[str, Any], error: type[EmbedstoreError], said: str
) -> None:
    with pytest.raises(error) as caught:
        search(tmp_path, **change)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_optuna_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EmbedstoreError, match=r"needs optuna, .* `pip install '\.\[tune\]'`") as caught:
        search(tmp_path)
    assert caught.value.exit_code == 1


def test_the_default_is_trial_0_and_trials_that_are_there_count(tmp_path: Path) -> None:
    seen: list[TuneProgress] = []
    first = search(tmp_path, trials=3, progress=seen.append)
    assert seen[0] == dataclasses.replace(seen[0], finished=0, trials=3, default=None, best=None)
    assert [states(first.study), first.trials] == [["COMPLETE"] * 3, 3]
    assert first.default.config == TrainConfig.of("linear", FIXED["linear"])
    assert [first.default.number, first.default.settings] == [0, {}]
    assert set(first.searched) == SEARCHED["linear"]
    assert first.best.value >= first.default.value == pytest.approx(first.default.per_user.mean(), abs=1e-6)
    if first.difference:
        assert first.difference.mean == pytest.approx(first.best.value - first.default.value, abs=1e-6)

    seen.clear()
    again = search(tmp_path, trials=3, progress=seen.append)
    assert not seen
    assert [again.study, again.best.settings] == [first.study, first.best.settings]
    more = search(tmp_path, trials=4, progress=seen.append)
    assert {state.finished for state in seen} == {3}
    assert {state.default for state in seen} == {first.default.value}
    assert more.trials == 4


def test_what_makes_figures_incomparable_is_another_study(tmp_path: Path) -> None:
    studies = [
        search(tmp_path, trials=1, **change).study
        for change in (
            {},
            {"settings": {"split_seed": 1}},
            {"settings": {"softness": 0.5}},
            {"protocol": "strong"},
        )
    ] + [search(tmp_path, trials=1, data=dataset(seed=1)).study]
    assert len(set(studies)) == len(list((tmp_path / "tune").iterdir())) == 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("preset", ["linear", pytest.param("softmax", marks=pytest.mark.tf)])
def test_test_users_are_neither_asked_nor_learned_from(tmp_path: Path, protocol: str, preset: str) -> None:
    """Other ratings of other movies of the test users change no figure of any trial."""
    data = dataset()
    split = prepare(data, TrainConfig.of("linear", FIXED["linear"])).split
    tested = np.isin(data.user_rows, split.test)
    assert tested.sum() > 20
    full = np.bincount(data.movie_rows[~tested], minlength=len(data.movies)).min() > 0
    assert full  # every movie stays a rated one, whatever the test users watch
    other = dataclasses.replace(
        data,
        ratings=np.where(tested, 6 - data.ratings, data.ratings),
        movie_rows=np.where(tested, len(data.movies) - 1 - data.movie_rows, data.movie_rows).astype(np.int32),
    )
    found = [search(tmp_path, 2, asked, preset=preset, protocol=protocol) for asked in (data, other)]
    assert found[0].study != found[1].study
    assert found[0].best.settings == found[1].best.settings
    for trial in ("default", "best"):
        np.testing.assert_array_equal(*(getattr(one, trial).per_user for one in found))


@pytest.mark.tf
def test_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    def interrupt(state: TuneProgress) -> None:
        if state.finished == 2 and state.training:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, trials=4, preset="softmax", progress=interrupt)
    (study,) = (tmp_path / "tune").iterdir()
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert search(tmp_path, trials=3, preset="softmax").trials == 3
    assert states(study) == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]


@pytest.mark.tf
def test_after_its_minutes_the_running_trial_is_dropped(tmp_path: Path) -> None:
    only = search(tmp_path, trials=5, minutes=1e-9, preset="softmax")
    assert only.trials == 1  # the default is trained, whatever time there is

    def wait(state: TuneProgress) -> None:
        if state.training:
            time.sleep(1.3)

    again = search(tmp_path, trials=5, minutes=0.02, preset="softmax", progress=wait)
    assert [again.trials, states(again.study)] == [1, ["COMPLETE", "FAIL"]]


@pytest.mark.tf
def test_a_trial_that_falls_behind_is_stopped_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PRUNE_FROM_TRIAL", 1)
    monkeypatch.setattr(module, "_PRUNE_FROM_EPOCH", 1)
    found = search(tmp_path, trials=7, preset="softmax", settings={"epochs": 4})
    assert found.pruned == states(found.study).count("PRUNED") > 0
    assert found.trials == 7


def test_a_configuration_that_cannot_be_trained_does_not_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(data: Any, config: TrainConfig, *, progress: Any) -> Any:
        if config.softness != TrainConfig().softness:
            raise RunError("too large")
        return fit(data, config, progress=progress)

    monkeypatch.setattr(module, "fit", refuse)
    found = search(tmp_path, trials=3)
    assert [found.trials, found.failed, found.best.number] == [3, 2, 0]


@pytest.mark.tf
def test_a_model_that_diverged_ranks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan_vectors(model: Any) -> Any:
        return np.full((60, 8), np.nan, np.float32)

    monkeypatch.setattr("embedstore.training.softmax.SoftmaxModel.movie_vectors", nan_vectors)
    assert search(tmp_path, trials=1, preset="softmax").best.value == 0


def test_a_second_search_of_the_same_study_is_refused(tmp_path: Path) -> None:
    refused: list[str] = []

    def search_too(state: TuneProgress) -> None:
        with pytest.raises(EmbedstoreError) as caught:
            search(tmp_path, trials=1)
        refused.append(str(caught.value))

    search(tmp_path, trials=1, progress=search_too)
    assert "is being searched by another process; wait until it has finished" in refused[0]


def drop_line(number: int) -> Callable[[bytes], bytes]:
    return lambda content: b"".join(
        line for index, line in enumerate(content.splitlines(keepends=True)) if index != number
    )


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"hello",
        lambda content: b"SQLite format 3\0",
        lambda content: b"{}\n",
        lambda content: b'{"op_code":0}\n',
        lambda content: b'{"op_code":77,"worker_id":""}\n',
        lambda content: content.replace(b'"op_code":4', b'"op_code":x', 1),
        lambda content: content.replace(b"per_user", b"per_bla"),
        lambda content: content + b"half a line",
        lambda content: (
            json.dumps({"op_code": 0, "worker_id": "", "study_name": "x", "directions": [2]}).encode() + b"\n"
        ),
        drop_line(0),
    ],
)
def test_a_file_that_is_damaged_or_of_another_tool_is_refused_and_kept(
    finished: bytes, tmp_path: Path, damage: Callable[[bytes], bytes], study_name: str
) -> None:
    path = tmp_path / "tune" / study_name
    path.parent.mkdir()
    path.write_bytes(damage(finished))
    assert damage(finished) != finished
    with pytest.raises(RunError, match="is damaged or was written by another tool; move it away"):
        search(tmp_path)
    assert path.read_bytes() == damage(finished)


def test_a_half_written_line_is_cut(finished: bytes, tmp_path: Path, study_name: str) -> None:
    path = tmp_path / "tune" / study_name
    path.parent.mkdir()
    for half in (b'{"op', finished.splitlines()[-1][:-9]):
        path.write_bytes(finished + half)
        assert search(tmp_path, trials=1).trials == 1
        assert path.read_bytes() == finished


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search(tmp_path_factory.mktemp("study"), trials=1).study


@pytest.fixture
def finished(study: Path) -> bytes:
    """The journal of a search of one trial."""
    return study.read_bytes()


@pytest.fixture
def study_name(study: Path) -> str:
    return study.name


# Forks a search for each kill: a start costs a second, a fork none.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import optuna, scipy.linalg.lapack, scipy.sparse
from tests.training.test_tune import search
folder, chance, killed = Path(sys.argv[1]), random.Random(0), 0
for _ in range(20):
    child = os.fork()
    if child == 0:
        search(folder, trials=60)
        os._exit(0)
    time.sleep(chance.uniform(0, 0.3))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(killed)
found = search(folder, trials=60)
print(found.trials, found.default.number, found.study)
"""


def test_a_search_that_is_killed_again_and_again_comes_to_its_end(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    killed, trials, default, study = done.stdout.split()
    assert int(killed) >= 5
    assert [trials, default] == ["60", "0"]
    found = states(Path(study))
    assert [found[0], found.count("COMPLETE"), found.count("RUNNING")] == ["COMPLETE", 60, 0]
    assert "FAIL" in found  # of a trial in whose midst it was killed
