"""A certificate authority of a test's own, by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["make_certificate"]


def make_certificate(folder: Path, *, names: str = "DNS:localhost,IP:127.0.0.1", days: int = 2) -> Path:
    """Write cert.pem and key.pem of a server by names into folder; return the authority's ca.pem.

    days: how long the server's is valid; with 0 it has expired a second later. Skips the test loudly where
    there is no openssl.
    """
    if shutil.which("openssl") is None:
        pytest.skip("NO OPENSSL: it makes the certificates of this test")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2")
    server = ("-subj", "/CN=server", "-keyout", "key.pem", "-out", "request.pem")
    by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-copy_extensions", "copyall")
    for arguments in (
        ("req", "-x509", *key, *authority, "-addext", "keyUsage=critical,keyCertSign"),
        ("req", "-new", *key, *server, "-addext", f"subjectAltName={names}"),
        ("x509", "-req", "-in", "request.pem", "-out", "cert.pem", *by, "-days", str(days)),
    ):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
    return folder / "ca.pem"
