"""A user tower in an .onnx file: what the import reads of it, and the file that a run keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedstore.errors import RunError, UsageError
from embedstore.importing.model import Matrix, PlainStack, shape_text
from embedstore.runs.declaration import InputRule, ModelInput
from embedstore.runs.served import Session, open_session

if TYPE_CHECKING:
    from onnx import ValueInfoProto

__all__ = ["OnnxModel"]

_PACKAGES = ("onnx", "onnxruntime")
_DOMAINS = ("ai.onnx", "ai.onnx.ml", "com.microsoft")  # whose operators onnxruntime has
_MOST_NAMES = 12  # in a message


class OnnxModel:
    """The user tower of an .onnx file, or of its bytes; see TowerModel.

    output: the output, or a tensor inside, that is psi; None where the model has one output alone. Weights
    in files beside it (which torch.onnx.export writes) are read. A run keeps one file, with no more in it
    than psi is computed from.

    Raises UsageError where onnx or onnxruntime is missing, or psi cannot be told or computed, DataError
    where the file cannot be read.
    """

    kind = "onnx"

    def __init__(self, source: Path | bytes, *, output: str | None = None) -> None:
        missing = [package for package in _PACKAGES if find_spec(package) is None]
        if missing:
            raise UsageError(
                f"importing an ONNX model needs {' and '.join(missing)}; install with "
                f"`pip install {' '.join(missing)}`"
            )
        from embedstore.importing.onnx_file import read_model
        from embedstore.importing.onnx_graph import Graph

        self._who = "the ONNX model" if isinstance(source, bytes) else f"ONNX model {source}"
        self.notes: list[str] = []
        model, outside = read_model(source, self._who)
        if outside:
            self.notes.append("weights in files beside the model were read into one file")
        self._graph = Graph(model)
        types = sorted({kind for _, kind in self._graph.weights().values()} - {"float32"})
        if types:
            self.notes.append(
                f"weights of the model are {', '.join(types)}: what a run has of them is float32"
            )
        self._output = self._chosen(output)
        used = self._graph.needed(self._output)
        self._check_operators(used)
        given = [info for name, info in self._graph.inputs.items() if name in used]
        rows = {info.name: self._graph.table_rows(info.name) for info in given}
        self.tables: Mapping[str, int] = {name: n for name, n in rows.items() if n is not None}
        self.inputs: Sequence[ModelInput] = [self._described(info) for info in given]
        if not given:
            raise UsageError(f"{self._who}: {self._output!r} depends on no input, and psi on a history")
        self.session()  # raises where onnxruntime cannot compute it

    @cached_property
    def width(self) -> int:
        """Of psi: as the model declares it, else as it is for one history of one value.

        Raises UsageError where the model gives none.
        """
        declared = self._graph.outputs.get(self._output)
        shape = None if declared is None else _shape(declared)
        if shape is not None and shape[1] is not None:
            return shape[1]
        feeds = {
            given.name: np.ones([length or 1 for length in given.shape], given.dtype).astype(
                object if given.dtype == "str" else given.dtype
            )
            for given in self.inputs
        }
        try:
            return int(self.session()(feeds).shape[1])
        except RunError as error:
            raise UsageError(
                f"{self._who} does not say how wide {self._output!r} is, expected (users, width), found "
                f"{shape_text(shape)}, and one history does not tell: {error}"
            ) from error

    def candidates(self) -> Mapping[str, tuple[int, int]]:
        return {
            name: (shape[0], shape[1])
            for name, (shape, _) in self._graph.weights().items()
            if len(shape) == 2
        }

    def matrix(self, name: str, n: int) -> tuple[Matrix, Matrix | None]:
        shapes = self.candidates()
        if name not in shapes:
            raise UsageError(
                f"{self._who} has no weight {name!r} of two dimensions; there are {_listed(shapes) or 'none'}"
            )
        if n not in shapes[name]:
            raise UsageError(
                f"weight {name!r} of {self._who} has shape {shapes[name]}; expected a row, or a column, for "
                f"each of {n:,} movies"
            )
        values = self._graph.weight(name)
        turned = shapes[name][0] != n or (shapes[name][1] == n and self._graph.is_kernel(name))
        bias = self._graph.bias_of(name, n)
        return (
            np.ascontiguousarray(values.T if turned else values, np.float32),
            None if bias is None else bias.astype(np.float32),
        )

    def session(self) -> Session:
        try:
            return open_session(self.kind, self._content(), output=self._output)
        except UsageError as error:
            newest = re.search(r"(is till opset|max supported IR version:) (\d+)", str(error.__cause__))
            if newest is None:
                raise
            opset = newest[1] == "is till opset"
            found = self._graph.opset if opset else self._graph.model.ir_version
            raise UsageError(
                f"{self._who} has {'opset' if opset else 'IR version'} {found} and this onnxruntime reads up "
                f"to {newest[2]}; upgrade onnxruntime, or export the model for an older one"
            ) from error

    def plain(self, rules: Sequence[InputRule]) -> PlainStack | None:
        from embedstore.importing.onnx_plain import plain_stack

        return plain_stack(self._graph, self._output, rules, self.tables)

    def save(self, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(self._content())

    def _content(self) -> bytes:
        content: bytes = self._graph.up_to(self._output).SerializeToString()
        return content

    def _chosen(self, output: str | None) -> str:
        """Return the name of the tensor that is psi."""
        outputs = self._graph.outputs
        if output is None and len(outputs) != 1:
            described = (f"{name} {shape_text(_shape(info))}" for name, info in outputs.items())
            raise UsageError(
                f"{self._who} has {len(outputs)} outputs: {_listed(described)}; name the one that is psi "
                "with --output"
            )
        name = next(iter(outputs)) if output is None else output
        if name not in outputs and name not in self._graph.producers:
            raise UsageError(f"{self._who} has no output {name!r}; there are {_listed(outputs)}")
        if name not in outputs:
            self.notes.append(f"psi is {name}, a tensor inside the model")
        elif (shape := _shape(outputs[name])) is not None and len(shape) != 2:
            raise UsageError(
                f"output {name!r} of {self._who} has shape {shape_text(shape)}; expected (users, width)"
            )
        return name

    def _check_operators(self, used: Set[str]) -> None:
        for domain, operator in self._graph.foreign_operators(used):
            if domain not in _DOMAINS:
                raise UsageError(
                    f"{self._who} has the operator {operator} of {domain}, which onnxruntime does not bring "
                    "along; export it with standard operators"
                )

    def _described(self, info: ValueInfoProto) -> ModelInput:
        from onnx import TensorProto, helper

        shape = _shape(info)
        if not info.type.HasField("tensor_type") or not shape or shape.count(None) > 2:
            found = "no tensor" if not info.type.HasField("tensor_type") else f"of shape {shape_text(shape)}"
            raise UsageError(
                f"input {info.name!r} of {self._who} is {found}; expected (users, movies), or (users,), "
                "with at most two lengths left open"
            )
        kind = info.type.tensor_type.elem_type
        dtype = "str" if kind == TensorProto.STRING else helper.tensor_dtype_to_np_dtype(kind).name
        if len(shape) == 2 and shape[1] is None and dtype.startswith("float"):
            shape = (shape[0], self.tables.get(info.name))  # of a multi-hot, as many as its kernel has rows
        return ModelInput(info.name, shape, dtype)


def _shape(info: ValueInfoProto) -> tuple[int | None, ...] | None:
    """Return the shape that the model declares, None for a length left open, or for all of it."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    rest = len(known) - _MOST_NAMES
    return ", ".join(known[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")
