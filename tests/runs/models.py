"""Small models whose answers are worked by hand, and runs that they serve.

psi of a history is relu of the sum of its movies' rows of TABLE, but for the last number, which says how
many movies there were: no mean, no plain stack of a tower in NumPy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from embedstore.runs.declaration import InputRule
from embedstore.runs.run import Run
from embedstore.runs.served import FILES, ServedTower, open_session
from embedstore.runs.writer import write_run
from tests.builders import tiny_dataset

N = 40
RUN_ID = "20260101t000000-0000"
# Row 0 is the padding; the third number of the sums is the length of the history.
TABLE = np.concatenate([np.zeros((1, 3)), np.stack([np.arange(N) - 3, 5 - np.arange(N), np.ones(N)], axis=1)])
RULES = (InputRule("ids", "movies", "indices", first=1),)


def expected(rows: list[int]) -> list[float]:
    """Return psi of movie rows, by hand."""
    return [max(0, sum(row - 3 for row in rows)), max(0, sum(5 - row for row in rows)), len(rows)]


def onnx_model(
    *, batch: int | str = "n", outputs: tuple[str, ...] = ("psi",), operator: str = "Relu", domain: str = ""
) -> Any:
    """Return the model: ids (n_users, length) int64 -> psi (n_users, 3), in every one of outputs."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["sums"], keepdims=0),
        *(helper.make_node(operator, ["sums"], [name], domain=domain) for name in outputs),
    ]
    graph = helper.make_graph(
        nodes,
        "psi",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, "length"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3]) for name in outputs],
        [
            onnx.numpy_helper.from_array(TABLE.astype(np.float32), "table"),
            onnx.numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    opsets = [helper.make_opsetid("", 13), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def write_model(kind: str, folder: Path) -> Path:
    """Write the model in folder, as onnx, keras or saved_model, and return its path."""
    path = folder / Path(FILES[kind]).name
    if kind == "onnx":
        path.write_bytes(onnx_model().SerializeToString())
        return path
    model = keras_model()
    if kind == "keras":
        model.save(path)
    else:
        model.export(path, verbose=False)
    return path


def keras_model(*, scores: bool = False) -> Any:
    """Return the same model in Keras; with scores, psi is a layer before the end and one of two outputs."""
    import keras

    ids = keras.Input((None,), name="ids", dtype="int64")
    rows = keras.layers.Embedding(N + 1, 3, weights=[TABLE.astype(np.float32)])(ids)
    psi = keras.layers.ReLU(name="psi")(keras.ops.sum(rows, axis=1))
    return keras.Model(ids, [psi, keras.layers.Dense(2, name="scores")(psi)] if scores else psi)


def served_tower(path: Path, kind: str = "onnx", **changes: Any) -> ServedTower:
    given: dict[str, Any] = {
        "session": open_session(kind, path),
        "kind": kind,
        "rules": RULES,
        "positions": np.arange(N),
        "features": {},
        "ids": np.arange(1, N + 1),
        "width": 3,
        "model": path,
    }
    return ServedTower(**(given | changes))


def served_run(folder: Path, kind: str = "onnx", *, run_id: str = RUN_ID, **changes: Any) -> Run:
    """Write a run that the model serves, see sealed."""
    folder.mkdir(exist_ok=True)
    return sealed(folder, served_tower(write_model(kind, folder), kind, **changes), run_id=run_id)


def sealed(folder: Path, tower: ServedTower, *, run_id: str = RUN_ID) -> Run:
    """Write a run with that tower into folder / "runs", of the movies and users of tiny_dataset."""
    vectors = np.random.default_rng(1).normal(size=(N, tower.embedding_dim)).astype(np.float32)
    path = write_run(
        folder / "runs",
        dataset=tiny_dataset(n=N),
        config={"preset": "import"},
        movie_vectors=vectors,
        tower=tower,
        metrics={},
        run_id=run_id,
    )
    return Run.load(path)
