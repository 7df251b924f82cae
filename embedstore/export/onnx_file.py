"""psi as one ONNX file: standard operators of opset 13, which onnxruntime reads since 1.7 (2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import GraphProto, ModelProto, TensorProto, helper

from embedstore import __version__
from embedstore.data.features import Rows
from embedstore.errors import EmbedstoreError
from embedstore.export.tables import MovieTable, Psi, TowerTables

__all__ = ["load", "write"]

OPSET, IR_VERSION = 13, 7
_LARGEST = 2**31 - 2**20  # bytes of a protobuf message, less some for the graph itself


def write(tables: TowerTables, path: Path) -> None:
    """Write path. Raises EmbedstoreError where the tables do not fit into one file."""
    if tables.nbytes > _LARGEST:
        raise EmbedstoreError(
            f"the tables of run {tables.run_id} have {tables.nbytes:,} bytes and an ONNX file holds 2 GB; "
            "export with --saved-model or --npz"
        )
    path.write_bytes(_model(tables).SerializeToString())


def load(path: Path) -> Psi:
    """Return psi as onnxruntime computes it from path, on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def psi(rows: Rows) -> npt.NDArray[np.float32]:
        return np.asarray(session.run(["psi"], {"rows": rows})[0])

    return psi


def _model(tables: TowerTables) -> ModelProto:
    rows = helper.make_tensor_value_info("rows", TensorProto.INT64, ["n_users", "length"])
    psi = helper.make_tensor_value_info("psi", TensorProto.FLOAT, ["n_users", tables.embedding_dim])
    model = helper.make_model(
        helper.make_graph([], f"psi of run {tables.run_id}", [rows], [psi]),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="embedstore",
        producer_version=__version__,
    )
    _add_tower(_Graph(model.graph), tables)
    return model


class _Graph:
    """Adds nodes and constants to a GraphProto, in place: a copy would be one more of the tables."""

    def __init__(self, proto: GraphProto) -> None:
        self.proto = proto

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return the name of its only output."""
        output = output or f"{operator}_{len(self.proto.node)}"
        self.proto.node.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def double(self, value: str) -> str:
        return self.add("Cast", value, to=TensorProto.DOUBLE)

    def constant(self, value: Any, *, zero_row: bool = False) -> str:
        """Add an array, behind a row of zeros where zero_row, and return its name."""
        array = np.asarray(value, order="C")
        name = f"constant_{len(self.proto.initializer)}"
        tensor = self.proto.initializer.add()
        tensor.name = name
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor.dims.extend([len(array) + zero_row, *array.shape[1:]] if array.ndim else [])
        padding = bytes(array[:1].nbytes) if zero_row else b""
        tensor.raw_data = b"".join([padding, array.astype(array.dtype.newbyteorder("<"), copy=False).data])
        return name


def _add_tower(graph: _Graph, tables: TowerTables) -> None:
    """Add psi. Row 0 of a table is zeros and stands for the padding; movie j is row j + 1."""
    axis = graph.constant([1])
    places = graph.add(  # (n_users, length)
        "Add", graph.add("Max", "rows", graph.constant(-1)), graph.constant(1)
    )
    known = graph.double(graph.add("Greater", places, graph.constant(0)))
    size = graph.add("ReduceSum", known, axis)  # (n_users, 1)
    age = graph.add("CumSum", known, graph.constant(1), exclusive=1, reverse=1)  # 0 for the newest movie
    x = graph.add("Concat", *(_pooled(graph, part, places, age, axis) for part in tables.inputs), axis=1)
    for layer in tables.layers:
        x = graph.add("MatMul", x, graph.double(graph.constant(layer.kernel)))
        if layer.bias is not None:
            x = graph.add("Add", x, graph.double(graph.constant(layer.bias)))
        if layer.activation != "linear":
            x = graph.add(layer.activation.capitalize(), x)  # Tanh, Relu
    if tables.constant:
        x = graph.add("Concat", x, graph.add("Div", size, size), axis=1)  # a column of 1
    empty = graph.add("Equal", size, graph.constant(0.0))
    x = graph.add("Where", empty, graph.constant(np.nan), x)
    graph.add("Cast", x, output="psi", to=TensorProto.FLOAT)


def _pooled(graph: _Graph, part: MovieTable, places: str, age: str, axis: str) -> str:
    """Add one pooled input and return its name, (n_users, width) double."""
    rows = graph.double(graph.add("Gather", graph.constant(part.rows, zero_row=True), places))
    counts = graph.double(graph.add("Gather", graph.constant(part.counts, zero_row=True), places))
    weights = None
    if part.half_life is not None:
        weights = graph.add("Pow", graph.constant(0.5), graph.add("Div", age, graph.constant(part.half_life)))
    elif part.newest is not None:
        weights = graph.double(graph.add("Less", age, graph.constant(float(part.newest))))
    if weights is not None:
        counts = graph.add("Mul", counts, weights)
        rows = graph.add("Mul", rows, graph.add("Unsqueeze", weights, graph.constant([2])))
    total = graph.add("ReduceSum", rows, axis, keepdims=0)  # (n_users, width)
    if part.pooling == "sum":
        return total
    count = graph.add("ReduceSum", counts, axis)
    divisor = graph.add("Max", count, graph.constant(1.0))
    return graph.add("Div", total, graph.add("Sqrt", divisor) if part.pooling == "l2" else divisor)
