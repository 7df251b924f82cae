"""What was measured of a run after its training: <runs>/<run_id>.evaluation.json, beside its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedstore.errors import RunError
from embedstore.runs.files import parse_json, read_small
from embedstore.runs.manifest import damage_of, replace_file, with_digest

__all__ = ["SCHEMA_VERSION", "add_evaluation", "evaluation_path", "read_evaluation"]

SCHEMA_VERSION = 1
_FIELDS = ("schema_version", "run_id", "protocols")


def evaluation_path(run_path: Path) -> Path:
    """Return where the evaluation of the run in the folder run_path is kept."""
    return run_path.with_name(f"{run_path.name}.evaluation.json")


def read_evaluation(run_path: Path) -> dict[str, dict[str, Any]]:
    """Return what was measured of a run, by protocol; nothing where nothing was measured.

    Raises RunError where the file is damaged, of another run or was written by a newer embedstore.
    """
    path = evaluation_path(run_path)
    try:
        raw = read_small(path.parent, path.name)
        content = parse_json(raw)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path} is not JSON ({error}); remove it and evaluate the run again") from error
    protocols = content.get("protocols") if isinstance(content, dict) else None
    if (
        not isinstance(protocols, dict)
        or not all(isinstance(entry, dict) for entry in protocols.values())
        or content.get("run_id") != run_path.name
    ):
        raise RunError(
            f"{path} is not the evaluation of run {run_path.name}; remove it and evaluate the run again"
        )
    if content.get("schema_version") != SCHEMA_VERSION:
        raise RunError(
            f"{path} has schema {content.get('schema_version')}, this embedstore reads {SCHEMA_VERSION}; "
            "upgrade embedstore, or remove it and evaluate the run again"
        )
    if (damage := damage_of(raw, content, _FIELDS)) is not None:
        raise RunError(f"{path} {damage}; remove it and evaluate the run again")
    return protocols


def add_evaluation(run_path: Path, entries: Mapping[str, Mapping[str, Any]]) -> Path:
    """Put entries, by protocol, into the evaluation of a run and return its path; other protocols stay.

    The file is replaced in one step. Of two that add at the same instant the later one wins.
    Raises what read_evaluation raises, and RunError where it cannot be written.
    """
    path = evaluation_path(run_path)
    content = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_path.name,
        "protocols": {**read_evaluation(run_path), **entries},
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        replace_file(path, with_digest(text))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
    return path
