"""Where things are: flag, then environment, then ./embedstore.toml, then default."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from embedstore.errors import UsageError

if TYPE_CHECKING:
    from embedstore.query.resolve import Say
    from embedstore.runs.run import Run
    from embedstore.stores.base import Store
    from embedstore.stores.connection import Connection

__all__ = [
    "KEY_VARIABLE",
    "SETTINGS_FILE",
    "alias_option",
    "connection",
    "data_option",
    "open_store_at",
    "run_at",
    "runs_option",
    "setting",
    "store_option",
    "train_settings",
    "write_train_settings",
]

SETTINGS_FILE = "embedstore.toml"
KEY_VARIABLE = "EMBEDSTORE_QDRANT_API_KEY"
DEFAULTS = {"data": "data", "runs": "runs", "store": "store", "alias": "movies"}
# How a server is reached: settings without a default, kept apart from the parameters of a command.
SERVER = {"api_key_file": "", "ca_file": "", "grpc_port": ""}
TRAIN = "train"  # the table of what `train` takes where no flag says otherwise
_META = "embedstore.connection"

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
    """Add --store, where the collections are, as store_location: str, and how a server is reached.

    Open it with open_store_at, which knows the rest.
    """
    for option in (
        click.option(
            "--insecure",
            is_flag=True,
            expose_value=False,
            callback=_keep,
            help="Allow an API key over plain http to another machine.",
        ),
        _server_option("grpc_port", "PORT", "gRPC port of the server, 0 for none. [default: REST port + 1]"),
        _server_option("ca_file", "FILE", "Certificate authority of an https server, PEM."),
        _server_option(
            "api_key_file", "FILE", f"File with the API key of the server. [default: ${KEY_VARIABLE}]"
        ),
        _option(
            "store", "store_location", "Folder of the store, or http(s)://HOST:6333, a Qdrant server.", str
        ),
    ):
        command = option(command)
    return command


def alias_option(command: F) -> F:
    """Add --alias, the name that readers use, as alias: str."""
    return _option("alias", "alias", "Alias of the live collection.", str)(command)


def connection() -> Connection:
    """Return how the current command reaches a server.

    Raises UsageError where the key cannot be read.
    """
    from embedstore.stores.connection import Connection, checked_key, read_key_file

    given = click.get_current_context().meta.get(_META, {})
    key_file, ca_file, port = given.get("api_key_file"), given.get("ca_file"), given.get("grpc_port")
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if port and not (port.isdecimal() and int(port) < 1 << 16):
        raise UsageError(f"grpc port {port!r} is not a port; expected 0 to 65535")
    if ca_file and not Path(ca_file).is_file():
        raise UsageError(f"CA file {ca_file} is not there; expected a PEM file of certificates")
    secret = checked_key(key, f"the key in {KEY_VARIABLE}") if key else None
    return Connection(
        api_key=read_key_file(Path(key_file)) if key_file else secret,
        ca_file=Path(ca_file) if ca_file else None,
        insecure=bool(given.get("insecure")),
        grpc_port=int(port) if port else None,
    )


def open_store_at(location: str, *, create: bool = False, patient: bool = True) -> Store:
    """Open the store that --store names, a server with the key and certificates of the current command.

    The connection to a server ends with the command. patient asks a server again that is away. Raises what
    open_store and connection raise.
    """
    from embedstore.stores.base import open_store
    from embedstore.stores.connection import is_url

    if is_url(location):
        how = replace(connection(), patient=patient)
        return click.get_current_context().with_resource(open_store(location, connection=how))
    return open_store(location, create=create)


def run_at(
    location: str,
    runs_dir: Path,
    reference: str | None,
    *,
    alias: str = "movies",
    restored: Say | None = None,
) -> Run:
    """Return the run of resolve; the store at location is only opened to ask what an alias names."""
    from embedstore.runs.registry import find_run

    if reference is not None and not reference.startswith("@"):
        return find_run(runs_dir, reference)
    from embedstore.query.resolve import resolve

    with open_store_at(location) as store:
        return resolve(store, runs_dir, reference, alias=alias, restored=restored)[0]


def train_settings(preset: str | None) -> tuple[str, dict[str, Any]]:
    """Return the preset to train and its settings in the table [train] of embedstore.toml.

    preset: what a flag says, else the table's, else softmax. The settings of the table belong to its
    own preset; another one has none of them. Raises UsageError where they are none of the preset.
    """
    from embedstore.training.config import TrainConfig

    table = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in _file_values().get(TRAIN, {}).items()
    }
    own = str(table.pop("preset", "softmax"))
    try:
        TrainConfig.of(own, table)
    except UsageError as error:
        raise UsageError(f"{SETTINGS_FILE}, table [{TRAIN}]: {error}") from None
    return preset or own, table if preset in (None, own) else {}


def write_train_settings(preset: str, settings: Mapping[str, Any]) -> list[str]:
    """Make the table [train] of embedstore.toml hold preset and settings, and nothing else.

    Everything outside of it stays as it is, comments too. Returns a line for each change. Raises
    UsageError where the file cannot be read or edited.
    """
    import tomlkit

    from embedstore.runs.manifest import replace_file

    def shown(value: Any) -> str:
        return str(tomlkit.item(value).as_string())

    wanted = {"preset": preset, **{key: _toml(value) for key, value in settings.items()}}
    before = _file_values()
    path = Path(SETTINGS_FILE).resolve()
    document = tomlkit.parse(path.read_bytes().decode() if path.exists() else "")
    old = before.get(TRAIN, {})
    if TRAIN not in document:
        if before:
            document.add(tomlkit.nl())
        document[TRAIN] = tomlkit.table()
    table: Any = document[TRAIN]
    changes = []
    for key in [*wanted, *(key for key in old if key not in wanted)]:
        if key not in wanted:
            del table[key]
            changes.append(f"{key} = {shown(old[key])} removed")
        elif old.get(key) != wanted[key]:
            table[key] = wanted[key]
            was = f", was {shown(old[key])}" if key in old else ""
            changes.append(f"{key} = {shown(wanted[key])}{was}")
    content = tomlkit.dumps(document).encode()
    if _parse(content) != {**before, TRAIN: wanted}:
        raise UsageError(f"{SETTINGS_FILE} cannot be edited in place; write its table [{TRAIN}] by hand")
    if changes:
        replace_file(path, content)
    return changes


def _toml(value: Any) -> Any:
    if value is None:
        return "auto"
    return list(value) if isinstance(value, tuple) else value


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    context.meta.setdefault(_META, {})[parameter.name] = value


def _server_option(name: str, metavar: str, text: str) -> Callable[[F], F]:
    return click.option(
        f"--{name.replace('_', '-')}",
        name,
        envvar=_variable(name),
        show_envvar=True,
        metavar=metavar,
        default=lambda: _file_setting(name),
        expose_value=False,
        callback=_keep,
        help=text,
    )


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
    return str(_file_values().get(name, {**DEFAULTS, **SERVER}[name]))


def _file_values() -> dict[str, Any]:
    try:
        with open(SETTINGS_FILE, "rb") as file:
            text = file.read()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{SETTINGS_FILE} cannot be read: {error.strerror}; move or repair it") from error
    return _parse(text)


def _parse(text: bytes) -> dict[str, Any]:
    import tomllib

    try:
        values = tomllib.loads(text.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{SETTINGS_FILE} is not valid TOML ({error}); correct it") from error
    for key, value in values.items():
        if key == TRAIN:
            if not isinstance(value, dict):
                raise UsageError(f"{SETTINGS_FILE}: {key} must be a table of settings, found {value!r}")
            continue
        if key not in SERVER and re.search("key|token|password", key.lower()):
            raise UsageError(
                f"{SETTINGS_FILE} has {key!r}, but is no place for a key; put it in {KEY_VARIABLE} or in a "
                "file of mode 600 for --api-key-file"
            )
        if key not in DEFAULTS and key not in SERVER:
            raise UsageError(
                f"{SETTINGS_FILE} has an unknown key {key!r}; "
                f"expected one of {', '.join([*DEFAULTS, *SERVER, TRAIN])}"
            )
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{SETTINGS_FILE}: {key} must be a text that is not empty, found {value!r}")
    return values
