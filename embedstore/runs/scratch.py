"""Folders for the time of a task, which do not stay behind where the process is killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

__all__ = ["remove_abandoned", "scratch_folder"]

_PREFIX = ".embedstore-scratch-"


@contextmanager
def scratch_folder(home: Path) -> Iterator[Path]:
    """Yield a new folder in home, of mode 700, that is removed after the block; home is made where missing.

    A killed process leaves it behind, without the lock that it held on it, and the next call for home
    removes it; where the file system or the platform has no such lock, it stays. Raises OSError where
    home cannot be written.
    """
    home.mkdir(parents=True, exist_ok=True)
    remove_abandoned(home)
    with ExitStack() as stack:
        while True:
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=home))
            try:
                stack.callback(os.close, _lock(path))
            except (BlockingIOError, FileNotFoundError):  # another process took it for left behind
                continue
            except (OSError, ImportError):
                pass
            break
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        yield path


def remove_abandoned(home: Path) -> None:
    """Remove what killed processes left behind in home."""
    for left in home.glob(f"{_PREFIX}*"):
        with suppress(OSError, ImportError):  # in use, or of another user
            descriptor = _lock(left)
            shutil.rmtree(left, ignore_errors=True)
            os.close(descriptor)


def _lock(path: Path) -> int:
    """Return a descriptor of our own folder path, locked until it is closed.

    Raises BlockingIOError where another process holds it, another OSError where it is no such folder, is
    gone, or cannot be locked.
    """
    import fcntl  # POSIX alone

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid():
            raise PermissionError(f"{path} is of another user")
        if path.lstat().st_ino != found.st_ino:
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
