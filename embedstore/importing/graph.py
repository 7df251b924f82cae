"""The plain stack inside a TensorFlow function: pooled inputs side by side, then dense layers.

Read from the operations, whatever made them (Keras, a tf.Module, a SavedModel), from the output back.
Products with a constant, sums, relu and tanh are layers. What is before them has to behave like a pooling:
what it makes of a bag is the mean of what it makes of each value, their sum, or that over the root of the
size.
"""

from __future__ import annotations

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
from embedstore.runs.declaration import InputRule
from embedstore.runs.encoding import encode
from embedstore.runs.tower import Activation, MovieFeature, Pooling, TowerLayer

__all__ = ["Graph"]

Wide = npt.NDArray[np.float64]
Fed = Mapping[str, npt.NDArray[Any]]

_BATCH_FLOATS = 1 << 22  # of one evaluation: 16 MB
_LARGEST_UNIT = 4096  # rows of a unit matrix or a diagonal
_BAGS, _LARGEST_BAG = 48, 40  # that a pooling is tried on
_TOLERANCE = 1e-4  # of the largest value: float32 sums in another order
_POWERS: Mapping[Pooling, float] = {
    "mean": 1.0,
    "l2": 0.5,
    "sum": 0.0,
}  # of the size, that sums are divided by
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
        return cls(np.ones(width), np.zeros(width))

    def square(self) -> Wide:
        """Return the kernel in two dimensions."""
        return self.kernel if self.kernel.ndim == 2 else _unit(self.kernel.size) * self.kernel

    def plain(self) -> TowerLayer | None:
        """Return it as a layer of a tower, None where it does nothing."""
        bias = self.bias.astype(np.float32) if self.bias.any() else None
        if (
            self.kernel.ndim == 1
            and (self.kernel == 1).all()
            and bias is None
            and self.activation == "linear"
        ):
            return None
        return TowerLayer(self.square().astype(np.float32), bias, self.activation)


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
        width = int(first.bias.size)
        inputs: list[_Pooled] = []
        blocks: list[Wide] = []  # of the kernel, one for each input
        start = 0
        for part in self.inputs:
            block, table = first.square()[start : start + part.width], part.table
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
        row = [
            stack.layers[depth] if depth < len(stack.layers) else _Layer.idle(stack.width) for stack in stacks
        ]
        activations = {layer.activation for layer in row}
        if len(activations) > 1:
            raise _UnfitError
        diagonal = all(layer.kernel.ndim == 1 for layer in row)
        kernel = (
            np.concatenate([layer.kernel for layer in row])
            if diagonal
            else block_diag(*(layer.square() for layer in row))
        )
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
        # What else the function holds on to, such as a vocabulary of texts, cannot be a constant.
        self._open = len(placeholders) == len(self._inputs) == len(inputs)

    @cached_property
    def tables(self) -> Mapping[str, int]:
        """How many rows the table or kernel has that an input goes into, by the input's name."""
        rows = {}
        for name, tensor in self._inputs.items():
            found = self._table(tensor)
            length = None if found is None else found.shape[0]
            if length is not None:
                rows[name] = int(length)
        return rows

    def plain(self, rules: Sequence[InputRule]) -> PlainStack | None:
        """Return the function as a plain stack, None where it does not look like one."""
        if not self._open or {rule.name for rule in rules} != self._inputs.keys():
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
                if op.type == "GatherV2" and op.inputs[1] is indices and _width(op.inputs[0]) is not None:
                    return op.inputs[0]
                if op.type == "MatMul" and op.inputs[0] is indices and not op.get_attr("transpose_b"):
                    return op.inputs[1]
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
        rule = main[0]
        size = rule.size or self.tables.get(rule.name, 0)
        bags = _tried(rule, size)
        fed = _fed(of, bags, size)
        hot = self._hot(tensor, size)
        if hot is not None:
            found = self._value(hot.source, fed) * np.prod([factor(fed) for factor in hot.factors], axis=0)
            counts = np.zeros((len(bags), size))
            np.add.at(counts, (np.repeat(np.arange(len(bags)), bags.sizes), bags.rows), 1.0)
            pooling = _pooling(found, counts, bags)
            if pooling is not None:
                table = None if hot.kernel is None else hot.kernel.astype(np.float32)
                return _Stack([_Pooled(rule.name, table, pooling, int(tensor.shape[1]))])
        if rule.form == "multi_hot":
            raise _UnfitError
        found = self._value(tensor, fed)
        for rows in (self._looked_up, self._alone):
            table = rows(tensor, of, size)
            sums = np.add.reduceat(table[bags.rows].astype(np.float64), bags.offsets[:-1], axis=0)
            pooling = _pooling(found, sums, bags)
            if pooling is not None:
                return _Stack([_Pooled(rule.name, table, pooling, table.shape[1])])
        raise _UnfitError

    def _hot(self, tensor: tf.Tensor, size: int) -> _Hot | None:
        """Return tensor as factors x (source kernel), source having one column for each of size indices.

        None where it is not that. kernel: None where tensor is the source itself.
        """
        factors: list[Callable[[Fed], Any]] = []
        kernel: Wide | None = None
        while _width(tensor) != size:
            step = self._step(tensor)
            if step is not None and step.kind in ("kernel", "same"):
                if step.kind == "kernel":
                    kernel = step.value if kernel is None else step.value @ kernel
                tensor = step.source
            elif tensor.op.type in _DIVISIONS and _width(tensor.op.inputs[1]) == 1:
                factors.append(_inverse(self._function(tensor.op.inputs[1])))
                tensor = tensor.op.inputs[0]
            else:
                return None
        return _Hot(tensor, factors or [lambda _: np.ones(1)], kernel)

    def _looked_up(self, tensor: tf.Tensor, rules: Sequence[InputRule], size: int) -> Matrix:
        """Return the table that the indices of tensor go into, shape (size, its own width)."""
        tables = [self._table(self._inputs[rule.name]) for rule in rules if rule.form != "mask"]
        table: Matrix = self._value(next(found for found in tables if found is not None)).astype(np.float32)
        return table

    def _alone(self, tensor: tf.Tensor, rules: Sequence[InputRule], size: int) -> Matrix:
        """Return what tensor is for each index alone, shape (size, width)."""
        function = self._function(tensor)
        longest = max(rule.length or 1 for rule in rules)
        step = max(1, _BATCH_FLOATS // (longest * int(tensor.shape[1])))
        parts = [
            function(_fed(rules, Bags(at, np.arange(at.size + 1)), size))
            for at in np.split(np.arange(size), range(step, size, step))
        ]
        # Padding alone may be 0 / 0.
        table: Matrix = np.nan_to_num(np.concatenate(parts)).astype(np.float32)
        return table


class _Hot(NamedTuple):
    """See Graph._hot."""

    source: tf.Tensor
    factors: Sequence[Callable[[Fed], Any]]
    kernel: Wide | None


def _inverse(function: Callable[[Fed], Any]) -> Callable[[Fed], Any]:
    return lambda fed: 1 / function(fed)


def _width(tensor: tf.Tensor) -> int | None:
    return _length(tensor, 1) if tensor.shape.rank == 2 else None


def _length(tensor: tf.Tensor, axis: int) -> int | None:
    length = tensor.shape[axis]
    return None if length is None else int(length)


def _same_values(tensor: tf.Tensor) -> bool:
    """Whether the last operation keeps values and columns: a cast to floats, a flattening of what is flat."""
    op = tensor.op
    if op.type == "Cast":
        return bool(tensor.dtype.is_floating and not op.inputs[0].dtype.is_complex)
    return (
        op.type in ("Reshape", "Squeeze")
        and _width(tensor) is not None
        and (_width(tensor) == _width(op.inputs[0]))
    )


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


def _fed(rules: Sequence[InputRule], bags: Bags, size: int) -> Fed:
    """Return the inputs for bags of the model's own indices, 0 to size - 1."""
    every = np.arange(size)
    bare = [replace(rule, first=0, unknown=None) for rule in rules]
    return encode(bare, bags, positions=every, features=_features(rules, size), ids=every)


def _smallest(rules: Sequence[InputRule]) -> Fed:
    """Return the inputs for a history of one movie, which has the first index of every input."""
    one, bags = np.zeros(1, np.int64), Bags.of([[0]])
    return encode(rules, bags, positions=one, features=_features(rules, 1), ids=one)


def _features(rules: Sequence[InputRule], size: int) -> dict[str, MovieFeature]:
    """Return features of size movies, each of which has one value of its own."""
    return {rule.feature: MovieFeature(rule.feature, np.arange(size + 1), np.arange(size)) for rule in rules}


def _tried(rule: InputRule, size: int) -> Bags:
    """Return random bags of the indices that a history may have; those of genres and years repeat."""
    indices = np.setdiff1d(np.arange(rule.first, size), [] if rule.form == "multi_hot" else [rule.padding])
    if not indices.size:
        raise _UnfitError
    rng = np.random.default_rng(0)
    most = min(rule.length or _LARGEST_BAG, _LARGEST_BAG, indices.size)
    sizes = [most, *rng.integers(1, most + 1, size=_BAGS - 1).tolist()]
    return Bags.of(rng.choice(indices, count, replace=rule.feature != "movies") for count in sizes)


def _pooling(found: Any, sums: Wide, bags: Bags) -> Pooling | None:
    """Return how found, (n_bags, width), comes from the sums of the bags, None where it does not."""
    for pooling, power in _POWERS.items():
        expected = sums / (bags.sizes**power)[:, None]
        largest = float(np.abs(expected).max())
        if found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=_TOLERANCE * largest):
            return pooling
    return None
