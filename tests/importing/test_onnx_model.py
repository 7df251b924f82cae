"""An ONNX user tower: models made by hand, answers by the plain formula."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from embedstore import Run, embed, import_run, open_store, recommend, sync
from embedstore.data.features import Bags
from embedstore.errors import DataError, EmbedstoreError, UsageError
from embedstore.export import export_run
from embedstore.importing.onnx_model import OnnxModel
from embedstore.runs.declaration import InputRule, ModelInput
from embedstore.runs.encoding import encode
from embedstore.runs.tower import DenseTower, MovieFeature, Pooling, TowerInput
from tests.export.towers import run_of

Array = npt.NDArray[Any]

N, WIDTH, HIDDEN, DIM = 12, 5, 6, 4
N_GENRES = 3
IDS = InputRule("ids", "movies", "indices", first=1)
MASK = InputRule("mask", "movies", "mask", "float32")
HOT = InputRule("hot", "movies", "multi_hot", "float32", size=N)
GENRES = InputRule(
    "genres", "genres", "multi_hot", "float32", labels=("a", "b", "c"), values="mean", size=N_GENRES
)
YEARS = InputRule("years", "years", "indices", "int32", labels=("1990", "1991"), first=1)
FEATURES = {
    "genres": MovieFeature("genres", np.arange(N + 1), np.arange(N) % N_GENRES),
    "years": MovieFeature("years", np.arange(N + 1), np.arange(N) % 2),
}
HISTORIES = [[0], [3, 1, 2], [11, 0], list(range(N)), [5, 4, 9, 7, 8]]
IN_IDS = "int64[users, length] ids, float[users, length] mask"
MASKED_SUM = (
    "e = Gather (table, ids) m = Unsqueeze (mask, last) em = Mul (e, m) "
    "total = ReduceSum <keepdims=0> (em, one)"
)
COUNT = "n = ReduceSum <keepdims=1> (mask, one)"
TWO_LAYERS = "h = Gemm <transB=1> (pooled, k0, b0) a = Tanh (h) psi = Gemm <transB=1> (a, k1, b1)"
AXES = {"last": np.array([-1]), "one": np.array([1])}


def normal(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


TABLE, K0, B0, K1, B1 = (
    normal(N + 1, WIDTH),
    normal(HIDDEN, WIDTH),
    normal(HIDDEN),
    normal(DIM, HIDDEN),
    normal(DIM),
)
DENSE = {"k0": K0, "b0": B0, "k1": K1, "b1": B1}
TOWER = {"table": TABLE, **DENSE, **AXES}


def proto(
    inputs: str, body: str, weights: Mapping[str, Any], outputs: str = f"float[users, {DIM}] psi"
) -> onnx.ModelProto:
    """Return a model in the text form of ONNX, with weights as its initializers."""
    text = f'<ir_version: 10, opset_import: ["": 18]> tower ({inputs}) => ({outputs}) {{ {body} }}'
    model = parser.parse_model(text)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()
    )
    return model


def opened(
    inputs: str, body: str, weights: Mapping[str, Any], outputs: str = f"float[users, {DIM}] psi"
) -> OnnxModel:
    return OnnxModel(proto(inputs, body, weights, outputs).SerializeToString())


def masked() -> onnx.ModelProto:
    """Return the tower that most tests are about: ids and a mask, their mean, two layers."""
    return proto(IN_IDS, f"{MASKED_SUM} {COUNT} pooled = Div (total, n) {TWO_LAYERS}", TOWER)


def two_layers(pooled: Array) -> Array:
    psi: Array = np.tanh(pooled @ K0.T + B0) @ K1.T + B1
    return psi


def masked_psi(history: Sequence[int]) -> Array:
    return two_layers(TABLE[1:][history].mean(axis=0))


def fed(*rules: InputRule, histories: Sequence[Sequence[int]] = HISTORIES) -> dict[str, Array]:
    bags = Bags.of(histories)
    return encode(rules, bags, positions=np.arange(N), features=FEATURES, ids=np.arange(N))


def pooled(table: Array, pooling: Pooling, feature: str = "movies") -> Array:
    """Return the pooled rows of table of every history."""
    found = []
    for history in HISTORIES:
        values = FEATURES[feature].values[history] if feature != "movies" else np.array(history)
        by = {"mean": values.size, "l2": values.size**0.5, "sum": 1}[pooling]
        found.append(table[values].sum(axis=0) / by)
    return np.stack(found)


def plain(model: OnnxModel, *rules: InputRule) -> Array:
    """Return psi of the histories as a DenseTower computes it from what plain() derives."""
    stack = model.plain(rules)
    assert stack is not None
    by_name = {rule.name: rule for rule in rules}
    inputs = [
        TowerInput(by_name[part.name].feature, part.table[by_name[part.name].first :], part.pooling)
        for part in stack.inputs
    ]
    return DenseTower(inputs, stack.layers, features=FEATURES).batch(Bags.of(HISTORIES))


@pytest.mark.parametrize(
    ("pooling", "body"),
    [
        ("mean", f"{COUNT} pooled = Div (total, n)"),
        ("l2", f"{COUNT} root = Sqrt (n) pooled = Div (total, root)"),
        ("sum", "pooled = Identity (total)"),
    ],
)
def test_ids_and_a_mask_are_a_pooled_table_and_dense_layers(pooling: Pooling, body: str) -> None:
    model = opened(IN_IDS, f"{MASKED_SUM} {body} {TWO_LAYERS}", TOWER)
    expected = two_layers(pooled(TABLE[1:], pooling))
    stack = model.plain([IDS, MASK])
    assert stack is not None
    assert [(part.name, part.pooling) for part in stack.inputs] == [("ids", pooling)]
    np.testing.assert_array_equal(stack.inputs[0].table, TABLE)
    assert [layer.activation for layer in stack.layers] == ["tanh", "linear"]
    np.testing.assert_allclose(model.session()(fed(IDS, MASK)), expected, atol=1e-5)
    np.testing.assert_allclose(plain(model, IDS, MASK), expected, atol=1e-5)


def test_a_mean_without_a_mask_is_one_of_histories_that_are_not_padded() -> None:
    body = f"e = Gather (table, ids) pooled = ReduceMean <keepdims=0> (e, one) {TWO_LAYERS}"
    model = opened("int64[users, length] ids", body, TOWER)
    np.testing.assert_allclose(plain(model, IDS), two_layers(pooled(TABLE[1:], "mean")), atol=1e-5)


def test_the_table_has_the_row_of_what_is_unknown() -> None:
    model = OnnxModel(masked().SerializeToString())
    stack = model.plain([replace(IDS, first=2, unknown=1), MASK])
    assert stack is not None
    np.testing.assert_array_equal(stack.inputs[0].table, TABLE)


def test_a_multi_hot_is_pooled_by_the_rows_of_the_first_kernel() -> None:
    body = f"length = ReduceL2 <keepdims=1> (hot, last) pooled = Div (hot, length) {TWO_LAYERS}"
    kernel = normal(HIDDEN, N)
    model = opened(f"float[users, {N}] hot", body, DENSE | AXES | {"k0": kernel})
    stack = model.plain([HOT])
    assert stack is not None
    assert [(part.table.shape, part.pooling) for part in stack.inputs] == [((N, HIDDEN), "l2")]
    expected = np.tanh(pooled(kernel.T, "l2") + B0) @ K1.T + B1
    np.testing.assert_allclose(model.session()(fed(HOT)), expected, atol=1e-5)
    np.testing.assert_allclose(plain(model, HOT), expected, atol=1e-5)


def test_a_multi_hot_that_is_only_multiplied_has_no_layers() -> None:
    kernel = normal(N, DIM)
    model = opened(f"float[users, {N}] hot", "psi = MatMul (hot, kernel)", {"kernel": kernel})
    stack = model.plain([HOT])
    assert stack is not None
    assert (stack.inputs[0].pooling, stack.layers) == ("sum", [])
    np.testing.assert_array_equal(stack.inputs[0].table, kernel)


def test_bags_side_by_side_are_pooled_each_in_its_own_way() -> None:
    body = (
        f"{MASKED_SUM} {COUNT} films = Div (total, n) "
        "g = MatMul (genres, genre_table) "
        "y = Gather (year_table, years) by_year = ReduceSum <keepdims=0> (y, one) "
        "side = Concat <axis=1> (films, g, by_year) pooled = Dropout (side) psi = MatMul (pooled, k)"
    )
    genre_table, year_table, k = normal(N_GENRES, 2), normal(3, 3), normal(WIDTH + 5, DIM)
    year_table[0] = 0  # the padding
    model = opened(
        f"{IN_IDS}, float[users, {N_GENRES}] genres, int32[users, years] years",
        body,
        {"table": TABLE, "genre_table": genre_table, "year_table": year_table, "k": k, **AXES},
    )
    assert model.tables == {"ids": N + 1, "genres": N_GENRES, "years": 3}
    rules = [IDS, MASK, GENRES, YEARS]
    stack = model.plain(rules)
    assert stack is not None
    assert [(part.name, part.pooling) for part in stack.inputs] == [
        ("ids", "mean"),
        ("genres", "mean"),
        ("years", "sum"),
    ]
    parts = [
        pooled(TABLE[1:], "mean"),
        pooled(genre_table, "mean", "genres"),
        pooled(year_table[1:], "sum", "years"),
    ]
    expected = np.concatenate(parts, axis=1) @ k
    np.testing.assert_allclose(model.session()(fed(*rules)), expected, atol=1e-5)
    np.testing.assert_allclose(plain(model, *rules), expected, atol=1e-5)


def test_bags_themselves_side_by_side_keep_their_kernel() -> None:
    kernel = normal(N + N_GENRES, HIDDEN)
    model = opened(
        f"float[users, {N}] hot, float[users, {N_GENRES}] genres",
        "side = Concat <axis=-1> (hot, genres) h = MatMul (side, k) hb = Add (b, h) psi = Relu (hb)",
        {"k": kernel, "b": B0},
        f"float[users, {HIDDEN}] psi",
    )
    expected = np.maximum(pooled(kernel[:N], "sum") + pooled(kernel[N:], "mean", "genres") + B0, 0)
    np.testing.assert_allclose(plain(model, HOT, GENRES), expected, atol=1e-5)


@pytest.mark.parametrize("after", [False, True])
def test_a_batch_normalisation_is_folded_into_the_layer_beside_it(after: bool) -> None:
    scale, shift, mean, variance = normal(HIDDEN), normal(HIDDEN, seed=1), normal(HIDDEN, seed=2), B0**2
    normalise = "BatchNormalization <epsilon = 0.01> ({}, scale, shift, mean, variance)"
    hidden = (
        f"t = Tanh (h) a = {normalise.format('t')}" if after else f"t = {normalise.format('h')} a = Tanh (t)"
    )
    body = (
        f"{MASKED_SUM} {COUNT} pooled = Div (total, n) h = Gemm <transB=1> (pooled, k0, b0) {hidden} "
        "psi = Gemm <transB=1, alpha=0.5, beta=2.0> (a, k1, b1)"
    )
    weights = {"scale": scale, "shift": shift, "mean": mean, "variance": variance}
    model = opened(IN_IDS, body, TOWER | weights)

    def normalised(x: Array) -> Array:
        return np.asarray(scale * (x - mean) / np.sqrt(variance + 0.01) + shift)

    h = pooled(TABLE[1:], "mean") @ K0.T + B0
    expected = 0.5 * (normalised(np.tanh(h)) if after else np.tanh(normalised(h))) @ K1.T + 2 * B1
    stack = model.plain([IDS, MASK])
    assert stack is not None
    assert [layer.activation for layer in stack.layers] == ["tanh", "linear"]
    np.testing.assert_allclose(model.session()(fed(IDS, MASK)), expected, atol=1e-5)
    np.testing.assert_allclose(plain(model, IDS, MASK), expected, atol=1e-5)


def test_numbers_that_columns_are_moved_and_scaled_by_become_layers() -> None:
    body = (
        f"{MASKED_SUM} {COUNT} mean = Div (total, n) moved = Sub (mean, by) a = Tanh (moved) "
        "k = Transpose (kt) h = MatMul (a, k) double = Mul (two, h) psi = Div (double, ten)"
    )
    by, kernel = normal(1, WIDTH), normal(DIM, WIDTH)
    numbers = {"by": by, "kt": kernel, "two": np.float32(2), "ten": np.array([10], np.float32)}
    model = opened(IN_IDS, body, {"table": TABLE, **AXES, **numbers})
    expected = np.tanh(pooled(TABLE[1:], "mean") - by) @ kernel.T / 5
    np.testing.assert_allclose(plain(model, IDS, MASK), expected, atol=1e-5)


def a_gru() -> tuple[onnx.ModelProto, Callable[[Sequence[int]], Array]]:
    """Return a model whose psi is the last state of a GRU, and its formula for one history."""
    w, r, b = normal(1, 3 * DIM, WIDTH), normal(1, 3 * DIM, DIM), normal(1, 6 * DIM)
    body = (
        "e = Gather (table, ids) steps = Transpose <perm=[1, 0, 2]> (e) "
        f"every, final = GRU <hidden_size={DIM}, linear_before_reset=1> (steps, w, r, b) "
        "psi = Squeeze (final, zero)"
    )
    model = proto("int64[users, length] ids", body, {"table": TABLE, "w": w, "r": r, "b": b, "zero": [0]})

    def psi(history: Sequence[int]) -> Array:
        state = np.zeros(DIM)
        for x in TABLE[1:][history]:
            z, reset, new = np.split(w[0] @ x + b[0, : 3 * DIM], 3)
            hz, hr, hn = np.split(r[0] @ state + b[0, 3 * DIM :], 3)
            z, reset = 1 / (1 + np.exp(-(z + hz))), 1 / (1 + np.exp(-(reset + hr)))
            state = (1 - z) * np.tanh(new + reset * hn) + z * state
        return state

    return model, psi


def test_a_gru_is_not_plain_and_served() -> None:
    content, gru = a_gru()
    model = OnnxModel(content.SerializeToString())
    assert model.plain([IDS]) is None
    for history in HISTORIES:
        given = model.session()(fed(IDS, histories=[history]))
        np.testing.assert_allclose(given[0], gru(history), atol=1e-5)


def test_attention_is_not_plain_and_served() -> None:
    body = (
        "e = Gather (table, ids) logits = MatMul (e, query) w = Softmax <axis=1> (logits) we = Mul (w, e) "
        f"pooled = ReduceSum <keepdims=0> (we, one) {TWO_LAYERS}"
    )
    model = opened("int64[users, length] ids", body, {"query": normal(WIDTH, 1), **TOWER})
    assert model.plain([IDS]) is None
    for history in HISTORIES:
        rows = TABLE[1:][history]
        weights = np.exp(rows @ normal(WIDTH, 1))
        expected = two_layers((weights / weights.sum() * rows).sum(axis=0))
        given = model.session()(fed(IDS, histories=[history]))
        np.testing.assert_allclose(given[0], expected, atol=1e-5)


@pytest.mark.parametrize("served_by", ["numpy", "onnxruntime"])
def test_a_model_is_imported_and_synced_and_answers_as_brute_force(tmp_path: Path, served_by: str) -> None:
    model, psi_of = (masked(), masked_psi) if served_by == "numpy" else a_gru()
    v = normal(N, DIM)
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(v.T), "v"))
    ids = np.random.default_rng(0).permutation(N) + 101  # of the rows of V and of the table, in no order
    found = import_run("model:v", ids, runs_dir=tmp_path / "runs", tower=stored(tmp_path, model))
    assert (found.tower, found.served_by) == ("dense", served_by)
    run = Run.load(found.path)
    history = [7, 2, 9]
    psi = psi_of(history)
    np.testing.assert_allclose(embed(run, history=ids[history].tolist()).user_embedding, psi, atol=1e-5)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        answer = recommend(run, store, history=ids[history].tolist(), k=5)
    scores = v @ psi
    scores[history] = -np.inf
    best = np.argsort(-scores)[:5]
    assert [movie.movie_id for movie in answer.recommendations] == ids[best].tolist()
    np.testing.assert_allclose([movie.score for movie in answer.recommendations], scores[best], atol=1e-5)


@pytest.mark.parametrize("form", ["l2 tanh constant", "recency"])
def test_an_export_of_our_own_is_served(tmp_path: Path, form: str) -> None:
    run = run_of(form, tmp_path)
    export_run(run, ["onnx"], tmp_path / "out")
    model = OnnxModel(tmp_path / "out" / "model.onnx")
    assert model.inputs == [ModelInput("rows", (None, None), "int64")]
    assert model.width == run.embedding_dim
    rule = InputRule("rows", "movies", "indices", padding=-1)
    assert model.plain([rule]) is None
    np.testing.assert_allclose(
        model.session()(fed(rule)), run.tower.batch(Bags.of(HISTORIES)), rtol=1e-6, atol=1e-6
    )


def test_inputs_have_shapes_types_and_the_rows_of_their_tables() -> None:
    body = (
        "i = Cast <to=7> (ids) flat = Reshape (i, pair) e = Gather (table, flat) "
        "s = ReduceSum <keepdims=0> (e, one) f = Cast <to=1> (hot) x = Div (f, two) h = MatMul (x, k) "
        "sh = Add (s, h) n = Cast <to=1> (words) psi = Add (sh, n)"
    )
    model = opened(
        "int32[users, 20] ids, float16[users, columns] hot, string[users, 1] words, float[users, 3] unused",
        body,
        {"table": normal(N + 1, DIM), "k": normal(N, DIM), "two": np.float32(2), "pair": [0, -1], **AXES},
        "float[users, width] psi",
    )
    assert model.inputs == [
        ModelInput("ids", (None, 20), "int32"),
        ModelInput("hot", (None, N), "float16"),  # as wide as its kernel is high
        ModelInput("words", (None, 1), "str"),
    ]
    assert model.tables == {"ids": N + 1, "hot": N}
    assert model.width == DIM  # which one history tells


def test_a_model_of_one_user_at_a_time_is_asked_one_by_one() -> None:
    body = f"{MASKED_SUM} {COUNT} pooled = Div (total, n) {TWO_LAYERS}"
    model = opened("int64[1, length] ids, float[1, length] mask", body, TOWER, f"float[1, {DIM}] psi")
    expected = two_layers(pooled(TABLE[1:], "mean"))
    assert model.inputs[0].shape == (1, None)
    np.testing.assert_allclose(model.session()(fed(IDS, MASK)), expected, atol=1e-5)
    np.testing.assert_allclose(plain(model, IDS, MASK), expected, atol=1e-5)


def test_psi_may_be_a_tensor_inside_and_a_run_keeps_no_more_than_it_needs(tmp_path: Path) -> None:
    body = f"{MASKED_SUM} {COUNT} pooled = Div (total, n) {TWO_LAYERS} logits = MatMul (psi, v)"
    content = proto(
        IN_IDS, body, {"v": normal(DIM, 1000), **TOWER}, "float[users, 1000] logits"
    ).SerializeToString()
    model = OnnxModel(content, output="psi")
    assert model.notes == ["psi is psi, a tensor inside the model"]
    assert model.width == DIM
    assert model.matrix("v", 1000)[0].shape == (1000, DIM)
    model.save(tmp_path)
    assert (tmp_path / "model.onnx").stat().st_size < 4000 < len(content)
    saved = OnnxModel(tmp_path / "model.onnx")
    expected = two_layers(pooled(TABLE[1:], "mean"))
    np.testing.assert_allclose(saved.session()(fed(IDS, MASK)), expected, atol=1e-5)
    np.testing.assert_allclose(plain(model, IDS, MASK), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("last", "rows_of"),
    [
        ("psi = Gemm <transB=1> (pooled, w, b)", "w"),
        ("wt = Transpose (w) p = MatMul (pooled, wt) psi = Add (b, p)", "w"),
        ("p = MatMul (pooled, wt) psi = Add (p, b)", "wt"),
        ("psi = Gemm (pooled, wt, b)", "wt"),
    ],
)
@pytest.mark.parametrize("n", [9, WIDTH])  # as many movies as dimensions too: the use tells which is which
def test_v_is_a_row_per_movie_however_it_is_stored(last: str, rows_of: str, n: int) -> None:
    w, b = normal(n, WIDTH), normal(n)
    body = f"{MASKED_SUM} pooled = Identity (total) {last}"
    weights = {"b": b, "table": TABLE, **AXES, rows_of: w if rows_of == "w" else np.ascontiguousarray(w.T)}
    model = OnnxModel(proto(IN_IDS, body, weights, f"float[users, {n}] psi").SerializeToString())
    assert dict(model.candidates()) == {"table": (N + 1, WIDTH), rows_of: weights[rows_of].shape}
    vectors, bias = model.matrix(rows_of, n)
    np.testing.assert_array_equal(vectors, w)
    assert bias is not None
    np.testing.assert_array_equal(bias, b)
    assert model.matrix("table", N + 1)[1] is None


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.DOUBLE, "float64"),
    ],
)
def test_v_of_another_type_is_converted_and_said(kind: int, name: str) -> None:
    model = masked()
    v = model.graph.initializer.add(name="v", data_type=kind, dims=[2, 2])
    values = np.array([[1.5, -2], [0.25, 3]])
    v.raw_data = values.astype(helper.tensor_dtype_to_np_dtype(kind)).tobytes()
    tower = OnnxModel(model.SerializeToString())
    vectors, _ = tower.matrix("v", 2)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, values)
    assert tower.notes == [f"weights of the model are {name}: what a run has of them is float32"]


def test_weights_in_other_files_are_read_into_one(tmp_path: Path) -> None:
    path = with_weights_outside(tmp_path)
    assert {found.name for found in tmp_path.iterdir()} == {"tower.onnx", "weights.bin"}
    model = OnnxModel(path)
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run")
    assert [found.name for found in (tmp_path / "run").iterdir()] == ["model.onnx"]
    expected = two_layers(pooled(TABLE[1:], "mean"))
    saved = OnnxModel(tmp_path / "run" / "model.onnx")
    np.testing.assert_allclose(saved.session()(fed(IDS, MASK)), expected, atol=1e-5)
    assert model.notes == ["weights in files beside the model were read into one file"]


def with_weights_outside(folder: Path, location: str = "weights.bin") -> Path:
    path = folder / "tower.onnx"
    onnx.save_model(masked(), str(path), save_as_external_data=True, location=location, size_threshold=0)
    return path


def cut_off(path: Path) -> Path:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 10)
    return path


def with_weights_missing(folder: Path) -> Path:
    path = with_weights_outside(folder)
    (folder / "weights.bin").unlink()
    return path


def with_weights_cut_off(folder: Path) -> Path:
    path = with_weights_outside(folder)
    cut_off(folder / "weights.bin")
    return path


def with_weights_elsewhere(folder: Path) -> Path:
    """Return a model that asks for a file outside of its folder."""
    path = with_weights_outside(folder)
    inner = folder / "inner"
    inner.mkdir()
    model = onnx.load_model(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../weights.bin"
    onnx.save_model(model, str(inner / "tower.onnx"))
    return inner / "tower.onnx"


def huge(folder: Path) -> Path:
    path = folder / "tower.onnx"
    with path.open("wb") as file:
        file.truncate(3 << 30)  # sparse: nothing is written
    return path


def huge_weights(folder: Path) -> Path:
    model = masked()
    v = model.graph.initializer.add(name="v", data_type=TensorProto.FLOAT, dims=[1 << 24, 64])
    v.data_location = TensorProto.EXTERNAL
    v.external_data.add(key="location", value="v.bin")
    return stored(folder, model)


def stored(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "tower.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def stamped(**stamp: int) -> onnx.ModelProto:
    """Return the tower with another opset or ir_version."""
    model = masked()
    model.ir_version = stamp.get("ir_version", model.ir_version)
    model.opset_import[0].version = stamp.get("opset", model.opset_import[0].version)
    return model


def foreign() -> onnx.ModelProto:
    model = masked()
    model.graph.node[0].domain = "my.ops"
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    return model


def of_no_tensor() -> onnx.ModelProto:
    ids = helper.make_tensor_sequence_value_info("ids", TensorProto.INT64, None)
    body = "i = ConcatFromSequence <axis=1> (ids) e = Gather (table, i) psi = ReduceSum <keepdims=0> (e, one)"
    model = proto("int64[users, length] ids", body, {"table": TABLE, **AXES})
    model.graph.input[0].CopyFrom(ids)
    return model


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "none.onnx", r"none\.onnx cannot be read: No such file"),
    "a folder": (lambda folder: folder, "cannot be read: Is a directory"),
    "not ONNX": (lambda folder: Path(__file__), r"is no ONNX model, or is cut off \("),
    "empty": (lambda folder: stored(folder, onnx.ModelProto()), "cut off: it has no outputs or no opset"),
    "cut off": (lambda folder: cut_off(stored(folder, masked())), "is no ONNX model, or is cut off"),
    "more than 2 GB": (huge, r"has 3,221,225,472 bytes, expected at most 2,146,435,072.*--vector"),
    "weights of more than 2 GB": (huge_weights, r"has 4,294,967,296 bytes, expected at most 2,146,435,072"),
    "weights missing": (with_weights_missing, "weights in other files cannot be read: .*weights.bin"),
    "weights cut off": (
        with_weights_cut_off,
        "'b1' has 6 bytes in its file, expected 16; it is cut off|cannot be read",
    ),
    "weights elsewhere": (with_weights_elsewhere, "weights in other files cannot be read: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, case: str) -> None:
    make, message = BROKEN[case]
    with pytest.raises(DataError, match=message) as error:
        OnnxModel(make(tmp_path))
    assert "\n" not in str(error.value)


UNFIT: dict[str, tuple[onnx.ModelProto | None, str | None, str]] = {
    "newer opset": (stamped(opset=99), None, r"has opset 99 and this onnxruntime reads up to \d+; upgrade"),
    "newer format": (
        stamped(ir_version=99),
        None,
        r"has IR version 99 and this onnxruntime reads up to \d+;",
    ),
    "a domain of its own": (foreign(), None, "has the operator Gather of my.ops, which onnxruntime does not"),
    "no such output": (masked(), "phi", "has no output 'phi'; there are psi"),
    "an output that is an input": (masked(), "mask", "has no output 'mask'"),
    "outputs": (
        proto(
            "float[users, 3] x",
            "psi = Relu (x) phi = Tanh (x)",
            {},
            "float[users, 3] psi, float[users, 3] phi",
        ),
        None,
        r"has 2 outputs: psi \(any, 3\), phi \(any, 3\); name the one that is psi with --output",
    ),
    "three dimensions": (
        proto("float[users, 3] x", "psi = Unsqueeze (x, one)", AXES, "float[users, 1, 3] psi"),
        None,
        r"output 'psi' of the ONNX model has shape \(any, 1, 3\); expected \(users, width\)",
    ),
    "an input of three lengths left open": (
        proto("float[users, length, width] x", "psi = ReduceSum <keepdims=0> (x, one)", AXES),
        None,
        r"input 'x' .* is of shape \(any, any, any\); expected \(users, movies\)",
    ),
    "a scalar": (
        proto("float[users, 3] x, float s", "psi = Mul (x, s)", {}),
        None,
        r"input 's' .* is of shape \(\); expected \(users, movies\)",
    ),
    "an input without a shape": (
        proto("float[] x", "psi = Relu (x)", {}),
        None,
        r"input 'x' .* is of shape unknown; expected \(users, movies\)",
    ),
    "no tensor": (of_no_tensor(), None, "input 'ids' of the ONNX model is no tensor; expected"),
    "no input": (
        proto("float[users, 3] x", "psi = Relu (c)", {"c": normal(2, DIM)}),
        None,
        "depends on no input",
    ),
    "weights outside": (None, None, "has weights in other files; give the path"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_model_that_cannot_give_psi_is_one_sentence(tmp_path: Path, case: str) -> None:
    model, output, message = UNFIT[case]
    content = model.SerializeToString() if model else with_weights_outside(tmp_path).read_bytes()
    with pytest.raises(UsageError, match=message) as error:
        OnnxModel(content, output=output)
    assert "\n" not in str(error.value)


def test_a_width_that_one_history_does_not_tell_is_one_sentence() -> None:
    model = opened(
        "int64[users, length] ids",
        "psi = Gather (table, ids)",
        {"table": normal(3, 2)},
        "float[users, length] psi",
    )
    message = (
        r"does not say how wide 'psi' is, expected \(users, width\), found \(any, any\), and one history"
    )
    with pytest.raises(UsageError, match=message):
        _ = model.width


def test_a_weight_that_is_not_there_or_does_not_fit_is_one_sentence() -> None:
    model = OnnxModel(masked().SerializeToString())
    message = "has no weight 'v' of two dimensions; there are table, k0, k1$"
    with pytest.raises(UsageError, match=message):
        model.matrix("v", N)
    message = r"weight 'k0' .* has shape \(6, 5\); expected a row, or a column, for each of 1,682 movies"
    with pytest.raises(UsageError, match=message):
        model.matrix("k0", 1682)


def test_a_weight_that_is_cut_off_inside_the_file_is_one_sentence() -> None:
    model = masked()
    v = model.graph.initializer.add(name="v", data_type=TensorProto.FLOAT, dims=[N, DIM])
    v.raw_data = bytes(10)
    tower = OnnxModel(model.SerializeToString())
    with pytest.raises(DataError, match="weight 'v' of the ONNX model cannot be read: "):
        tower.matrix("v", N)
    model.graph.initializer[0].raw_data = bytes(10)
    with pytest.raises(EmbedstoreError, match=r"weight 'table' .* cannot be read: |cannot be opened: "):
        OnnxModel(model.SerializeToString())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    message = (
        "importing an ONNX model needs onnx and onnxruntime; install with `pip install onnx onnxruntime`"
    )
    with pytest.raises(UsageError, match=message):
        OnnxModel(b"")


def test_importing_the_module_imports_neither_onnx_nor_onnxruntime() -> None:
    code = "import sys, embedstore.importing.onnx_model; print(*{'onnx', 'onnxruntime'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("", "")
