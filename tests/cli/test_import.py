"""`embedstore runs import`: from files to a run that is synced and queried as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from embedstore.cli import run as embedstore
from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.importing import import_run
from embedstore.runs.run import Run
from tests.builders import written
from tests.cli.test_bad_input_import import KERAS, MEAN, save_onnx

Capture = pytest.CaptureFixture[str]
N, DIM = 60, 5


def two_tastes() -> Dataset:
    """Return ratings of 60 movies, 101, 103, ...: half of the users rate every other one, half the rest."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(1, 201), 12)
    numbers = np.concatenate([rng.choice(N // 2, 12, replace=False) * 2 + user % 2 for user in range(200)])
    columns = RatingColumns(
        user_ids=users,
        movie_ids=101 + 2 * numbers,
        ratings=rng.integers(3, 6, users.size).astype(np.float32),
        timestamps=rng.integers(1, 10**9, users.size),
    )
    return Dataset.of("tastes", columns, {101 + 2 * n: Movie(genres=("Drama",)) for n in range(N)})


@pytest.fixture(scope="module")
def model() -> dict[str, Any]:
    """V and E of a model of two_tastes, and the movie ids of their rows, in no order."""
    rng = np.random.default_rng(1)
    ids = 101 + 2 * rng.permutation(N)
    taste = np.where((ids - 101) // 2 % 2, 1.0, -1.0)
    vectors, histories = (
        np.column_stack([taste, rng.normal(0, 0.3, (N, DIM - 1))]).astype(np.float32) for _ in range(2)
    )
    return {"ids": ids, "V": vectors, "E": histories}


@pytest.fixture
def folder(model: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a model and of ratings."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "data" / "tastes", two_tastes())
    for name in ("V", "E"):
        np.save(f"{name}.npy", model[name])
    np.savez("both.npz", V=model["V"], E=model["E"])
    lines = [f"{movie_id},Film {movie_id} (1990),Drama" for movie_id in model["ids"]]
    Path("movies.csv").write_text("\n".join(["movieId,title,genres", *lines]) + "\n")
    return tmp_path


def imported(capsys: Capture, *arguments: str) -> Any:
    assert embedstore(["runs", "import", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def best(model: dict[str, Any], psi: Any, k: int, without: tuple[int, ...] = ()) -> list[int]:
    """Return the k movies of the highest score, by the arrays as they were given."""
    scores = model["V"] @ np.asarray(psi, np.float32)
    scores[np.isin(model["ids"], without)] = -np.inf
    return [int(model["ids"][row]) for row in np.argsort(-scores)[:k]]


def answered(capsys: Capture, *arguments: str) -> list[int]:
    assert embedstore(["query", *arguments, "--json"]) == 0
    return [movie["movie_id"] for movie in json.loads(capsys.readouterr().out)["recommendations"]]


def test_vectors_alone_answer_a_vector(folder: Path, model: dict[str, Any], capsys: Capture) -> None:
    told = imported(capsys, "--vectors", "V.npy", "--movies", "movies.csv")
    assert (told["tower"], told["served_by"], told["n_movies"], told["n_users"]) == ("none", None, N, 0)
    assert [Path(told["path"]).name, told["embedding_dim"]] == [told["run_id"], DIM]
    assert embedstore(["sync"]) == 0
    psi = [0.3, -1.0, 2.0, 0.0, 0.5]
    Path("psi.json").write_text(json.dumps(psi))
    capsys.readouterr()
    assert answered(capsys, "--vector", "psi.json", "-k", "7") == best(model, psi, 7)
    assert embedstore(["similar", "101", "-k", "3"]) == 0
    assert "Nearest to Film 101 by cosine" in capsys.readouterr().out


def test_an_additive_model_serves_users_and_histories(
    folder: Path, model: dict[str, Any], capsys: Capture
) -> None:
    told = imported(
        capsys, "--vectors", "V.npy", "--tower", "E.npy", "--movies", "movies.csv", "--ratings", "tastes"
    )
    assert (told["tower"], told["served_by"], told["n_users"]) == ("additive", "numpy", 200)
    assert told["metrics"]["ndcg@100"] > told["metrics"]["popularity"]["ndcg@100"]
    assert embedstore(["sync", "--gate", "ndcg@100>=popularity"]) == 0
    capsys.readouterr()
    history = (105, 109, 151)
    psi = model["E"][[int(np.flatnonzero(model["ids"] == movie_id)[0]) for movie_id in history]].mean(axis=0)
    assert answered(capsys, "--history", "105,109,151", "-k", "7") == best(model, psi, 7, history)
    assert len(answered(capsys, "--user", "3")) == 10
    for arguments in (["evaluate"], ["contract"], ["verify"], ["export", "--npz"], ["runs", "show"]):
        assert embedstore(arguments) == 0, arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vectors", "both.npz:V", "--ids", "ids.txt"],
        ["--vectors", "V.npy", "--ids", "ids.npy"],
        ["--vectors", "V.npy", "--ids", "ids.json", "--movies", "sorted.csv"],
        ["--vectors", "V64.npy", "--movies", "movies.dat"],
    ],
)
def test_the_same_run_comes_of_every_kind_of_file(
    folder: Path, model: dict[str, Any], capsys: Capture, arguments: list[str]
) -> None:
    ids = model["ids"]
    Path("ids.txt").write_text("\n".join(map(str, ids)))
    np.save("ids.npy", ids.astype(np.int32))
    Path("ids.json").write_text(json.dumps(ids.tolist()))
    np.save("V64.npy", np.asfortranarray(model["V"].astype(np.float64)))
    Path("movies.dat").write_text("".join(f"{movie_id}::Film {movie_id} (1990)::Drama\n" for movie_id in ids))
    header, *lines = Path("movies.csv").read_text().splitlines()
    Path("sorted.csv").write_text("\n".join([header, *sorted(lines)]) + "\n")
    run = Run.load(imported(capsys, *arguments)["path"])
    np.testing.assert_array_equal(run.movies.values, np.sort(ids))
    np.testing.assert_array_equal(run.movie_vectors, model["V"][np.argsort(ids)])
    titles = [movie.title for movie in run.catalog]
    named = arguments[-1] not in ("ids.txt", "ids.npy")
    assert titles == [f"Film {movie_id}" if named else None for movie_id in run.movies.values]


def test_titles_come_of_the_ratings_where_there_are_only_ids(
    folder: Path, model: dict[str, Any], capsys: Capture
) -> None:
    np.save("ids.npy", model["ids"])
    told = imported(capsys, "--vectors", "V.npy", "--ids", "ids.npy", "--ratings", "tastes")
    assert Run.load(told["path"]).catalog[0].title == "Movie 101"


IDS_AND_MASK = "int64[users, length] ids, float[users, length] mask"
MODELS = {  # what follows the mean of the rows of the table, tower, what computes psi
    "mean": ("psi = Identity (mean)", "additive", "numpy"),
    "stack": ("h = Gemm (mean, w, b) psi = Tanh (h)", "dense", "numpy"),
    "other": ("h = Gemm (mean, w, b) psi = Sin (h)", "dense", "onnxruntime"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_queried_as_it_answers_itself(
    folder: Path, model: dict[str, Any], capsys: Capture, name: str
) -> None:
    body, tower, served_by = MODELS[name]
    rng = np.random.default_rng(3)
    weights = {"w": rng.normal(size=(DIM, DIM)), "b": rng.normal(size=DIM)}
    save_onnx(
        folder / "psi.onnx",
        IDS_AND_MASK,
        f"{MEAN.replace('psi =', 'mean =')} {body}",
        f"float[users, {DIM}] psi",
        table=np.vstack([np.zeros(DIM), model["E"]]).astype(np.float32),
        **{key: value.astype(np.float32) for key, value in weights.items()},
    )
    arguments = ["--vectors", "V.npy", "--movies", "movies.csv", "--tower", "psi.onnx"]
    told = imported(capsys, *arguments, "--write-input", "input.json")
    assert (told["tower"], told["served_by"]) == (tower, served_by)
    assert (told["difference"] is None) == (served_by != "numpy")
    assert json.loads(Path("input.json").read_text()) == told["declaration"]
    again = imported(capsys, *arguments, "--input", "input.json")
    assert again["declaration"] == told["declaration"]
    assert embedstore(["sync"]) == 0
    capsys.readouterr()
    history = (105, 109, 151)
    indices = [[int(np.flatnonzero(model["ids"] == movie_id)[0]) + 1 for movie_id in history]]
    session = onnxruntime.InferenceSession("psi.onnx")
    psi = session.run(["psi"], {"ids": np.array(indices), "mask": np.ones((1, 3), np.float32)})[0][0]
    assert answered(capsys, "--history", "105,109,151", "-k", "7") == best(model, psi, 7, history)
    assert embedstore(["embed", "--history", "105,109,151", "--json"]) == 0
    embedded = json.loads(capsys.readouterr().out)["user_embedding"]
    np.testing.assert_allclose(embedded, psi, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings(KERAS)
def test_a_keras_model_that_serves_itself_may_run(
    folder: Path, model: dict[str, Any], capsys: Capture
) -> None:
    import keras

    watched = keras.Input((N,), name="movies")
    psi = keras.layers.Dense(DIM, "softsign", name="psi")(watched)
    whole = keras.Model(watched, keras.layers.Dense(N, name="logits")(psi))
    whole.get_layer("logits").set_weights([model["V"].T, np.linspace(0, 1, N)])
    whole.save("whole.keras")
    told = imported(
        capsys,
        "--tower",
        "whole.keras",
        "--output",
        "psi",
        "--vectors",
        "model:logits",
        "--movies",
        "movies.csv",
    )
    assert (told["tower"], told["served_by"], told["embedding_dim"]) == ("dense", "tensorflow", DIM + 1)
    assert embedstore(["sync"]) == 0
    capsys.readouterr()
    hot = np.isin(model["ids"], (105, 109))[None].astype(np.float32)
    logits = np.where(hot[0] > 0, -np.inf, np.asarray(whole(hot))[0])
    expected = [int(model["ids"][row]) for row in np.argsort(-logits)[:7]]
    assert answered(capsys, "--history", "105,109", "-k", "7") == expected


def test_text_tells_what_was_found(folder: Path, capsys: Capture) -> None:
    arguments = ["--vectors", "V.npy", "--tower", "E.npy", "--movies", "movies.csv", "--ratings", "tastes"]
    assert embedstore(["runs", "import", *arguments, "--runs", "my runs"]) == 0
    out, err = capsys.readouterr()
    (path,) = Path("my runs").iterdir()
    lines = out.splitlines()
    assert lines[:3] == [
        f"run {path.name} written to {path}",
        "60 movies, embedding_dim 5, 200 users",
        "psi: the mean of one vector per movie watched, by NumPy",
    ]
    assert "note: the ids match the rows of V" in out
    assert [line.split()[0] for line in lines if line.startswith(("this run", "EASE", "popularity"))] == [
        "this", "EASE", "popularity",
    ]  # fmt: skip
    assert (lines[-1], err) == (f"next: embedstore sync {path.name} --runs 'my runs'", "")


def test_a_scrambled_vocabulary_stops_the_import(
    folder: Path, model: dict[str, Any], capsys: Capture
) -> None:
    np.save("V.npy", model["V"][np.random.default_rng(2).permutation(N)])
    arguments = ["runs", "import", "--vectors", "V.npy", "--movies", "movies.csv", "--ratings", "tastes"]
    assert embedstore(arguments) == 4
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "nothing was imported, --anyway imports it as it is" in err
    assert not Path("runs").exists()
    assert embedstore([*arguments, "--anyway"]) == 0
    assert "\nwarning: the ids look scrambled" in capsys.readouterr().out


def test_what_was_told_of_the_inputs_is_written_where_the_ids_look_wrong(
    folder: Path, model: dict[str, Any], capsys: Capture
) -> None:
    table = np.vstack([np.zeros(DIM), model["E"]]).astype(np.float32)
    save_onnx(folder / "psi.onnx", IDS_AND_MASK, MEAN, f"float[users, {DIM}] psi", table=table)
    np.save("V.npy", np.roll(model["V"], 1, axis=0))
    arguments = ["--vectors", "V.npy", "--movies", "movies.csv", "--tower", "psi.onnx", "--ratings", "tastes"]
    assert embedstore(["runs", "import", *arguments, "--write-input", "input.json"]) == 4
    assert "how its inputs were told is in input.json" in capsys.readouterr().err
    assert not Path("runs").exists()
    told = imported(capsys, *arguments, "--input", "input.json", "--anyway")
    assert json.loads(Path("input.json").read_text()) == told["declaration"]


def test_the_command_seals_what_the_function_does(
    folder: Path, model: dict[str, Any], capsys: Capture
) -> None:
    told = imported(capsys, "--vectors", "V.npy", "--tower", "E.npy", "--movies", "movies.csv")
    made = import_run(model["V"], model["ids"], tower=model["E"], runs_dir="other", run_id=told["run_id"])
    ours, theirs = Run.load(told["path"]), Run.load(made.path)
    for name in ("movie_ids.npy", "movie_vectors.npy", "history_vectors.npy", "tower.json"):
        assert ours.manifest.files[name] == theirs.manifest.files[name]
    assert {**made.to_dict(), "path": told["path"]} == told


def test_folders_come_of_the_settings(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDSTORE_RUNS", "elsewhere")
    (folder / "data").rename("sets")
    monkeypatch.setenv("EMBEDSTORE_DATA", "sets")
    told = imported(capsys, "--vectors", "V.npy", "--movies", "movies.csv", "--ratings", "tastes")
    assert (Path(told["path"]).parent.name, told["n_users"]) == ("elsewhere", 200)
    header, *lines = Path("sets/tastes/ratings.csv").read_text().splitlines()
    assert header.startswith("userId,movieId")
    Path("mine.csv").write_text("\n".join(["who,what,stars,at", *lines]) + "\n")
    columns = "user=who,movie=what,rating=stars,timestamp=at"
    again = imported(
        capsys, "--vectors", "V.npy", "--movies", "movies.csv", "--ratings", "mine.csv", "--columns", columns
    )
    assert again["n_users"] == 200
