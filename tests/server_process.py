"""Qdrant servers of a test's own: processes on free loopback ports, from the binary that QDRANT_BIN names."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import pytest

__all__ = ["Server", "free_port", "start_server"]

READY_SECONDS = 60.0
STOP_SECONDS = 20.0


class Server:
    """A running server and its data; a context manager, which stops it. Start it with start_server."""

    process: subprocess.Popen[bytes]

    def __init__(self, folder: Path, binary: Path, env: Mapping[str, str], args: Sequence[str]) -> None:
        self.folder = folder
        self.port, self.grpc_port = _adjacent_ports()
        scheme = "https" if env.get("QDRANT__SERVICE__ENABLE_TLS") == "true" else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._command = [str(binary), *args]
        self._env = {
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__HTTP_PORT": str(self.port),
            "QDRANT__SERVICE__GRPC_PORT": str(self.grpc_port),
            "QDRANT__STORAGE__STORAGE_PATH": str(folder / "storage"),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(folder / "snapshots"),
            "QDRANT__TELEMETRY_DISABLED": "true",
            **env,
        }

    def __repr__(self) -> str:
        return f"Server({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process on its ports and its data, and return when it is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.folder, env=self._env, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask the process to end; a second call does nothing."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process by SIGKILL, as a power cut would."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def restart(self) -> None:
        """Stop the process where it still runs and start it again, on the same ports and data."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Return what the process has said since its first start."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def _wait(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        with httpx.Client(verify=False, timeout=5.0, trust_env=False) as http:  # noqa: S501 - only whether it is up
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    if http.get(f"{self.url}/readyz").is_success:
                        return
                except httpx.TransportError:
                    pass  # not yet
                time.sleep(0.05)
        raise AssertionError(f"no server at {self.url}; its last words:\n{self.log()[-2000:]}")


def start_server(folder: Path, *, env: Mapping[str, str] | None = None, args: Sequence[str] = ()) -> Server:
    """Start a server with its data in folder and return it ready, listening on 127.0.0.1 only.

    env are settings, as QDRANT__SERVICE__API_KEY; args go on its command line. Its gRPC port is the REST
    port + 1. Skips the test loudly where QDRANT_BIN does not name the binary of a server.
    """
    binary = os.environ.get("QDRANT_BIN")
    if not binary:
        pytest.skip("NO QDRANT BINARY: set QDRANT_BIN to the program of a server to run this test")
    server = Server(folder, Path(binary), env or {}, args)
    server.start()
    return server


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _adjacent_ports() -> tuple[int, int]:
    while True:
        port = free_port()
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port, port + 1
