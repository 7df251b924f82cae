"""server init, access: the keys of a Qdrant server, and a token for an application that reads from it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from embedstore.cli.settings import KEY_VARIABLE, alias_option, connection, store_option
from embedstore.errors import UsageError

__all__ = ["access", "server"]


@click.group()
def server() -> None:
    """Prepare a Qdrant server of your own."""


@server.command()
@click.argument("folder", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
def init(folder: Path) -> None:
    """Write the keys of a new server into FOLDER/.env (default: the current folder), for you alone.

    They are random: QDRANT_API_KEY may do everything, QDRANT_READ_ONLY_API_KEY reads every collection.
    docker-compose.yml takes them from there, and every command with --api-key-file .env. An .env that
    is there already is left as it is.
    """
    from embedstore.stores.access import ignored_by_git, write_keys

    path = write_keys(folder)
    click.echo(f"wrote {path}: QDRANT_API_KEY and QDRANT_READ_ONLY_API_KEY, mode 600")
    if not ignored_by_git(path):
        click.echo(f"Warning: git does not ignore {path}; add .env to {folder / '.gitignore'}", err=True)
    if not (folder / "docker-compose.yml").exists():
        click.echo(
            f"{folder} has no docker-compose.yml; those of embedstore are at the top of its repository, and "
            "any other server takes the keys as QDRANT__SERVICE__API_KEY and "
            "QDRANT__SERVICE__READ_ONLY_API_KEY",
            err=True,
        )


@click.command()
@click.option(
    "--expires",
    default="90d",
    metavar="TIME",
    show_default=True,
    help="When the token ends: 90d, 12h, 30m, at most 730d, or never.",
)
@store_option
@alias_option
def access(expires: str, store_location: str, alias: str) -> None:
    """Print a token for an application that reads the alias.

    It goes with requests in place of an API key and allows nothing else, whichever run the alias
    serves. It is signed with the server's admin key, so only a new key takes it back; the server must
    run with QDRANT__SERVICE__JWT_RBAC=true. Where --store is a URL, the token is tried there before it
    is printed. The server still accepts it for a minute after its end.
    """
    from embedstore.stores.access import check_token, lifetime_of, read_token
    from embedstore.stores.connection import is_url

    lifetime = lifetime_of(expires)
    admin = connection()
    if admin.api_key is None:
        raise UsageError(
            f"no API key signs the token; set {KEY_VARIABLE} or --api-key-file to the server's admin key"
        )
    end = None if lifetime is None else datetime.now(UTC) + lifetime
    token = read_token(admin.api_key, alias, end)
    if is_url(store_location):
        check_token(token, alias, store_location, admin)
        tried = f"it was tried at {store_location}"
    else:
        tried = f"it was not tried, since store {store_location!r} is not the URL of a server"
    until = "for ever" if end is None else f"until {end:%Y-%m-%d %H:%M} UTC"
    click.echo(f"reads alias {alias!r} and nothing else, {until}; {tried}", err=True)
    click.echo(token.reveal())
