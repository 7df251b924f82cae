"""Where things are: flag, then environment, then ./embedstore.toml, then default."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from embedstore.errors import UsageError

__all__ = ["SETTINGS_FILE", "alias_option", "data_option", "runs_option", "setting", "store_option"]

SETTINGS_FILE = "embedstore.toml"
DEFAULTS = {"data": "data", "runs": "runs", "store": "store", "alias": "movies"}

F = TypeVar("F", bound=Callable[..., Any])


def setting(name: str) -> str:
    """Return the setting data, runs, store or alias where no flag was given.

    Raises UsageError where embedstore.toml cannot be read as settings.
    """
    return os.environ.get(_variable(name)) or _file_setting(name)


def data_option(command: F) -> F:
    """Add --data, the folder of the data sets, as data_dir: Path."""
    return _option("data", "data_dir", "Folder of the data sets.", Path)(command)


def runs_option(command: F) -> F:
    """Add --runs, the folder of the runs, as runs_dir: Path."""
    return _option("runs", "runs_dir", "Folder of the runs.", Path)(command)


def store_option(command: F) -> F:
    """Add --store, where the collections are, as store_location: str."""
    return _option("store", "store_location", "Folder of the store.", str)(command)


def alias_option(command: F) -> F:
    """Add --alias, the name that readers use, as alias: str."""
    return _option("alias", "alias", "Alias of the live collection.", str)(command)


def _option(name: str, argument: str, text: str, kind: type[Path] | type[str]) -> Callable[[F], F]:
    def given(context: click.Context, parameter: click.Parameter, value: str) -> Path | str:
        if not value.strip():
            raise click.BadParameter("expected a name, found nothing")
        return kind(value)

    return click.option(
        f"--{name}",
        argument,
        envvar=_variable(name),
        show_envvar=True,
        metavar="NAME" if name == "alias" else "PATH",
        default=lambda: _file_setting(name),
        show_default=DEFAULTS[name],
        callback=given,
        help=text,
    )


def _variable(name: str) -> str:
    return f"EMBEDSTORE_{name.upper()}"


def _file_setting(name: str) -> str:
    try:
        with open(SETTINGS_FILE, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return DEFAULTS[name]
    except OSError as error:
        raise UsageError(f"{SETTINGS_FILE} cannot be read: {error.strerror}; move or repair it") from error
    return _parse(text).get(name, DEFAULTS[name])


def _parse(text: bytes) -> dict[str, str]:
    import tomllib

    try:
        values = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{SETTINGS_FILE} is not valid TOML ({error}); correct it") from error
    for key, value in values.items():
        if key not in DEFAULTS:
            raise UsageError(
                f"{SETTINGS_FILE} has an unknown key {key!r}; expected one of {', '.join(DEFAULTS)}"
            )
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{SETTINGS_FILE}: {key} must be a text that is not empty, found {value!r}")
    return values
