"""Which tower a model becomes, and that it answers as the model does. The models are plain functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest

from embedstore.data.features import Bags
from embedstore.errors import DataError
from embedstore.importing.model import PlainInput, PlainStack
from embedstore.importing.towers import LONGEST, N_HISTORIES, TOLERANCE, prove, random_histories, sided
from embedstore.runs.declaration import InputRule
from embedstore.runs.served import ServedTower
from embedstore.runs.tower import AdditiveTower, DenseTower, MovieFeature, TowerLayer

N, DIM = 60, 5
RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(N + 1, DIM)).astype(np.float32)
KERNEL = RNG.normal(size=(DIM, DIM)).astype(np.float32)
PLACES = RNG.permutation(N)  # of the run's movies in the model's vocabulary
ENDS = np.append(0, np.cumsum(RNG.integers(1, 4, N)))  # one to three genres a movie
GENRES = MovieFeature("genres", ENDS, RNG.integers(0, 3, ENDS[-1]), ("a", "b", "c"))
GENRE_TABLE = RNG.normal(size=(3, 2)).astype(np.float32)

Fed = Mapping[str, Any]


def mean_of(indices: np.ndarray, table: np.ndarray) -> Any:
    shown = (indices > 0).astype(np.float32)
    total = (table[indices] * shown[:, :, None]).sum(axis=1)
    return (total / np.maximum(shown.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def model_of(
    psi: Callable[[Fed], np.ndarray], *rules: InputRule, width: int = DIM, **options: Any
) -> ServedTower:
    return ServedTower(
        session=psi,
        kind="onnx",
        rules=rules or (InputRule("x", "movies", "indices", first=1),),
        positions=PLACES,
        features={"genres": GENRES},
        ids=np.arange(N),
        width=width,
        **options,
    )


def mean(fed: Fed) -> Any:
    return mean_of(fed["x"], TABLE)


def bent(fed: Fed) -> Any:
    return np.tanh(mean(fed)) @ KERNEL


def proven(model: ServedTower, stack: PlainStack | None = None) -> Any:
    said: list[str] = []
    return prove(model, lambda: stack, said.append)


def assert_equal(tower: AdditiveTower | DenseTower, model: ServedTower) -> None:
    histories = random_histories(N, 30, seed=7)
    assert tower.batch(histories) == pytest.approx(model.batch(histories), abs=1e-5)


def test_a_mean_is_recognised_by_what_it_answers_and_gets_its_vectors() -> None:
    model = model_of(mean)
    found = proven(model)
    assert isinstance(found.tower, AdditiveTower)
    assert found.difference <= TOLERANCE
    assert found.limit is None
    np.testing.assert_array_equal(found.tower.history_vectors, TABLE[PLACES + 1])


def test_the_constant_dimension_of_a_mean_stays_one() -> None:
    found = proven(model_of(mean, constant=True))
    np.testing.assert_array_equal(found.tower.history_vectors[:, -1], np.ones(N))


def test_a_mean_with_room_for_few_movies_is_one_of_the_newest() -> None:
    model = model_of(mean, InputRule("x", "movies", "indices", first=1, length=8))
    found = proven(model)
    assert isinstance(found.tower, DenseTower)
    assert (found.limit, found.tower.inputs[0].newest) == (8, 8)
    assert_equal(found.tower, model)


def test_a_plain_stack_is_used_where_it_answers_as_the_model_does() -> None:
    model = model_of(bent)
    stack = PlainStack(
        [PlainInput("x", TABLE, "mean")],
        [TowerLayer(np.eye(DIM, dtype=np.float32), None, "tanh"), TowerLayer(KERNEL)],
    )
    found = proven(model, stack)
    assert isinstance(found.tower, DenseTower)
    assert found.difference <= TOLERANCE
    assert_equal(found.tower, model)


def test_a_model_that_takes_the_ids_themselves_has_a_row_for_every_number() -> None:
    ids = np.arange(N) * 2 + 1
    table = RNG.normal(size=(2 * N, DIM)).astype(np.float32)
    rules = (InputRule("x", "movies", "ids"),)

    def psi(fed: Fed) -> Any:
        return np.tanh(mean_of(fed["x"], table))

    model = ServedTower(psi, "onnx", rules, PLACES, {}, ids, DIM)
    layers = [TowerLayer(np.eye(DIM, dtype=np.float32), None, "tanh")]
    found = proven(model, PlainStack([PlainInput("x", table, "mean")], layers))
    assert isinstance(found.tower, DenseTower)
    assert_equal(found.tower, model)
    assert proven(model, PlainStack([PlainInput("x", table[:N], "mean")], layers)).tower is model


def test_a_stack_that_answers_otherwise_is_not_used() -> None:
    model = model_of(bent)
    wrong = PlainStack([PlainInput("x", TABLE, "l2")], [TowerLayer(KERNEL, None, "tanh")])
    found = proven(model, wrong)
    assert found.tower is model
    assert found.refused > TOLERANCE
    assert proven(model).tower is model
    assert proven(model).refused is None
    assert proven(model).difference is None


def test_a_stack_wrong_for_one_movie_in_one_of_many_histories_is_not_used() -> None:
    table = TABLE.copy()
    table[PLACES[3] + 1, 2] += 0.1
    stack = PlainStack(
        [PlainInput("x", table, "mean")],
        [TowerLayer(np.eye(DIM, dtype=np.float32), None, "tanh"), TowerLayer(KERNEL)],
    )
    model = model_of(bent)
    assert proven(model, stack).tower is model


def test_genres_with_the_unknown_label_have_a_row_of_their_own() -> None:
    values = GENRES.values.copy()
    values[::7] = -1
    features = {"genres": MovieFeature("genres", GENRES.offsets, values, GENRES.labels)}
    padding_and_unknown = np.array([[0, 0], [5, 7]], np.float32)
    table = np.vstack([padding_and_unknown, GENRE_TABLE])
    rules = (
        InputRule("x", "movies", "indices", first=1),
        InputRule("g", "genres", "indices", labels=("a", "b", "c"), first=2, unknown=1),
    )

    def psi(fed: Fed) -> Any:
        return np.concatenate([mean(fed), mean_of(fed["g"], table)], axis=1) @ kernel

    kernel = RNG.normal(size=(DIM + 2, DIM)).astype(np.float32)
    model = ServedTower(psi, "onnx", rules, PLACES, features, np.arange(N), DIM)
    stack = PlainStack([PlainInput("x", TABLE, "mean"), PlainInput("g", table, "mean")], [TowerLayer(kernel)])
    found = proven(model, stack)
    assert isinstance(found.tower, DenseTower)
    assert found.tower.features["genres"].labels == ("a", "b", "c", "unknown")
    assert_equal(found.tower, model)


def test_a_model_that_lacks_movies_and_leaves_them_out_serves_itself() -> None:
    places = np.where(np.arange(N) == 5, -1, PLACES)
    rules = (InputRule("x", "movies", "indices", first=1),)
    model = ServedTower(mean, "onnx", rules, places, {}, np.arange(N), DIM)
    assert proven(model, PlainStack([PlainInput("x", TABLE, "mean")])).tower is model


@pytest.fixture
def compared_on_single_movies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no history that is compared tell of what happens to longer ones."""
    monkeypatch.setattr("embedstore.importing.towers._SHORT", 1)
    monkeypatch.setattr("embedstore.importing.towers.LONGEST", 1)
    monkeypatch.setattr("embedstore.importing.towers.random_histories", partial(random_histories, longest=1))


@pytest.mark.usefixtures("compared_on_single_movies")
def test_a_mean_with_room_for_more_than_was_compared_has_that_limit() -> None:
    found = proven(model_of(mean, InputRule("x", "movies", "indices", first=1, length=20)))
    assert found.limit == 20


@pytest.mark.usefixtures("compared_on_single_movies")
def test_a_stack_of_the_oldest_movies_serves_itself() -> None:
    model = model_of(mean, InputRule("x", "movies", "indices", first=1, length=20, keep="oldest"))
    assert proven(model, PlainStack([PlainInput("x", TABLE, "mean")])).tower is model


@pytest.mark.usefixtures("compared_on_single_movies")
@pytest.mark.parametrize("n_unknown", [1, 2])
def test_two_unknown_movies_are_one_in_a_multi_hot_of_ones(n_unknown: int) -> None:
    places = np.where(np.arange(N) < n_unknown, -1, PLACES)
    rules = (InputRule("x", "movies", "multi_hot", "float32", first=1, unknown=0, size=N + 1),)

    def psi(fed: Fed) -> Any:
        return fed["x"] @ TABLE

    model = ServedTower(psi, "onnx", rules, places, {}, np.arange(N), DIM)
    found = proven(model, PlainStack([PlainInput("x", TABLE, "sum")]))
    assert isinstance(found.tower, DenseTower) == (n_unknown == 1)


@pytest.mark.parametrize("plain", [True, False])
def test_a_mean_of_no_genres_is_told_and_not_held_against_the_model(plain: bool) -> None:
    sizes = np.diff(ENDS)
    sizes[[3, 9]] = 0  # two movies without a genre
    ends = np.append(0, np.cumsum(sizes))
    features = {"genres": MovieFeature("genres", ends, GENRES.values[: ends[-1]], GENRES.labels)}
    table = np.vstack([np.zeros((1, 2), np.float32), GENRE_TABLE])
    kernel = RNG.normal(size=(DIM + 2, DIM)).astype(np.float32)
    rules = (
        InputRule("x", "movies", "indices", first=1),
        InputRule("g", "genres", "indices", labels=("a", "b", "c"), first=1),
    )

    def psi(fed: Fed) -> Any:
        genres = mean_of(fed["g"], table)
        genres[(fed["g"] == 0).all(axis=1)] = np.nan  # what Keras' GlobalAveragePooling1D gives
        return np.concatenate([mean(fed), genres], axis=1) @ kernel

    model = ServedTower(psi, "onnx", rules, PLACES, features, np.arange(N), DIM)
    stack = PlainStack([PlainInput("x", TABLE, "mean"), PlainInput("g", table, "mean")], [TowerLayer(kernel)])
    found = proven(model, stack if plain else None)
    assert found.silent == ["genres"]
    assert isinstance(found.tower, DenseTower) == plain
    if plain:
        assert np.isfinite(found.tower([3])).all()


@pytest.mark.parametrize("length", [None, 8])
def test_a_model_tells_where_the_side_of_its_padding_matters(length: int | None) -> None:
    rule = InputRule("x", "movies", "indices", first=1, length=length)
    assert sided(model_of(bent, rule)) == []
    assert sided(model_of(lambda fed: TABLE[fed["x"][:, -1]], rule)) == (["x"] if length else [])


def test_a_model_that_answers_nan_is_refused() -> None:
    def broken(fed: Fed) -> Any:
        return np.where((fed["x"] == 7).any(axis=1, keepdims=True), np.nan, mean(fed))

    with pytest.raises(DataError, match="the model gives NaN or infinity for a history of"):
        proven(model_of(broken))


def test_a_model_that_looks_up_titles_and_is_fed_ids_is_refused() -> None:
    row = {f"Movie {number}": number + 1 for number in range(N)}

    def by_title(fed: Fed) -> Any:
        return TABLE[[[row.get(text, 0) for text in texts] for texts in fed["title"]]].mean(axis=1)

    with pytest.raises(DataError, match="the model gives the same psi for each of 60 movies, so it knows"):
        proven(model_of(by_title, InputRule("title", "movies", "ids", "str", padding="")))


def test_random_histories_are_of_all_lengths_and_name_no_movie_twice() -> None:
    histories = random_histories(5000, N_HISTORIES)
    assert len(histories) == N_HISTORIES
    assert (histories.sizes.min(), histories.sizes.max()) == (1, LONGEST)
    for user in range(0, N_HISTORIES, 50):
        rows = histories.part(user, user + 1).rows
        assert np.unique(rows).size == rows.size
    assert isinstance(histories, Bags)
