"""copy: a collection from one store to another, either way, and equal there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from embedstore.data.dataset import Movie
from embedstore.errors import StoreError, UsageError
from embedstore.stores.base import Store, open_store
from embedstore.stores.connection import Connection
from embedstore.stores.server import ServerStore
from embedstore.sync import copy, sync, verify
from tests.builders import tiny_dataset, tiny_run, with_unrated
from tests.server import LocalMode, server_store


def open_kind(kind: str, folder: Path) -> Store:
    if kind == "edge":
        return open_store(folder, create=True)
    if kind == "server":
        return server_store()
    return ServerStore("http://local-mode:6333", Connection(grpc_port=0), transport=LocalMode())


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize(
    ("source_kind", "target_kind"),
    [
        ("edge", "edge"),
        ("edge", "local"),
        ("local", "edge"),
        pytest.param("edge", "server", marks=pytest.mark.server),
        pytest.param("server", "edge", marks=pytest.mark.server),
    ],
)
def test_a_copy_is_its_source(
    tmp_path: Path, source_kind: str, target_kind: str, here: bool, additive: bool
) -> None:
    run = tiny_run(tmp_path, additive=additive)
    runs_dir = run.path.parent if here else tmp_path / "elsewhere"
    with open_kind(source_kind, tmp_path / "a") as source, open_kind(target_kind, tmp_path / "b") as target:
        name = sync(run, source).collection
        report = copy(source, target, run.run_id, runs_dir)
        assert (report.collection, report.written, report.promoted) == (name, 40, True)
        made, original = target.metadata(name), source.metadata(name)
        assert (made.run_id, made.fingerprint, made.count, made.tower, made.state) == (
            original.run_id,
            original.fingerprint,
            original.count,
            original.tower,
            "sealed",
        )
        assert verify(target, "movies", run).count == 40
        assert copy(source, target, "@movies", runs_dir).written == 0
    assert not (tmp_path / "elsewhere").exists()


def test_a_copy_keeps_the_name_and_moves_no_other_alias(tmp_path: Path) -> None:
    run, live = (tiny_run(tmp_path, seed=k, run_id=f"2020010{k}t000000-0000") for k in (1, 2))
    with open_store(tmp_path / "a", create=True) as source, open_store(tmp_path / "b", create=True) as target:
        name = sync(run, source, alias="films").collection
        sync(live, target)
        assert not copy(source, target, name, tmp_path, promote=False).promoted
        assert list(target.aliases()) == ["movies"]
        assert copy(source, target, "films", tmp_path).collection == name
        assert target.aliases() == {"films": name, "movies": f"movies__{live.run_id}"}


def test_a_copy_without_the_run_keeps_a_cold_movie_cold(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, dataset=with_unrated(tiny_dataset(), Movie("New")), cold=True)
    with open_store(tmp_path / "a", create=True) as source, open_store(tmp_path / "b", create=True) as target:
        sync(run, source)
        copy(source, target, "movies", tmp_path / "elsewhere")
        assert verify(target, "movies", run).count == 41


def test_a_damaged_run_folder_is_not_used(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    with open_store(tmp_path / "a", create=True) as source, open_store(tmp_path / "b", create=True) as target:
        sync(run, source)
        shutil.copy(run.path / "history_vectors.npy", run.path / "movie_vectors.npy")
        assert copy(source, target, "movies", run.path.parent).count == 40


def test_what_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    run = tiny_run(tmp_path)
    other = tiny_run(tmp_path / "other", seed=3, run_id=run.run_id)
    with open_store(tmp_path / "a", create=True) as source, open_store(tmp_path / "b", create=True) as target:
        name = sync(run, source).collection
        (tmp_path / "link").symlink_to(tmp_path / "a")
        with open_store(tmp_path / "link") as same, pytest.raises(UsageError, match="both stores are"):
            copy(source, same, "movies", tmp_path)
        sync(other, target)
        with pytest.raises(StoreError, match="other content"):
            copy(source, target, "movies", tmp_path)
        metadata = source.metadata(name)
        source.create("movies__half", metadata.spec, replace(metadata, state="building"))
        with pytest.raises(StoreError, match="is not finished"):
            copy(source, target, "movies__half", tmp_path)
