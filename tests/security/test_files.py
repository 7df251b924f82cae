"""Run folders and stores of strangers: nothing is read through a link, no file is taken for another."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from embedstore.cli import run as command
from embedstore.errors import EmbedstoreError, RunError, StoreError
from embedstore.query.recommend import recommend
from embedstore.runs.files import map_array, open_file, parse_json, read_small
from embedstore.runs.manifest import MANIFEST, digest_of, replace_file, with_digest
from embedstore.runs.run import Run
from embedstore.runs.scratch import scratch_folder
from embedstore.stores.base import open_store
from embedstore.sync import sync
from tests.builders import tiny_run


def a_link(path: Path) -> None:
    path.replace(path.with_name(f"kept-{path.name}"))
    path.symlink_to(f"kept-{path.name}")


def a_pipe(path: Path) -> None:
    path.replace(path.with_name(f"kept-{path.name}"))
    os.mkfifo(path)


def resealed(run: Run, **changes: object) -> Run:
    """Give the manifest the digests of the files as they are, and other fields, and open the run."""
    path = run.path / MANIFEST
    content = json.loads(path.read_bytes()) | changes
    content.pop("digest", None)
    for name, entry in content["files"].items():
        entry |= {"bytes": (run.path / name).stat().st_size, "sha256": digest_of(run.path / name)}
    path.write_bytes(with_digest(json.dumps(content, indent=1) + "\n"))
    return Run.load(run.path)


@pytest.mark.parametrize("replaced", [a_link, a_pipe])
@pytest.mark.parametrize("name", ["movie_ids.npy", "movies.jsonl", "histories/offsets.npy", "metrics.json"])
def test_a_file_of_a_run_that_is_a_link_or_a_pipe_is_refused(
    name: str, replaced: Callable[[Path], None], tmp_path: Path
) -> None:
    run = tiny_run(tmp_path)
    replaced(run.path / name)
    with pytest.raises(RunError, match=f"damaged: {name} cannot be read \\((a link|not a regular file)"):
        Run.load(run.path).verify()


@pytest.mark.parametrize("replaced", [a_link, a_pipe])
def test_a_manifest_or_a_folder_of_a_run_that_is_a_link_or_a_pipe_is_refused(
    replaced: Callable[[Path], None], tmp_path: Path
) -> None:
    run = tiny_run(tmp_path)
    replaced(run.path / "histories")
    with pytest.raises(RunError, match=r"histories/.* cannot be read \(a link, or no folder\)"):
        Run.load(run.path).history(1)
    replaced(run.path / MANIFEST)
    with pytest.raises(RunError, match=r"manifest\.json cannot be read"):
        Run.load(run.path)


def test_the_folder_that_a_person_names_may_be_a_link(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    shutil.move(tmp_path / "runs", tmp_path / "elsewhere")
    (tmp_path / "runs").symlink_to("elsewhere")
    assert Run.load(tmp_path / "runs" / run.run_id).history(1).size
    with open_store(tmp_path / "store", create=True) as store:
        sync(Run.load(tmp_path / "elsewhere" / run.run_id), store)
    (tmp_path / "link").symlink_to("store")
    with open_store(tmp_path / "link") as store:
        assert store.live("movies").run_id == run.run_id


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(40, 4)", b"(40, 1000000000000)"),
        (b"(40, 4)", b"(-40, -4)"),
        (b"(40, 4)", b"(" + b"4" * 30 + b", 1)"),
        (b"False", b"True"),
        (b"<f4", b"|O"),
        (b"<f4", b"<f8"),
        (b"{", b"-" * 5000 + b"{"),
        (b"\x93NUMPY\x01", b"\x93NUMPY\x03"),
        (b"\x93NUMPY", b"PK\x03\x04xx"),
    ],
)
def test_an_array_that_says_other_than_it_has_is_refused_before_memory_is_taken(
    old: bytes, new: bytes, tmp_path: Path
) -> None:
    run = tiny_run(tmp_path)
    path = run.path / "movie_vectors.npy"
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    damaged = resealed(run)
    tracemalloc.start()
    try:
        with pytest.raises(RunError, match=r"damaged: movie_vectors\.npy is not an array file"):
            _ = damaged.movie_vectors
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "array", [np.arange(3), np.ones((2, 3), np.float32), np.array(["é", "tt1"]), np.zeros(0, np.int64)]
)
def test_an_array_reads_as_numpy_reads_it(array: npt.NDArray[Any], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=False)
    with open_file(tmp_path, "a.npy") as file:
        found = map_array(file)
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"[" * 40 + b"]" * 40, "levels"),
        (b"[" * 90_000, "levels"),
        (b"[" + b"0," * 200_000 + b"0]", "values"),
        (b"1e999", "beyond a float"),
        (b"[-1e999]", "beyond a float"),
        (b"9" * 400, "beyond a float"),
        (b"9" * 5000, "digits"),
        (b'{"\\ud800": 1}', "surrogates"),
        (b"\xff", "decode"),
    ],
)
def test_json_is_bounded_and_can_be_printed(text: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_json(text)


def test_a_number_that_was_none_when_a_run_was_written_is_none(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    assert resealed(run, metrics={"ndcg@100": float("nan"), "x": float("-inf")}).manifest.metrics == {
        "ndcg@100": None,
        "x": None,
    }


def test_a_file_that_is_read_whole_has_4_mb_at_most(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="more than 4,194,304 bytes"):
        read_small(tmp_path, "large")


def test_what_lies_in_the_way_of_a_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / f".new.{os.getpid()}.tmp").symlink_to("precious")
    replace_file(tmp_path / "new", b"new")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "new").read_bytes() == b"new"


@pytest.fixture
def store_of_a_stranger(tmp_path: Path) -> tuple[Run, Path]:
    run = tiny_run(tmp_path)
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
    return run, tmp_path / "store"


def everything(run: Run, folder: Path) -> None:
    with open_store(folder) as store:
        recommend(run, store, user_id=1, k=3)
        sync(run, store)
        store.promote("other", store.collections()[0])


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        *(
            (name, a_link)
            for name in ("embedstore.json", "aliases", "aliases/movies.json", "collections", "lock")
        ),
        *((name, a_pipe) for name in ("embedstore.json", "aliases", "aliases/movies.json", "collections")),
    ],
)
def test_a_part_of_a_store_that_is_a_link_or_a_pipe_is_refused(
    name: str, replaced: Callable[[Path], None], store_of_a_stranger: tuple[Run, Path]
) -> None:
    run, folder = store_of_a_stranger
    replaced(folder / name)
    with pytest.raises(EmbedstoreError):
        everything(run, folder)


def test_a_collection_or_a_shard_that_is_a_link_is_refused_and_what_is_behind_it_stays(
    store_of_a_stranger: tuple[Run, Path],
) -> None:
    run, folder = store_of_a_stranger
    home = folder.with_name("home")
    collection = next((folder / "collections").iterdir())
    shutil.copytree(collection, home)
    (home / "letters").mkdir()
    record = json.loads((collection / "collection.json").read_bytes())
    segment = next((collection / record["generation"] / "segments").iterdir())
    for part in (segment / "segment.json", segment, collection / record["generation"], collection):
        kept = part.with_name("kept") if part != collection else folder.with_name("kept")
        part.replace(kept)
        part.symlink_to(home if part == collection else kept)
        with pytest.raises(EmbedstoreError):
            everything(run, folder)
        if part != collection:
            part.unlink()
            kept.replace(part)
    with open_store(folder) as store, store.writer():
        pass  # which removes what a killed writer left behind
    assert (home / "letters").is_dir()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generation", "../../../home"),
        ("generation", "/tmp"),  # noqa: S108 - what a stranger may write
        ("generation", 7),
        ("files", {"../../embedstore.json": {"bytes": 1, "sha256": "0"}}),
        ("files", {"/etc/passwd": {"bytes": 1, "sha256": "0"}}),
        ("files", []),
        ("edge_config", "{"),
        ("edge_config", "[" * 100_000),
        ("edge_config", '{"vectors": {"": {"size": 1000000000, "distance": "Dot"}}, "wal_enabled": false}'),
        ("edge_config", 7),
        ("metadata", {"run_id": "x\nrm -rf ~", "state": "sealed"}),
        ("metadata", []),
    ],
)
def test_a_record_of_a_collection_that_cannot_be_meant_is_refused(
    key: str, value: object, store_of_a_stranger: tuple[Run, Path]
) -> None:
    run, folder = store_of_a_stranger
    path = next(folder.glob("collections/*/collection.json"))
    content = json.loads(path.read_bytes())
    content.pop("digest", None)
    if isinstance(value, dict) and key == "metadata":
        value = content["metadata"] | value
    path.write_bytes(with_digest(json.dumps(content | {key: value}, indent=1) + "\n"))
    with pytest.raises(StoreError), open_store(folder) as store:
        recommend(run, store, user_id=1, k=3)


def test_a_program_to_paste_holds_no_text_of_a_store_that_ends_a_line(
    store_of_a_stranger: tuple[Run, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metadata of a collection name its run, which stands in a comment of a program for a shell."""
    folder = store_of_a_stranger[1]
    monkeypatch.chdir(folder.parent)
    path = next(folder.glob("collections/*/collection.json"))
    content = json.loads(path.read_bytes())
    content.pop("digest", None)
    content["metadata"]["run_id"] = "x\ntouch owned"
    path.write_bytes(with_digest(json.dumps(content, indent=1) + "\n"))
    assert command(["contract", "--snippet", "embedding", "--language", "curl"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "have the run_id 'x\\ntouch owned', expected letters, digits" in said.err


def test_files_follow_the_umask_and_scratch_is_of_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run = tiny_run(tmp_path)
        with open_store(tmp_path / "store", create=True) as store:
            sync(run, store)
        with scratch_folder(tmp_path) as scratch:
            assert stat.S_IMODE(scratch.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert {path for path in tmp_path.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o027} == set()
