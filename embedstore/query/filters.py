"""Filters as a person types them: genre=Comedy, year>=1990."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

from embedstore.errors import UsageError
from embedstore.stores.base import Filters, YearOperator

__all__ = ["parse_filters"]

_CONDITION = re.compile(r"\s*(?P<field>\w+)\s*(?P<op><=|>=|=|<|>)\s*(?P<value>.*?)\s*", re.DOTALL)
_FIELDS = "genre=NAME, year=N, year>=N, year<=N, year>N, year<N"


def parse_filters(texts: Sequence[str]) -> Filters:
    """Return the conditions of texts, all of which must hold.

    Raises UsageError where one is not a condition, names another field, or its year is no number.
    """
    genres: list[str] = []
    years: list[tuple[YearOperator, int]] = []
    for text in texts:
        match = _CONDITION.fullmatch(text)
        if match is None or not match["value"]:
            raise UsageError(f"filter {text!r} is not a condition; expected one of {_FIELDS}")
        field, op, value = match["field"], match["op"], match["value"]
        if field == "genre" and op == "=":
            genres.append(value)
        elif field == "year":
            if not re.fullmatch(r"-?\d{1,9}", value, re.ASCII):
                raise UsageError(f"filter {text!r}: the year {value!r} is not a whole number")
            years.append((cast("YearOperator", op), int(value)))
        else:
            raise UsageError(f"filter {text!r} is not known; expected one of {_FIELDS}")
    return Filters(genres=tuple(genres), years=tuple(years))
