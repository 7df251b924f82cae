"""`tune` as a person uses it: the table, embedstore.toml, an interrupt, and what cannot be meant."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from embedstore.cli import run as embedstore
from embedstore.cli.settings import train_settings
from tests.builders import tiny_dataset

Capture = pytest.CaptureFixture[str]
TUNE = ["tune", "--preset", "linear", "-P", "validation_share=0.3", "-P", "embedding_dim=8", "--seed", "3"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, n_users in (("data", 24), ("few", 9)):
        frame = tiny_dataset(n=60, n_users=n_users).to_frame()
        Path(name).mkdir()
        frame.rename(columns={"user_id": "userId", "movie_id": "movieId"}).to_csv(
            f"{name}/ratings.csv", index=False
        )
    return tmp_path


def test_the_table_tells_the_default_the_best_and_what_that_is_worth(capfd: Capture) -> None:
    assert embedstore([*TUNE, "--trials", "25"]) == 0
    out, err = capfd.readouterr()
    assert err == ""  # neither a bar, which needs a terminal, nor a line of Optuna
    lines = out.splitlines()
    assert lines[0].split() == ["setting", "default", "best"]
    assert "validation ndcg@100" in out
    assert "25 trials on " in out
    assert "optimistic, the highest of 25 on the same users" in out
    assert "paired bootstrap over users" in out
    assert lines[-1].startswith("To train it: embedstore train --preset linear -P validation_share=0.3 ")
    assert not Path("embedstore.toml").exists()
    assert [path.parent.name for path in Path("runs").rglob("*.jsonl")] == ["tune"]


def test_train_takes_what_tune_wrote_unless_a_flag_says_otherwise(capfd: Capture) -> None:
    Path("embedstore.toml").write_text('# ours\nalias = "films"\n')
    assert embedstore([*TUNE, "--trials", "25", "--write", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [found["preset"], found["metric"], found["trials"]["finished"]] == ["linear", "ndcg@100", 25]
    assert found["written"][:2] == ['preset = "linear"', "validation_share = 0.3"]
    assert found["best"]["value"] > found["default"]["value"]
    assert found["difference"]["mean"] == pytest.approx(
        found["best"]["value"] - found["default"]["value"], abs=1e-6
    )
    assert train_settings(None) == ("linear", found["best"]["settings"])
    assert Path("embedstore.toml").read_text().startswith('# ours\nalias = "films"\n')

    for arguments, change in ([], {}), (["-P", "softness=0.123"], {"softness": 0.123}):
        assert embedstore(["train", "--json", *arguments]) == 0
        assert json.loads(capfd.readouterr().out)["config"] == {**found["best"]["config"], **change}
    assert embedstore([*TUNE, "--trials", "25", "--write"]) == 0
    assert "had these settings already" in capfd.readouterr().out


def test_an_interrupt_ends_with_130_and_the_same_command_continues(folder: Path, capfd: Capture) -> None:
    command = [sys.executable, "-m", "embedstore", *TUNE, "--trials", "100000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to it
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=heard,  # noqa: PLW1509 - this process has no threads that hold a lock
    ) as process:
        while not (studies := list(folder.glob("runs/tune/*.jsonl"))) or studies[0].stat().st_size < 20_000:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said == "The finished trials are kept; the same command continues.\nInterrupted.\n"
    before = studies[0].read_bytes()
    assert embedstore([*TUNE, "--trials", "2", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["trials"]["finished"] > 2
    assert studies[0].read_bytes().startswith(before)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--trials", "0"], 2, "trials is 0; expected 1 or more"),
        (["--minutes", "0"], 2, "minutes is 0; expected more than 0"),
        (["--minutes", "soon"], 2, "'soon' is not a valid float"),
        (["--protocol", "global-time"], 2, "'global-time' is not one of"),
        (["--preset", "deep"], 2, "'deep' is not one of"),
        (["-P", "epochs=3"], 2, "'epochs' does not belong to preset linear"),
        (["-P", "softness"], 2, "has no '='"),
        (["-P", "softness=soft"], 2, "softness must be a number"),
        (["--data", "none"], 3, "none"),
        (["-P", "validation_share=0"], 1, "serving asks validation users, and none of the"),
        (["--data", "few"], 1, "none of the 9 users of data set"),
        (["--write"], 2, "embedstore.toml is not valid TOML"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    folder: Path, arguments: list[str], code: int, sentence: str, capfd: Capture
) -> None:
    if arguments == ["--write"]:
        Path("embedstore.toml").write_text("runs = ")
    before = sorted(folder.rglob("*"))
    assert embedstore([*TUNE, *arguments]) == code
    out, err = capfd.readouterr()
    assert [out, err.count("\n"), err.startswith("Error: ")] == ["", 1, True]
    assert sentence in err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("package", ["optuna", "tomlkit"])
def test_without_the_extra_it_says_how_to_get_it(
    package: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert embedstore([*TUNE, "--write"]) == 1
    assert f"needs {package}, which is not installed; install it with `pip install" in capfd.readouterr().err
