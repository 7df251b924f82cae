"""The declaration of a model's inputs, where its names, shapes and tables tell it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from embedstore.errors import UsageError
from embedstore.importing.model import shape_text
from embedstore.runs.declaration import Declaration, Feature, InputRule, ModelInput

__all__ = ["UntoldError", "infer"]

_PADDED_FROM = {0: (0, None), 1: (1, None), 2: (2, 1)}  # rows beyond the vocabulary: first, unknown
_FEATURES: Mapping[Feature, tuple[str, ...]] = {
    "genres": ("genre",),
    "years": ("year",),
    "movies": ("movie", "item", "histor", "watch", "rated", "seen", "click", "id", "input"),
}
_OTHERS = ("age", "gender", "country", "time", "timestamp", "rating", "ratings", "label", "context")
_CURE = "declare the inputs in a file, or ask by `query --vector` with psi made elsewhere (docs/import.md)"
_MASKS = ("mask", "valid")
_LENGTHS = ("len", "size", "count")


class UntoldError(UsageError):
    """An input cannot be told; draft is the declaration as far as it got, with a rule to correct for it."""

    def __init__(self, message: str, draft: Declaration) -> None:
        super().__init__(message)
        self.draft = draft


@dataclass(frozen=True)
class _Known:
    """What is known besides the model: the number of movies, and the labels of a feature."""

    n_movies: int
    labels: Callable[[str], Sequence[str]]


def infer(
    inputs: Sequence[ModelInput],
    tables: Mapping[str, int],
    *,
    n_movies: int,
    labels: Callable[[str], Sequence[str]],
) -> Declaration:
    """Return the declaration of a model's inputs.

    By the name of an input, genres and years are those of the watched movies, a mask or length is that of
    the movies, and all else that may be movies is. tables: the rows of the table that an input goes into,
    by its name: as many as the vocabulary are indices from 0; one more, from 1, 0 the padding, as Keras'
    mask_zero has it; two more, from 2, 1 the unknown, as its StringLookup. labels: of genres
    or years, asked where an input takes them.

    Raises UntoldError that names the first input that cannot be told.
    """
    known = _Known(n_movies, labels)
    rules: list[InputRule] = []
    wrong: str | None = None
    for given in inputs:
        try:
            rules.append(_rule(given, tables.get(given.name), known, alone=len(inputs) == 1))
        except ValueError as error:
            wrong = wrong or str(error)
            rules.append(_draft(given))
    draft = Declaration(tuple(rules))
    if wrong is not None:
        raise UntoldError(f"{wrong}; {_CURE}", draft)
    bags = {rule.feature for rule in rules if rule.form in ("indices", "ids")}
    for rule in rules:
        if rule.form in ("mask", "length") and rule.feature not in bags:
            raise UntoldError(
                f"input {rule.name!r} looks like a {rule.form}, but no input takes the indices of movies; "
                f"{_CURE}",
                draft,
            )
    return draft


def _rule(given: ModelInput, table: int | None, known: _Known, *, alone: bool) -> InputRule:
    """Return the rule of one input. Raises ValueError that says what cannot be told."""
    name, shape, dtype = given.name, given.shape, given.dtype
    feature = _feature(name, alone=alone)
    words = re.findall("[a-z]+", name.lower())
    if not alone and any(word.startswith(_MASKS) for word in words):
        return InputRule(name, feature, "mask", dtype)
    if not alone and any(word.startswith(_LENGTHS) for word in words):
        return InputRule(name, feature, "length", dtype)
    if len(shape) != 2:
        raise ValueError(f"input {name!r} has shape {shape_text(shape)}; expected (users, movies)")
    labels = () if feature == "movies" else tuple(known.labels(feature))
    n = known.n_movies if feature == "movies" else len(labels)
    if feature != "movies" and not labels:
        raise ValueError(f"input {name!r} takes {feature}, and the movies have none; give them with --movies")
    if dtype == "str":
        if feature != "movies":
            raise ValueError(f"input {name!r} takes the names of {feature}, expected their indices")
        return InputRule(name, feature, "ids", dtype, padding="", length=shape[1])
    if dtype == "bool" or dtype.startswith("float"):
        return _multi_hot(given, feature, labels, n)
    if table is None:
        raise ValueError(
            f"input {name!r} takes indices, and it cannot be told from which on those of {n:,} {feature}"
        )
    if table - n not in _PADDED_FROM:
        raise ValueError(
            f"input {name!r} goes into a table of {table:,} rows, and there are {n:,} {feature}: the "
            f"vocabulary is {'shorter' if n < table else 'longer'} than the table, expected {n:,} rows "
            "or up to two more"
        )
    if shape[1] == table:
        raise ValueError(
            f"input {name!r} has a column for each row of its table: whether it takes indices or a multi_hot "
            "of whole numbers cannot be told"
        )
    first, unknown = _PADDED_FROM[table - n]
    return InputRule(
        name, feature, "indices", dtype, labels=labels, first=first, length=shape[1], unknown=unknown
    )


def _draft(given: ModelInput) -> InputRule:
    """Return a rule of the right name, type and length, for a person to correct."""
    size = given.shape[1] if len(given.shape) == 2 else None
    if given.dtype == "str":
        return InputRule(given.name, "movies", "ids", "str", padding="", length=size)
    if given.dtype == "bool" or given.dtype.startswith("float"):
        return InputRule(given.name, "movies", "multi_hot", given.dtype, size=size or 1)
    return InputRule(given.name, "movies", "indices", given.dtype, length=size)


def _multi_hot(given: ModelInput, feature: Feature, labels: tuple[str, ...], n: int) -> InputRule:
    size = given.shape[1]
    if size is None:
        raise ValueError(f"input {given.name!r} takes numbers and does not say how many; expected {n:,}")
    if size - n not in _PADDED_FROM:
        raise ValueError(
            f"input {given.name!r} has {size:,} columns and there are {n:,} {feature}: the vocabulary is "
            f"{'shorter' if n < size else 'longer'} than the input, expected one column for each"
        )
    first, unknown = _PADDED_FROM[size - n]
    return InputRule(
        given.name, feature, "multi_hot", given.dtype, labels=labels, first=first, size=size, unknown=unknown
    )


def _feature(name: str, *, alone: bool) -> Feature:
    words = re.findall("[a-z]+", name.lower())
    for feature, parts in _FEATURES.items():
        told = any(word.startswith(parts) for word in words)
        if told and not (feature == "movies" and words[0] == "user" and words[-1] == "id"):
            return feature
    other = next((word for word in words if word.startswith("user") or word in _OTHERS), None)
    if other is not None:
        raise ValueError(
            f"the model needs {name!r}, which is no part of a history (its movies, their genres and years)"
        )
    if not alone and not any(word.startswith((*_MASKS, *_LENGTHS)) for word in words):
        raise ValueError(f"the model needs {name!r}, and what that is cannot be told from its name")
    return "movies"
