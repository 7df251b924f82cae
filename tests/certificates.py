"""A certificate authority of a test's own, by openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["make_certificate"]


def make_certificate(folder: Path) -> Path:
    """Write cert.pem and key.pem for localhost and 127.0.0.1 into folder; return the authority's ca.pem.

    Skips the test loudly where there is no openssl.
    """
    if shutil.which("openssl") is None:
        pytest.skip("NO OPENSSL: it makes the certificates of this test")
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    request = ("openssl", "req", "-x509", *key, "-days", "2")
    authority = ("-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem")
    signed = ("-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem")
    by = ("-CA", "ca.pem", "-CAkey", "ca.key")
    for arguments in (
        (*authority, "-addext", "keyUsage=critical,keyCertSign"),
        (*signed, *by, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
    ):
        subprocess.run([*request, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)
    return folder / "ca.pem"
