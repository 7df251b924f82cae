"""From a model that our code did not train to answers: sealed, synced, asked, compared with brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedstore import Run, embed, import_run, open_store, recommend, similar, sync
from embedstore.data.dataset import Dataset, Movie, RatingColumns
from embedstore.errors import DataError, EmbedstoreError, NotFoundError, RunError, UsageError
from embedstore.runs.declaration import Declaration, InputRule
from embedstore.runs.registry import list_runs

N, DIM = 50, 6
RNG = np.random.default_rng(5)
IDS = RNG.permutation(np.arange(1, N + 1) * 10)  # in an order of their own, as they came
V = RNG.normal(size=(N, DIM)).astype(np.float32)
MOVIES = {
    int(i): Movie(f"Movie {i}", 1980 + int(i) % 9, ("Drama", "War")[: 1 + int(i) // 10 % 2]) for i in IDS
}
KERAS_SAVES = "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"


def best(scores: np.ndarray, watched: list[int], k: int = 10) -> list[int]:
    """Return the ids of the k highest scores by brute force, watched left out."""
    order = np.argsort(-scores, kind="stable")
    return [int(IDS[row]) for row in order if IDS[row] not in watched][:k]


def answers(folder: Path, run: Run, watched: list[int], **who: Any) -> list[int]:
    with open_store(folder / "store", create=True) as store:
        sync(run, store)
        found = recommend(run, store, k=10, **(who or {"history": watched}))
    return [int(movie.movie_id) for movie in found.recommendations]


def test_arrays_answer_as_brute_force_over_them_does(tmp_path: Path) -> None:
    history = RNG.normal(size=(N, DIM)).astype(np.float32)
    found = import_run(V, IDS, runs_dir=tmp_path / "runs", movies=MOVIES, tower=history)
    assert (found.tower, found.served_by, found.n_movies, found.n_users) == ("additive", "numpy", N, 0)
    run = Run.load(found.path)
    watched = [int(IDS[4]), int(IDS[0]), int(IDS[33])]
    psi = history[[4, 0, 33]].mean(axis=0)
    assert embed(run, history=watched).user_embedding == pytest.approx(psi, abs=1e-6)
    assert answers(tmp_path, run, watched) == best(V @ psi, watched)
    assert run.catalog[0].title == "Movie 10"
    assert run.manifest.config["preset"] == "import"


@pytest.mark.parametrize("dtype", ["uint32", "int16", ">i8"])
def test_ids_of_any_type_of_integers_are_read_again(tmp_path: Path, dtype: str) -> None:
    run = Run.load(import_run(V, IDS.astype(dtype), runs_dir=tmp_path / "runs").path)
    assert run.movies.values.dtype == np.int64
    assert run.movies.values.tolist() == sorted(IDS.tolist())


def test_what_was_changed_in_a_map_of_the_vectors_is_imported_and_stays(tmp_path: Path) -> None:
    np.save(tmp_path / "V.npy", V)
    mapped = np.load(tmp_path / "V.npy", mmap_mode="c")
    mapped[0] = 1
    view = mapped.view()
    view.flags.writeable = False
    run = Run.load(import_run(view, np.sort(IDS), runs_dir=tmp_path / "runs").path)
    assert run.movie_vectors[0].tolist() == view[0].tolist() == [1] * DIM


def test_a_run_without_tower_answers_by_vector_and_by_movie(tmp_path: Path) -> None:
    run = Run.load(import_run(V, IDS, runs_dir=tmp_path / "runs").path)
    assert run.manifest.tower == "none"
    psi = RNG.normal(size=DIM).astype(np.float32)
    assert answers(tmp_path, run, [], vector=psi) == best(V @ psi, [])
    norms = np.linalg.norm(V, axis=1)
    nearest = best(V @ V[2] / norms / norms[2], [int(IDS[2])])
    assert [movie.movie_id for movie in similar(run, int(IDS[2])).movies] == nearest


def test_ratings_bring_users_and_popularity_of_the_movies_that_are_imported(tmp_path: Path) -> None:
    users = np.repeat(np.arange(1, 13), 8)
    movies = np.concatenate([RNG.choice(np.append(IDS, 999), 8, replace=False) for _ in range(12)])
    columns = RatingColumns(users, movies, RNG.integers(1, 6, 96).astype(np.float32), np.arange(96))
    ratings = Dataset.of("tiny", columns)
    found = import_run(V, IDS, runs_dir=tmp_path / "runs", tower=V, ratings=ratings, anyway=True)
    run = Run.load(found.path)
    rated = [int(i) for i in movies[users == 3] if i != 999]
    assert run.movies.ids(run.history(3)) == rated
    assert answers(tmp_path, run, [], user_id=3) == best(
        V @ np.mean([V[i == IDS][0] for i in rated], axis=0), rated
    )
    assert run.popularity.sum() == np.count_nonzero(movies != 999)
    assert run.manifest.dataset["n_users"] == 12
    assert found.metrics["popularity"].keys() == {"ndcg@100", "recall@20"}


@pytest.mark.tf
@pytest.mark.filterwarnings(KERAS_SAVES)
def test_a_keras_model_of_three_features_answers_as_the_model_does(tmp_path: Path) -> None:
    """The model of the course: bags of ids, genres and years, one hidden layer, V the table of the ids."""
    from keras import Model, layers

    vocabulary = {"movie_id": N, "genre": 2, "year": 9}
    inputs = {name: layers.Input((None,), dtype="int32", name=name) for name in vocabulary}
    pooled = [
        layers.GlobalAveragePooling1D()(
            layers.Embedding(
                size + 1, DIM if name == "movie_id" else 2, mask_zero=True, name=f"{name}_table"
            )(inputs[name])
        )
        for name, size in vocabulary.items()
    ]
    psi = layers.Dense(DIM, use_bias=False)(layers.Concatenate()(pooled))
    model = Model(inputs, psi)
    model.save(tmp_path / "model.keras")
    found = import_run(
        "model:movie_id_table", IDS, runs_dir=tmp_path / "runs", movies=MOVIES, tower=tmp_path / "model.keras"
    )
    assert (found.tower, found.served_by) == ("dense", "numpy")
    assert found.difference is not None
    assert found.difference <= 1e-5
    table = np.asarray(model.get_layer("movie_id_table").get_weights()[0])[1:]
    rows = [7, 3, 40]
    watched = [int(IDS[row]) for row in rows]
    genres = [1 + ("Drama", "War").index(genre) for movie in watched for genre in MOVIES[movie].genres]
    years = [1 + sorted({str(m.year) for m in MOVIES.values()}).index(str(MOVIES[i].year)) for i in watched]
    fed = {"movie_id": np.array([rows]) + 1, "genre": np.array([genres]), "year": np.array([years])}
    expected = np.asarray(model(fed))[0]
    run = Run.load(found.path)
    assert embed(run, history=watched).user_embedding == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert answers(tmp_path, run, watched) == best(table @ expected, watched)


@pytest.mark.tf
@pytest.mark.filterwarnings(KERAS_SAVES)
def test_a_softmax_layer_with_a_bias_gives_its_logits_as_scores(tmp_path: Path) -> None:
    from keras import Model, layers

    watched_input = layers.Input((N,), name="watched")
    hidden = layers.Dense(DIM, activation="tanh", name="psi")(watched_input)
    logits = layers.Dense(N, bias_initializer="normal", name="logits")(hidden)
    model = Model(watched_input, logits)
    found = import_run("model:logits", IDS, runs_dir=tmp_path / "runs", tower=model, output="psi")
    assert (found.embedding_dim, found.served_by) == (DIM + 1, "numpy")
    rows = [2, 9]
    hot = np.zeros((1, N), np.float32)
    hot[0, rows] = 1
    scores = np.asarray(model(hot))[0]
    run = Run.load(found.path)
    watched = [int(IDS[row]) for row in rows]
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        answer = recommend(run, store, history=watched, k=N)
    for movie in answer.recommendations:
        assert movie.score == pytest.approx(scores[int(np.flatnonzero(movie.movie_id == IDS)[0])], abs=1e-5)


def test_the_declaration_names_a_vocabulary_of_another_order(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    h, types = onnx.helper, onnx.TensorProto
    order = RNG.permutation(N)
    table = np.vstack([np.zeros((1, DIM)), V[order]]).astype(np.float32)
    graph = h.make_graph(
        [
            h.make_node("Gather", ["table", "x"], ["rows"]),
            h.make_node("ReduceMean", ["rows", "axis"], ["mean"], keepdims=0),
            h.make_node("Tanh", ["mean"], ["psi"]),
        ],
        "psi",
        [h.make_tensor_value_info("x", types.INT64, ["users", "length"])],
        [h.make_tensor_value_info("psi", types.FLOAT, ["users", DIM])],
        [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "vocabulary.txt").write_text("\n".join(map(str, IDS[order])) + "\n", encoding="utf-8")
    declared = Declaration((InputRule("x", "movies", "indices", first=1),), "vocabulary.txt")
    (tmp_path / "input.json").write_text(declared.to_json(), encoding="utf-8")
    onnx.save(model, tmp_path / "m.onnx")
    found = import_run(
        V, IDS, runs_dir=tmp_path / "runs", tower=tmp_path / "m.onnx", declaration=tmp_path / "input.json"
    )
    psi = np.tanh(V[[1, 2]].mean(axis=0))
    watched = [int(IDS[1]), int(IDS[2])]
    assert embed(Run.load(found.path), history=watched).user_embedding == pytest.approx(psi, abs=1e-6)
    options: dict[str, Any] = {"tower": tmp_path / "m.onnx", "declaration": tmp_path / "input.json"}
    with pytest.raises(
        UsageError, match="V is in the model, whose vocabulary has the movies in another order"
    ):
        import_run("model:table", IDS, runs_dir=tmp_path / "runs", **options)
    found = import_run(None, IDS[order], runs_dir=tmp_path / "others", **options)
    assert Run.load(found.path).movie_vectors.tolist() == V[np.argsort(IDS)].tolist()
    assert "V is table, the only weight of its shape in the model" in found.findings[0].text
    (tmp_path / "vocabulary.txt").write_text("\n".join(map(str, IDS[order][:-1])) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="the vocabulary of 49 movies is shorter than the table"):
        import_run(
            V, IDS, runs_dir=tmp_path / "runs", tower=tmp_path / "m.onnx", declaration=tmp_path / "input.json"
        )
    assert len(list_runs(tmp_path / "runs")) == 1


@pytest.mark.parametrize(
    ("vectors", "ids", "options", "kind", "said"),
    [
        (None, IDS, {}, UsageError, "V is in no model without one"),
        ("model:x", IDS, {}, UsageError, "V is in no model without one"),
        (V, IDS[:-1], {}, DataError, "49 movie ids for 50 vectors"),
        (V, np.append(IDS[:-1], IDS[0]), {}, DataError, "movie ids stand there more than once"),
        (V, IDS.astype(float), {}, DataError, "movie_ids: is float64 of shape .* expected integers or text"),
        (V, -IDS, {}, DataError, "movie_ids: holds the id -500"),
        (V, [1.5, *IDS[1:].tolist()], {}, DataError, r"movie_ids: id 0 \(counted from 0\) is 1.5"),
        (V, [2**64, *IDS[1:].tolist()], {}, DataError, r"id 0 \(counted from 0\) is 18446744073709551616"),
        (V, IDS, {"tower": V[:, :3]}, UsageError, r"has shape \(50, 3\) and V \(50, 6\)"),
        (np.where(V > 2, np.nan, V), IDS, {}, DataError, "holds NaN, infinity"),
        ("V.pkl", IDS, {}, UsageError, "is a pickle, and a pickle runs code"),
        (V, IDS, {"run_id": "../x"}, RunError, "run id '../x' is not one"),
        (V, IDS, {"tower": "psi.onnx"}, NotFoundError, "model psi.onnx: there is no such file"),
    ],
)
def test_what_cannot_be_imported_seals_nothing(
    tmp_path: Path, vectors: Any, ids: Any, options: dict[str, Any], kind: type[EmbedstoreError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        import_run(vectors, ids, runs_dir=tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()
