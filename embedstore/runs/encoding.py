"""Histories as the inputs of a model, by the rules of a declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Ids, Rows
from embedstore.runs.declaration import InputRule
from embedstore.runs.tower import MovieFeature

__all__ = ["encode", "indices_of"]


def encode(
    rules: Sequence[InputRule],
    bags: Bags,
    *,
    positions: Rows,
    features: Mapping[str, MovieFeature],
    ids: Ids,
) -> dict[str, npt.NDArray[Any]]:
    """Return the inputs of the model for histories of movie rows, by name, each (n_users, ...).

    positions: (n_movies,) the place of every movie in the vocabulary of the model, -1 where it has none.
    features: the genres and years of every movie, as rows of the rules' labels, -1 where none of these.
    ids: (n_movies,). A bag may be empty: its row is all padding, or zeros.
    """
    told: dict[str, Bags] = {}  # of the inputs that a mask or length may be about
    shapes: dict[str, InputRule] = {}
    fed: dict[str, npt.NDArray[Any]] = {}
    for rule in sorted(rules, key=lambda rule: rule.form in ("mask", "length")):
        if rule.form == "mask":
            shown = told[rule.feature]
            ones = Bags(np.ones(shown.rows.size, np.int64), shown.offsets)
            fed[rule.name] = _rectangle(shapes[rule.feature], ones, 0, rule.dtype)
        elif rule.form == "length":
            fed[rule.name] = told[rule.feature].sizes.astype(rule.dtype)
        elif rule.form == "multi_hot":
            fed[rule.name] = _multi_hot(rule, indices_of(rule, bags, positions, features))
        else:
            values = Bags(ids[bags.rows], bags.offsets) if rule.form == "ids" else None
            values = _kept(rule, values or indices_of(rule, bags, positions, features))
            told[rule.feature], shapes[rule.feature] = values, rule
            fed[rule.name] = _rectangle(rule, values, rule.padding, rule.dtype)
    return fed


def indices_of(rule: InputRule, bags: Bags, positions: Rows, features: Mapping[str, MovieFeature]) -> Bags:
    """Return the indices of every history for an input, without those that it leaves out."""
    if rule.feature == "movies":
        found = Bags(positions[bags.rows], bags.offsets)
    else:
        found = features[rule.feature].bags(bags)
    if rule.unknown is None:
        found = found.where(found.rows >= 0)
        return Bags(found.rows + rule.first, found.offsets)
    return Bags(np.where(found.rows >= 0, found.rows + rule.first, rule.unknown), found.offsets)


def _kept(rule: InputRule, bags: Bags) -> Bags:
    """Return what a fixed length has room for, in the order of the input."""
    if rule.length is not None and rule.keep == "newest":
        bags = bags.newest(rule.length)
    elif rule.length is not None:
        place = np.arange(bags.rows.size) - np.repeat(bags.offsets[:-1], bags.sizes)
        bags = bags.where(place < rule.length)
    if rule.order == "newest_first":
        turned = np.repeat(bags.offsets[:-1] + bags.offsets[1:] - 1, bags.sizes) - np.arange(bags.rows.size)
        bags = Bags(bags.rows[turned], bags.offsets)
    return bags


def _rectangle(rule: InputRule, bags: Bags, padding: int | str, dtype: str) -> npt.NDArray[Any]:
    """Return bags as rows of one length, (n_users, length), on the side that rule says."""
    sizes = bags.sizes
    width = rule.length or max(1, int(sizes.max(initial=0)))
    column = np.arange(width)
    there = column < sizes[:, None] if rule.side == "right" else column >= width - sizes[:, None]
    if dtype == "str":
        texts = np.full(there.shape, padding, dtype=object)
        texts[there] = [str(value) for value in bags.rows.tolist()]
        return texts
    filled = np.full(there.shape, padding, dtype=dtype)
    filled[there] = bags.rows
    return filled


def _multi_hot(rule: InputRule, bags: Bags) -> npt.NDArray[Any]:
    sizes = bags.sizes
    hot = np.zeros((len(bags), rule.size or 0), dtype=np.float64)
    np.add.at(hot, (np.repeat(np.arange(len(bags)), sizes), bags.rows), 1.0)
    if rule.values == "one":
        hot = np.minimum(hot, 1.0)
    elif rule.values != "count":
        hot /= (np.maximum(sizes, 1) ** (1.0 if rule.values == "mean" else 0.5))[:, None]
    return hot.astype(rule.dtype)
