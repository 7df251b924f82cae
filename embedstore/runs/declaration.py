"""How a history becomes the input of a model that was trained elsewhere: the file input.json.

    {"schema": 1,
     "vocabulary": "movies",
     "inputs": [{"name": "ids", "feature": "movies", "form": "indices", "dtype": "int64", "first": 1}]}

One rule for every input of the model. What a rule does not say has the default of InputRule.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from embedstore.errors import UsageError
from embedstore.runs.files import parse_json

__all__ = [
    "EXACT_BITS",
    "Declaration",
    "InputRule",
    "ModelInput",
    "parse_declaration",
    "read_declaration",
    "rules_of",
]

SCHEMA = 1
Feature = Literal["movies", "genres", "years"]
Form = Literal["indices", "ids", "multi_hot", "mask", "length"]

EXACT_BITS: Final[Mapping[str, int]] = {  # of the whole numbers from 0 on that a type tells apart
    "float32": 24,
    "float64": 53,
    "float16": 11,
    "int64": 63,
    "int32": 31,
    "int16": 15,
    "int8": 7,
    "bool": 1,
}
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "feature": ("movies", "genres", "years"),
    "form": ("indices", "ids", "multi_hot", "mask", "length"),
    "keep": ("newest", "oldest"),
    "order": ("oldest_first", "newest_first"),
    "side": ("right", "left"),
    "values": ("one", "count", "mean", "l2"),
    "dtype": (*EXACT_BITS, "str"),
}
_LARGEST = 1 << 31  # of an index or a size
_LONGEST = 1 << 16  # of an input of a fixed length


@dataclass(frozen=True)
class ModelInput:
    """What a model says of one of its inputs.

    shape: the batch first, None where any length is taken. dtype: the name that NumPy has for it, or "str".
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class InputRule:
    """How one input of the model, name, is made of a history.

    feature: what it is made of: the watched movies, or all genres or years of them, with repetition.
    form: indices (n_users, length), padded with padding where a history is shorter; ids, the same of the
    movies' own ids; multi_hot (n_users, size), at each index values: 1, how often it occurs (count), or that
    divided by how many occur (mean) or the root of it (l2); mask, 1 where indices of the same feature are not
    padding; length (n_users,), how many these are.
    labels: what genres or years have an index, the first one first. first: the index of the first movie or
    label. unknown: the index of what has none; None leaves it out.
    length: fixed, of which only the newest or oldest are kept; None is the longest history asked about.
    order, side: how indices stand in a row, and on which side the padding is.
    """

    name: str
    feature: Feature
    form: Form
    dtype: str = "int64"
    labels: tuple[str, ...] = ()
    first: int = 0
    padding: int | str = 0
    length: int | None = None
    keep: Literal["newest", "oldest"] = "newest"
    order: Literal["oldest_first", "newest_first"] = "oldest_first"
    side: Literal["right", "left"] = "right"
    values: Literal["one", "count", "mean", "l2"] = "one"
    size: int | None = None
    unknown: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as it stands in a file: name, feature, form, dtype, and what is no default."""
        defaults = {field.name: field.default for field in fields(self)}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key == "dtype" or value != defaults[key]
        }


@dataclass(frozen=True)
class Declaration:
    """The rules of all inputs, and which movie has which index.

    vocabulary: movies, the order of the vectors' rows; ascending, by id; or a file of one id per line,
    beside the declaration.
    """

    inputs: tuple[InputRule, ...]
    vocabulary: str = "movies"

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "vocabulary": self.vocabulary,
            "inputs": [rule.to_dict() for rule in self.inputs],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"


def read_declaration(path: Path) -> Declaration:
    """Return the declaration of a file. Raises UsageError where it cannot be read or is none."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"declaration {path} cannot be read: {error.strerror or error}") from error
    return parse_declaration(text, name=str(path))


def parse_declaration(text: bytes, *, name: str) -> Declaration:
    """Return the declaration of a JSON text. Raises UsageError that begins with name."""
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UsageError(f"{name} is not a JSON declaration ({error}); see docs/import.md") from error
    if not isinstance(content, dict) or not isinstance(content.get("inputs"), list):
        raise UsageError(f'{name} has no list "inputs"; expected one rule per input of the model')
    unknown = sorted(content.keys() - {"schema", "vocabulary", "inputs"})
    if unknown:
        raise UsageError(f"{name} has an unknown key {unknown[0]!r}; expected schema, vocabulary and inputs")
    if content.get("schema") != SCHEMA:
        raise UsageError(f"{name} has schema {content.get('schema')!r}; this embedstore reads {SCHEMA}")
    vocabulary = content.get("vocabulary", "movies")
    if not isinstance(vocabulary, str) or not vocabulary:
        raise UsageError(f"{name}: vocabulary is {vocabulary!r}; expected movies, ascending or a file")
    try:
        return Declaration(rules_of(content["inputs"]), vocabulary)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def rules_of(content: Any) -> tuple[InputRule, ...]:
    """Return the rules of a list as JSON gives it. Raises ValueError with a sentence where it is none."""
    if not isinstance(content, list) or not content:
        raise ValueError("inputs is empty; expected one rule per input of the model")
    rules = tuple(_rule(number, entry) for number, entry in enumerate(content, start=1))
    names = [rule.name for rule in rules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"input {twice!r} has two rules; expected one")
    for rule in rules:
        other = next(
            (r for r in rules if r.feature == rule.feature and r.labels and r.labels != rule.labels), rule
        )
        if rule.labels and other is not rule:
            raise ValueError(
                f"inputs {rule.name!r} and {other.name!r} have different labels; expected the same"
            )
        of = [r.name for r in rules if r.feature == rule.feature and r.form in ("indices", "ids")]
        if rule.form in ("mask", "length") and len(of) != 1:
            raise ValueError(
                f"input {rule.name!r} is the {rule.form} of {rule.feature}, of which {len(of)} inputs have "
                "the form indices or ids; expected one"
            )
    return rules


def _rule(number: int, entry: Any) -> InputRule:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"rule {number} has no name; expected the name of an input of the model")
    who = f"input {entry['name']!r}"
    known = {field.name: field for field in fields(InputRule)}
    for key in entry:
        if key not in known:
            raise ValueError(f"{who} has an unknown key {key!r}; expected one of {', '.join(known)}")
    for key, field in known.items():
        if key not in entry and field.default is MISSING:
            raise ValueError(f"{who} has no {key}; expected one of {', '.join(_CHOICES[key])}")
    for key, choices in _CHOICES.items():
        if entry.get(key, choices[0]) not in choices:
            raise ValueError(f"{who}: {key} is {entry[key]!r}; expected one of {', '.join(choices)}")
    for key in ("first", "length", "size", "unknown"):
        value = entry.get(key)
        least = 1 if key in ("length", "size") else 0
        most = (_LONGEST if key == "length" else _LARGEST) - 1
        fits = type(value) is int and least <= value <= most
        if key in entry and not fits and not (value is None and key != "first"):
            raise ValueError(f"{who}: {key} is {value!r}; expected a whole number from {least} to {most}")
    labels = entry.get("labels", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{who}: labels is {str(labels)[:40]}; expected a list of texts")
    if len(set(labels)) < len(labels):
        raise ValueError(f"{who} has a label twice; expected each once, in the order of their indices")
    rule = InputRule(**{**entry, "labels": tuple(labels)})
    _check_sense(rule, who)
    return rule


def _check_sense(rule: InputRule, who: str) -> None:
    """Raise ValueError where the parts of a rule do not go together."""
    kind = str if rule.form == "ids" and rule.dtype == "str" else int
    if type(rule.padding) is not kind:
        expected = "a text" if kind is str else "a whole number"
        raise ValueError(f"{who}: padding is {rule.padding!r}; expected {expected}")
    bits = int(rule.dtype.removeprefix("int")) if rule.dtype.startswith("int") else 32
    if isinstance(rule.padding, int) and not -(1 << bits - 1) <= rule.padding < 1 << bits - 1:
        raise ValueError(f"{who}: padding is {rule.padding}, which is beyond {rule.dtype}")
    if rule.dtype == "str" and rule.form != "ids":
        raise ValueError(f"{who} takes text; expected the form ids")
    if rule.form == "ids" and rule.feature != "movies":
        raise ValueError(f"{who}: the form ids is of movies; expected indices or multi_hot of {rule.feature}")
    if rule.feature != "movies" and rule.form in ("indices", "multi_hot") and not rule.labels:
        raise ValueError(f"{who} has no labels; expected the {rule.feature} in the order of their indices")
    if rule.feature == "movies" and rule.labels:
        raise ValueError(f"{who} has labels, which are of genres and years; name the vocabulary instead")
    if rule.form == "multi_hot" and rule.size is None:
        raise ValueError(f"{who} has no size; expected the number of columns of the model's input")
