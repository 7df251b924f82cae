"""What the embedded store promises beyond the interface: locks, damage, versions, read-only disks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from embedstore.errors import EmbedstoreError, NotFoundError, StoreError, StoreLockedError, VerificationError
from embedstore.runs.manifest import digest_of
from embedstore.runs.run import Run
from embedstore.stores import shards
from embedstore.stores.base import open_store
from embedstore.sync import promote_run, sync, verify
from embedstore.sync.doctor import doctor
from tests.builders import edit_json, tiny_run

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny_run(tmp_path)


@pytest.fixture
def folder(tmp_path: Path, run: Run) -> Path:
    """A store with run in it, live."""
    with open_store(tmp_path / "store", create=True) as store:
        sync(run, store)
    return tmp_path / "store"


def shard_of(folder: Path) -> Path:
    return next((folder / "collections").glob("*/g*"))


def test_a_second_writer_is_turned_away_while_readers_read(folder: Path, run: Run) -> None:
    with open_store(folder) as one, open_store(folder) as two, one.writer():
        with pytest.raises(StoreLockedError, match="another process"):
            sync(run, two)
        assert len(two.search(two.aliases()["movies"], run.movie_vectors[0], limit=3)) == 3
    with open_store(folder) as store:
        assert sync(run, store).state == "unchanged"


def test_where_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="embedstore sync"):
        open_store(tmp_path / "nope")
    assert not (tmp_path / "nope").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        open_store(tmp_path / "file", create=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thing").write_text("x")
    for create in (True, False):
        with pytest.raises(StoreError, match="choose another --store"):
            open_store(tmp_path / "other", create=create)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("embedstore.json", '{"schema": 2}', "upgrade embedstore"),
        ("embedstore.json", "{", "damaged"),
        ("embedstore.json", "[]", "damaged"),
        ("embedstore.json", "{}", "no schema"),
        ("aliases/movies.json", '{"schema": 2}', "upgrade embedstore"),
        ("aliases/movies.json", "nonsense", "damaged"),
        ("aliases/movies.json", "{}", "names no collection"),
    ],
)
def test_a_store_of_a_newer_version_or_a_damaged_one_is_refused(
    folder: Path, file: str, content: str, message: str
) -> None:
    (folder / file).write_text(content)
    with pytest.raises(StoreError, match=message), open_store(folder) as store:
        store.aliases()


def test_advice_about_a_damaged_store_file_works(folder: Path) -> None:
    for content in ("nonsense", "[]", "{}"):
        (folder / "embedstore.json").write_text(content)
        with pytest.raises(StoreError, match=r"damaged: .*; write \{.*\} into it$") as raised:
            open_store(folder)
        (folder / "embedstore.json").write_text(re.search(r"write (.*) into it", str(raised.value))[1])  # type: ignore[index]
        open_store(folder).close()


def test_advice_about_a_damaged_alias_works(folder: Path, run: Run) -> None:
    for content in ("nonsense", "[]", '{"collection": 3, "promotions": []}'):
        (folder / "aliases" / "movies.json").write_text(content)
        with open_store(folder) as store:
            with pytest.raises(
                StoreError, match=r"; promote a run again, or delete the file where none is finished$"
            ):
                sync(run, store)
            assert promote_run(store, run.reference)
            assert sync(run, store).state == "unchanged"


@pytest.mark.parametrize("target", ["nowhere", "movies.json", "../elsewhere.json"])
def test_an_alias_that_is_a_link_is_not_followed_and_what_to_do_works(
    folder: Path, run: Run, target: str
) -> None:
    path = folder / "aliases" / "movies.json"
    path.rename(folder / "elsewhere.json")
    path.symlink_to(target)
    with open_store(folder) as store:
        with pytest.raises(
            StoreError, match=r"movies\.json: .*; something else is in its place, move it away"
        ):
            sync(run, store)
        path.rename(folder / "away")
        assert sync(run, store).promoted


def test_a_history_that_is_none_takes_no_alias_down(folder: Path, run: Run) -> None:
    path = folder / "aliases" / "movies.json"
    good = json.loads(path.read_text())
    odds: list[object] = [None, 3, "x", {}, [3, None, {"collection": 5}]]
    for odd in odds:
        edit_json(path, promotions=odd)
        with open_store(folder) as store:
            assert store.live("movies").collection == good["collection"]
            assert [flip.at for flip in store.promotions("movies")] == [""]
            assert sync(run, store).state == "unchanged"


@pytest.mark.parametrize("file", ["lock", "aliases/movies.json"])
def test_a_folder_in_place_of_a_file_is_named_with_what_to_do(folder: Path, run: Run, file: str) -> None:
    (folder / file).unlink(missing_ok=True)
    (folder / file).mkdir()
    with open_store(folder) as store:
        with pytest.raises(StoreError, match=f"{file}: Is a directory; something else is in its place, move"):
            sync(run, store)
        texts = [f.text for f in doctor(lambda: open_store(folder), run.path.parent) if f.level == "problem"]
        assert any(f"{file}: Is a directory" in text for text in texts)
        (folder / file).rename(folder / "away")
        assert sync(run, store).state == "unchanged"


@pytest.mark.parametrize("what", ["folder", "link", "link to itself"])
def test_another_thing_in_place_of_a_record_is_named_and_mended(folder: Path, run: Run, what: str) -> None:
    path = shard_of(folder).parent / "collection.json"
    path.rename(folder / "record.json")
    if what == "folder":
        path.mkdir()
    else:
        path.symlink_to(folder / "record.json" if what == "link" else path)
    with open_store(folder) as store:
        with pytest.raises((VerificationError, StoreError, NotFoundError)):
            verify(store, "movies", run)
        assert sync(run, store).state == "created"
        assert verify(store, "movies", run).count == 40


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metadata": 3, "generation": "g", "files": {}}'])
def test_a_damaged_record_is_reported(folder: Path, content: str) -> None:
    shard_of(folder).parent.joinpath("collection.json").write_text(content)
    with open_store(folder) as store, pytest.raises(StoreError, match="damaged"):
        store.count(store.collections()[0])


def test_a_truncated_or_missing_file_is_named_and_repaired_by_sync(folder: Path, run: Run) -> None:
    for damage in ("truncate", "unlink"):
        victim = next(shard_of(folder).rglob("chunk_0.mmap"))
        if damage == "unlink":
            victim.unlink()
        else:
            victim.write_bytes(b"")
        with open_store(folder) as store:
            name = store.aliases()["movies"]
            with pytest.raises(StoreError, match=r"chunk_0\.mmap.*embedstore sync"):
                store.search(name, run.movie_vectors[0], limit=3)
            assert sync(run, store).state == "rebuilt"
            assert len(store.search(name, run.movie_vectors[0], limit=3)) == 3


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [100, -1])
def test_a_flipped_bit_in_the_vectors_is_refused_by_name_and_mended(folder: Path, run: Run, at: int) -> None:
    flip(next(shard_of(folder).glob("segments/*/vector_storage/vectors/chunk_0.mmap")), at)
    with open_store(folder) as store:
        name = store.aliases()["movies"]
        for _ in range(2):
            with pytest.raises(StoreError, match=r"vectors/chunk_0\.mmap does not have the sha256"):
                store.search(name, run.movie_vectors[0], limit=3)
        with pytest.raises(VerificationError, match=r"sha256|point \d+ has"):
            verify(store, name, run)
        assert sync(run, store).state == "repaired"
        assert len(store.search(name, run.movie_vectors[0], limit=3)) == 3


def test_a_large_file_is_read_once_and_again_when_it_was_written_to(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noting(path: Path) -> str:
        read.append(path.name)
        return digest_of(path)

    monkeypatch.setattr(shards, "digest_of", noting)
    large = next(shard_of(folder).glob("segments/*/vector_storage/vectors/chunk_0.mmap"))

    def search() -> int:
        read.clear()
        with open_store(folder) as store:
            store.search("movies__" + run.run_id, run.movie_vectors[0], limit=3)
        return read.count(large.name)

    assert search() == 0  # sealing had read it
    assert "flags_a.dat" in read
    times = large.stat()
    large.write_bytes(large.read_bytes())
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [search(), search()] == [1, 0]
    (shard_of(folder).parent / "checked.json").write_text('{"generation": 3')
    assert [search(), search()] == [2, 0]  # of both kinds of vectors


@pytest.mark.parametrize("file", ["collections/*/collection.json", "aliases/movies.json"])
def test_a_flipped_bit_anywhere_in_what_the_store_notes_is_refused(folder: Path, run: Run, file: str) -> None:
    (path,) = folder.glob(file)
    content = path.read_bytes()
    for at in range(0, len(content), 19):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with open_store(folder) as store, pytest.raises(StoreError, match=re.escape(path.name)):
            store.metadata(store.live("movies").collection)
    with open_store(folder) as store:
        name = f"movies__{run.run_id}"
        if path.name == "collection.json":
            assert sync(run, store).state == "created"
        else:
            assert store.promote("movies", name)
        assert store.live("movies").collection == name


@pytest.mark.slow
def test_a_flipped_byte_in_any_file_is_found_and_repaired(folder: Path, run: Run) -> None:
    keys = sorted(
        path.relative_to(shard_of(folder))
        for path in shard_of(folder).rglob("*")
        if path.is_file() and path.name != "edge_config.json"
    )
    assert len(keys) > 20
    for key in keys:
        parts = [part if index != 1 else "*" for index, part in enumerate(key.parts)]
        victim = next(shard_of(folder).glob("/".join(parts)), None)
        if victim is None:
            continue  # the name of an index file that a rebuilt shard does not have
        content = bytearray(victim.read_bytes())
        content[len(content) // 3] ^= 0x10
        victim.write_bytes(content)
        with open_store(folder) as store:
            assert sync(run, store).state in ("repaired", "rebuilt"), victim
            assert store.intact(store.aliases()["movies"])


def test_a_broken_edge_config_is_mended(folder: Path, run: Run) -> None:
    changed = (shard_of(folder) / "edge_config.json").read_bytes().replace(b"Dot", b"Euclid")
    for content in (None, b"", b'{"vec', changed):
        config = shard_of(folder) / "edge_config.json"
        config.unlink() if content is None else config.write_bytes(content)
        with open_store(folder) as store:
            assert len(store.search(store.aliases()["movies"], run.movie_vectors[0], limit=3)) == 3
            assert store.intact(store.aliases()["movies"])


def test_a_reader_follows_a_repair_by_another_process(folder: Path, run: Run) -> None:
    with open_store(folder) as reader, open_store(folder) as writer:
        name = reader.aliases()["movies"]
        before = reader.search(name, run.movie_vectors[0], limit=5)
        first = shard_of(folder)
        next(first.rglob("chunk_0.mmap")).unlink()
        assert sync(run, writer).state == "rebuilt"
        assert not first.exists()
        assert reader.search(name, run.movie_vectors[0], limit=5) == before


def test_leftovers_of_a_kill_are_cleared_by_the_next_writer(folder: Path, run: Run) -> None:
    collection = shard_of(folder).parent
    (collection / "gdeadbeef").mkdir()
    (collection / "gdeadbeef" / "x").write_text("x")
    (collection / ".collection.json.1.tmp").write_text("x")
    (folder / "collections" / "movies__half").mkdir()
    (folder / "aliases" / ".movies.json.1.tmp").write_text("x")
    with open_store(folder) as store:
        assert store.collections() == [collection.name]
        assert store.aliases() == {"movies": collection.name}
        sync(run, store)
    kept = {"collection.json", "checked.json", shard_of(folder).name}
    assert {path.name for path in collection.iterdir()} == kept
    assert [path.name for path in (folder / "collections").iterdir()] == [collection.name]
    assert [path.name for path in (folder / "aliases").iterdir()] == ["movies.json"]


def test_what_a_killed_reader_left_in_a_shard_is_removed_when_no_reader_can_be_at_it(
    folder: Path, run: Run
) -> None:
    shard = shard_of(folder)
    old = [shard / ".atomicwriteabc", next(shard.glob("segments/*")) / ".atomicwritedef"]
    new = shard / ".atomicwriteghi"
    for left in (*old, new):
        left.mkdir()
        (left / "tmpfile.tmp").write_text("x")
    for left in old:
        os.utime(left, (0, 0))
    with open_store(folder) as store:
        assert sync(run, store).state == "unchanged"
    assert [left.exists() for left in (*old, new)] == [False, False, True]


def test_a_full_disk_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 1000))
    with open_store(tmp_path / "store", create=True) as store:
        with pytest.raises(StoreError, match="MB free"):
            sync(run, store)
        assert store.collections() == []
        assert store.aliases() == {}


def test_a_store_that_cannot_be_written_is_read_through_a_copy(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere, so permissions say nothing
    with open_store(folder) as store:
        assert len(store.search(store.aliases()["movies"], run.movie_vectors[0], limit=3)) == 3
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_read_only_file_system(folder: Path, run: Run, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    mount = subprocess.run(["mount", "--bind", "-o", "ro", folder, mounted], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with open_store(mounted) as store:
            assert len(store.search(store.aliases()["movies"], run.movie_vectors[0], limit=3)) == 3
            with pytest.raises(StoreError, match="read-only"):
                sync(run, store)
    finally:
        subprocess.run(["umount", mounted], check=True)


def test_the_collection_is_gone_but_its_alias_is_not(folder: Path) -> None:
    shutil.rmtree(shard_of(folder).parent)
    with open_store(folder) as store, pytest.raises(NotFoundError, match="no collection"):
        store.metadata(store.aliases()["movies"])


def test_every_foreign_exception_is_mapped(folder: Path, run: Run) -> None:
    """Nothing but EmbedstoreError comes out of a shard whose every file is nonsense of the right size."""
    for path in shard_of(folder).rglob("*"):
        if path.is_file() and path.suffix in (".json", ".mappings", ".dat") and path.stat().st_size < 10**6:
            path.write_bytes(b"\x7f" * path.stat().st_size)
    with open_store(folder) as store:
        with pytest.raises(EmbedstoreError):
            store.search(store.aliases()["movies"], run.movie_vectors[0], limit=3)
        assert sync(run, store).state == "rebuilt"


def test_a_store_imports_neither_qdrant_client_nor_pandas(folder: Path) -> None:
    code = (
        "import sys; from embedstore.stores.base import open_store\n"
        "s = open_store(sys.argv[1]); s.count(s.aliases()['movies'])\n"
        "print([m for m in ('tensorflow', 'keras', 'pandas', 'qdrant_client', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
