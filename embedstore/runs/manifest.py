"""The manifest of a run: what was trained, from what, and the digest of every file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embedstore.errors import RunError
from embedstore.runs.files import parse_json, read_small

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Manifest",
    "damage_of",
    "digest_of",
    "read_manifest",
    "reference_of",
    "replace_file",
    "sync_folders",
    "sync_path",
    "with_digest",
]

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
_DIGEST = b',\n "digest": "'


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds. created_at is UTC, ISO 8601. tower is additive, dense or none."""

    run_id: str
    created_at: str
    dataset: Mapping[str, Any]
    config: Mapping[str, Any]
    embedding_dim: int
    tower: str
    metrics: Mapping[str, Any]
    versions: Mapping[str, str]
    git_commit: str | None
    files: Mapping[str, Mapping[str, Any]]  # name: {"bytes", "sha256"}
    schema_version: int = SCHEMA_VERSION

    @property
    def debias(self) -> float | None:
        """A where the movie vectors are scaled by norm^-A, see embedstore.runs.debias; None as trained."""
        amount = self.config.get("debias")
        return amount if isinstance(amount, float) else None

    @property
    def reference(self) -> str:
        """What find_run takes for this run; the end of the name of its collection."""
        return reference_of(self.run_id, self.debias)

    @property
    def fingerprint(self) -> str:
        """The digest of all that goes into a collection: ids, vectors, payload, run id and scaling."""
        names = ["movie_ids.npy", "movie_vectors.npy", "movies.jsonl"]
        if self.tower == "additive":
            names.append("history_vectors.npy")
        digest = hashlib.sha256(self.reference.encode())
        for name in names:
            digest.update(f"{name}\0{self.files[name]['sha256']}\n".encode())
        return digest.hexdigest()

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def read_manifest(run_path: Path) -> Manifest:
    """Return the manifest of the run folder run_path.

    Raises RunError where there is none (an unfinished run), where it is damaged, and where it was
    written by a newer version of embedstore.
    """
    path = run_path / MANIFEST
    try:
        raw = read_small(run_path, MANIFEST)
        content = parse_json(raw)
    except FileNotFoundError:
        raise RunError(
            f"run {run_path.name} has no {MANIFEST}: its training did not finish; "
            "train again or remove the folder"
        ) from None
    except NotADirectoryError:
        raise RunError(f"{run_path} is a file; expected the folder of a run") from None
    except ValueError as error:
        raise RunError(
            f"{path} is not JSON of embedstore ({error}); the run is damaged, restore or remove it"
        ) from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("schema_version"), int):
        raise RunError(f"{path} has no schema_version; the run is damaged, restore or remove it")
    if content["schema_version"] > SCHEMA_VERSION:
        raise RunError(
            f"run {run_path.name} has schema {content['schema_version']}, this embedstore reads up to "
            f"{SCHEMA_VERSION}; upgrade embedstore"
        )
    damage = damage_of(raw, content, Manifest.__dataclass_fields__)
    if damage is not None:
        raise RunError(f"{path} {damage}; the run is damaged, restore or remove it")
    known = {key: content[key] for key in Manifest.__dataclass_fields__ if key in content}
    missing = [key for key in Manifest.__dataclass_fields__ if key not in content]
    if missing:
        raise RunError(f"{path} lacks {', '.join(missing)}; the run is damaged, restore or remove it")
    manifest = Manifest(**known)
    _check(manifest, path)
    return manifest


def _check(manifest: Any, path: Path) -> None:
    if manifest.run_id != path.parent.name:
        raise RunError(
            f"{path} is the manifest of run {manifest.run_id}, expected {path.parent.name}; "
            "give the folder its own name back"
        )
    shape_is_right = (
        type(manifest.embedding_dim) is int
        and manifest.embedding_dim > 0
        and manifest.tower in ("additive", "dense", "none")
        and isinstance(manifest.created_at, str)
        and isinstance(manifest.git_commit, str | None)
        and all(isinstance(part, dict) for part in (manifest.dataset, manifest.config, manifest.metrics))
        and all(type(manifest.dataset.get(name, 0)) is int for name in ("n_users", "n_movies", "n_ratings"))
        and isinstance(manifest.versions, dict)
        and all(isinstance(version, str) for version in manifest.versions.values())
        and isinstance(manifest.files, dict)
        and all(
            isinstance(entry, dict)
            and isinstance(entry.get("sha256"), str)
            and isinstance(entry.get("bytes"), int)
            for entry in manifest.files.values()
        )
    )
    if not shape_is_right:
        raise RunError(
            f"{path} does not have the fields of schema 1; the run is damaged, restore or remove it"
        )
    for name in manifest.files:
        parts = name.split("/")
        if (
            name.startswith("/")
            or "\\" in name
            or "\0" in name
            or any(part in ("", ".", "..") for part in parts)
        ):
            raise RunError(
                f"{path} names the file {name!r}, which is outside of the run; do not use this run"
            )


def reference_of(run_id: str, debias: float | None) -> str:
    """Return what names a run, or the run with vectors scaled by norm^-debias."""
    return run_id if debias is None else f"{run_id}_debias{debias:.2f}"


def with_digest(text: str) -> bytes:
    """Return an object that json.dumps(indent=1) wrote, with a last field, digest: the sha256 of the rest."""
    body = text.encode().removesuffix(b"\n").removesuffix(b"\n}")
    return body + _DIGEST + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def damage_of(raw: bytes, content: Mapping[str, Any], fields: Iterable[str]) -> str | None:
    """Return how raw, a file of with_digest that holds content, was changed; None where it was not.

    A file without digest is one of an older version, which wrote no other than fields.
    """
    body, found, end = raw.rpartition(_DIGEST)
    if found or "digest" in content:
        right = end == hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'
        return None if right else "was changed after it was written (its digest does not fit)"
    unknown = sorted(content.keys() - set(fields))
    return f"was changed after it was written (it has the field {unknown[0]!r})" if unknown else None


def digest_of(path: Path) -> str:
    """Return the sha256 of a file as hex digits, reading it in blocks."""
    with open(path, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write content to path so that a reader, or a power cut, sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # never through a link that lies there
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_path(path.parent)


def sync_path(path: Path) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(path: Path) -> None:
    """Make the names in a folder, and in every folder inside it, durable."""
    for folder in (path, *(inner for inner in path.rglob("*") if inner.is_dir())):
        sync_path(folder)
