"""Two runs on the same users: paired differences, for all, by group, and whom it changed most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset
from embedstore.data.features import MovieId
from embedstore.data.splits import SPLIT
from embedstore.errors import UsageError
from embedstore.evaluation.baselines import Scorer
from embedstore.evaluation.bootstrap import Interval, intervals
from embedstore.evaluation.metrics import Measured
from embedstore.evaluation.protocols import Question, question
from embedstore.evaluation.report import evaluate_models, numbers
from embedstore.evaluation.scoring import data_of, model_of, movies_of, retrained, scorer_of
from embedstore.runs.run import Run

__all__ = ["Change", "Comparison", "Group", "UserChange", "compare_runs", "compare_scorers"]

_MOST = 5  # users who gained, and who lost, most
_FEWEST = 5  # users of a genre that make a group of its own


@dataclass(frozen=True)
class Change:
    """A metric of A and of B. difference: of B - A over users; None for one of all lists together."""

    a: float
    b: float
    difference: Interval | None

    def to_dict(self) -> dict[str, Any]:
        found = self.difference
        values = {"a": self.a, "b": self.b, "difference": self.b - self.a}
        if found is not None:
            values |= {"difference": found.mean, "low": found.low, "high": found.high}
        users = {} if found is None else {"users": found.n_users}
        return {**numbers(values), **users}


@dataclass(frozen=True)
class Group:
    """The users who have something in common, and every per-user metric over them."""

    by: str
    label: str
    n_users: int
    changes: dict[str, Change]


@dataclass(frozen=True)
class UserChange:
    """One user's value of the headline under A and under B."""

    user_id: MovieId
    n_history: int
    a: float
    b: float


@dataclass(frozen=True)
class Comparison:
    """What B changes against A for the users of a protocol.

    changes: by metric, the headline first. groups: by history length and by favourite genre.
    gained, lost: at most 5 users each, those whose headline changed most first.
    """

    question: Question
    names: tuple[str, str]
    changes: dict[str, Change]
    groups: tuple[Group, ...]
    gained: tuple[UserChange, ...]
    lost: tuple[UserChange, ...]
    retrained: bool = False

    @property
    def headline(self) -> str:
        return next(iter(self.changes))

    def to_dict(self) -> dict[str, Any]:
        held_out = self.question.held_out
        return {
            "a": self.names[0],
            "b": self.names[1],
            "protocol": self.question.protocol.name,
            "retrained": self.retrained,
            "users": {"asked": held_out.n_asked, "scored": len(held_out)},
            "headline": self.headline,
            "metrics": {name: change.to_dict() for name, change in self.changes.items()},
            "groups": [
                {
                    "by": group.by,
                    "label": group.label,
                    "users": group.n_users,
                    "metrics": {name: change.to_dict() for name, change in group.changes.items()},
                }
                for group in self.groups
            ],
            "gained": [asdict(user) for user in self.gained],
            "lost": [asdict(user) for user in self.lost],
        }


def compare_runs(
    a: Run, b: Run, dataset: Dataset, *, protocol: str = "serving", metrics: Sequence[str] = ()
) -> Comparison:
    """Return what run b changes against run a for the users whom both held out.

    Raises UsageError where dataset is not that of both, or they held out different users, and what
    evaluate_run raises.
    """
    for name in SPLIT:
        values = [run.manifest.config.get(name) for run in (a, b)]
        if values[0] != values[1]:
            cure = f"train one of them again with -P {name}=..."
            if None in values:  # of a run that was imported without ratings
                cure = f"import {(a, b)[values.index(None)].reference} again with --ratings"
            raise UsageError(
                f"runs {a.reference} and {b.reference} were not measured on the same users: {name} is "
                f"{values[0]} and {values[1]}; {cure}"
            )
    data = data_of(a, dataset)
    data_of(b, dataset)
    asked = question(data, protocol)
    again, movies = asked.protocol.retrain, movies_of(data)
    scorers = [scorer_of(retrained(run, asked) if again else model_of(run), movies) for run in (a, b)]
    return compare_scorers(
        (a.reference, scorers[0]), (b.reference, scorers[1]), asked, metrics=metrics, retrained=again
    )


def compare_scorers(
    a: tuple[str, Scorer],
    b: tuple[str, Scorer],
    asked: Question,
    *,
    metrics: Sequence[str] = (),
    retrained: bool = False,
) -> Comparison:
    """Return what scorer b changes against scorer a, each with its name; see evaluate_models."""
    scores = evaluate_models({"a": a[1], "b": b[1]}, asked, metrics=metrics)
    one, two = scores.models["a"], scores.models["b"]
    everybody = np.ones(len(asked.held_out), dtype=bool)
    changes = {
        **_changes(one, two, everybody),
        **{
            name: Change(one.overall[name], two.overall[name], None)
            for name in scores.metrics
            if name not in one.per_user
        },
    }
    groups = [
        Group(by, label, int(inside.sum()), _changes(one, two, inside))
        for by, label, inside in [*_by_length(asked), *_by_genre(asked)]
    ]
    before, after = one.per_user[scores.headline], two.per_user[scores.headline]
    return Comparison(
        question=asked,
        names=(a[0], b[0]),
        changes={name: changes[name] for name in scores.metrics},
        groups=tuple(groups),
        gained=_users(asked, before, after, after - before),
        lost=_users(asked, before, after, before - after),
        retrained=retrained,
    )


def _changes(a: Measured, b: Measured, inside: npt.NDArray[np.bool_]) -> dict[str, Change]:
    differences = {name: b.per_user[name][inside] - values[inside] for name, values in a.per_user.items()}
    return {
        name: Change(_mean(a.per_user[name][inside]), _mean(b.per_user[name][inside]), found)
        for name, found in intervals(differences).items()
    }


def _mean(values: npt.NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan


def _by_length(asked: Question) -> list[tuple[str, str, npt.NDArray[np.bool_]]]:
    """Return the users in three parts, as equal as ties allow, by the length of the known history."""
    sizes = asked.held_out.known.sizes
    third = np.searchsorted(np.quantile(sizes, [1 / 3, 2 / 3]), sizes, side="left")
    return [
        ("history", f"{sizes[inside].min():,} to {sizes[inside].max():,} movies", inside)
        for part in range(3)
        if (inside := third == part).any()
    ]


def _by_genre(asked: Question) -> list[tuple[str, str, npt.NDArray[np.bool_]]]:
    """Return the users by the genre that most movies of the known history have, the largest group first.

    Of equal ones the first in the alphabet counts. Genres of few users are one group, the last; users
    whose movies have no genre are in none.
    """
    known = asked.held_out.known
    labels, has = asked.data.genres
    counts = np.zeros((len(known), len(labels)), dtype=np.int64)
    np.add.at(counts, np.repeat(np.arange(len(known)), known.sizes), has[known.rows])
    favourite = np.where(counts.any(axis=1), counts.argmax(axis=1) if labels else -1, -1)
    sizes = np.bincount(favourite[favourite >= 0], minlength=len(labels))
    large = [column for column in np.argsort(-sizes, kind="stable").tolist() if sizes[column] >= _FEWEST]
    groups = [(labels[column], favourite == column) for column in large]
    groups.append(("others", (favourite >= 0) & ~np.isin(favourite, large)))
    return [("favourite genre", label, inside) for label, inside in groups if inside.any()]


def _users(
    asked: Question,
    a: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    change: npt.NDArray[np.float64],
) -> tuple[UserChange, ...]:
    """Return the users of the largest positive change."""
    held_out = asked.held_out
    order = np.argsort(-change, kind="stable")
    chosen = order[change[order] > 0][:_MOST]
    ids = asked.data.dataset.users.ids(held_out.users[chosen])
    return tuple(
        UserChange(user_id, int(held_out.known.sizes[row]), float(a[row]), float(b[row]))
        for user_id, row in zip(ids, chosen, strict=True)
    )
