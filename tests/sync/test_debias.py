"""A debiased run on every store: a collection of its own, and all that is done with one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedstore.errors import NotFoundError, RunError, StoreError, UsageError, VerificationError
from embedstore.query.contract import describe
from embedstore.query.recommend import recommend
from embedstore.runs.debias import debiased
from embedstore.runs.registry import find_run
from embedstore.runs.run import Run
from embedstore.stores.base import open_store
from embedstore.stores.connection import endpoints_of
from embedstore.stores.contract import point_id
from embedstore.sync import copy, plan, promote_run, restore, rollback, status, sync, verify
from embedstore.sync.doctor import doctor
from tests.backends import BACKENDS, EVERY_BACKEND
from tests.builders import tiny_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path)


def a_third_run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path, seed=4, run_id="20200101t000000-0001")


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_it_lives_beside_the_collection_of_its_run(tmp_path: Path, backend: str, run: Run) -> None:
    view = debiased(run, 0.5)
    with BACKENDS[backend](tmp_path) as store:
        plain = sync(run, store).collection
        assert plan(view, store).state == "create"
        report = sync(view, store)
        assert (report.collection, report.state) == (f"{plain}_debias0.50", "created")
        assert (report.promoted, report.previous) == (True, plain)
        again = find_run(run.path.parent, store.live("movies").reference)
        assert (sync(again, store).state, plan(again, store).write) == ("unchanged", 0)
        assert [verify(store, name, each).count for name, each in ((plain, run), ("movies", view))] == [
            40,
            40,
        ]
        metadata = store.metadata(report.collection)
        assert (metadata.debias, metadata.run_id) == (0.5, run.run_id)
        assert store.metadata(plain).debias is None
        lines = {line.collection: (line.debias, line.problem) for line in status(store)}
        assert lines == {report.collection: (0.5, None), plain: (None, None)}
        findings = doctor(lambda: nullcontext(store), run.path.parent)
        assert [found for found in findings if found.level in ("problem", "warning")] == []

        assert rollback(store).reference == run.run_id
        assert promote_run(store, view.reference)
        assert store.live("movies").collection == report.collection
        assert store.live("movies", 1).reference == run.run_id


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_scores_are_those_of_the_scaled_vectors(tmp_path: Path, backend: str, additive: bool) -> None:
    run = tiny_run(tmp_path, additive=additive)
    view = debiased(run, 1)
    norms = np.linalg.norm(run.movie_vectors, axis=1)
    expected = run.movie_vectors / norms[:, None] @ run.tower(run.history(3))
    with BACKENDS[backend](tmp_path) as store:
        name = sync(view, store).collection
        found = recommend(view, store, user_id=3, k=40, include_seen=True)
        assert found.collection == name
        rows = run.movies.rows([movie.movie_id for movie in found.recommendations])
        np.testing.assert_allclose(
            [movie.score for movie in found.recommendations], expected[rows], atol=1e-5
        )
        assert np.all(np.diff(expected[rows]) <= 1e-5)
        # psi is that of the run, which may ask the collection as well
        assert recommend(run, store, user_id=3, k=40, include_seen=True, collection=name) == found
        told = describe(store, "movies", view, endpoints_of("http://localhost:6333")[0])
    assert (told.collection, told.to_dict()["metadata"]["debias"]["value"]) == (name, 1.0)
    assert "V_j scaled by norm(V_j)^-1" in told.vectors()[""]


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_an_interrupted_sync_carries_on(tmp_path: Path, backend: str, run: Run) -> None:
    view = debiased(run, 0.5)

    def stop(what: str, done: int, total: int) -> None:
        if what == "writing":
            raise KeyboardInterrupt

    with BACKENDS[backend](tmp_path) as store:
        sync(run, store)
        with pytest.raises(KeyboardInterrupt):
            sync(view, store, progress=stop)
        assert store.live("movies").reference == run.run_id
        findings = doctor(lambda: nullcontext(store), run.path.parent)
        (finding,) = [found for found in findings if "unfinished" in found.text]
        assert finding.text.startswith(f"movies__{view.reference} ")
        assert sync(view, store).state == "resumed"
        assert verify(store, "movies", view).count == 40


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_a_copy_is_its_source(tmp_path: Path, backend: str, additive: bool, here: bool) -> None:
    run = tiny_run(tmp_path, additive=additive)
    view = debiased(run, 0.5)
    runs_dir = run.path.parent if here else tmp_path / "elsewhere"
    with BACKENDS[backend](tmp_path) as source, open_store(tmp_path / "other", create=True) as target:
        sync(run, source)
        name = sync(view, source).collection
        assert copy(source, target, view.reference, runs_dir).collection == name
        made, original = target.metadata(name), source.metadata(name)
        assert (made.fingerprint, made.debias) == (original.fingerprint, 0.5)
        assert verify(target, "movies", view).count == 40
        assert copy(source, target, run.run_id, runs_dir).collection == f"movies__{run.run_id}"


def test_its_run_cannot_be_restored_from_it(tmp_path: Path, run: Run) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
        sync(debiased(run, 0.5), store)
        assert not restore(store, "movies", run.path.parent).written
        with pytest.raises(RunError, match=r"is debiased, and the vectors of run .* undebiased collection"):
            restore(store, "movies", tmp_path / "elsewhere")
        assert restore(store, run.run_id, tmp_path / "elsewhere").written


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_only_what_is_there_is_promoted(tmp_path: Path, backend: str, run: Run) -> None:
    other, view = a_third_run(tmp_path), debiased(run, 0.5)
    with BACKENDS[backend](tmp_path) as store:
        sync(other, store)
        sync(view, store, promote=False)
        for wanted in (run, debiased(run, 0.25)):
            with pytest.raises(NotFoundError, match=rf"but 'movies__{view.reference}' of the same run; give"):
                promote_run(store, wanted.reference)
        with pytest.raises(NotFoundError, match="list them with"):
            promote_run(store, "20200101t000000-0002")
        assert store.live("movies").reference == other.reference


@pytest.mark.parametrize("backend", EVERY_BACKEND)
def test_another_collection_of_its_name_is_refused(tmp_path: Path, backend: str, run: Run) -> None:
    view = debiased(run, 0.5)
    with BACKENDS[backend](tmp_path) as store:
        metadata = store.metadata(sync(run, store).collection)
        name = f"movies__{view.reference}"
        store.create(name, metadata.spec, replace(metadata, state="building"))
        with pytest.raises(StoreError, match=f"{name}' was made from other content"):
            sync(view, store)
        with pytest.raises(VerificationError, match=rf"holds run {run.run_id}, expected {view.reference};"):
            verify(store, "movies", view)


def test_a_changed_point_is_found_and_mended(tmp_path: Path, run: Run) -> None:
    view = debiased(run, 0.5)
    with BACKENDS["local"](tmp_path) as store:
        name = sync(view, store).collection
        with store.writer():
            store.revise(name)
            store.delete(name, [point_id(7)])
            store.seal(name, store.metadata(name))
        with pytest.raises(VerificationError, match="point 7 is missing"):
            verify(store, "movies", view)
        assert sync(view, store).written == 1
        assert verify(store, "movies", view).count == 40


def test_a_beginning_that_fits_both_asks_for_more(tmp_path: Path, run: Run) -> None:
    with open_store(tmp_path / "store", create=True) as store:
        sync(debiased(run, 0.5), store)
        sync(run, store)
        with pytest.raises(UsageError, match="give more of the run id"):
            restore(store, run.run_id[:8], tmp_path)
