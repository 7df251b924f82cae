"""What MLflow is told of a run: params, metrics, curves and tags, within MLflow's limits.

A name is the path in the JSON, its parts joined by `/` in metrics (MLflow's page makes groups of that) and
by `.` in params. MLflow allows letters, digits and `_ - .` in a part: `@` becomes `_at_`, as MLflow itself
writes ndcg_at_100, and anything else `_`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from embedstore.errors import RunError
from embedstore.runs.evaluation import read_evaluation
from embedstore.runs.files import parse_json
from embedstore.runs.run import Run

__all__ = ["FINGERPRINT_TAG", "RUN_TAG", "Content", "Point", "content_of", "name_of"]

RUN_TAG = "embedstore.run_id"
FINGERPRINT_TAG = "embedstore.fingerprint"
LONGEST_NAME = 250
LONGEST_PARAM = 6000
LONGEST_TAG = 5000
_SEED = "_seed"  # numbers that measure nothing


@dataclass(frozen=True)
class Point:
    """A value of a metric; at: milliseconds since 1970, UTC."""

    name: str
    value: float
    at: int
    step: int = 0


@dataclass(frozen=True)
class Content:
    """metrics have step 0, curves one point per step; cut: names of params and tags that were too long."""

    params: Mapping[str, str]
    metrics: tuple[Point, ...]
    curves: tuple[Point, ...]
    tags: Mapping[str, str]
    cut: tuple[str, ...]


def content_of(run: Run) -> Content:
    """Return what MLflow is told of run. Numbers that are not finite are left out.

    Raises RunError where training.jsonl or the evaluation of the run cannot be read.
    """
    manifest = run.manifest
    made_at = _milliseconds(manifest.created_at, 0)
    dataset = {name: value for name, value in manifest.dataset.items() if name.startswith("n_")}
    settings = {
        **manifest.config,
        "embedding_dim": run.embedding_dim,
        "tower": manifest.tower,
        "dataset": dataset,
    }
    params = {name_of(*path, joint="."): _text(value) for path, value in _leaves(settings)}
    tags = {
        RUN_TAG: run.run_id,
        FINGERPRINT_TAG: run.fingerprint,
        "embedstore.created_at": manifest.created_at,
        "embedstore.dataset": _text(manifest.dataset.get("name")),
        "embedstore.dataset_sha256": _text(manifest.dataset.get("sha256")),
        **{name_of("embedstore.version", name, joint="."): text for name, text in manifest.versions.items()},
    }
    if manifest.git_commit is not None:
        tags |= dict.fromkeys(("embedstore.git_commit", "mlflow.source.git.commit"), manifest.git_commit)
    measured = list(_points(manifest.metrics, made_at))
    for protocol, entry in read_evaluation(run.path).items():
        measured += _points(entry, _milliseconds(entry.get("at"), made_at), protocol)
    cut = [name for name, text in params.items() if len(text) > LONGEST_PARAM]
    cut += [name for name, text in tags.items() if len(text) > LONGEST_TAG]
    return Content(
        params={name: _cut(text, LONGEST_PARAM) for name, text in params.items()},
        metrics=tuple({point.name: point for point in measured}.values()),
        curves=tuple(_curves(run.path / "training.jsonl", made_at)),
        tags={name: _cut(text, LONGEST_TAG) for name, text in tags.items()},
        cut=tuple(cut),
    )


def name_of(*parts: str, joint: str = "/") -> str:
    """Return the name that MLflow allows for the path parts: ndcg_at_100 of ndcg@100."""
    allowed = [re.sub(r"[^A-Za-z0-9_.-]", "_", part.replace("@", "_at_")) for part in parts]
    return joint.join(part if part.strip(".") else "_" for part in allowed)[:LONGEST_NAME]


def _leaves(values: Mapping[str, Any], *before: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, *before, name)
        else:
            yield (*before, name), value


def _points(values: Mapping[str, Any], at: int, *before: str) -> Iterator[Point]:
    """Yield a point for every finite number, two (low, high) for an interval."""
    for path, value in _leaves(values, *before):
        pair = value if isinstance(value, list) and len(value) == 2 else None
        ends = {"low": pair[0], "high": pair[1]} if pair else {}
        for name, number in [(path, value), *((((*path, end), number)) for end, number in ends.items())]:
            if _is_number(number) and not path[-1].endswith(_SEED):
                yield Point(name_of(*name), float(number), at)


def _curves(path: Path, at: int) -> Iterator[Point]:
    """Yield the points of training.jsonl: the step is its epoch, or the line where these do not ascend."""
    try:
        lines = [parse_json(line) for line in path.read_bytes().splitlines()] if path.exists() else []
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); the run is damaged, restore or remove it"
        ) from error
    lines = [line for line in lines if isinstance(line, dict)]
    steps = [line.get("epoch") for line in lines]
    if not all(type(step) is int for step in steps) or any(a >= b for a, b in pairwise(steps)):
        steps = list(range(1, len(lines) + 1))
    for step, line in zip(steps, lines, strict=True):
        for name, value in line.items():
            if name != "epoch" and _is_number(value):
                yield Point(name_of("training", name), float(value), at, step)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _milliseconds(text: object, otherwise: int) -> int:
    try:
        return int(datetime.fromisoformat(str(text)).timestamp() * 1000)
    except (ValueError, OverflowError):
        return otherwise
