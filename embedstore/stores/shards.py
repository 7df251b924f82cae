"""The files of a shard: their digests, what they take on the disk, and copies of them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from embedstore.errors import StoreError
from embedstore.runs.manifest import digest_of, sync_path
from embedstore.stores.contract import CollectionSpec

__all__ = [
    "EDGE_CONFIG",
    "EDGE_UNFINISHED",
    "SHARD_BYTES",
    "allocated",
    "copy_tree",
    "digests_of",
    "expected_bytes",
    "files_of",
    "home_of_scratch",
    "is_large",
    "link_tree",
    "refuse_links",
    "remove",
    "remove_unfinished",
    "require_room",
    "stamp",
    "sync_tree",
]

EDGE_CONFIG = "edge_config.json"
EDGE_UNFINISHED = ".atomicwrite"
_SEGMENT = "segment.json"
_BLOCK = 1 << 20
_READ_EACH_TIME = 1 << 20  # bytes: Edge touches the smaller files whenever it opens or closes a shard

# Real use of a shard, measured with benchmarks/sync.py: vectors, then id tables, payload and
# indexes per point, then the first pages of all files.
_POINT_BYTES = 1000
SHARD_BYTES = 4 << 20
_CHUNK = 32 << 20  # of vectors, most of it a hole in a small collection
_HOLES = 18 << 20  # in the other files


def require_room(path: Path, needed: int) -> None:
    """Raise StoreError where the disk lacks the room: a full disk under a memory map ends the process."""
    free = shutil.disk_usage(path).free
    if free < needed:
        raise StoreError(
            f"the disk of {path} has {free / 1e6:.0f} MB free and {needed / 1e6:.0f} MB are needed; "
            "make room or choose another --store"
        )


def expected_bytes(count: int, spec: CollectionSpec, path: Path) -> int:
    """Return how much room a shard of count points takes at most on the disk of path."""
    kinds = 2 if spec.additive else 1
    written = count * (spec.dim * 4 * kinds + _POINT_BYTES) + SHARD_BYTES
    return written + (_HOLES + kinds * _CHUNK if _in_memory(path) else 0)


def _in_memory(path: Path) -> bool:
    """Whether path is on a tmpfs, where a hole of a file takes room once it is read through a memory map."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines()]
        return any(part[2] == wanted and part[part.index("-") + 1] == "tmpfs" for part in mounts)
    return False


def home_of_scratch() -> Path:
    """Return where files can be kept for a moment, be all disks full."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return Path("/dev/shm")  # noqa: S108 - scratch_folder makes a folder of mode 700 in it


def files_of(folder: Path) -> list[tuple[str, Path]]:
    """Return the sealed files of a shard by their path within it, in ascending order."""
    paths = [Path(base, name) for base, names in _walk(folder) for name in names]
    keyed = [(path.relative_to(folder).as_posix(), path) for path in paths]
    return sorted(pair for pair in keyed if pair[0] != EDGE_CONFIG)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder of a shard and its files, but for those of a write that Edge has not finished.

    Raises OSError for what is neither: a link, a pipe.
    """
    for base, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(EDGE_UNFINISHED)]
        for name in (*folders, *names):
            with suppress(FileNotFoundError):  # what another reader wrote for a moment
                mode = os.lstat(Path(base, name)).st_mode
                if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                    raise OSError(errno.ELOOP, "a link, or no regular file", str(Path(base, name)))
        yield base, names


def refuse_links(folder: Path) -> None:
    """Raise OSError where a link of other hands, or a pipe, is in a shard."""
    for _ in _walk(folder):
        pass


def digests_of(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the sha256 of every file, by the same keys; of segment.json, that of its content."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:  # hashing releases the GIL
        return dict(zip(files, pool.map(_digest, files.values()), strict=True))


def _digest(path: Path) -> str:
    if path.name != _SEGMENT or path.stat().st_size > _BLOCK:
        return digest_of(path)
    # Edge writes this file at every close, its keys in an order that varies.
    content = path.read_bytes()
    with suppress(ValueError, RecursionError):
        content = json.dumps(json.loads(content), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def stamp(path: Path) -> list[int]:
    """Return what changes where a file is written to or replaced, its size third."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def is_large(stamp: Sequence[int]) -> bool:
    """Whether a file with this stamp is one that is not read at every opening."""
    return stamp[2] > _READ_EACH_TIME


def allocated(folder: Path) -> int:
    """Return how many bytes of the disk a shard takes, its holes left out."""
    return sum(path.stat().st_blocks * 512 for _, path in files_of(folder))


def copy_tree(source: Path, target: Path) -> None:
    """Copy a shard, leaving the holes of its sparse files holes."""
    for base, names in _walk(source):
        folder = target / Path(base).relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            with open(Path(base, name), "rb") as old, open(folder / name, "wb") as new:
                while block := old.read(_BLOCK):
                    if block.count(0) == len(block):
                        new.seek(len(block), os.SEEK_CUR)
                    else:
                        new.write(block)
                new.truncate(new.tell())


def link_tree(source: Path, target: Path) -> None:
    """Make a shard of the large files of another: links to its folders, copies of what Edge replaces."""
    refuse_links(source)
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.is_file():
            shutil.copy(path, target / path.name)
        elif (source / _SEGMENT).exists():
            (target / path.name).symlink_to(path.resolve())
        elif not path.name.startswith(EDGE_UNFINISHED):
            link_tree(path, target / path.name)


def sync_tree(folder: Path) -> None:
    """Make a shard durable."""
    for base, names in _walk(folder):
        for name in names:
            sync_path(Path(base, name))
        sync_path(Path(base))


def remove(path: Path) -> None:
    """Remove a file or folder; a folder is moved away first, since a reader may just be writing to it."""
    if path.is_dir() and not path.is_symlink():
        doomed = path.with_name(f".{secrets.token_hex(4)}.removed")
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(found: Iterable[Path], *, after: float = 0.0) -> None:
    """Remove what a killed process left of a write of Edge, where it was begun so many seconds ago."""
    for left in list(found):
        with suppress(OSError):  # gone: a reader has finished
            if not after or time.time() - left.stat().st_mtime > after:
                remove(left)
