"""Bad input of `runs import`, a row a case: one sentence, its exit code, and nothing written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from embedstore.cli import run as embedstore
from embedstore.runs.run import Run
from tests.builders import tiny_dataset, written
from tests.cli.test_bad_input import Case, contents

Capture = pytest.CaptureFixture[str]
KERAS = "ignore:__array__ implementation:DeprecationWarning"  # as it saves
N, DIM = 40, 4
ROOT = Path(__file__).parents[2]
MEAN = (
    "e = Gather (table, ids) m = Unsqueeze (mask, last) em = Mul (e, m) t = ReduceSum <keepdims=0> (em, one) "
    "n = ReduceSum <keepdims=1> (mask, one) psi = Div (t, n)"
)
INPUTS = "int64[users, length] ids, float[users, length] mask"


def save_onnx(
    path: Path, inputs: str, body: str, outputs: str = "float[users, 4] psi", **weights: Any
) -> None:
    text = f'<ir_version: 10, opset_import: ["": 18]> tower ({inputs}) => ({outputs}) {{ {body} }}'
    model = parser.parse_model(text)
    axes = {"last": np.array([-1]), "one": np.array([1])}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), name)
        for name, value in {**weights, **axes}.items()
        if name in body
    )
    onnx.save(model, path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a model of the movies 1 to 40, of ratings, and one run."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(N + 1, DIM)).astype(np.float32)
    np.save("V.npy", rng.normal(size=(N, DIM)).astype(np.float32))
    np.save("E.npy", table[1:])
    written(tmp_path / "data" / "tiny", tiny_dataset())
    (tmp_path / "data" / "tiny" / "movies.csv").rename("movies.csv")
    Path("ids.txt").write_text("\n".join(map(str, range(1, N + 1))))
    save_onnx(tmp_path / "mean.onnx", INPUTS, MEAN, table=table)
    return tmp_path


def array(name: str, value: Any, *, pickled: bool = False) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / name, value, allow_pickle=pickled)


def text(name: str, content: str | bytes) -> Callable[[Path], object]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(raw)


def model(
    inputs: str, body: str, outputs: str = "float[users, 4] psi", **weights: Any
) -> Callable[[Path], object]:
    return lambda folder: save_onnx(folder / "m.onnx", inputs, body, outputs, **weights)


def declared(*rules: dict[str, Any], **more: Any) -> Callable[[Path], object]:
    return text("input.json", json.dumps({"schema": 1, "inputs": rules, **more}))


def line(number: int, content: str) -> Callable[[Path], object]:
    def act(folder: Path) -> None:
        lines = (folder / "movies.csv").read_text().splitlines()
        lines[number - 1] = content
        (folder / "movies.csv").write_text("\n".join(lines) + "\n")

    return act


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


def broken(value: float) -> np.ndarray[Any, Any]:
    vectors = ones(N, DIM)
    vectors[7, 2] = value
    return vectors


IMPORT = ["runs", "import", "--movies", "movies.csv"]
ARRAYS = [*IMPORT, "--vectors", "V.npy"]
ONNX = [*ARRAYS, "--tower"]
X = ["runs", "import", "--vectors", "V.npy", "--ids"]
IDS: dict[str, Any] = {"name": "ids", "feature": "movies", "form": "indices", "dtype": "int64", "first": 1}
MASK: dict[str, Any] = {"name": "mask", "feature": "movies", "form": "mask", "dtype": "float32"}
HOT = {"name": "x", "feature": "movies", "form": "multi_hot", "dtype": "float32"}
DECLARED = [*ONNX, "mean.onnx", "--input", "input.json"]
CASES = [
    # V
    Case("nothing", ["runs", "import"], 2, "say which movie each row of V is: give --movies or --ids"),
    Case("no V", IMPORT, 2, "V is in no model without one: give its file with --vectors"),
    Case("V in no model", [*IMPORT, "--vectors", "model:V"], 2, "V is in no model without one"),
    Case("V missing", [*IMPORT, "--vectors", "none.npy"], 3, "none.npy"),
    Case("V a folder", [*IMPORT, "--vectors", "data"], 2, "data"),
    Case("V a folder by name", [*IMPORT, "--vectors", "d.npy"], 1, "d.npy", lambda f: (f / "d.npy").mkdir()),
    Case("V is text", [*IMPORT, "--vectors", "movies.csv"], 2, "movies.csv"),
    Case("V is text by name", [*IMPORT, "--vectors", "x.npy"], 1, "x.npy", text("x.npy", "1 2 3")),
    Case("V empty file", [*IMPORT, "--vectors", "x.npy"], 1, "x.npy", text("x.npy", "")),
    Case("V a pickle", [*IMPORT, "--vectors", "v.pkl"], 2, "runs code when it is read", text("v.pkl", "x")),
    Case(
        "V of torch", [*IMPORT, "--vectors", "v.pt"], 2, "write the numbers with `np.save", text("v.pt", "x")
    ),
    Case(
        "V of objects",
        [*IMPORT, "--vectors", "o.npy"],
        2,
        "runs code when it is read",
        array("o.npy", np.array([[{}]] * N), pickled=True),
    ),
    Case(
        "V in one dimension", [*IMPORT, "--vectors", "x.npy"], 1, "has shape (40,)", array("x.npy", ones(N))
    ),
    Case("V of nothing", [*IMPORT, "--vectors", "x.npy"], 1, "has shape (0, 4)", array("x.npy", ones(0, 4))),
    Case("V of text", [*IMPORT, "--vectors", "x.npy"], 1, "x.npy", array("x.npy", np.array([["a"]] * N))),
    Case("V with NaN", [*IMPORT, "--vectors", "x.npy"], 1, "row 7", array("x.npy", broken(np.nan))),
    Case("V with infinity", [*IMPORT, "--vectors", "x.npy"], 1, "row 7", array("x.npy", broken(np.inf))),
    Case(
        "V transposed", [*IMPORT, "--vectors", "x.npy"], 1, "looks transposed", array("x.npy", ones(DIM, N))
    ),
    Case(
        "V has a row more",
        [*IMPORT, "--vectors", "x.npy"],
        1,
        "40 movie ids for 41",
        array("x.npy", ones(41, 4)),
    ),
    Case(
        "V has a row less",
        [*IMPORT, "--vectors", "x.npy"],
        1,
        "40 movie ids for 39",
        array("x.npy", ones(39, 4)),
    ),
    Case(
        "V too wide",
        [*X, "two.txt", "--vectors", "x.npy"],
        2,
        "Qdrant takes vectors of up to 65,536",
        lambda f: (text("two.txt", "1\n2")(f), array("x.npy", ones(2, 65_537))(f)),
    ),
    Case(
        "npz without that array",
        [*IMPORT, "--vectors", "x.npz:W"],
        3,
        "W",
        lambda f: np.savez("x.npz", V=ones(N, 4)),
    ),
    # the movies
    Case("movies missing", ["runs", "import", "--movies", "none"], 2, "'none' does not exist"),
    Case("movies a folder", ["runs", "import", "--movies", "data"], 2, "'data' is a directory"),
    Case("movies empty", [*X[:-1], "--movies", "m.csv"], 1, "m.csv", text("m.csv", "")),
    Case(
        "movies only a header",
        [*X[:-1], "--movies", "m.csv"],
        1,
        "holds no movie",
        text("m.csv", "movieId,title,genres\n"),
    ),
    Case(
        "movies not text",
        [*X[:-1], "--movies", "m.csv"],
        1,
        "m.csv",
        text("m.csv", b"movieId,title,genres\n\xff\xfe,\n"),
    ),
    Case("movies are ratings", [*X[:-1], "--movies", "data/tiny/ratings.csv"], 2, "ratings"),
    Case(
        "movie twice",
        ARRAYS,
        1,
        "movies.csv, line 9: movie 2 stands here again, first on line 3",
        line(9, "2,A,Drama"),
    ),
    Case("movie without id", ARRAYS, 1, "line 9: has no movie id", line(9, ",A,Drama")),
    Case("ids missing", [*X, "none.txt"], 2, "'none.txt' does not exist"),
    Case("ids of another type", [*X, "movies.csv"], 2, "expected .txt (one id a line), .npy or .json"),
    Case("ids a pickle", [*X, "i.pkl"], 2, "runs code when it is read", text("i.pkl", "x")),
    Case(
        "ids twice",
        [*X, "i.txt"],
        1,
        "movie ids stand there more than once (5)",
        text("i.txt", "\n".join(map(str, [5, *range(1, N)]))),
    ),
    Case("ids too few", [*X, "i.txt"], 1, "2 movie ids for 40 vectors", text("i.txt", "1\n2\n")),
    Case(
        "ids with a gap",
        [*X, "i.txt"],
        1,
        "row 1 (counted from 0) has no movie id",
        text("i.txt", "1\n\n" + "\n".join(map(str, range(3, 41)))),
    ),
    Case("ids are numbers with a point", [*X, "i.json"], 1, "i.json", text("i.json", "[1.5]")),
    Case("ids no JSON", [*X, "i.json"], 1, "i.json", text("i.json", "[1,")),
    Case(
        "ids of other movies",
        [*X, "i.txt", "--movies", "movies.csv"],
        2,
        "none of the 2 ids of i.txt is a movie of movies.csv",
        text("i.txt", "x\ny\n"),
    ),
    # ratings
    Case("ratings missing", [*ARRAYS, "--ratings", "none"], 3, "data set 'none'"),
    Case(
        "ratings of others",
        [*X, "i.txt", "--ratings", "tiny"],
        4,
        "none of the 40 movie ids is among those of data set tiny",
        text("i.txt", "\n".join(f"tt{i}" for i in range(N))),
    ),
    Case("columns of nothing", [*ARRAYS, "--columns", "user=u"], 2, "--columns is about ratings"),
    Case(
        "ratings not read",
        [*ARRAYS, "--ratings", "bad.csv"],
        2,
        "bad.csv, line 1: cannot tell the user column",
        text("bad.csv", "a,b\n1,2\n"),
    ),
    # psi as an array
    Case(
        "E of other width",
        [*ONNX, "x.npy"],
        2,
        "x.npy has shape (40, 5) and V (40, 4)",
        array("x.npy", ones(N, 5)),
    ),
    Case("E of other movies", [*ONNX, "x.npy"], 2, "x.npy has shape (39, 4)", array("x.npy", ones(N - 1, 4))),
    Case("E with NaN", [*ONNX, "x.npy"], 1, "x.npy: row 7", array("x.npy", broken(np.nan))),
    # psi as a model
    Case("model missing", [*ONNX, "none.onnx"], 3, "none.onnx"),
    Case(
        "model is no model",
        [*ONNX, "m.onnx"],
        1,
        "m.onnx is no ONNX model, or is cut off",
        text("m.onnx", "not one"),
    ),
    Case("model is empty", [*ONNX, "m.onnx"], 1, "m.onnx is no ONNX model", text("m.onnx", "")),
    Case("model is a pickle", [*ONNX, "m.pkl"], 2, "runs code when it is read", text("m.pkl", "x")),
    Case("model of torch", [*ONNX, "m.pt"], 2, "runs code when it is read", text("m.pt", "x")),
    Case(
        "model of unknown kind",
        [*ONNX, "movies.csv"],
        2,
        "movies.csv is no model: expected .onnx, .keras or the folder",
    ),
    Case(
        "model of HDF5", [*ONNX, "m.h5"], 2, "write it anew with model.save('model.keras')", text("m.h5", "x")
    ),
    Case("Keras model is no model", [*ONNX, "m.keras"], 2, "m.keras is no .keras file", text("m.keras", "x")),
    Case("no SavedModel", [*ONNX, "data"], 2, "data"),
    Case("no such output", [*ONNX, "mean.onnx", "--output", "x"], 2, "psi"),
    Case("no such weight", [*IMPORT, "--vectors", "model:x", "--tower", "mean.onnx"], 2, "table"),
    Case(
        "no weight is V",
        [*IMPORT, "--tower", "m.onnx"],
        2,
        "the model has no weight of the shape of V, (40, 4)",
        model(
            INPUTS, f"{MEAN.replace('psi =', 'p =')} psi = MatMul (p, w)", table=ones(N + 1, 6), w=ones(6, 4)
        ),
    ),
    Case(
        "another width",
        [*ONNX, "m.onnx"],
        2,
        "V.npy has width 4 and psi of the model 5",
        model(INPUTS, MEAN, "float[users, 5] psi", table=ones(N + 1, 5)),
    ),
    Case(
        "vocabulary longer than the table",
        [*ONNX, "m.onnx"],
        2,
        "table of 38 rows, and there are 40 movies",
        model(INPUTS, MEAN, table=ones(38, 4)),
    ),
    Case(
        "vocabulary shorter than the table",
        [*ONNX, "m.onnx"],
        2,
        "table of 45 rows, and there are 40 movies",
        model(INPUTS, MEAN, table=ones(45, 4)),
    ),
    Case(
        "needs what nobody has",
        [*ONNX, "m.onnx"],
        2,
        "the model needs 'user_age', which is no part of a history",
        model(
            f"{INPUTS}, float[users, 4] user_age",
            f"{MEAN.replace('psi =', 'p =')} psi = Add (p, user_age)",
            table=ones(N + 1, 4),
        ),
    ),
    Case(
        "V in the model with NaN",
        [*IMPORT, "--vectors", "model:V", "--tower", "m.onnx"],
        1,
        "V: row 7 (counted from 0) holds NaN",
        model(INPUTS, f"{MEAN} w = Cast <to = 1> (V)", table=ones(N + 1, 4), V=broken(np.nan)),
    ),
    Case(
        "makes NaN",
        [*ONNX, "m.onnx"],
        1,
        "the model gives NaN or infinity for a history",
        model(INPUTS, MEAN, table=ones(N + 1, 4) * np.float32(np.nan)),
    ),
    # the declaration
    Case("about no model", [*ARRAYS, "--output", "psi"], 2, "--output is about a model, and none is given"),
    Case("about arrays", [*ONNX, "E.npy", "--signature", "x"], 2, "--signature is about a model"),
    Case("declaration missing", DECLARED, 2, "'input.json' does not exist"),
    Case("declaration no JSON", DECLARED, 2, "input.json is not a JSON declaration", text("input.json", "{")),
    Case("declaration a list", DECLARED, 2, 'input.json has no list "inputs"', text("input.json", "[]")),
    Case("declaration without rules", DECLARED, 2, "inputs is empty", declared()),
    Case("declaration of the future", DECLARED, 2, "has schema 7", declared(IDS, MASK, schema=7)),
    Case(
        "declaration with a typo",
        DECLARED,
        2,
        "input 'ids' has an unknown key 'frist'",
        declared({**IDS, "frist": 1}, MASK),
    ),
    Case(
        "declaration with a lack",
        DECLARED,
        2,
        "the model needs 'mask' and the declaration has no rule for it",
        declared(IDS),
    ),
    Case(
        "declaration with too much",
        DECLARED,
        2,
        "the declaration has a rule for 'x'; the model has ids, mask",
        declared(IDS, MASK, {**MASK, "name": "x"}),
    ),
    Case(
        "declaration off by one",
        DECLARED,
        2,
        "the declaration has indices up to 39",
        declared({**IDS, "first": 0}, MASK),
    ),
    Case(
        "declaration of another length",
        [*ONNX, "m.onnx", "--input", "input.json"],
        2,
        "takes 8 values a user, the declaration has length null for its indices; expected length 8",
        lambda f: (
            declared(IDS, MASK)(f),
            model(INPUTS.replace("length", "8"), MEAN, table=ones(N + 1, 4))(f),
        ),
    ),
    Case(
        "declaration with two rows of movies for a mask",
        DECLARED,
        2,
        "'mask' is the mask of movies, of which 2 inputs have the form",
        declared(IDS, {**IDS, "name": "recent"}, MASK),
    ),
    Case(
        "declaration of few columns",
        [*ONNX, "m.onnx", "--input", "input.json"],
        2,
        "input 'x' has indices up to 39, which its size cannot hold (below 20)",
        lambda f: (
            model("float[users, length] x", "psi = Relu (x)")(f),
            declared({**HOT, "size": 20})(f),
        ),
    ),
    Case(
        "declaration of a small type",
        [*X, "i.txt", "--tower", "mean.onnx", "--input", "input.json"],
        2,
        "input 'ids' has indices up to 40, which its dtype cannot hold (below 2)",
        lambda f: (
            text("i.txt", "\n".join(map(str, range(N))))(f),
            declared({**IDS, "dtype": "bool"}, MASK)(f),
        ),
    ),
    Case(
        "declaration of ids that are text",
        [*X, "i.txt", "--tower", "mean.onnx", "--input", "input.json"],
        2,
        "input 'ids' takes ids as int64, and the movies have text",
        lambda f: (
            text("i.txt", "\n".join(f"tt{i}" for i in range(N)))(f),
            declared({"name": "ids", "feature": "movies", "form": "ids"}, MASK)(f),
        ),
    ),
    Case(
        "declaration of ids that are larger than the type",
        [*X, "i.txt", "--tower", "mean.onnx", "--input", "input.json"],
        2,
        "takes ids as int64, and the movies have 9,223,372,036,854,775,847",
        lambda f: (
            text("i.txt", "\n".join(str(2**63 + i) for i in range(N)))(f),
            declared({"name": "ids", "feature": "movies", "form": "ids"}, MASK)(f),
        ),
    ),
    Case(
        "declaration of genres that no movie has",
        [*ONNX, "m.onnx", "--input", "input.json"],
        2,
        "no movie has one of the 4 genres that input 'x' takes; give movies with genres by --movies",
        lambda f: (
            model(
                f"{INPUTS}, float[users, 4] x",
                f"{MEAN.replace('psi', 'p')} psi = Add (p, x)",
                table=ones(N + 1, 4),
            )(f),
            declared(IDS, MASK, {**HOT, "feature": "genres", "labels": list("abcd"), "size": 4})(f),
        ),
    ),
    Case("vocabulary missing", DECLARED, 3, "v.txt", declared(IDS, MASK, vocabulary="v.txt")),
    Case(
        "vocabulary of others",
        DECLARED,
        2,
        "v.txt has none of the 40 movies",
        lambda f: (
            declared(IDS, MASK, vocabulary="v.txt")(f),
            text("v.txt", "\n".join(map(str, range(100, 140))))(f),
        ),
    ),
    Case(
        "vocabulary twice",
        DECLARED,
        2,
        "v.txt has an id twice",
        lambda f: (declared(IDS, MASK, vocabulary="v.txt")(f), text("v.txt", "1\n1\n")(f)),
    ),
    Case(
        "read and written",
        [*DECLARED, "--write-input", "o.json"],
        2,
        "--input is a declaration already",
        declared(IDS, MASK),
    ),
    Case("written over", [*ONNX, "mean.onnx", "--write-input", "movies.csv"], 2, "movies.csv exists"),
    Case(
        "written nowhere",
        [*ONNX, "mean.onnx", "--write-input", "no/o.json"],
        2,
        "the folder of no/o.json does not exist",
    ),
    # where to
    Case("runs a file", [*ARRAYS, "--runs", "movies.csv"], 1, "movies.csv"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_sentence_and_seals_nothing(case: Case, folder: Path, capfd: Capture) -> None:
    case.prepare(folder)
    before = contents(folder)
    code = embedstore(case.arguments)
    out, err = capfd.readouterr()
    assert (code, err.count("\n"), err[:7]) == (case.code, 1, "Error: "), err
    assert case.sentence in err
    assert out == ""
    assert contents(folder) == before
    assert sorted(path.name for path in folder.rglob("*") if path.is_dir()) == sorted(
        {"data", "tiny"} | ({"d.npy"} if "d.npy" in case.arguments else set())
    )


@pytest.fixture(scope="module")
def keras_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """own.keras, with a layer of a class of its own, and two, a SavedModel with two signatures."""
    import keras
    import tensorflow as tf

    class Halved(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x / 2

    folder = tmp_path_factory.mktemp("models")
    watched = keras.Input((N,), name="movies")
    psi = keras.layers.Dense(DIM)(watched)
    keras.Model(watched, Halved()(psi)).save(folder / "own.keras")
    model = keras.Model(watched, psi)
    module = tf.Module()
    module.model = model
    asked = tf.function(lambda movies: {"psi": model(movies)})
    spec = tf.TensorSpec((None, N), tf.float32, name="movies")
    signatures = {name: asked.get_concrete_function(spec) for name in ("users", "others")}
    tf.saved_model.save(module, str(folder / "two"), signatures=signatures)
    return folder


@pytest.mark.filterwarnings(KERAS)
def test_a_model_with_code_of_its_own_is_refused(folder: Path, keras_models: Path, capfd: Capture) -> None:
    assert embedstore([*ONNX, str(keras_models / "own.keras")]) == 2
    err = capfd.readouterr().err
    assert "needs Python code that it cannot bring along (Halved)" in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.filterwarnings(KERAS)
def test_one_of_several_signatures_is_chosen(
    folder: Path, keras_models: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    arguments = [*ONNX, str(keras_models / "two")]
    assert embedstore(arguments) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "others" in err
    assert "users" in err
    assert not Path("runs").exists()
    assert embedstore([*arguments, "--signature", "users"]) == 0
    assert "multi_hot of 40" in capfd.readouterr().out


def test_what_could_be_told_is_written(folder: Path, capfd: Capture) -> None:
    save_onnx(folder / "m.onnx", INPUTS, MEAN, table=ones(45, 4))
    assert embedstore([*ONNX, "m.onnx", "--write-input", "input.json"]) == 2
    err = capfd.readouterr().err
    assert err.endswith("; what could be told is in input.json, correct the rest\n")
    assert json.loads(Path("input.json").read_text())["inputs"] == [
        {k: v for k, v in IDS.items() if k != "first"},
        MASK,
    ]
    assert not Path("runs").exists()


@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (1, 1)])
def test_the_smallest_models_are_imported(folder: Path, capfd: Capture, shape: tuple[int, int]) -> None:
    vectors = np.arange(1, 1 + shape[0] * shape[1], dtype=np.float16).reshape(shape)
    np.save("small.npy", vectors)
    names = ["é/ü 1", "映画", "x" * 300][: shape[0]]
    Path("names.txt").write_text("\ufeff" + "\n".join(names) + "\r\n")
    assert embedstore(["runs", "import", "--vectors", "small.npy", "--ids", "names.txt"]) == 0
    assert "float16" in capfd.readouterr().out
    (path,) = Path("runs").iterdir()
    run = Run.load(path)
    assert run.movies.values.tolist() == sorted(names)
    assert embedstore(["sync"]) == 0
    psi = Path("psi.txt")
    psi.write_text(" ".join(["1"] * shape[1]))
    capfd.readouterr()
    assert embedstore(["query", "--vector", "psi.txt", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["recommendations"]
    assert [movie["movie_id"] for movie in found] == names[::-1]  # the later rows are longer
    assert embedstore(["similar", names[0]]) == 0


@pytest.mark.usefixtures("folder")
def test_v_with_a_dimension_more_than_movies_is_read_by_its_width() -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(N + 1, N)).astype(np.float32)
    save_onnx(
        Path("m.onnx"),
        INPUTS,
        f"{MEAN} scores = MatMul (psi, w)",
        f"float[users, {N + 1}] psi, float[users, {N}] scores",
        table=rng.normal(size=(N + 1, N + 1)).astype(np.float32),
        w=kernel,
    )
    arguments = ["--movies", "movies.csv", "--tower", "m.onnx", "--vectors", "model:w", "--output", "psi"]
    assert embedstore(["runs", "import", *arguments]) == 0
    (path,) = Path("runs").iterdir()
    run = Run.load(path)
    ids = [int(line.split(",")[0]) for line in Path("movies.csv").read_text().splitlines()[1:]]
    np.testing.assert_array_equal(run.movie_vectors, kernel.T[np.argsort(ids)])


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "embedstore", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **options,
    )


def test_an_interrupted_import_leaves_nothing(folder: Path) -> None:
    os.mkfifo("slow.txt")
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs are deaf to it
    process = command("runs", "import", "--vectors", "V.npy", "--ids", "slow.txt", preexec_fn=heard)
    with open("slow.txt", "w"):  # it is there once the command reads it
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "Interrupted.\n")
    assert not Path("runs").exists()


def test_a_full_disk_leaves_nothing(folder: Path) -> None:
    """The largest file that may be written is smaller than V."""
    np.save("V.npy", ones(N, 1000))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    process = command(*ARRAYS, preexec_fn=limit)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.count("\n") == 1
    assert "cannot be written" in err
    assert not list(Path("runs").iterdir())
