"""What a part of a model makes of a bag of values, told by asking it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Rows
from embedstore.runs.declaration import InputRule
from embedstore.runs.encoding import encode
from embedstore.runs.tower import Matrix, MovieFeature, Pooling

__all__ = ["Branch"]

_BAGS = 40
_LONGEST = 40  # values of such a bag
_NEAR = 1e-4  # of the largest number: the model computes in float32
_BATCH_FLOATS = 1 << 22  # of the inputs of one call, and of what comes out


@dataclass(frozen=True)
class Branch:
    """A part of a model that depends on one bag alone.

    rules: those of its inputs, all of one feature. size: how many indices there are. ask: from these inputs
    to what the part gives, (n_users, width).
    """

    rules: Sequence[InputRule]
    size: int
    ask: Callable[[Mapping[str, npt.NDArray[Any]]], Matrix]

    @property
    def rule(self) -> InputRule:
        """The rule of the input that the values go into; the others are its mask and length."""
        return next(rule for rule in self.rules if rule.form not in ("mask", "length"))

    def table(self) -> Matrix:
        """Return what the part gives for every index alone, (size, width), zeros where that is NaN."""
        step = max(1, _BATCH_FLOATS // (self.size if self.rule.form == "multi_hot" else 256))
        alone = np.split(np.arange(self.size), range(step, self.size, step))
        rows = [self._given(Bags(part, np.arange(part.size + 1))) for part in alone]
        return np.nan_to_num(np.concatenate(rows).astype(np.float32, copy=False))

    def pooling(self, table: Matrix | None) -> Pooling | None:
        """Return how the part pools the rows of table, told by random bags; None where in none of the ways.

        None for table: the part gives the bag itself, one column for each index.
        """
        rng = np.random.default_rng(0)
        values = np.arange(0 if self.rule.form == "ids" else self.rule.first, self.size)
        if self.rule.form != "multi_hot":
            values = values[values != self.rule.padding]
        if not values.size:
            return None
        movies = self.rule.feature == "movies"  # of which a history has each once, of genres and years not
        most = min(self.rule.length or _LONGEST, _LONGEST, values.size if movies else _LONGEST)
        sizes = rng.integers(1, most + 1, size=_BAGS)
        bags = Bags.of(rng.choice(values, size, replace=not movies) for size in sizes)
        found = np.concatenate([self._given(bags.part(bag, bag + 1)) for bag in range(_BAGS)])  # unpadded
        if table is None:
            total = np.zeros((_BAGS, self.size))
            np.add.at(total, (np.repeat(np.arange(_BAGS), sizes), bags.rows), 1.0)
        else:
            total = np.add.reduceat(table[bags.rows], bags.offsets[:-1], axis=0, dtype=np.float64)
        if found.shape != total.shape:
            return None
        divisors: Mapping[Pooling, Rows | npt.NDArray[np.float64] | int] = {
            "mean": sizes[:, None],
            "l2": np.sqrt(sizes)[:, None],
            "sum": 1,
        }
        near = _NEAR * float(np.abs(found).max())
        return next((way for way, by in divisors.items() if np.abs(found - total / by).max() <= near), None)

    def _given(self, bags: Bags) -> Matrix:
        """Return what the part gives for bags of indices."""
        indices = np.arange(self.size)
        feature = MovieFeature(self.rule.feature, np.arange(self.size + 1), indices)
        rules = [replace(rule, first=0, unknown=None) for rule in self.rules]
        return self.ask(
            encode(rules, bags, positions=indices, features={self.rule.feature: feature}, ids=indices)
        )
