"""The graph of an ONNX model: which tensor depends on which, and the weights in it."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from embedstore.errors import DataError

__all__ = ["Graph", "attribute_of"]

Array = npt.NDArray[Any]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_SAME_VALUES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
_SAME_COLUMNS = ("Add", "BatchNormalization", "Cast", "Div", "Dropout", "Identity", "Mul", "Sub")


class Graph:
    """inputs, outputs, initializers, producers: all by name; the last are the nodes that give a tensor.

    A Constant node that holds a tensor counts as an initializer.
    """

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        graph = model.graph
        nodes = []
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].type == AttributeProto.TENSOR:
                tensor = graph.initializer.add()
                tensor.CopyFrom(node.attribute[0].t)
                tensor.name = node.output[0]
            else:
                nodes.append(node)
        self.nodes = nodes
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.producers: dict[str, NodeProto] = {name: node for node in nodes for name in node.output if name}
        self.inputs: dict[str, ValueInfoProto] = {
            info.name: info for info in graph.input if info.name not in self.initializers
        }
        self.outputs: dict[str, ValueInfoProto] = {info.name: info for info in graph.output}

    @property
    def opset(self) -> int:
        """Of the standard operators."""
        return max((known.version for known in self.model.opset_import if not known.domain), default=0)

    def needed(self, name: str) -> set[str]:
        """Return the names of all tensors that name is computed from, itself among them."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            tensor = waiting.pop()
            if tensor not in found:
                found.add(tensor)
                if tensor in self.producers:
                    waiting.extend(_read_by(self.producers[tensor]))
        return found

    def weight(self, name: str) -> Array:
        """Return an initializer, bfloat16 as float32. Raises DataError where it is damaged."""
        try:
            array = numpy_helper.to_array(self.initializers[name])
        except (ValueError, TypeError) as error:
            raise DataError(f"weight {name!r} of the ONNX model cannot be read: {error}") from error
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array

    def constant(self, name: str) -> Array | None:
        """Return the value of a tensor that depends on no input, None for another."""
        if name in self.initializers:
            return self.weight(name)
        if name not in self.producers or self.inputs.keys() & self.needed(name):
            return None
        try:
            return np.asarray(ReferenceEvaluator(self.up_to(name)).run(None, {})[0])  # type: ignore[index]
        except Exception:  # noqa: BLE001 - what onnx cannot compute, for whatever reason, is not known
            return None

    def up_to(self, name: str) -> ModelProto:
        """Return a model of only what name is computed from, which is its output."""
        needed, graph = self.needed(name), self.model.graph
        declared = next((info for info in graph.output if info.name == name), ValueInfoProto(name=name))
        part = ModelProto(
            ir_version=self.model.ir_version,
            producer_name=self.model.producer_name,
            producer_version=self.model.producer_version,
            opset_import=self.model.opset_import,
            functions=self.model.functions,
        )
        part.graph.name = graph.name or "psi"
        part.graph.node.extend(node for node in self.nodes if needed.intersection(node.output))
        part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in needed)
        part.graph.sparse_initializer.extend(
            tensor for tensor in graph.sparse_initializer if tensor.values.name in needed
        )
        part.graph.input.extend(info for info in graph.input if info.name in needed)
        part.graph.output.append(declared)
        return part

    def foreign_operators(self, used: Set[str]) -> Iterator[tuple[str, str]]:
        """Yield domain and name of the operators that give used, and neither ONNX nor the model defines."""
        own = {(function.domain, function.name) for function in self.model.functions}
        waiting = [node for node in self.nodes if not used.isdisjoint(node.output)]
        waiting += [node for function in self.model.functions for node in function.node]
        while waiting:
            node = waiting.pop()
            waiting.extend(_inner_nodes(node))
            if node.domain and (node.domain, node.op_type) not in own:
                yield node.domain, node.op_type

    def weights(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and type, as NumPy names it, of all initializers of floating numbers."""
        kinds = {
            name: helper.tensor_dtype_to_np_dtype(tensor.data_type).name
            for name, tensor in self.initializers.items()
        }
        return {
            name: (tuple(self.initializers[name].dims), kind)
            for name, kind in kinds.items()
            if kind in _FLOATS
        }

    def is_kernel(self, name: str) -> bool:
        """Whether something is multiplied with the weight name as it stands, (width_in, width_out)."""
        return any(
            name == node.input[1] and not attribute_of(node, "transB", 0)
            for node in self.nodes
            if node.op_type in ("MatMul", "Gemm")
        )

    def table_rows(self, name: str) -> int | None:
        """Return how many values an input may have: the rows of the weight that it goes into.

        That is the one that it picks rows of (Gather), else the one that it is multiplied with. None where
        there is none.
        """
        picked = self._rows(name, _SAME_VALUES, "Gather", weight=0, value=1)
        return picked or self._rows(name, _SAME_COLUMNS, "MatMul", "Gemm", weight=1, value=0)

    def bias_of(self, name: str, n: int) -> Array | None:
        """Return what is added to the product of something and the weight name, (n,), None if nothing is."""
        same = {name}
        products = set()
        for node in self.nodes:
            read = list(node.input)
            if node.op_type in ("Cast", "Identity", "Transpose") and read[0] in same:
                same.add(node.output[0])
            added = []
            if node.op_type in ("MatMul", "Gemm") and read[1] in same:
                products.add(node.output[0])
                added = read[2:]
            elif node.op_type == "Add" and products.intersection(read):
                added = read
            for value in map(self.constant, added):
                if value is not None and value.size == n:
                    return value.reshape(n)
        return None

    def _rows(self, name: str, same: tuple[str, ...], *ends: str, weight: int, value: int) -> int | None:
        reached = {name}
        for node in self.nodes:
            read = list(node.input)
            if node.op_type in ends and read[value] in reached:
                table = self.constant(read[weight])
                if table is not None and table.ndim == 2 and not attribute_of(node, "axis", 0):
                    return int(table.shape[1 if attribute_of(node, "transB", 0) else 0])
            if node.op_type in same and read[0] in reached:
                reached.add(node.output[0])
        return None


def attribute_of(node: NodeProto, name: str, default: Any) -> Any:
    """Return the value of an attribute, default where the node has none of that name."""
    found = next((attribute for attribute in node.attribute if attribute.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _inner_nodes(node: NodeProto) -> Iterator[NodeProto]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from graph.node


def _read_by(node: NodeProto) -> Iterator[str]:
    """Yield the tensors that a node reads, and the nodes inside it."""
    yield from filter(None, node.input)
    for inner in _inner_nodes(node):
        yield from _read_by(inner)
