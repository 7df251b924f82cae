"""Which models of runs are programs, and which of these their user lets run.

Consent is a file in the user's own folder, by the digest of the model: no run can bring it along.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from embedstore.errors import RunError
from embedstore.runs.manifest import Manifest, replace_file

__all__ = ["allow", "allowed", "is_program"]

_DATA = "tower/model.onnx"  # whose operators read its inputs and write its outputs, and nothing else


def is_program(manifest: Manifest) -> bool:
    """Return whether psi of a run is computed by a Keras model or SavedModel."""
    return any(name != _DATA for name in _files(manifest))


def allowed(manifest: Manifest) -> bool:
    """Return whether this user lets the model of the run be a program."""
    return _path(manifest).exists()


def allow(manifest: Manifest) -> Path:
    """Let the model of the run be a program, for this user, in every run that has it; return the file.

    Raises RunError where the file cannot be written.
    """
    path = _path(manifest)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(path, f"{manifest.run_id}\n".encode())
    except OSError as error:
        raise RunError(
            f"{path}, which lets a model run, cannot be written: {error.strerror or error}"
        ) from error
    return path


def _files(manifest: Manifest) -> list[str]:
    return sorted(name for name in manifest.files if name.startswith("tower/"))


def _path(manifest: Manifest) -> Path:
    digest = hashlib.sha256()
    for name in _files(manifest):
        digest.update(f"{name}\0{manifest.files[name]['sha256']}\n".encode())
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    except RuntimeError:
        raise RunError(
            "this user has no home, where it would stand which models may run; set XDG_STATE_HOME"
        ) from None
    return Path(state) / "embedstore" / "allowed" / digest.hexdigest()
