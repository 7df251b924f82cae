"""Keras models and SavedModels as towers: what they say of themselves, psi, V, and the stack inside them."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from embedstore.data.features import Bags
from embedstore.errors import NotFoundError, UsageError
from embedstore.importing.keras_model import KerasModel, open_keras
from embedstore.importing.model import PlainStack
from embedstore.runs.declaration import InputRule, ModelInput
from embedstore.runs.encoding import encode
from embedstore.runs.served import FILES, open_session
from embedstore.runs.tower import DenseTower, MovieFeature, TowerInput

pytestmark = [
    pytest.mark.tf,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras, as it saves
]

Array = npt.NDArray[Any]

N, DIM = 30, 3
LABELS = {"genres": tuple("abcde"), "years": ("1990", "1991", "1992", "1993", "1994", "1995", "1996")}
IDS = InputRule("ids", "movies", "indices", "int32", first=1)
SHORT = InputRule("ids", "movies", "indices", "int32", first=1, length=10)
MASK = InputRule("mask", "movies", "mask", "float32")
HOT = InputRule("watched", "movies", "multi_hot", "float32", size=N)
GENRES = InputRule("genres", "genres", "indices", "int64", LABELS["genres"], first=1)
YEARS = InputRule("years", "years", "multi_hot", "float32", LABELS["years"], size=7, values="mean")


def softmax(*, loss: bool = False) -> Any:
    """Return the softmax model of the tutorials: mean of embeddings, relu, psi, logits over all movies."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = layers.Embedding(N + 1, 4, mask_zero=True, name="history")(ids)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dense(6, activation="relu", bias_initializer="normal", name="hidden")(x)
    psi = layers.Dense(DIM, name="psi")(layers.Dropout(0.3)(x))
    logits = layers.Dense(N, bias_initializer="normal", name="logits")(psi)
    model = keras.Model(ids, logits)
    if loss:
        model.compile(loss=own_loss)
    return model


def own_loss(wanted: Any, given: Any) -> Any:
    return given - wanted


def psi_by_hand(model: Any, history: Sequence[int]) -> Array:
    """Return psi of a history of indices from the weights of softmax()."""
    weights = {variable.path: variable.numpy().astype(np.float64) for variable in model.variables}
    x = weights["history/embeddings"][list(history)].mean(axis=0)
    x = np.maximum(x @ weights["hidden/kernel"] + weights["hidden/bias"], 0)
    return np.asarray(x @ weights["psi/kernel"] + weights["psi/bias"])


def user_model(model: Any) -> Any:
    import keras

    return keras.Model(model.inputs, model.get_layer("psi").output)


def opened(form: str, model: Any, folder: Path) -> KerasModel:
    """Return what softmax() makes, opened in one of three forms, its output psi."""
    if form == "live":
        return open_keras(model, output="psi")
    if form == "keras":
        model.save(folder / "model.keras")
        return open_keras(folder / "model.keras", output="psi")
    user_model(model).export(folder / "exported", verbose=False)
    return open_keras(folder / "exported")


HISTORIES = [[1, 2, 30], [7], [5, 4, 3, 2, 1]]


def padded(histories: Sequence[Sequence[int]]) -> Array:
    longest = max(map(len, histories))
    return np.array([[*history, *[0] * (longest - len(history))] for history in histories], np.int32)


@pytest.mark.parametrize("form", ["live", "keras", "saved_model"])
def test_every_form_of_a_model_says_the_same(form: str, tmp_path: Path) -> None:
    model = softmax(loss=form == "keras")
    found = opened(form, model, tmp_path)
    assert found.kind == ("saved_model" if form == "saved_model" else "keras")
    assert found.inputs == [ModelInput("ids", (None, None), "int32")]
    assert (found.width, found.tables, found.notes) == (DIM, {"ids": N + 1}, [])
    expected = {"history": (N + 1, 4), "hidden": (4, 6), "psi": (6, DIM), "logits": (DIM, N)}
    if form == "saved_model":  # which holds psi alone
        del expected["logits"]
    assert found.candidates() == expected


@pytest.mark.parametrize("form", ["live", "keras", "saved_model"])
def test_psi_is_what_the_weights_say_before_and_after_it_is_saved(form: str, tmp_path: Path) -> None:
    model = softmax()
    found = opened(form, model, tmp_path)
    wanted = [psi_by_hand(model, history) for history in HISTORIES]
    found.save(tmp_path)
    saved = tmp_path / Path(FILES[found.kind]).name
    output = None if form == "saved_model" else "psi"
    for session in (found.session(), open_session(found.kind, saved, output=output)):
        psi = session({"ids": padded(HISTORIES)})
        assert psi.dtype == np.float32
        np.testing.assert_allclose(psi, wanted, rtol=1e-5, atol=1e-6)


def test_a_keras_file_whose_output_is_psi_is_copied_as_it_is(tmp_path: Path) -> None:
    user_model(softmax()).save(tmp_path / "given.keras")
    open_keras(tmp_path / "given.keras").save(tmp_path)
    assert (tmp_path / "model.keras").read_bytes() == (tmp_path / "given.keras").read_bytes()


def test_v_is_found_by_layer_or_path_and_turned_to_one_row_per_movie(tmp_path: Path) -> None:
    model = softmax()
    found = open_keras(model, output="psi")
    kernel, bias = (variable.numpy() for variable in model.get_layer("logits").variables)
    for name in ("logits", "logits/kernel"):
        vectors, item_bias = found.matrix(name, N)
        np.testing.assert_array_equal(vectors, kernel.T)
        assert item_bias is not None
        np.testing.assert_array_equal(item_bias, bias)
    vectors, item_bias = found.matrix("history", N + 1)
    np.testing.assert_array_equal(vectors, model.get_layer("history").embeddings.numpy())
    assert item_bias is None
    vectors, item_bias = found.matrix("hidden", 4)  # a kernel whose rows are the movies has no item bias
    assert (vectors.shape, item_bias) == ((4, 6), None)


def test_a_name_that_is_not_there_and_a_wrong_number_of_movies_are_refused() -> None:
    found = open_keras(softmax(), output="psi")
    with pytest.raises(UsageError, match="no matrix of the name 'movies'; expected one of history, hidden"):
        found.matrix("movies", N)
    with pytest.raises(UsageError, match=r"'history' has shape \(31, 4\); expected 29 rows or columns"):
        found.matrix("history", 29)


def test_layers_of_one_name_in_two_towers_are_told_apart() -> None:
    import keras
    from keras import layers

    def tower(name: str, n: int) -> Any:
        ids = keras.Input((1,), dtype="int32")
        x = layers.Flatten()(layers.Embedding(n, 4, name="table")(ids))
        return keras.Model(ids, layers.Dense(DIM, name="out")(x), name=name)

    user, movie = (keras.Input((1,), dtype="int32", name=name) for name in ("user", "movie"))
    psi = tower("user_tower", 9)(user)
    score = layers.Dot(1)([psi, tower("movie_tower", N)(movie)])
    found = open_keras(keras.Model([user, movie], score), output="user_tower")
    assert found.inputs == [ModelInput("user", (None, 1), "int32")]
    assert found.tables == {"user": 9}
    assert list(found.candidates()) == [
        *("user_tower/table/embeddings", "user_tower/out/kernel"),
        *("movie_tower/table/embeddings", "movie_tower/out/kernel"),
    ]
    assert found.matrix("movie_tower/table", N)[0].shape == (N, 4)
    with pytest.raises(UsageError, match=r"2 matrices \(user_tower/table/embeddings, movie_tower/table"):
        found.matrix("table", N)


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "float64"])
def test_weights_of_another_precision_are_converted_and_said(policy: str) -> None:
    import keras
    from keras import layers

    ids = keras.Input((None,), dtype="int32", name="ids")
    table = layers.Embedding(N + 1, DIM, mask_zero=True, name="movies", dtype=policy)
    found = open_keras(keras.Model(ids, layers.GlobalAveragePooling1D(dtype=policy)(table(ids))))
    assert found.notes == [f"the weights of the model are {policy}: V is converted to float32"]
    vectors, _ = found.matrix("movies", N + 1)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, table.embeddings.numpy().astype(np.float32))
    psi = found.session()({"ids": padded(HISTORIES)})
    assert psi.dtype == np.float32
    np.testing.assert_allclose(psi[1], vectors[7], rtol=1e-6)


# --- the plain stack ---


def features() -> dict[str, MovieFeature]:
    """Return one to three genres and at most one year for every movie."""
    rng = np.random.default_rng(0)
    genres = [rng.choice(5, rng.integers(1, 4), replace=False) for _ in range(N)]
    years = [rng.choice(7, 1 if movie else 0) for movie in range(N)]
    return {
        name: MovieFeature(name, bags.offsets, bags.rows, LABELS[name])
        for name, bags in (("genres", Bags.of(genres)), ("years", Bags.of(years)))
    }


def numpy_tower(stack: PlainStack, rules: Mapping[str, InputRule]) -> DenseTower:
    """Return a stack as a tower of the movies 0 to N - 1."""
    sizes = {"movies": N} | {name: len(labels) for name, labels in LABELS.items()}
    inputs = []
    for part in stack.inputs:
        rule = rules[part.name]
        table = part.table[rule.first : rule.first + sizes[rule.feature]]
        inputs.append(TowerInput(rule.feature, table, part.pooling))
    return DenseTower(inputs, stack.layers, features=features())


def youtube(keras: Any) -> Any:
    return user_model(softmax())


def vae(keras: Any) -> Any:
    watched = keras.Input((N,), name="watched")
    x = keras.layers.Dropout(0.5)(keras.layers.UnitNormalization()(watched))
    x = keras.layers.Dense(8, activation="tanh", bias_initializer="normal")(x)
    return keras.Model(watched, keras.layers.Dense(DIM, bias_initializer="normal")(x))


def batch_normalized(keras: Any) -> Any:
    hidden = keras.layers.Dense(6, use_bias=False)
    model = keras.Sequential(
        [
            keras.Input((N,), name="watched"),
            hidden,
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(DIM, bias_initializer="normal"),
        ]
    )
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if layer is not hidden:
            layer.set_weights([rng.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    return model


def mean_of(keras: Any, table: int, width: int, given: Any) -> Any:
    x = keras.layers.Embedding(table, width, mask_zero=True)(given)
    return keras.layers.GlobalAveragePooling1D()(x)


def course(keras: Any) -> Any:
    """Return movies, genres and years side by side, each in its own way, then linear layers."""
    ids = keras.Input((None,), dtype="int32", name="ids")
    genres = keras.Input((None,), dtype="int64", name="genres")
    years = keras.Input((7,), name="years")
    x = keras.layers.Concatenate()(
        [
            mean_of(keras, 6, 3, genres),
            mean_of(keras, N + 1, 5, ids),
            keras.layers.Dense(2, bias_initializer="normal")(years),
        ]
    )
    x = keras.layers.Dense(6, use_bias=False)(x)
    return keras.Model([ids, genres, years], keras.layers.Dense(DIM, use_bias=False)(x))


def raw_years(keras: Any) -> Any:
    ids = keras.Input((None,), dtype="int32", name="ids")
    years = keras.Input((7,), name="years")
    x = keras.layers.Concatenate()([mean_of(keras, N + 1, 5, ids), years])
    return keras.Model([ids, years], keras.layers.Dense(DIM, activation="relu")(x))


def masked_root(keras: Any) -> Any:
    ops = keras.ops
    ids, mask = keras.Input((10,), dtype="int32", name="ids"), keras.Input((10,), name="mask")
    rows = keras.layers.Embedding(N + 1, 4)(ids) * ops.expand_dims(mask, -1)
    x = ops.sum(rows, axis=1) / ops.sqrt(ops.sum(mask, axis=1, keepdims=True))
    return keras.Model([ids, mask], keras.layers.Dense(DIM, activation="tanh")(x))


def with_constant(keras: Any) -> Any:
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Dense(DIM, bias_initializer="normal")(mean_of(keras, N + 1, 4, ids))
    return keras.Model(ids, keras.ops.concatenate([x, keras.ops.ones_like(x[:, :1])], axis=1))


def deep_per_movie(keras: Any) -> Any:
    """Return a model that puts every movie through a layer of its own before it takes the mean."""
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(N + 1, 4, mask_zero=True)(ids)
    x = keras.layers.Dense(5, activation="relu")(x)
    return keras.Model(ids, keras.layers.Dense(DIM)(keras.layers.GlobalAveragePooling1D()(x)))


def counted(keras: Any) -> Any:
    """Return the colab's own way: the multi-hot times the table, over the number of movies."""
    ops = keras.ops
    watched = keras.Input((N,), name="watched")
    summed = keras.layers.Dense(4, use_bias=False)(watched)
    x = summed / ops.maximum(ops.sum(watched, axis=1, keepdims=True), 1.0)
    return keras.Model(watched, keras.layers.Dense(DIM, use_bias=False)(x) / 10.0)


Builder = Callable[[Any], Any]

PLAIN: list[tuple[Builder, list[InputRule], list[str], list[str]]] = [
    (youtube, [IDS], ["mean"], ["relu", "linear"]),
    (vae, [HOT], ["l2"], ["tanh", "linear"]),
    (batch_normalized, [HOT], ["sum"], ["relu", "linear"]),
    (course, [IDS, GENRES, YEARS], ["mean"] * 3, ["linear", "linear"]),
    (raw_years, [IDS, YEARS], ["mean", "mean"], ["relu"]),
    (masked_root, [SHORT, MASK], ["l2"], ["tanh"]),
    (with_constant, [IDS], ["mean"], ["linear"]),
    (deep_per_movie, [IDS], ["mean"], ["linear"]),
    (counted, [HOT], ["mean"], ["linear"]),
]


@pytest.mark.parametrize(
    ("build", "rules", "poolings", "activations", "form"),
    [(*case, "keras") for case in PLAIN] + [(*case, "saved_model") for case in PLAIN[2:4]],
)
def test_the_plain_stack_of_a_usual_model_gives_its_psi(
    build: Builder,
    rules: list[InputRule],
    poolings: list[str],
    activations: list[str],
    form: str,
    tmp_path: Path,
) -> None:
    import keras

    keras.utils.set_random_seed(3)
    model = build(keras)
    if form == "saved_model":
        model.export(tmp_path / "exported", verbose=False)
    found = open_keras(tmp_path / "exported" if form == "saved_model" else model)
    stack = found.plain(rules)
    assert stack is not None
    assert [part.pooling for part in stack.inputs] == poolings
    assert [layer.activation for layer in stack.layers] == activations
    rng = np.random.default_rng(4)
    bags = Bags.of(rng.choice(np.arange(1, N), size, replace=False) for size in (1, 2, 3, 5, 10, 10))
    fed = encode(rules, bags, positions=np.arange(N), features=features(), ids=np.arange(N))
    psi = found.session()(fed)
    tower = numpy_tower(stack, {rule.name: rule for rule in rules})
    np.testing.assert_allclose(tower.batch(bags), psi, rtol=1e-4, atol=1e-6)


def test_ids_that_are_their_own_indices_make_a_plain_stack() -> None:
    ids = InputRule("ids", "movies", "ids", "int32")
    stack = open_keras(softmax(), output="psi").plain([ids])
    assert stack is not None
    assert stack.inputs[0].table.shape == (N + 1, 4)


def normalized(keras: Any) -> Any:
    return keras.Model((m := youtube(keras)).inputs, keras.layers.UnitNormalization()(m.outputs[0]))


def recurrent(keras: Any) -> Any:
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(N + 1, 4, mask_zero=True)(ids)
    return keras.Model(ids, keras.layers.GRU(DIM)(x))


def largest(keras: Any) -> Any:
    ids = keras.Input((None,), dtype="int32", name="ids")
    return keras.Model(ids, keras.layers.GlobalMaxPooling1D()(keras.layers.Embedding(N + 1, DIM)(ids)))


def gelu(keras: Any) -> Any:
    watched = keras.Input((N,), name="watched")
    return keras.Model(watched, keras.layers.Dense(DIM, activation="gelu")(watched))


def counts_padding(keras: Any) -> Any:
    ids = keras.Input((10,), dtype="int32", name="ids")
    x = keras.layers.Embedding(N + 1, 4)(ids)
    return keras.Model(ids, keras.layers.Dense(DIM)(keras.layers.GlobalAveragePooling1D()(x)))


def mixed_branches(keras: Any) -> Any:
    ids, years = keras.Input((None,), dtype="int32", name="ids"), keras.Input((7,), name="years")
    x = [mean_of(keras, N + 1, 4, ids), keras.layers.Dense(2, activation="relu")(years)]
    return keras.Model([ids, years], keras.layers.Dense(DIM)(keras.layers.Concatenate()(x)))


@pytest.mark.parametrize(
    ("build", "rules"),
    [
        (normalized, [IDS]),
        (recurrent, [IDS]),
        (largest, [IDS]),
        (gelu, [HOT]),
        (counts_padding, [SHORT]),
        (mixed_branches, [IDS, YEARS]),
        (youtube, [HOT]),  # rules of another model
    ],
)
def test_what_is_no_plain_stack_is_none(build: Builder, rules: list[InputRule]) -> None:
    import keras

    assert open_keras(build(keras)).plain(rules) is None


# --- Python code that a file cannot bring along ---


def custom(keras: Any) -> Any:
    """Return a layer of a class that Keras does not know."""

    class Doubled(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return 2 * x

    return Doubled()


@pytest.mark.parametrize(("name", "layer"), [("Doubled", custom), ("Lambda", None)])
def test_a_file_with_python_code_is_refused_and_the_code_named(
    name: str, layer: Builder | None, tmp_path: Path
) -> None:
    import keras

    code = layer(keras) if layer else keras.layers.Lambda(lambda x: 2 * x)
    keras.Sequential([keras.Input((4,)), code, keras.layers.Dense(DIM)]).save(tmp_path / "custom.keras")
    with pytest.raises(UsageError, match=rf"custom.keras needs Python code .*\({name}\); .*model.export"):
        open_keras(tmp_path / "custom.keras")


def test_a_live_model_with_python_code_becomes_a_saved_model(tmp_path: Path) -> None:
    import keras

    watched = keras.Input((N,), name="watched")
    psi = custom(keras)(keras.layers.Dense(DIM, use_bias=False, name="table")(watched))
    model = keras.Model(
        watched, keras.layers.Dense(N, name="logits")(keras.layers.Dense(DIM, name="psi")(psi))
    )
    found = open_keras(model, output="psi")
    assert (found.kind, found.inputs) == ("saved_model", [ModelInput("watched", (None, N), "float32")])
    assert found.matrix("logits", N)[0].shape == (N, DIM)  # which is not in the SavedModel
    found.save(tmp_path)
    hot = np.eye(N, dtype=np.float32)
    psi = 2 * model.get_layer("table").kernel.numpy() @ model.get_layer("psi").kernel.numpy()
    np.testing.assert_allclose(found.session()({"watched": hot}), psi, rtol=1e-5, atol=1e-6)
    saved = open_session("saved_model", tmp_path / "saved_model", output="psi")
    np.testing.assert_allclose(saved({"watched": hot}), psi, rtol=1e-5, atol=1e-6)


def test_a_model_of_a_class_of_its_own_is_taken_once_it_was_called() -> None:
    import keras

    class Tower(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.table = self.add_weight(name="table", shape=(N, 4))
            self.last = keras.layers.Dense(DIM, name="last")

        def call(self, watched: Any) -> Any:
            return self.last(keras.ops.matmul(watched, self.table))

    tower = Tower()
    with pytest.raises(
        UsageError, match=r"a Tower that cannot become a SavedModel .*; call it once on a batch"
    ):
        open_keras(tower)
    tower(np.zeros((2, N), np.float32))
    found = open_keras(tower)
    (given,) = found.inputs
    assert (given.shape, found.width) == ((None, N), DIM)
    assert set(found.candidates().values()) == {(N, 4), (4, DIM)}
    assert found.matrix("table", N)[0].shape == (N, 4)
    stack = found.plain([InputRule(given.name, "movies", "multi_hot", "float32", size=N)])
    assert stack is not None
    np.testing.assert_array_equal(stack.inputs[0].table, tower.table.numpy())
    with pytest.raises(UsageError, match="a Tower, in which no layer can be found by name"):
        open_keras(tower, output="last")


# --- which output, which signature ---


def test_an_output_has_to_be_named_where_there_are_several_and_be_psi() -> None:
    import keras

    model = softmax()
    both = keras.Model(model.inputs, [model.get_layer("psi").output, model.outputs[0]])
    with pytest.raises(UsageError, match=r"has 2 outputs \(psi, logits\); name the one that is psi"):
        open_keras(both)
    assert open_keras(both, output="psi").width == DIM
    with pytest.raises(UsageError, match=r"no layer 'psy'; expected one of global_.*, hidden, .*, psi"):
        open_keras(both, output="psy")
    with pytest.raises(UsageError, match=r"'history' has shape \(any, any, 4\); expected psi, \(users"):
        open_keras(both, output="history")
    with pytest.raises(UsageError, match="signature 'serve' is of a SavedModel, and this is a Keras model"):
        open_keras(both, signature="serve")


def test_an_output_is_found_by_its_key_and_saved_under_it(tmp_path: Path) -> None:
    import keras

    model = softmax()
    outputs = {"user": model.get_layer("psi").output, "scores": model.outputs[0]}
    found = open_keras(keras.Model(model.inputs, outputs), output="user")
    found.save(tmp_path)
    session = open_session("keras", tmp_path / "model.keras", output="user")
    np.testing.assert_allclose(
        session({"ids": padded([[7]])})[0], psi_by_hand(model, [7]), rtol=1e-5, atol=1e-6
    )


def module(tf: Any) -> Any:
    """Return a tf.Module of two functions from ids to psi, the second with a second output."""

    class Towers(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            rows = np.random.default_rng(0).normal(size=(N, DIM)).astype(np.float32)
            self.user, self.movie = tf.Variable(rows), tf.Variable(rows + 1)

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32)])
        def of_user(self, ids: Any) -> Any:
            return {"psi": tf.reduce_mean(tf.gather(self.user, ids), axis=1)}

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32)])
        def of_movie(self, ids: Any) -> Any:
            rows = tf.gather(self.movie, ids)
            return {"rows": rows, "psi": tf.reduce_mean(rows, axis=1)}

    return Towers()


def test_one_of_several_signatures_and_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    import tensorflow as tf

    towers, path = module(tf), tmp_path / "towers"
    tf.saved_model.save(towers, path, signatures={"user": towers.of_user, "movie": towers.of_movie})
    with pytest.raises(
        UsageError, match="has 2 signatures; name the one that is psi with --signature: movie, user"
    ):
        open_keras(path)
    with pytest.raises(UsageError, match="no signature 'users'; expected one of its signatures: movie, user"):
        open_keras(path, signature="users")
    with pytest.raises(UsageError, match="has 2 outputs; name the one that is psi with --output: psi, rows"):
        open_keras(path, signature="movie")
    with pytest.raises(UsageError, match=r"'rows' has shape \(any, any, 3\)"):
        open_keras(path, signature="movie", output="rows")
    for signature, name in (("user", "user"), ("movie", "movie")):
        found = open_keras(path, signature=signature, output="psi")
        assert found.candidates() == {"user": (N, DIM), "movie": (N, DIM)}  # by place: both are "Variable"
        rows = found.matrix(name, N)[0]
        np.testing.assert_array_equal(rows, getattr(towers, name).numpy())
        psi = found.session()({"ids": np.array([[3, 5]])})
        np.testing.assert_allclose(psi[0], (rows[3] + rows[5]) / 2, rtol=1e-6)
        assert found.tables == {"ids": N}


def test_a_saved_model_without_a_signature_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    tf.saved_model.save(module(tf), tmp_path / "bare")
    with pytest.raises(UsageError, match="bare has no signature; expected one, as model"):
        open_keras(tmp_path / "bare")


def test_a_saved_model_that_takes_texts_is_taken_and_served(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf

    class Retrieval(tf.Module):  # type: ignore[misc]
        """As in the TFRS tutorials: a vocabulary of texts inside."""

        def __init__(self) -> None:
            self.lookup = keras.layers.StringLookup(vocabulary=["10", "20", "30"], mask_token=None)
            self.table = tf.Variable(np.arange(8, dtype=np.float32).reshape(4, 2), name="user/embeddings")
            self.movies = tf.Variable(np.ones((N, 2), np.float32), name="candidates")

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.string)])
        def user(self, movie_ids: Any) -> Any:
            return tf.reduce_mean(tf.gather(self.table, self.lookup(movie_ids)), axis=1)

    model = Retrieval()
    tf.saved_model.save(model, tmp_path / "tfrs", signatures=model.user)
    found = open_keras(tmp_path / "tfrs")
    assert found.inputs == [ModelInput("movie_ids", (None, None), "str")]
    assert found.candidates() == {"user": (4, 2), "candidates": (N, 2)}
    psi = found.session()({"movie_ids": np.array([["10", "30"], ["20", "99"]], dtype=object)})
    np.testing.assert_array_equal(psi, [[4, 5], [2, 3]])  # rows 1 and 3; 2 and the unknown 0
    assert found.plain([InputRule("movie_ids", "movies", "ids", "str", padding="")]) is None


def test_a_keras_model_that_takes_texts_is_taken_and_served(tmp_path: Path) -> None:
    import keras
    from keras import layers

    watched = keras.Input((None,), dtype="string", name="movie_ids")
    x = layers.StringLookup(vocabulary=["10", "20"], mask_token="")(watched)  # "" is 0, the unknown 1
    table = layers.Embedding(4, DIM, mask_zero=True, name="table")
    found = open_keras(keras.Model(watched, layers.GlobalAveragePooling1D()(table(x))))
    assert found.inputs == [ModelInput("movie_ids", (None, None), "str")]
    rows = found.matrix("table", 4)[0]
    wanted = [(rows[2] + rows[3]) / 2, rows[1]]
    found.save(tmp_path)
    texts = np.array([["10", "20"], ["99", ""]], dtype=object)
    for session in (found.session(), open_session("keras", tmp_path / "model.keras")):
        np.testing.assert_allclose(session({"movie_ids": texts}), wanted, rtol=1e-6)
    assert found.plain([InputRule("movie_ids", "movies", "ids", "str", padding="")]) is None


# --- files that are none ---


def rezipped(source: Path, target: Path, **changed: bytes) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name.partition(".")[0], old.read(name)))
    return target


def test_a_file_that_is_no_keras_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    good = tmp_path / "good.keras"
    user_model(softmax()).save(good)
    whole = good.read_bytes()
    with zipfile.ZipFile(good) as file:
        config = file.read("config.json").replace(b'"GlobalAveragePooling1D"', b'"GlobalAveragePooling9D"')
    later = json.dumps({"keras_version": "99.1.0"}).encode()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    cases = {
        "text.keras": (b"hello", "text.keras is no .keras file, or not all of it"),
        "cut.keras": (whole[:-200], "cut.keras is no .keras file, or not all of it"),
        "flipped.keras": (bytes(flipped), "flipped.keras cannot be read as a Keras model: Bad CRC-32"),
        "later.keras": (
            rezipped(good, tmp_path / "a", metadata=later, config=config).read_bytes(),
            r"later.keras was written by Keras 99.1.0, and this is Keras \d",
        ),
        "other.keras": (
            rezipped(good, tmp_path / "b", config=b"[]").read_bytes(),
            "other.keras cannot be read as a Keras model: ",
        ),
        "old.h5": (whole, r"old.h5 is in Keras' old HDF5 format, .*model.save\('model.keras'\)"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message):
            open_keras(tmp_path / name)
    assert open_keras(good).width == DIM
    with pytest.raises(NotFoundError, match=r"there is no model .*missing\.keras"):
        open_keras(tmp_path / "missing.keras")


def test_a_folder_that_is_no_saved_model_and_what_is_no_model_are_refused(tmp_path: Path) -> None:
    user_model(softmax()).export(tmp_path / "good", verbose=False)
    for name in ("empty", "damaged", "half"):
        shutil.copytree(tmp_path / "good", tmp_path / name)
    (tmp_path / "empty/saved_model.pb").unlink()
    (tmp_path / "damaged/saved_model.pb").write_bytes(b"abc")
    shutil.rmtree(tmp_path / "half/variables")
    for name in ("empty", "damaged", "half"):
        with pytest.raises(UsageError, match=f"{name} cannot be read as a SavedModel: "):
            open_keras(tmp_path / name)
    with pytest.raises(UsageError, match=r"a ndarray is no model; expected a \.keras file"):
        open_keras(np.ones(3))
