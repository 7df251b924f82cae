"""How a Qdrant server is reached: its addresses, the key, and what must not be done with a key."""

from __future__ import annotations

import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from embedstore.errors import UsageError

__all__ = ["NO_KEY", "Connection", "Endpoint", "Secret", "endpoints_of", "is_url", "read_key_file"]

REST_PORT = 6333
_KEY_IN_ENV_FILE = re.compile(r"^[ \t]*(?:export[ \t]+)?QDRANT_API_KEY[ \t]*=(.*)$", re.MULTILINE)
_LARGEST_KEY_FILE = 64 << 10


class Secret:
    """A key that shows itself to reveal() alone: not to repr, str, format, pickle or a traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not written anywhere")

    def reveal(self) -> str:
        return self._value


@dataclass(frozen=True)
class Connection:
    """What is needed beside the URL. grpc_port: by default the REST port + 1; 0 never uses gRPC.

    insecure allows a key over plain http to another machine. patient asks again where a server is away.
    """

    api_key: Secret | None = None
    ca_file: Path | None = None
    insecure: bool = False
    grpc_port: int | None = None
    patient: bool = True

    def without_key(self, text: str) -> str:
        """Return text, of a server say, with *** where it holds the key."""
        return text if self.api_key is None else text.replace(self.api_key.reveal(), "***")


NO_KEY = Connection()


@dataclass(frozen=True)
class Endpoint:
    """One node of a server or cluster. url has neither a trailing slash nor credentials."""

    url: str
    host: str
    grpc_port: int | None

    @property
    def secure(self) -> bool:
        return self.url.startswith("https://")


def is_url(location: str) -> bool:
    """Whether a store is named by URL, and not as a folder."""
    return "://" in location


def endpoints_of(location: str, connection: Connection = NO_KEY) -> Sequence[Endpoint]:
    """Return the nodes that location names, one URL or several with commas; the port defaults to 6333.

    Raises UsageError for what is no such URL, and for a key that would cross a network unencrypted.
    """
    if "@" in location:  # before any parsing, since no error may show a password, and one may hold a comma
        raise UsageError(
            "the URL of the store holds a password (***@); give the key in EMBEDSTORE_QDRANT_API_KEY or "
            "--api-key-file"
        )
    return [_endpoint(part.strip(), connection) for part in location.split(",")]


def read_key_file(path: Path) -> Secret:
    """Return the key in a file: the only word in it, or the line QDRANT_API_KEY=... of an .env file.

    Its group may read it, as containers mount secrets. Raises UsageError where the file cannot be read,
    holds no key, or may be read by everybody.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(_LARGEST_KEY_FILE)
    except OSError as error:
        raise UsageError(f"key file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UsageError(f"key file {path} is not text; expected the key alone, or an .env file") from None
    if mode & stat.S_IROTH:
        raise UsageError(f"key file {path} can be read by everybody; run `chmod 600 {path}`")
    named = _KEY_IN_ENV_FILE.search(text)
    value = named[1].strip().strip("'\"") if named else text.strip()
    if not value or len(value.split()) != 1 or (not named and "=" in value.rstrip("=")):
        raise UsageError(f"key file {path} holds no key; expected the key alone, or QDRANT_API_KEY=...")
    return checked_key(value, f"the key in {path}")


def checked_key(value: str, what: str) -> Secret:
    """Return a key that can travel in a header. Raises UsageError, which does not show it, else."""
    if not value.isascii() or not value.isprintable() or " " in value:
        raise UsageError(
            f"{what} has characters that a key cannot have; expected printable ASCII without blanks"
        )
    return Secret(value)


def _endpoint(text: str, connection: Connection) -> Endpoint:
    shown = re.sub(r"(?s)[?#].*", "?...", text)  # some services take a key there
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"store {shown!r} is not a URL ({error}); expected http(s)://HOST:6333") from None
    if parts.scheme not in ("http", "https") or not host or shown != text:
        raise UsageError(f"store {shown!r} is not the URL of a Qdrant server; expected http(s)://HOST:6333")
    plain = parts.scheme == "http" and not _is_loopback(host)
    if plain and connection.api_key is not None and not connection.insecure:
        raise UsageError(
            f"the key would travel unencrypted to {host}; use https, or --insecure in a network of your own"
        )
    name = f"[{host}]" if ":" in host else host
    rest_port = port or REST_PORT
    grpc_port = rest_port + 1 if connection.grpc_port is None else connection.grpc_port
    return Endpoint(f"{parts.scheme}://{name}:{rest_port}{parts.path.rstrip('/')}", host, grpc_port or None)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"
