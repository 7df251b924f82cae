"""The dense layers that an ONNX model ends in, and the pooled tables before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from embedstore.errors import RunError
from embedstore.importing.model import PlainInput, PlainStack
from embedstore.importing.onnx_graph import Graph, attribute_of
from embedstore.importing.pooling import Branch
from embedstore.runs.declaration import InputRule
from embedstore.runs.served import open_session
from embedstore.runs.tower import Activation, Matrix, Pooling, TowerLayer

__all__ = ["plain_stack"]

Array = npt.NDArray[Any]

_ACTIVATIONS: Mapping[str, Activation] = {"Tanh": "tanh", "Relu": "relu"}
_NOTHING = ("Cast", "Dropout", "Identity")  # that matters to psi; the import proves it


@dataclass(frozen=True)
class _Affine:
    """x kernel + bias. kernel: (width_in, width_out), or what every column is multiplied with."""

    kernel: Array
    bias: Array

    def then(self, other: _Affine) -> _Affine:
        """Return both as one; one of them at least must be without a matrix."""
        if other.kernel.ndim < 2:
            return _Affine(self.kernel * other.kernel, self.bias * other.kernel + other.bias)
        bias = np.broadcast_to(self.bias, len(other.kernel)) @ other.kernel + other.bias
        return _Affine(np.reshape(self.kernel, (-1, 1)) * other.kernel, bias)

    def layer(self, width: int, activation: Activation) -> TowerLayer:
        """Return the layer for width columns. Raises ValueError where they do not fit."""
        kernel = self.kernel
        if kernel.ndim < 2:
            kernel = np.diag(np.broadcast_to(kernel, width))
        if len(kernel) != width:
            raise ValueError(f"a kernel of {len(kernel)} rows after {width} columns")
        bias = np.broadcast_to(self.bias, kernel.shape[1]).astype(np.float32) if self.bias.any() else None
        return TowerLayer(kernel.astype(np.float32, copy=False), bias, activation)


_ZERO = np.zeros(())
_SAME = _Affine(np.ones(()), _ZERO)
_Layer = tuple[_Affine, Activation]


def plain_stack(
    graph: Graph, output: str, rules: Sequence[InputRule], sizes: Mapping[str, int]
) -> PlainStack | None:
    """Return the tensor output as a plain stack, None where it does not look like one.

    sizes: how many indices an input may have, by its name.
    """
    layers, pooled = _layers_to(graph, output)
    try:
        parts = [_pooled(graph, name, rules, sizes) for name in _side_by_side(graph, pooled)]
        found = [part for part in parts if part is not None]
        return _stack(found, layers) if len(found) == len(parts) else None
    except (
        RunError,
        ValueError,
    ):  # a part of the model that cannot be asked alone, or widths that do not fit
        return None


@dataclass(frozen=True)
class _Part:
    """table: None where the part is the bag itself, of size columns."""

    name: str
    size: int
    table: Matrix | None
    pooling: Pooling

    @property
    def width(self) -> int:
        return self.size if self.table is None else int(self.table.shape[1])


def _stack(parts: Sequence[_Part], layers: list[_Layer]) -> PlainStack | None:
    """Return parts side by side before layers. What a bag itself is multiplied with becomes its table."""
    width = sum(part.width for part in parts)
    blocks: list[Array] = [np.zeros(0)] * len(parts)
    if any(part.table is None for part in parts):
        if not layers or layers[0][0].kernel.ndim < 2:
            return None
        first, activation = layers[0]
        blocks = np.split(first.kernel, np.cumsum([part.width for part in parts])[:-1])
        same = np.eye(first.kernel.shape[1])
        if len(parts) == 1 and activation == "linear" and not first.bias.any():
            layers = layers[1:]
        else:
            kernel = [
                same if part.table is None else block for part, block in zip(parts, blocks, strict=True)
            ]
            layers = [(_Affine(np.concatenate(kernel), first.bias), activation), *layers[1:]]
        width = len(same) if len(parts) == 1 else len(layers[0][0].kernel)
    inputs = [
        PlainInput(
            part.name,
            block.astype(np.float32, copy=False) if part.table is None else part.table,
            part.pooling,
        )
        for part, block in zip(parts, blocks, strict=True)
    ]
    dense = []
    for affine, activation in layers:
        dense.append(affine.layer(width, activation))
        width = int(dense[-1].kernel.shape[1])
    return PlainStack(inputs, dense)


def _pooled(graph: Graph, name: str, rules: Sequence[InputRule], sizes: Mapping[str, int]) -> _Part | None:
    """Return the pooled input that the tensor name is, None where it does not behave like one."""
    needed = graph.needed(name)
    own = [rule for rule in rules if rule.name in needed]
    bags = [rule for rule in own if rule.form not in ("mask", "length")]
    if len(bags) != 1 or any(rule.feature != bags[0].feature for rule in own):
        return None
    size = bags[0].size or sizes.get(bags[0].name)
    if size is None:
        return None
    content = None if name in graph.inputs else graph.up_to(name).SerializeToString()
    branch = Branch(
        rules=own,
        size=size,
        ask=(lambda feeds: feeds[name]) if content is None else open_session("onnx", content, output=name),
    )
    table: Matrix | None = None
    if bags[0].form != "multi_hot":
        table = branch.table()
    else:
        layers, _ = _layers_to(graph, name)
        if len(layers) == 1 and layers[0][0].kernel.ndim == 2:
            table = layers[0][0].kernel.astype(np.float32, copy=False)
    pooling = branch.pooling(table)
    return None if pooling is None else _Part(bags[0].name, size, table, pooling)


def _side_by_side(graph: Graph, name: str) -> list[str]:
    """Return the tensors that name is put together of, column by column."""
    node = graph.producers.get(name)
    if node is None or node.op_type != "Concat" or attribute_of(node, "axis", None) not in (1, -1):
        return [name]
    return [inner for part in node.input for inner in _side_by_side(graph, part)]


def _layers_to(graph: Graph, name: str) -> tuple[list[_Layer], str]:
    """Return the dense layers that end in the tensor name, the first one first, and what they are fed."""
    steps: list[_Affine | Activation] = []
    while (found := _step(graph, name)) is not None:
        steps[:0], name = found
    layers: list[_Layer] = []
    affine: _Affine | None = None
    for step in steps:
        if not isinstance(step, _Affine):
            layers.append((affine or _SAME, step))
            affine = None
        elif affine is None or affine.kernel.ndim < 2 or step.kernel.ndim < 2:
            affine = step if affine is None else affine.then(step)
        else:
            layers.append((affine, "linear"))
            affine = step
    if affine is not None:
        layers.append((affine, "linear"))
    return layers, name


_Steps = tuple[list[_Affine | Activation], str]


def _step(graph: Graph, name: str) -> _Steps | None:
    """Return what is done last to get the tensor name, and the tensor that it is done to.

    None where it is nothing that a dense layer is made of.
    """
    node = graph.producers.get(name)
    if node is None or node.domain not in ("", "ai.onnx") or not node.input:
        return None
    before, *others = node.input
    if node.op_type in _NOTHING:
        return [], before
    if node.op_type in _ACTIVATIONS:
        return [_ACTIVATIONS[node.op_type]], before
    if node.op_type in ("MatMul", "Gemm"):
        affine = _product(graph, node)
    elif node.op_type == "BatchNormalization":
        affine = _normalised(graph, node)
    elif node.op_type in ("Add", "Sub", "Mul", "Div"):
        constant = _columns(graph, others[0])
        if constant is None and node.op_type in ("Add", "Mul"):
            constant, before = _columns(graph, before), others[0]
        affine = None if constant is None else _elementwise(node.op_type, constant)
    else:
        affine = None
    return None if affine is None else ([affine], before)


def _product(graph: Graph, node: NodeProto) -> _Affine | None:
    kernel = graph.constant(node.input[1])
    added = node.input[2] if len(node.input) > 2 else ""
    bias = _columns(graph, added) if added else _ZERO
    if kernel is None or kernel.ndim != 2 or bias is None or attribute_of(node, "transA", 0):
        return None
    kernel = kernel.T if attribute_of(node, "transB", 0) else kernel
    alpha = attribute_of(node, "alpha", 1.0)
    return _Affine(kernel if alpha == 1 else alpha * kernel, attribute_of(node, "beta", 1.0) * bias)


def _normalised(graph: Graph, node: NodeProto) -> _Affine | None:
    given = [_columns(graph, name) for name in node.input[1:5]]
    scale, shift, mean, variance = (value if value is not None else _ZERO for value in given)
    if any(value is None for value in given):
        return None
    scale = scale / np.sqrt(variance + attribute_of(node, "epsilon", 1e-5))
    return _Affine(scale, shift - mean * scale)


def _elementwise(operator: str, constant: Array) -> _Affine:
    if operator in ("Add", "Sub"):
        return _Affine(np.ones(()), constant if operator == "Add" else -constant)
    return _Affine(constant if operator == "Mul" else 1 / constant, _ZERO)


def _columns(graph: Graph, name: str) -> Array | None:
    """Return a constant of one number for every column, (width,) or (1,); None for any other tensor."""
    value = graph.constant(name)
    if value is None or value.dtype.kind != "f" or value.size != (value.shape[-1] if value.ndim else 1):
        return None
    return value.astype(np.float64).reshape(-1)
