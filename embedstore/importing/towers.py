"""The user tower of a run, from a model that was trained elsewhere, and the proof that it is the model's.

A mean of one row per movie is found by what the model answers, a plain stack by its weights. Both are
compared with the model on random histories before they are used; all else is served by the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows
from embedstore.errors import DataError
from embedstore.importing.model import Matrix, PlainStack
from embedstore.runs.declaration import InputRule
from embedstore.runs.encoding import indices_of
from embedstore.runs.served import ServedTower
from embedstore.runs.tower import AdditiveTower, DenseTower, MovieFeature, TowerInput, largest_difference

__all__ = ["N_HISTORIES", "TOLERANCE", "Proven", "prove", "random_histories", "sided"]

N_HISTORIES: Final = 1000
LONGEST: Final = 2000
TOLERANCE: Final = 1e-5  # of the largest value of a dimension: what float32 loses in a model, not in ours
_FEW, _SHORT = 20, 50  # histories for a first look, and the movies of the longest: a model may be slow
_MANY = 100  # movies that are compared with each other

Say = Callable[[str], None]


@dataclass(frozen=True)
class Proven:
    """A tower that answers as the model does.

    difference: the largest from the model, of the largest value of its dimension, on 1,000 random
    histories; None where the model itself answers. limit: the movies of a history beyond which an else
    additive model is none, since its input has no room for more. silent: the features, genres or years,
    that make the model answer NaN where no movie of a history has one, as a mean of nothing does. refused:
    the difference of a plain stack that was not taken, None where there was none.
    """

    tower: AdditiveTower | DenseTower | ServedTower
    difference: float | None = None
    limit: int | None = None
    silent: Sequence[str] = ()
    refused: float | None = None


def random_histories(n_movies: int, count: int, *, longest: int = LONGEST, seed: int = 0) -> Bags:
    """Return count histories of 1 to longest different movies, as many short ones as long ones."""
    rng = np.random.default_rng(seed)
    most = min(longest, n_movies)
    sizes = np.concatenate([[1, most], (most ** rng.random(count - 2)).astype(np.int64)])
    return Bags.of(rng.choice(n_movies, size, replace=False) for size in sizes.tolist())


def prove(model: ServedTower, stack: Callable[[], PlainStack | None], say: Say) -> Proven:
    """Return the fastest tower that answers as model does: a mean, a plain stack, or model itself.

    stack: what the model looks like by its weights, asked where it is not additive.

    Raises DataError where the model answers a history with NaN or infinity, of which every input has a value,
    or all movies alike.
    """
    n = len(model.ids)
    room = _room(model.rules, n)
    say("comparing psi with the mean of psi of single movies")
    few = _of_known(model, random_histories(n, _FEW, longest=min(room or _SHORT, _SHORT), seed=1))
    if not len(few):
        return Proven(model)
    answers = _answers(model, few)
    _check_movies_differ(model)
    if room and (model.positions >= 0).all():
        used, places = np.unique(few.rows, return_inverse=True)
        means = AdditiveTower(_singles(model, used)).batch(Bags(places, few.offsets))
        if (
            _difference(means, answers) <= TOLERANCE
            and np.isfinite(rows := _singles(model, np.arange(n))).all()
        ):
            limited = room < n
            mean = DenseTower([TowerInput("movies", rows, newest=room)]) if limited else AdditiveTower(rows)
            if (difference := _compared(mean, model, say)) <= TOLERANCE:
                return Proven(mean, difference, limit=room if limited else None)
    say("looking for a plain stack in the weights of the model")
    found = stack()
    dense = None if found is None else _dense(found, model)
    if dense is None:
        return Proven(model, silent=_silent(model))
    difference = _difference(dense.batch(few), answers)
    if difference <= TOLERANCE:
        difference = _compared(dense, model, say)
    if difference <= TOLERANCE:
        return Proven(dense, difference, silent=_silent(model))
    return Proven(model, silent=_silent(model), refused=difference)


def _check_movies_differ(model: ServedTower) -> None:
    """Raise DataError where psi is the same of every movie: a lookup in the model may know none of them."""
    known = np.flatnonzero(model.knows(Bags(np.arange(len(model.ids)), np.arange(len(model.ids) + 1))))
    some = known[:: max(1, known.size // _MANY)]
    if some.size > 1 and not np.ptp(_singles(model, some), axis=0).any():
        raise DataError(
            f"the model gives the same psi for each of {some.size} movies, so it knows nothing of what it is "
            "fed as movies; declare what its inputs are, see docs/import.md"
        )


def sided(model: ServedTower) -> Sequence[str]:
    """Return the inputs of movies of which psi tells on which side their padding stands."""
    found = []
    for rule in model.rules:
        if rule.length is None or rule.length < 2 or rule.form not in ("indices", "ids"):
            continue
        short = _of_known(model, random_histories(len(model.ids), _FEW, longest=rule.length - 1, seed=1))
        other = replace(rule, side="left" if rule.side == "right" else "right")
        turned = replace(model, rules=[other if one is rule else one for one in model.rules])
        if len(short) and _difference(turned.batch(short), model.batch(short)) > TOLERANCE:
            found.append(rule.name)
    return found


def _compared(tower: AdditiveTower | DenseTower, model: ServedTower, say: Say) -> float:
    """Return the largest difference of tower from model on 1,000 random histories."""
    say(f"comparing the tower with the model on {N_HISTORIES:,} histories")
    histories = _of_known(model, random_histories(len(model.ids), N_HISTORIES))
    return _difference(tower.batch(histories), _answers(model, histories))


def _of_known(model: ServedTower, histories: Bags) -> Bags:
    """Return the histories that the model knows a movie of."""
    return histories.of_users(model.knows(histories))


def _room(rules: Sequence[InputRule], n: int) -> int:
    """Return how many of n movies the model is told of at once, the newest; 0 where these are the oldest."""
    limits = [rule for rule in rules if rule.feature == "movies" and rule.length is not None]
    if any(rule.keep == "oldest" for rule in limits):
        return 0
    return min((rule.length for rule in limits if rule.length is not None), default=n)


def _answers(model: ServedTower, histories: Bags) -> Matrix:
    """Return psi, NaN where the model answers so, since an input of genres or years is empty."""
    psi = model.batch(histories)
    wrong = ~np.isfinite(psi).all(axis=1) & ~np.any(list(_empty(model, histories).values()), axis=0)
    if wrong.any():
        size = int(histories.sizes[int(np.argmax(wrong))])
        raise DataError(f"the model gives NaN or infinity for a history of {size} movies; train it again")
    return psi


def _empty(model: ServedTower, histories: Bags) -> dict[str, npt.NDArray[np.bool_]]:
    """Return by feature, genres or years, which histories have no value of it, each (n_users,)."""
    empty: dict[str, npt.NDArray[np.bool_]] = {}
    for rule in model.rules:
        if rule.labels:
            values = indices_of(rule, histories, model.positions, model.features)
            empty[rule.feature] = values.sizes == 0
    return empty


def _silent(model: ServedTower) -> list[str]:
    """Return the features without a value of which the model answers NaN."""
    alone = _of_known(model, Bags(np.arange(len(model.ids)), np.arange(len(model.ids) + 1)))
    silent = []
    for feature, empty in _empty(model, alone).items():
        if empty.any() and not np.isfinite(model.batch(alone.of_users(empty).part(0, 1))).all():
            silent.append(feature)
    return silent


def _singles(model: ServedTower, rows: Rows) -> Matrix:
    """Return psi of histories of one movie each."""
    return _answers(model, Bags(rows, np.arange(rows.size + 1)))


def _difference(found: Matrix, expected: Matrix) -> float:
    """Return the largest_difference; users to whom the model answers NaN are left out."""
    there = np.isfinite(expected).all(axis=1)
    return largest_difference(found[there], expected[there])


def _dense(stack: PlainStack, model: ServedTower) -> DenseTower | None:
    """Return stack over the movies of model, None where a DenseTower has no such inputs."""
    rules = {rule.name: rule for rule in model.rules}
    inputs: list[TowerInput] = []
    features: dict[str, MovieFeature] = {}
    for part in stack.inputs:
        rule = rules[part.name]
        if any(done.feature == rule.feature for done in inputs):
            return None
        if rule.feature == "movies":
            indices = _rows_of_movies(model, rule)
            if indices is None or int(indices.max()) >= len(part.table):
                return None
            newest = rule.length if rule.length is not None and rule.length < len(indices) else None
            if newest is not None and rule.keep == "oldest":
                return None
            inputs.append(TowerInput("movies", part.table[indices], part.pooling, newest=newest))
            continue
        own = np.arange(len(rule.labels)) + rule.first
        feature, labels = model.features[rule.feature], rule.labels
        if rule.unknown is None:
            feature = _without_unknown(feature)
        else:
            own, labels = np.append(own, rule.unknown), (*labels, "unknown")
            values = np.where(feature.values < 0, len(rule.labels), feature.values)
            feature = replace(feature, values=values)
        features[rule.feature] = replace(feature, labels=labels)
        inputs.append(TowerInput(rule.feature, part.table[own], part.pooling))
    return DenseTower(inputs, stack.layers, model.constant, features)


def _rows_of_movies(model: ServedTower, rule: InputRule) -> Rows | None:
    """Return the row of a table for every movie, None where some have none, or are known by text.

    In a multi_hot of ones two unknown movies count once, which no table can.
    """
    if rule.form == "ids":
        return model.ids.astype(np.int64) if model.ids.dtype.kind in "iu" else None
    n_unknown = int(np.count_nonzero(model.positions < 0))
    if n_unknown and (
        rule.unknown is None or (n_unknown > 1 and rule.form == "multi_hot" and rule.values == "one")
    ):
        return None
    return np.where(model.positions >= 0, model.positions + rule.first, rule.unknown or 0)


def _without_unknown(feature: MovieFeature) -> MovieFeature:
    """Return feature without values that have no label."""
    bags = Bags(feature.values, feature.offsets).where(feature.values >= 0)
    return replace(feature, offsets=bags.offsets, values=bags.rows)
