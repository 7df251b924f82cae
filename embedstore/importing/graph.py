"""The plain stack inside a TensorFlow function: pooled inputs side by side, then dense layers.

Read from the operations, whatever made them (Keras, a tf.Module, a SavedModel), from the output back.
Products with a constant, sums, relu and tanh are layers. What is before them has to behave like a pooling,
see pooling.Branch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from embedstore.data.features import Bags
from embedstore.importing.model import Matrix, PlainInput, PlainStack
from embedstore.importing.pooling import Branch
from embedstore.runs.declaration import InputRule
from embedstore.runs.encoding import encode
from embedstore.runs.tower import Activation, MovieFeature, Pooling, TowerLayer

__all__ = ["Graph"]

Wide = npt.NDArray[np.float64]
Fed = Mapping[str, npt.NDArray[Any]]

_LARGEST_UNIT = 4096  # rows of a unit matrix or a diagonal
_SAME = frozenset({"Identity", "StopGradient", "PreventGradient", "CheckNumerics"})
_ADDITIONS = frozenset({"Add", "AddV2", "BiasAdd"})
_DIVISIONS = frozenset({"RealDiv", "DivNoNan"})
_ELEMENTWISE = _ADDITIONS | _DIVISIONS | {"Sub", "Mul", "Maximum"}
# What indices pass through on their way to a table.
_INDICES = _SAME | {
    "Cast",
    "Reshape",
    "ExpandDims",
    "Squeeze",
    "AddV2",
    "Sub",
    "Maximum",
    "Minimum",
    "SelectV2",
}


class _UnfitError(Exception):
    """The graph is no plain stack."""


class _Step(NamedTuple):
    """The last operation before a tensor: source times a kernel or scale, plus a shift, or activated."""

    source: tf.Tensor
    kind: Literal["kernel", "scale", "shift", "tanh", "relu", "same"]
    value: Any = None  # float64, of kernel, scale and shift


@dataclass(frozen=True)
class _Layer:
    """activation(x kernel + bias), in float64; a kernel of one dimension is a diagonal."""

    kernel: Wide
    bias: Wide
    activation: Activation = "linear"

    @classmethod
    def idle(cls, width: int) -> _Layer:
        """Return the layer that does nothing."""
        return cls(np.ones(width), np.zeros(width))

    def square(self) -> Wide:
        """Return the kernel in two dimensions."""
        return self.kernel if self.kernel.ndim == 2 else _unit(self.kernel.size) * self.kernel

    def plain(self) -> TowerLayer | None:
        """Return it as a layer of a tower, None where it does nothing."""
        bias = self.bias.astype(np.float32) if self.bias.any() else None
        if (
            self.kernel.ndim == 2
            or bias is not None
            or self.activation != "linear"
            or (self.kernel != 1).any()
        ):
            return TowerLayer(self.square().astype(np.float32), bias, self.activation)
        return None


@dataclass(frozen=True)
class _Pooled:
    """A pooled input. table: None is the unit matrix of that width, as a multi-hot has before a layer."""

    name: str
    table: Matrix | None
    pooling: Pooling
    width: int


@dataclass(frozen=True)
class _Stack:
    """Pooled inputs side by side, then layers."""

    inputs: Sequence[_Pooled]
    layers: Sequence[_Layer] = ()

    @property
    def width(self) -> int:
        return int(self.layers[-1].bias.size) if self.layers else sum(part.width for part in self.inputs)

    def then(self, step: _Step) -> _Stack:
        """Return the stack with one more operation, in the last layer where that can hold it."""
        if step.kind == "same":
            return self
        *before, last = self.layers or [_Layer.idle(self.width)]
        if last.activation != "linear" or (step.kind == "kernel" and last.kernel.ndim == 2):
            before, last = [*before, last], _Layer.idle(self.width)
        if step.kind == "kernel":
            last = _Layer(last.kernel[:, None] * step.value, last.bias @ step.value)
        elif step.kind == "scale":
            last = _Layer(last.kernel * step.value, last.bias * step.value)
        elif step.kind == "shift":
            last = replace(last, bias=last.bias + step.value)
        else:
            last = replace(last, activation=step.kind)
        return _Stack(self.inputs, [*before, last])

    def tabled(self) -> _Stack:
        """Return the stack with a table for every input: its part of the first layer, where that is small."""
        if all(part.table is not None for part in self.inputs):
            return self
        first, *others = self.layers or [_Layer.idle(self.width)]
        kernel, width = first.square(), int(first.bias.size)
        inputs: list[_Pooled] = []
        blocks: list[Wide] = []  # of the kernel, one for each input
        start = 0
        for part in self.inputs:
            block, table = kernel[start : start + part.width], part.table
            start += part.width
            if table is None:
                small = part.width <= width
                table = (_unit(part.width) if small else block).astype(np.float32)
                block = block if small else np.eye(width)
            inputs.append(replace(part, table=table, width=table.shape[1]))
            blocks.append(block)
        kernel = np.concatenate(blocks)
        idle = kernel.shape == (width, width) and np.array_equal(kernel, np.eye(width))
        return _Stack(inputs, [replace(first, kernel=np.ones(width) if idle else kernel), *others])


def _unit(width: int) -> Wide:
    if width > _LARGEST_UNIT:
        raise _UnfitError
    return np.eye(width)


def _side_by_side(stacks: Sequence[_Stack]) -> _Stack:
    """Return stacks as one, whose layers have the blocks of theirs on the diagonal."""
    from scipy.linalg import block_diag

    inputs = [part for stack in stacks for part in stack.inputs]
    layers = []
    for depth in range(max(len(stack.layers) for stack in stacks)):
        row = [[*stack.layers, *[_Layer.idle(stack.width)] * (depth + 1)][depth] for stack in stacks]
        activations = {layer.activation for layer in row}
        if len(activations) > 1:
            raise _UnfitError
        if all(layer.kernel.ndim == 1 for layer in row):
            kernel = np.concatenate([layer.kernel for layer in row])
        else:
            kernel = block_diag(*(layer.square() for layer in row))
        layers.append(_Layer(kernel, np.concatenate([layer.bias for layer in row]), activations.pop()))
    return _Stack(inputs, layers)


class Graph:
    """A TensorFlow function whose variables are made constants.

    function: a ConcreteFunction. inputs: for every input the name of its placeholder. output: which of the
    function's outputs. Raises ValueError or tf.errors.OpError where a graph cannot hold the weights (2 GB).
    """

    def __init__(self, function: Any, inputs: Mapping[str, str], output: int = 0) -> None:
        self._frozen = convert_variables_to_constants_v2(function)
        operations = self._frozen.graph.get_operations()
        placeholders = {op.name: op.outputs[0] for op in operations if op.type == "Placeholder"}
        self._inputs = {name: placeholders[at] for name, at in inputs.items() if at in placeholders}
        self._output = self._frozen.outputs[output]

    @cached_property
    def tables(self) -> Mapping[str, int]:
        """How many rows the table or kernel has that an input goes into, by the input's name."""
        rows = {}
        for name, tensor in self._inputs.items():
            table = self._table(tensor)
            if table is not None:
                rows[name] = int(table.shape[0])
        return rows

    def plain(self, rules: Sequence[InputRule]) -> PlainStack | None:
        """Return the function as a plain stack, None where it does not look like one."""
        if {rule.name for rule in rules} != self._inputs.keys():
            return None
        try:
            stack = self._stack(self._output, {rule.name: rule for rule in rules}).tabled()
            layers = [layer.plain() for layer in stack.layers]
        except (_UnfitError, tf.errors.OpError):
            return None
        inputs = [PlainInput(p.name, p.table, p.pooling) for p in stack.inputs if p.table is not None]
        return PlainStack(inputs, [layer for layer in layers if layer is not None])

    def _table(self, tensor: tf.Tensor) -> tf.Tensor | None:
        """Return the table or kernel, (rows, width), that an input goes into, None where there is none."""
        waiting, seen = [tensor], set()
        while waiting:
            indices = waiting.pop()
            for op in indices.consumers():
                known = [other for other in op.inputs if not self._of(other) and other.shape.rank == 2]
                if op.type == "GatherV2" and known and known[0] is op.inputs[0]:
                    return known[0]
                if op.type == "MatMul" and known and not op.get_attr("transpose_b"):
                    return known[0]
                if op.type in _INDICES and op.name not in seen:
                    seen.add(op.name)
                    waiting.append(op.outputs[0])
        return None

    @cached_property
    def _sources(self) -> Mapping[str, frozenset[str]]:
        """The inputs that every operation depends on, by its name."""
        found: dict[str, frozenset[str]] = {}
        own = {tensor.op.name: frozenset([name]) for name, tensor in self._inputs.items()}
        waiting = list(self._frozen.graph.get_operations())
        while waiting:
            op = waiting[-1]
            before = [] if op.type == "NextIteration" else [tensor.op for tensor in op.inputs]
            missing = [other for other in before if other.name not in found]
            if missing:
                waiting.extend(missing)
                continue
            waiting.pop()
            found[op.name] = own.get(op.name, frozenset()).union(*(found[other.name] for other in before))
        return found

    def _of(self, tensor: tf.Tensor) -> frozenset[str]:
        return self._sources[tensor.op.name]

    def _function(self, tensor: tf.Tensor) -> Callable[[Fed], Any]:
        """Return tensor as a function of the inputs that it depends on, in float64."""
        names = sorted(self._of(tensor))
        function = self._frozen.prune([self._inputs[name] for name in names], tensor)

        def call(fed: Fed) -> Any:
            if not all(self._inputs[name].shape.is_compatible_with(fed[name].shape) for name in names):
                raise _UnfitError
            given = [tf.constant(fed[name], self._inputs[name].dtype) for name in names]
            return tf.cast(function(*given), tf.float64).numpy()

        return call

    def _value(self, tensor: tf.Tensor, fed: Fed | None = None) -> Any:
        return self._function(tensor)(fed or {})

    def _step(self, tensor: tf.Tensor) -> _Step | None:
        """Return the last operation before tensor, None where no layer has such."""
        op, operands = tensor.op, list(tensor.op.inputs)
        if op.type in _SAME or _same_values(tensor):
            return _Step(operands[0], "same")
        if op.type == "Tanh":
            return _Step(operands[0], "tanh")
        if op.type == "Relu":
            return _Step(operands[0], "relu")
        free = [operand for operand in operands if self._of(operand)]
        if len(operands) != 2 or len(free) != 1 or _width(free[0]) is None or _width(tensor) is None:
            return None
        if op.type == "MatMul" and free[0] is operands[0] and not op.get_attr("transpose_a"):
            kernel = self._value(operands[1])
            return _Step(free[0], "kernel", kernel.T if op.get_attr("transpose_b") else kernel)
        if op.type in _ELEMENTWISE and _width(free[0]) == _width(tensor):
            value = self._row(operands[1] if free[0] is operands[0] else operands[0], int(tensor.shape[1]))
            return _elementwise(op.type, free[0], value, first=free[0] is operands[0])
        return None

    def _row(self, constant: tf.Tensor, width: int) -> Wide:
        """Return a constant as one value for each column."""
        value = self._value(constant)
        if value.size not in (1, width) or value.shape[-1:] != (value.size,)[: value.ndim]:
            raise _UnfitError
        return np.broadcast_to(value.ravel(), (width,))

    def _stack(self, tensor: tf.Tensor, rules: Mapping[str, InputRule]) -> _Stack:
        """Return the stack whose output is tensor."""
        steps = []
        while (step := self._step(tensor)) is not None:
            steps.append(step)
            tensor = step.source
        if not self._of(tensor) or _width(tensor) is None:
            raise _UnfitError
        stack = self._joined(tensor, rules) if tensor.op.type == "ConcatV2" else self._pooled(tensor, rules)
        for step in reversed(steps):
            stack = stack.then(step)
        return stack

    def _joined(self, tensor: tf.Tensor, rules: Mapping[str, InputRule]) -> _Stack:
        """Return the stack of a concatenation: its parts side by side; those that are constant are a bias."""
        *parts, axis = tensor.op.inputs
        if int(self._value(axis)) not in (1, -1) or any(_width(part) is None for part in parts):
            raise _UnfitError
        stacks, places, bias, start = [], [], np.zeros(int(tensor.shape[1])), 0
        for part in parts:
            place = np.arange(start, start + int(part.shape[1]))
            start += place.size
            if self._of(part) and part.op.type not in ("OnesLike", "ZerosLike", "Fill"):
                stack = self._stack(part, rules)
                stacks.append(stack.tabled() if stack.layers else stack)
                places.append(place)
            else:
                bias[place] = self._value(part, _smallest([*rules.values()]))[0]
        if not stacks:
            raise _UnfitError
        joined = _side_by_side(stacks)
        if len(stacks) == len(parts):
            return joined
        *before, last = [*joined.layers, _Layer.idle(joined.width)]
        if before and before[-1].activation == "linear":
            last = before.pop()
        columns = np.concatenate(places)
        kernel = np.zeros((len(last.kernel), bias.size))
        kernel[:, columns] = last.square()
        bias[columns] = last.bias
        return _Stack(joined.inputs, [*before, _Layer(kernel, bias)])

    def _pooled(self, tensor: tf.Tensor, rules: Mapping[str, InputRule]) -> _Stack:
        """Return tensor as one pooled input. Raises _UnfitError where it does not behave like one."""
        of = [rules[name] for name in sorted(self._of(tensor))]
        main = [rule for rule in of if rule.form in ("indices", "ids", "multi_hot")]
        if len(main) != 1 or len({rule.feature for rule in of}) != 1:
            raise _UnfitError
        rule, width = main[0], int(tensor.shape[1])
        size = rule.size if rule.form == "multi_hot" else self.tables.get(rule.name)
        if not size:
            raise _UnfitError
        hot = self._hot(tensor, size)
        pooling = None if hot is None else Branch(of, size, hot.ask).pooling(None)
        if hot is not None and pooling is not None:
            return _Stack([_Pooled(rule.name, hot.kernel, pooling, width)])
        branch = Branch(of, size, self._function(tensor))
        if rule.form != "multi_hot":
            table: Matrix = self._value(self._table(self._inputs[rule.name])).astype(np.float32)
            pooling = branch.pooling(table)
            if pooling is None:
                table = branch.table()
                pooling = branch.pooling(table)
            if pooling is not None:
                return _Stack([_Pooled(rule.name, table, pooling, width)])
        raise _UnfitError

    def _hot(self, tensor: tf.Tensor, size: int) -> _Hot | None:
        """Return tensor as source x kernel, source having one column for each of size indices.

        What a row is divided by, its size or length, is the source's as well. None where it is not that.
        """
        divisors: list[Callable[[Fed], Any]] = []
        kernel: Wide | None = None
        while _width(tensor) != size:
            step = self._step(tensor)
            if step is not None and step.kind in ("kernel", "same"):
                if step.kind == "kernel":
                    kernel = step.value if kernel is None else step.value @ kernel
                tensor = step.source
            elif tensor.op.type in _DIVISIONS and _width(tensor.op.inputs[1]) == 1:
                divisors.append(self._function(tensor.op.inputs[1]))
                tensor = tensor.op.inputs[0]
            else:
                return None
        source = self._function(tensor)

        def ask(fed: Fed) -> Any:
            return source(fed) / math.prod(divisor(fed) for divisor in divisors)

        return _Hot(ask, None if kernel is None else kernel.astype(np.float32))


class _Hot(NamedTuple):
    """See Graph._hot. kernel: None where there is none."""

    ask: Callable[[Fed], Any]
    kernel: Matrix | None


def _width(tensor: tf.Tensor) -> int | None:
    """Return the number of columns of a matrix, None where it is none or does not say."""
    width = tensor.shape[1] if tensor.shape.rank == 2 else None
    return None if width is None else int(width)


def _same_values(tensor: tf.Tensor) -> bool:
    """Whether the last operation keeps values and columns: a cast to floats, a flattening of what is flat."""
    op = tensor.op
    if op.type == "Cast":
        return bool(tensor.dtype.is_floating and not op.inputs[0].dtype.is_complex)
    flat = _width(tensor)
    return op.type in ("Reshape", "Squeeze") and flat is not None and flat == _width(op.inputs[0])


def _elementwise(kind: str, source: tf.Tensor, value: Wide, *, first: bool) -> _Step | None:
    """Return an operation with one constant for each column; first: the constant comes second."""
    if kind in _ADDITIONS:
        return _Step(source, "shift", value)
    if kind == "Sub":
        return _Step(source, "shift", -value) if first else None
    if kind == "Mul":
        return _Step(source, "scale", value)
    if kind in _DIVISIONS:
        return _Step(source, "scale", 1 / value) if first and value.all() else None
    return None if value.any() else _Step(source, "relu")


def _smallest(rules: Sequence[InputRule]) -> Fed:
    """Return the inputs for a history of one movie, which has the first index of every input."""
    one, bags = np.zeros(1, np.int64), Bags.of([[0]])
    features: dict[str, MovieFeature] = {}
    for rule in rules:
        features[rule.feature] = MovieFeature(rule.feature, bags.offsets, one)
    return encode(rules, bags, positions=one, features=features, ids=one)
