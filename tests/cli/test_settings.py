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
