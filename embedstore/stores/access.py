"""Who may do what on a Qdrant server: its keys, and tokens that let one application read one alias."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from embedstore.errors import NotFoundError, StoreError, StoreUnreachableError, UsageError
from embedstore.runs.programs import git
from embedstore.stores.connection import NO_KEY, Connection, Secret, endpoints_of
from embedstore.stores.contract import valid_alias
from embedstore.stores.rest import RestClient, anything

__all__ = ["check_token", "ignored_by_git", "lifetime_of", "read_token", "write_keys"]

KEY_NAMES = ("QDRANT_API_KEY", "QDRANT_READ_ONLY_API_KEY")
LONGEST = timedelta(days=730)
NEVER = "never"
_SHORTEST_KEY = 32  # bytes: what RFC 7518, section 3.2, asks of HS256
_LIFETIME = re.compile(r"([1-9][0-9]{0,6})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def write_keys(folder: Path) -> Path:
    """Write new random keys of a server into folder / ".env", which only its owner can read; return its path.

    Raises UsageError where there is such a file, which is left as it is.
    """
    path = folder / ".env"
    lines = "".join(f"{name}={secrets.token_urlsafe(32)}\n" for name in KEY_NAMES)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} is there already and was not changed; move it away for new keys") from None
    try:
        with open(file, "w", encoding="ascii") as out:
            out.write(lines)
    except OSError:
        path.unlink()
        raise
    return path


def ignored_by_git(path: Path) -> bool:
    """Whether git would not commit path: a pattern ignores it, or it is in no work tree."""
    answer = git(path.parent, "check-ignore", "--quiet", path.name)
    return answer is None or answer.returncode != 1  # 128: no work tree


def lifetime_of(text: str) -> timedelta | None:
    """Return the time that 90d, 12h or 30m means, None for `never`; at most two years.

    Raises UsageError for anything else.
    """
    if text == NEVER:
        return None
    found = _LIFETIME.fullmatch(text)
    lifetime = timedelta(**{_UNITS[found[2]]: int(found[1])}) if found else None
    if lifetime is None or lifetime > LONGEST:
        raise UsageError(f"a token cannot expire in {text!r}; expected 90d, 12h, 30m, at most 730d, or never")
    return lifetime


def read_token(key: Secret, alias: str, expires_at: datetime | None) -> Secret:
    """Return a token (JWT) that reads alias and nothing else, whichever collection it names by then.

    key is the admin key of the server, which signs; to take a token back, change that key. The server
    refuses the token a minute after expires_at, since it allows that much for clocks that differ.

    Raises UsageError for what cannot name an alias, and for a key that is too short to sign.
    """
    import jwt

    value = key.reveal()
    if len(value) < _SHORTEST_KEY:
        raise UsageError(
            f"the API key is shorter than {_SHORTEST_KEY} bytes and its tokens could be forged; "
            "`embedstore server init` makes longer ones"
        )
    claims: dict[str, object] = {"access": [{"collection": valid_alias(alias), "access": "r"}]}
    if expires_at is not None:
        claims["exp"] = int(expires_at.timestamp())
    return Secret(jwt.encode(claims, value, algorithm="HS256"))


def check_token(token: Secret, alias: str, location: str, connection: Connection = NO_KEY) -> None:
    """Read alias on the server at location with token, and with no key at all, which must fail.

    connection is that of the server's administrator. Raises NotFoundError where alias does not name a
    collection, StoreError where the server refuses the token or lets everybody in, and what open_store
    raises.
    """
    from embedstore.stores.server import ServerStore

    with ServerStore(location, connection) as store:
        if alias not in store.aliases():
            raise NotFoundError(f"store {store.location} has no alias {alias!r}; run `embedstore sync` first")
    if _reads(alias, location, replace(connection, api_key=None)):
        raise StoreError(f"store {location} lets everybody in; start it with QDRANT__SERVICE__API_KEY")
    if not _reads(alias, location, replace(connection, api_key=token)):
        raise StoreError(
            f"store {location} refuses a token of this key; give its admin key, and start it with "
            "QDRANT__SERVICE__JWT_RBAC=true"
        )


def _reads(alias: str, location: str, connection: Connection) -> bool:
    with closing(RestClient(endpoints_of(location, connection), connection)) as rest:
        try:
            rest.get(f"/collections/{alias}", anything)
        except StoreUnreachableError:
            raise
        except StoreError:
            return False
    return True
