"""psi by the model's own file: real models of three lines, whose answers are worked by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedstore.data.features import Bags
from embedstore.errors import RunError, UsageError
from embedstore.runs.consent import allow, allowed
from embedstore.runs.declaration import InputRule
from embedstore.runs.private import private
from embedstore.runs.run import Run
from embedstore.runs.served import FILES, ServedTower, open_session
from embedstore.runs.tower import MovieFeature
from embedstore.runs.writer import write_served
from tests.builders import tiny_run
from tests.runs.models import (
    N,
    expected,
    keras_model,
    onnx_model,
    sealed,
    served_run,
    served_tower,
    write_model,
)
from tests.security.test_files import resealed

# Of Keras 3.15 with NumPy 2.4, where it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

HISTORIES = [[5, 7], [0], [7, 5], [39, 38, 37, 4], [9], [1, 2, 3]]
KINDS = [
    "onnx",
    pytest.param("keras", marks=pytest.mark.tf),
    pytest.param("saved_model", marks=pytest.mark.tf),
]


def bytes_of(**form: Any) -> bytes:
    return bytes(onnx_model(**form).SerializeToString())


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> ServedTower:
    return served_tower(write_model("onnx", tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize("kind", KINDS)
def test_psi_of_a_sealed_run_is_what_its_model_says(kind: str, tmp_path: Path) -> None:
    run = served_run(tmp_path, kind)
    run.verify()
    if kind != "onnx":
        allow(run.manifest)
    assert run.manifest.tower == "dense"
    for history in HISTORIES:
        assert run.tower(history).tolist() == expected(history)
    assert run.tower.batch(Bags.of(HISTORIES)).tolist() == [expected(history) for history in HISTORIES]
    assert run.tower([5]).dtype == np.float32
    with private(run) as copy:  # folders in folders
        assert copy.tower([5, 7]).tolist() == expected([5, 7])


@given(
    histories=st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=30), min_size=1, max_size=12),
)
@settings(max_examples=30)
def test_batch_equals_one_by_one_and_nobody_is_padded_for_another(
    tower: ServedTower, histories: list[list[int]]
) -> None:
    shapes = []

    def session(feeds: Any) -> Any:
        shapes.append(feeds["ids"].shape)
        assert (feeds["ids"] > 0).all()
        return tower.session(feeds)

    watched = replace(tower, session=session)
    assert watched.batch(Bags.of(histories)).tolist() == [expected(history) for history in histories]
    assert len(shapes) == len({len(history) for history in histories})


def test_no_users_have_no_psi(tower: ServedTower) -> None:
    assert tower.batch(Bags.of([])).shape == (0, 3)
    with pytest.raises(ValueError, match="non-empty sequence of movie rows"):
        tower([])


def test_a_call_is_about_a_bounded_number_of_users(tower: ServedTower) -> None:
    sizes = []

    def session(feeds: Any) -> Any:
        sizes.append(feeds["ids"].size)
        return tower.session(feeds)

    watched = replace(tower, session=session)
    found = watched.batch(Bags(np.zeros(300_000, np.int64), np.arange(0, 300_001, 1000)))
    assert found.tolist() == [expected([0] * 1000)] * 300
    assert max(sizes) * 64 <= 1 << 22 < sum(sizes) * 64


def test_a_constant_is_one_more_number(tmp_path: Path) -> None:
    run = served_run(tmp_path, constant=True)
    assert run.embedding_dim == 4
    assert run.tower([5, 7]).tolist() == [*expected([5, 7]), 1]


def test_terms_are_what_is_lost_without_each_movie(tower: ServedTower) -> None:
    # (2 + 4, 0 + 0 - 2, 2) is (6, 0, 2) after relu; without 5: (4, 0, 1), without 7: (2, 0, 1)
    found = tower.terms([5, 7])
    assert not found.exact
    assert found.values.tolist() == [[2, 0, 1], [4, 0, 1]]
    assert tower.terms([7]).values.tolist() == [expected([7])]  # of a history of nothing there is no psi


def test_what_is_not_in_the_vocabulary_of_the_model_is_left_out(tmp_path: Path) -> None:
    positions = np.arange(N)
    positions[[5, 9]] = -1
    run = served_run(tmp_path, positions=positions)
    assert run.tower([5, 7, 9]).tolist() == expected([7])
    bags = Bags.of([[5, 9], [7], [9]])
    assert run.tower.knows(bags).tolist() == [False, True, False]
    with pytest.raises(UsageError, match="none of the movies of history 0 is in the vocabulary of the model"):
        run.tower.batch(bags)
    assert run.tower.terms([5, 7]).values.tolist() == [[0, 0, 0], expected([7])]


def test_side_features_reach_the_model(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]>
        agraph (float[n, 3] genres, float[n, 40] movies) => (float[n, 43] psi) {
            psi = Concat<axis = 1>(genres, movies)
        }"""
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    # movie 0 has genres 0 and 1, movie 1 has one without a label, the others have genre 1
    values = np.array([0, 1, -1, *[1] * (N - 2)])
    genres = MovieFeature("genres", np.array([0, 2, *range(3, N + 2)]), values, ("a", "b"))
    rules = (
        InputRule("movies", "movies", "multi_hot", "float32", values="mean", size=40),
        InputRule(
            "genres", "genres", "multi_hot", "float32", labels=("a", "b"), values="count", size=3, unknown=2
        ),
    )
    tower = served_tower(path, rules=rules, features={"genres": genres}, width=43)
    run = sealed(tmp_path, tower)
    psi = run.tower([0, 1, 2])
    assert psi[:3].tolist() == [1, 2, 1]
    np.testing.assert_allclose(psi[3:], [1 / 3] * 3 + [0] * 37, rtol=1e-6)


def test_a_model_of_a_fixed_number_of_users_is_asked_for_so_many_at_a_time(tower: ServedTower) -> None:
    histories = [[row, row] for row in range(7)]
    for batch in (1, 4):
        fixed = replace(tower, session=open_session("onnx", bytes_of(batch=batch)))
        assert fixed.batch(Bags.of(histories)).tolist() == [expected(history) for history in histories]


@pytest.mark.parametrize(
    ("form", "output", "sentence"),
    [
        ({"outputs": ("a", "b")}, None, "has 2 outputs; name the one that is psi with --output: a, b"),
        ({"outputs": ("a", "b")}, "c", "has no output 'c'; expected one of its outputs: a, b"),
        ({"domain": "com.example"}, None, "cannot be opened.*com.example"),
        ({"operator": "Nothing"}, None, "cannot be opened.*Nothing"),
    ],
)
def test_an_onnx_model_that_cannot_be_meant_is_one_sentence(
    form: dict[str, Any], output: str | None, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence) as error:
        open_session("onnx", bytes_of(**form), output=output)
    assert "\n" not in str(error.value)


def test_one_of_several_outputs_is_psi() -> None:
    session = open_session("onnx", bytes_of(outputs=("a", "b")), output="b")
    assert session({"ids": np.array([[6, 8]])}).tolist() == [expected([5, 7])]


@pytest.mark.parametrize("place", ["table.bin", "../table.bin", "{}/table.bin"])
def test_weights_in_another_file_are_not_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx_model()
    (tmp_path / "here").mkdir()
    for folder in (tmp_path, tmp_path / "here"):
        (folder / "table.bin").write_bytes(model.graph.initializer[0].raw_data)
    monkeypatch.chdir(tmp_path / "here")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {
        "location": place.format(tmp_path),
        "offset": "0",
        "length": str((N + 1) * 12),
    }.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    with pytest.raises(UsageError, match=r"cannot be opened.*[Ee]xternal"):
        open_session("onnx", model.SerializeToString())


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"ORTM", b"\x08\x08" * 100])
def test_what_is_no_model_is_one_sentence(content: bytes) -> None:
    with pytest.raises(UsageError, match="the ONNX model cannot be opened"):
        open_session("onnx", content)


def test_a_model_that_does_not_take_what_it_is_fed_or_gives_another_shape_is_one_sentence(
    tower: ServedTower,
) -> None:
    with pytest.raises(RunError, match="the ONNX model refuses what its declaration makes of a history"):
        replace(tower, rules=(InputRule("other", "movies", "indices"),))([0])
    with pytest.raises(RunError, match="refuses what its declaration makes"):  # of 41 rows
        replace(tower, rules=(InputRule("ids", "movies", "indices", first=30),))([20])
    with pytest.raises(RunError, match="gives 3 numbers a user; expected 4"):
        replace(tower, width=4)([0])
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]>
        agraph (int64[n, l] ids) => (int64[n, l] psi) { psi = Identity(ids) }"""
    )
    other = replace(tower, session=open_session("onnx", model.SerializeToString()))
    with pytest.raises(RunError, match=r"gives int64 of shape \(1, 1\) for 1 users; expected floating"):
        other([0])


@pytest.mark.tf
def test_a_layer_of_a_keras_model_is_psi(tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    keras_model(scores=True).save(path)
    assert open_session("keras", path, output="psi")({"ids": np.array([[6, 8]])}).tolist() == [
        expected([5, 7])
    ]
    with pytest.raises(
        UsageError, match="has 2 outputs; name the one that is psi with --output: psi, scores"
    ):
        open_session("keras", path)
    with pytest.raises(UsageError, match="cannot be opened: No such layer: nothing"):
        open_session("keras", path, output="nothing")


@pytest.mark.tf
def test_numbers_become_those_that_a_keras_model_takes(tmp_path: Path) -> None:
    import keras

    ids = keras.Input((None,), name="ids")  # float32, as Keras has it where nothing is said
    path = tmp_path / "model.keras"
    keras.Model(ids, keras.layers.Embedding(4, 2, embeddings_initializer="ones")(ids)[:, 0]).save(path)
    assert open_session("keras", path)({"ids": np.array([[1, 2], [3, 0]])}).tolist() == [[1, 1], [1, 1]]


@pytest.mark.tf
def test_a_keras_model_with_code_in_it_is_refused(tmp_path: Path) -> None:
    import keras

    ids = keras.Input((3,), name="ids")
    path = tmp_path / "model.keras"
    keras.Model(ids, keras.layers.Lambda(lambda x: x * 2)(ids)).save(path)
    with pytest.raises(UsageError, match=r"Keras model cannot be opened: .*[Ll]ambda"):
        open_session("keras", path)
    path.write_bytes(b"\x89HDF")
    with pytest.raises(UsageError, match="the Keras model cannot be opened"):
        open_session("keras", path)


@pytest.mark.tf
def test_a_saved_model_of_several_signatures_lists_them(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = tf.TensorSpec((None, None), tf.int64, name="ids")
    one = tf.function(lambda ids: {"psi": tf.cast(ids, tf.float32)}, input_signature=[spec])
    two = tf.function(lambda ids: {"psi": tf.cast(-ids, tf.float32), "x": ids}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"one": one, "two": two})
    with pytest.raises(
        UsageError, match="has 2 signatures; name the one that is psi with --signature: one, two"
    ):
        open_session("saved_model", tmp_path / "m")
    with pytest.raises(UsageError, match="has 2 outputs; name the one that is psi with --output: psi, x"):
        open_session("saved_model", tmp_path / "m", signature="two")
    session = open_session("saved_model", tmp_path / "m", signature="two", output="psi")
    assert session({"ids": np.array([[1, 2]])}).tolist() == [[-1, -2]]


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "pickle"},
        {"kind": ["onnx"]},
        {"kind": "keras"},
        {"output": 7},
        {"output": "other"},
        {"constant": 1},
        {"constant": True},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": [{"name": "ids", "feature": "movies", "form": "indices", "length": 1 << 30}]},
        {"inputs": [{"name": "ids", "feature": "movies", "form": "multi_hot", "size": 1 << 30}]},
        {"inputs": [{"name": "ids", "feature": "movies", "form": "multi_hot", "size": 39}]},
        {"inputs": [{"name": "ids", "feature": "movies", "form": "multi_hot", "size": 40, "unknown": 40}]},
        {"inputs": [{"name": "ids", "feature": "movies", "form": "indices", "padding": 1 << 70}]},
        {"inputs": [{"name": "ids", "feature": "genres", "form": "multi_hot", "labels": ["x"], "size": 2}]},
    ],
)
def test_a_tower_json_of_a_stranger_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    run = served_run(tmp_path)
    path = run.path / "tower.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    changed = resealed(run)
    with pytest.raises(RunError):
        changed.tower([0, 1])


@pytest.mark.parametrize(
    "positions", [np.zeros(39, np.int64), np.full(40, -2), np.full(40, 1 << 40), np.zeros(40)]
)
def test_positions_of_a_stranger_are_refused(positions: Any, tmp_path: Path) -> None:
    run = served_run(tmp_path)
    np.save(run.path / "tower.positions.npy", positions)
    with pytest.raises(RunError, match=r"damaged: tower\.positions\.npy"):
        _ = resealed(run).tower


def test_a_model_is_checked_before_it_is_opened(tmp_path: Path) -> None:
    run = served_run(tmp_path)
    path = run.path / FILES["onnx"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"damaged: tower/model\.onnx does not have the sha256"):
        _ = Run.load(run.path).tower
    path.write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"damaged: tower/model\.onnx is not a model of its tower\.json"):
        _ = resealed(run).tower


def test_a_program_runs_where_its_user_allowed_it_and_no_run_brings_that_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    model = write_model("onnx", tmp_path)
    tower = replace(served_tower(model), kind="keras")
    run = sealed(tmp_path, tower)
    with pytest.raises(RunError, match=f"a program.*embedstore runs allow {run.run_id}"):
        _ = run.tower
    assert not allowed(run.manifest)
    assert allow(run.manifest).is_relative_to(tmp_path / "state")
    assert allowed(Run.load(run.path).manifest)
    model.write_bytes(onnx_model(outputs=("psi", "other")).SerializeToString())
    assert not allowed(sealed(tmp_path / "other", tower).manifest)


def test_consent_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="which lets a model run, cannot be written: Not a directory"):
        allow(served_run(tmp_path).manifest)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = served_run(tmp_path)
    monkeypatch.setattr("embedstore.runs.served.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="which needs onnxruntime; install with `pip install onnxruntime`"):
        _ = run.tower
    with pytest.raises(UsageError, match="by a SavedModel, which needs tensorflow"):
        open_session("saved_model", tmp_path)


def test_a_tower_without_a_model_cannot_be_written(tower: ServedTower, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have the file of its model"):
        write_served(tmp_path, replace(tower, model=None))


def test_a_query_of_an_onnx_run_imports_no_tensorflow_and_one_of_a_numpy_run_no_onnxruntime(
    tmp_path: Path,
) -> None:
    served, plain = served_run(tmp_path), tiny_run(tmp_path / "plain", additive=False)
    code = (
        "import sys\nfrom embedstore import Run\n"
        f"Run.load({str(plain.path)!r}).tower([1])\nassert 'onnxruntime' not in sys.modules\n"
        f"print(Run.load({str(served.path)!r}).tower([5, 7]).tolist())\n"
        "assert not {'tensorflow', 'keras', 'onnx'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == expected([5, 7])
    assert done.stderr == ""
