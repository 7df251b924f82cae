"""Flag, then environment, then embedstore.toml, then default."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from embedstore.cli import _code_of, settings
from embedstore.errors import UsageError

Capture = pytest.CaptureFixture[str]


@click.command()
@settings.data_option
@settings.runs_option
@settings.store_option
@settings.alias_option
def show(data_dir: Path, runs_dir: Path, store_location: str, alias: str) -> None:
    click.echo(f"{data_dir} {runs_dir} {store_location} {alias}")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in settings.DEFAULTS:
        monkeypatch.delenv(f"EMBEDSTORE_{name.upper()}", raising=False)


def shown(*arguments: str) -> str:
    from click.testing import CliRunner

    result = CliRunner().invoke(show, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_defaults() -> None:
    assert shown() == "data runs store movies"


def test_each_source_beats_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("embedstore.toml").write_text('runs = "toml-runs"\nstore = "toml-store"\nalias = "toml"\n')
    monkeypatch.setenv("EMBEDSTORE_RUNS", "env-runs")
    monkeypatch.setenv("EMBEDSTORE_STORE", "env-store")
    assert shown("--store", "flag-store") == "data env-runs flag-store toml"


def test_setting_without_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.setting("runs") == "runs"
    Path("embedstore.toml").write_text('runs = "toml-runs"\n')
    assert settings.setting("runs") == "toml-runs"
    monkeypatch.setenv("EMBEDSTORE_RUNS", "env-runs")
    assert settings.setting("runs") == "env-runs"


def test_an_empty_variable_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDSTORE_RUNS", "")
    assert shown() == "data runs store movies"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"runs = ", "embedstore.toml is not valid TOML"),
        (b"runs = '\xff'", "embedstore.toml is not valid TOML"),
        (b"runz = 'a'", "unknown key 'runz'; expected one of data, runs, store, alias"),
        (b"runs = 3", "runs must be a text that is not empty, found 3"),
        (b"runs = ' '", "runs must be a text that is not empty"),
        (b"[runs]\na = 1", "runs must be a text that is not empty"),
        (b"train = 'softmax'", "train must be a table of settings, found 'softmax'"),
    ],
)
def test_a_wrong_file_is_a_usage_error(content: bytes, sentence: str) -> None:
    Path("embedstore.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"embedstore\.toml") as error:
        settings.setting("runs")
    assert sentence in str(error.value)
    assert _code_of(error.value) == 2


def test_a_folder_in_place_of_the_file_is_a_usage_error() -> None:
    Path("embedstore.toml").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        settings.setting("data")


def test_an_empty_flag_is_a_usage_error() -> None:
    with pytest.raises(click.BadParameter, match="found nothing"):
        show.main(["--runs", ""], standalone_mode=False)


def test_the_table_of_train_is_of_its_own_preset() -> None:
    assert settings.train_settings(None) == ("softmax", {})
    Path("embedstore.toml").write_text(
        '[train]\npreset = "colab"\nembedding_dim = 8\nhidden_dims = [12, 8]\n'
    )
    wanted = {"embedding_dim": 8, "hidden_dims": (12, 8)}
    assert settings.train_settings(None) == ("colab", wanted)
    assert settings.train_settings("colab") == ("colab", wanted)
    assert settings.train_settings("softmax") == ("softmax", {})
    assert settings.setting("runs") == "runs"


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("epoch = 3", "unknown setting 'epoch'"),
        ("steps = 3", "'steps' does not belong to preset softmax"),
        ("epochs = 0", "epochs must be a whole number from 1"),
        ("epochs = {a = 1}", "epochs must be a whole number from 1"),
        ("preset = 3", "unknown preset '3'"),
        ('preset = "deep"', "unknown preset 'deep'"),
    ],
)
def test_a_table_of_train_that_cannot_be_meant_is_a_usage_error(table: str, sentence: str) -> None:
    Path("embedstore.toml").write_text(f"[train]\n{table}\n")
    with pytest.raises(UsageError, match=r"^embedstore\.toml, table \[train\]: ") as error:
        settings.train_settings(None)
    assert sentence in str(error.value)


def test_written_settings_leave_the_rest_of_the_file_as_it_is() -> None:
    before = (
        '# mine\r\nruns = "x" # here\r\n\r\n[train] # of May\r\n# slow\r\n'
        "learning_rate = 0.1 # steady\r\nl2=3e-3\r\n"
    )
    Path("embedstore.toml").write_bytes(before.encode())
    wanted = {"learning_rate": 0.02, "hidden_dims": (8, 4), "target": None}
    assert settings.write_train_settings("softmax", wanted) == [
        'preset = "softmax"',
        "learning_rate = 0.02, was 0.1",
        "hidden_dims = [8, 4]",
        'target = "auto"',
        "l2 = 0.003 removed",
    ]
    after = Path("embedstore.toml").read_bytes().decode()
    assert after.startswith(before.replace("0.1", "0.02").removesuffix("l2=3e-3\r\n"))
    assert settings.train_settings(None) == ("softmax", wanted | {"target": "auto"})
    assert settings.setting("runs") == "x"
    assert settings.write_train_settings("softmax", wanted) == []
    assert Path("embedstore.toml").read_bytes().decode() == after


@pytest.mark.parametrize(
    "before",
    ["", 'runs = "x"', 'train.l2 = 3.0\nruns = "x"\n', 'train = {l2 = 3.0}\nruns = "x"', "[train]\n# end"],
)
def test_settings_are_written_into_whatever_form_the_table_has(before: str) -> None:
    Path("real.toml").write_text(before)
    Path("embedstore.toml").symlink_to("real.toml")
    settings.write_train_settings("softmax", {"l2": 0.1})
    assert settings.train_settings(None) == ("softmax", {"l2": 0.1})
    assert settings.setting("runs") == ("x" if "runs" in before else "runs")
    assert Path("embedstore.toml").is_symlink()


def test_settings_are_written_into_a_new_file() -> None:
    settings.write_train_settings("colab", {})
    assert Path("embedstore.toml").read_text() == '[train]\npreset = "colab"\n'
