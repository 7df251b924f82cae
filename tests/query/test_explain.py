"""Explanations add up to the score where the tower is a sum, and are called an estimate where not."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click import unstyle
from rich.cells import cell_len

from embedstore.cli import run as embedstore
from embedstore.query.filters import parse_filters
from embedstore.query.recommend import Person, recommend, recommend_batch
from embedstore.runs.run import Run
from embedstore.runs.writer import write_run
from embedstore.stores.base import Store, open_store
from embedstore.sync import sync
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_dataset
from tests.export.towers import FORMS, tower_of

EXACT = ("additive", "recency", "newest", "colab")


def run_with(form: str, folder: Path, *, text_ids: bool = False) -> Run:
    """Write a run with that tower, its vectors drawn at random, into folder / "runs" and return it."""
    tower = tower_of(form)
    vectors = np.random.default_rng(7).normal(size=(40, tower.embedding_dim)).astype(np.float32)
    path = write_run(
        folder / "runs",
        dataset=tiny_dataset(text_ids=text_ids),
        config={"preset": "tiny"},
        movie_vectors=vectors,
        tower=tower,
        metrics={},
    )
    return Run.load(path)


@pytest.fixture(params=FORMS, scope="module")
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(form: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with that tower and the embedded store that serves it, for reading."""
    folder = tmp_path_factory.mktemp("served")
    with BACKENDS["edge"](folder) as store:
        sync(run_with(form, folder, text_ids=form == "colab"), store)
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return Run.load(next((folder / "runs").iterdir()))


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    with open_store(folder / "store") as opened:
        yield opened


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_contributions_of_every_watched_movie_in_order_of_size(
    form: str, tmp_path: Path, backend: str
) -> None:
    run = run_with(form, tmp_path)
    with BACKENDS[backend](tmp_path) as store:
        sync(run, store)
        answer = recommend(run, store, history=[7, 3, 999, 20], k=5, explain=True)
        plain = recommend(run, store, history=[7, 3, 999, 20], k=5)
    assert answer.explanation_kind == ("exact" if form in EXACT else "estimate")
    for movie in answer.recommendations:
        assert movie.explanation is not None
        values = [part.contribution for part in movie.explanation]
        assert {part.movie_id for part in movie.explanation} == {7, 3, 20}
        assert values == sorted(values, reverse=True)
        titles = {part.movie_id: part.title for part in movie.explanation}
        assert titles == {3: 'Movie 3, "é"', 7: None, 20: 'Movie 20, "é"'}
        if form in EXACT:
            assert sum(values) == pytest.approx(movie.score, abs=1e-5)
            continue
        for part in movie.explanation:
            others = [movie_id for movie_id in (7, 3, 20) if movie_id != part.movie_id]
            psi = run.tower(run.movies.rows(others))
            without = float(run.movie_vectors[run.movies.row(movie.movie_id)] @ psi)
            assert part.contribution == pytest.approx(movie.score - without, abs=1e-4)
    assert [m.score for m in plain.recommendations] == [m.score for m in answer.recommendations]
    assert all(m.explanation is None for m in plain.recommendations)


def test_one_movie_is_the_whole_reason(run: Run, store: Store) -> None:
    for movie in recommend(run, store, history=run.movies.ids(np.array([4])), explain=True).recommendations:
        assert movie.explanation is not None
        assert [part.contribution for part in movie.explanation] == [pytest.approx(movie.score, abs=1e-5)]


def test_explained_with_every_other_option(form: str, run: Run, store: Store) -> None:
    filters = parse_filters(["genre=Drama"])
    answer = recommend(
        run, store, user_id=3, k=1000, filters=filters, include_seen=True, diverse=0.4, explain=True
    )
    assert {m.movie_id for m in answer.recommendations} & set(run.movies.ids(run.history(3)))
    for movie in answer.recommendations:
        assert movie.explanation is not None
        assert len(movie.explanation) == run.history(3).size
        if form in EXACT:
            assert sum(part.contribution for part in movie.explanation) == pytest.approx(
                movie.score, abs=1e-5
            )
    nothing = recommend(run, store, user_id=3, filters=parse_filters(["genre=Western"]), explain=True)
    assert nothing.to_dict()["recommendations"] == []


def test_many_people_are_explained_as_each_alone(run: Run, store: Store) -> None:
    people = [Person(user_id=2), Person(history=run.movies.ids(np.arange(3))), Person(user_id=3)]
    for answer in recommend_batch(run, store, people, k=2, explain=True):
        alone = recommend(
            run, store, user_id=answer.person.user_id, history=answer.person.history, k=2, explain=True
        )
        for movie, other in zip(answer.recommendations, alone.recommendations, strict=True):
            assert movie.explanation is not None
            assert other.explanation is not None
            assert movie.explanation[0].contribution == pytest.approx(other.explanation[0].contribution)


class TestCommand:
    """query --explain and --diverse, as they are typed."""

    @pytest.fixture(autouse=True)
    def here(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("EMBEDSTORE_RUNS", str(folder / "runs"))
        monkeypatch.setenv("EMBEDSTORE_STORE", str(folder / "store"))

    def test_text_fits_80_columns_and_names_an_estimate(
        self, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        assert embedstore(["query", "--user", "3", "-k", "4", "--explain", "--diverse", "0.5"]) == 0
        lines = unstyle(capsys.readouterr().out).splitlines()
        assert lines[0].endswith(", diverse 0.5")
        assert all(cell_len(line) <= 80 for line in lines[1:])
        reasons = [line.strip() for line in lines if "because you watched" in line]
        assert len(reasons) == 4
        assert all(line.startswith("because") == (form in EXACT) for line in reasons)
        assert all(line.startswith("estimate: because") == (form not in EXACT) for line in reasons)

    def test_json_carries_what_was_asked(self, form: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert embedstore(["query", "--user", "3", "-k", "2", "--json", "--explain", "--diverse", "0.3"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["diverse"] == 0.3
        assert answer["explanation_kind"] == ("exact" if form in EXACT else "estimate")
        for movie in answer["recommendations"]:
            assert list(movie["explanation"][0]) == ["movie_id", "title", "contribution"]

    def test_files_of_many_people(
        self, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "users.txt").write_text("2\n3\n")
        ask = ["query", "--users-file", "users.txt", "-k", "2", "--explain"]
        for name in ("a.jsonl", "a.csv", "a.parquet"):
            assert embedstore([*ask, "-o", name]) == 0
        lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        expected = [movie["explanation"] for line in lines for movie in line["recommendations"]]
        with open(tmp_path / "a.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [json.loads(row["explanation"]) for row in rows] == expected
        assert {row["explanation_kind"] for row in rows} == {lines[0]["explanation_kind"]}
        table = pq.read_table(tmp_path / "a.parquet").to_pydict()
        assert table["explanation"] == expected
        assert table["explanation_kind"] == [row["explanation_kind"] for row in rows]
        assert embedstore([*ask, "--csv"]) == 0
        assert capsys.readouterr().out == (tmp_path / "a.csv").read_text()

    def test_csv_of_one_person(self, form: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert embedstore(["query", "--user", "3", "-k", "2", "--csv"]) == 0
        plain = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert embedstore(["query", "--user", "3", "-k", "2", "--csv", "--explain"]) == 0
        explained = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        for row, same in zip(explained, plain, strict=True):
            assert json.loads(row.pop("explanation"))
            assert row.pop("explanation_kind") == ("exact" if form in EXACT else "estimate")
            assert row == same
