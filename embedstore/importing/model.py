"""What a model trained elsewhere offers to the import, whatever made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from embedstore.runs.declaration import InputRule, ModelInput
from embedstore.runs.tower import Pooling, TowerLayer

__all__ = ["Matrix", "PlainInput", "PlainStack", "TowerModel", "shape_text"]

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PlainInput:
    """One pooled input of a plain stack: the rule it belongs to, by name, and a row for every index.

    table: (n_indices, width), in the model's own order, with the rows of padding and unknown.
    """

    name: str
    table: Matrix
    pooling: Pooling


@dataclass(frozen=True)
class PlainStack:
    """Pooled inputs side by side, then dense layers: what a DenseTower is, in the model's own indices."""

    inputs: Sequence[PlainInput]
    layers: Sequence[TowerLayer] = ()


def shape_text(shape: Sequence[int | None] | None) -> str:
    """Return what a message calls a shape that a model declares: (any, 64)."""
    if shape is None:
        return "unknown"
    return "(" + ", ".join("any" if length is None else str(length) for length in shape) + ")"


class TowerModel(Protocol):
    """A model whose output is psi.

    kind: keras, saved_model or onnx. inputs: what it is fed. width: of psi, None where the model does not
    say. notes: what was converted or chosen, a sentence each. tables: how many indices each input may
    have, by its name, where the model tells: the rows of the embedding that it goes into.
    """

    @property
    def kind(self) -> str: ...
    @property
    def inputs(self) -> Sequence[ModelInput]: ...
    @property
    def width(self) -> int | None: ...
    @property
    def notes(self) -> Sequence[str]: ...
    @property
    def tables(self) -> Mapping[str, int]: ...

    def candidates(self) -> Mapping[str, tuple[int, int]]:
        """Return the shape of every weight that may hold V, by the name that matrix takes."""

    def matrix(self, name: str, n: int) -> tuple[Matrix, Matrix | None]:
        """Return the weight name as (n, width), transposed where need be, and its bias (n,) if it has one.

        Raises UsageError where there is none of that name, or it has not n rows or columns.
        """

    def plain(self, rules: Sequence[InputRule]) -> PlainStack | None:
        """Return the model as a plain stack, None where it does not look like one. It is not proven yet."""

    def save(self, folder: Path) -> None:
        """Write into folder what runs.served.open_session loads."""
