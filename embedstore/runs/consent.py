"""Which programs of runs this user lets run: the Keras models and SavedModels that compute psi.

Consent is a file in the user's own folder, by the digest of the model: no run can bring it along.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from embedstore.errors import RunError
from embedstore.runs.manifest import Manifest, replace_file

__all__ = ["allow", "allowed", "model_digest"]


def model_digest(manifest: Manifest) -> str:
    """Return the digest of the files of the model of a run, those in its folder tower/."""
    digest = hashlib.sha256()
    for name in sorted(name for name in manifest.files if name.startswith("tower/")):
        digest.update(f"{name}\0{manifest.files[name]['sha256']}\n".encode())
    return digest.hexdigest()


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
            f"{path}, which allows the model of a run, cannot be written: {error.strerror}"
        ) from error
    return path


def _path(manifest: Manifest) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "embedstore" / "allowed" / model_digest(manifest)
