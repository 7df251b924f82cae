"""Published data sets: downloaded, checked, and put in place in one step."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from embedstore.errors import DataError, EmbedstoreError, UsageError
from embedstore.runs.programs import run_program

__all__ = ["PUBLISHED", "Progress", "Published", "fetch", "is_fetched"]

OFFICIAL = "https://files.grouplens.org/datasets/movielens"
LARGEST = 4 << 30  # bytes of a file in an archive, several times those of ml-32m
TIMEOUT = 5.0  # seconds, to connect and between two pieces
ATTEMPTS = 2
STALE = 3600  # seconds after which the folder of a killed fetch is removed
RECBOLE = "recbole==1.2.1"
RECBOLE_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"

# progress(what, bytes so far, bytes in all or None)
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Published:
    """What is known of a published data set: the archive and the counts that its files must have."""

    archive: str
    files: tuple[str, ...]
    n_users: int
    n_movies: int
    n_ratings: int
    sha256: str | None = None


DAT = ("ratings.dat", "movies.dat", "README*")
CSV = ("ratings.csv", "movies.csv", "README*")
PUBLISHED: dict[str, Published] = {
    # The digest is that of the archive as GroupLens publishes it, unchanged for many years.
    "ml-100k": Published(
        "ml-100k.zip",
        ("u.data", "u.item", "u.genre", "README*"),
        943,
        1_682,
        100_000,
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    ),
    "ml-1m": Published("ml-1m.zip", DAT, 6_040, 3_883, 1_000_209),
    "ml-10m": Published(
        "ml-10m.zip", DAT, 69_878, 10_681, 10_000_054
    ),  # its README counts users with tags only, too
    "ml-20m": Published("ml-20m.zip", CSV, 138_493, 27_278, 20_000_263),
    "ml-25m": Published("ml-25m.zip", CSV, 162_541, 62_423, 25_000_095),
    "ml-32m": Published("ml-32m.zip", CSV, 200_948, 87_585, 32_000_204),
    "ml-latest-small": Published("ml-latest-small.zip", CSV, 610, 9_742, 100_836),
}


def is_fetched(name: str, data_dir: str | Path) -> bool:
    """Whether the folder of a data set is there; it is put there complete, so that it is never half."""
    return (Path(data_dir) / name).is_dir()


def fetch(name: str, data_dir: str | Path, *, progress: Progress | None = None) -> Path:
    """Return data_dir / name, downloading the data set where it is not there yet.

    The archive comes from the official site; ml-100k, where that gives no answer, from the recbole
    package through pip. Digest and counts are checked before the folder appears, in one step.
    Raises UsageError for an unknown name, DataError where nothing can be had or it is not what was published.
    """
    if name not in PUBLISHED:
        raise UsageError(f"data set {name!r} cannot be fetched; expected one of {', '.join(PUBLISHED)}")
    target = Path(data_dir) / name
    if target.is_dir():
        return _check_present(target)
    if target.exists():
        raise DataError(f"{target}: is a file where the folder of a data set belongs; move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    tell = progress or (lambda what, done, total: None)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as temporary:
        folder = Path(temporary) / name
        _obtain(name, folder, Path(temporary), tell)
        tell("checking", 0, None)
        _check_counts(folder, name)
        try:
            folder.replace(target)
        except OSError:
            if not target.is_dir():  # else another fetch was quicker; its folder was checked, too
                raise
    return target


def _check_present(target: Path) -> Path:
    from embedstore.loaders import detect

    try:
        detect(target)
    except EmbedstoreError as error:
        raise DataError(f"{target}: is there but is no data set; move it away to fetch it again") from error
    return target


def _remove_stale(folder: Path) -> None:
    for left in folder.glob(".fetch-*"):
        if left.is_dir() and time.time() - left.stat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)


def _obtain(name: str, folder: Path, temporary: Path, tell: Progress) -> None:
    published = PUBLISHED[name]
    archive = temporary / published.archive
    try:
        _download(f"{OFFICIAL}/{published.archive}", archive, tell)
    except DataError as no_answer:
        if name != "ml-100k":
            raise
        tell("no answer from the official site; taking ml-100k from the recbole package", 0, None)
        wheel = _download_wheel(temporary, no_answer)
        _check_digest(wheel, RECBOLE_SHA256)
        inside = "recbole/dataset_example/ml-100k/ml-100k"
        _extract(wheel, [f"{inside}.inter", f"{inside}.item"], folder)
        return
    if published.sha256 is not None:
        _check_digest(archive, published.sha256)
    _extract(archive, published.files, folder)


def _download(url: str, path: Path, tell: Progress) -> None:
    """Write what is at url to path; DataError where there is no answer after a few attempts."""
    import httpx
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    def passing(error: BaseException) -> bool:
        if isinstance(error, httpx.HTTPStatusError):
            return error.response.status_code >= 500 or error.response.status_code == 429
        return isinstance(error, httpx.TransportError)

    try:
        for attempt in Retrying(
            retry=retry_if_exception(passing),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(0.5),
            reraise=True,
        ):
            with attempt:
                _stream(url, path, tell)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{url}: no answer ({reason}); check the network and try again") from error


def _stream(url: str, path: Path, tell: Progress) -> None:
    import httpx

    with httpx.stream("GET", url, timeout=TIMEOUT, follow_redirects=True) as answer:
        answer.raise_for_status()
        size = answer.headers.get("content-length", "")
        total = int(size) if size.isdigit() else None
        done = 0
        with open(path, "wb") as file:
            for piece in answer.iter_bytes(1 << 20):
                file.write(piece)
                done += len(piece)
                tell(path.name, done, total)


def _download_wheel(folder: Path, no_answer: DataError) -> Path:
    """Return the wheel of recbole as pip, with its own settings, downloads it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), RECBOLE]
    result = run_program(command)
    wheels = list(folder.glob("recbole-*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        reason = lines[-1].strip() if lines else f"exit code {result.returncode}"
        raise DataError(
            f"ml-100k cannot be had: {no_answer}; and pip download {RECBOLE} failed ({reason})"
        ) from no_answer
    return wheels[0]


def _check_digest(path: Path, expected: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise DataError(
            f"{path.name} is not the published file: its sha256 is {found[:12]}…, expected {expected[:12]}…"
        )


def _extract(archive: Path, files: Sequence[str], folder: Path) -> None:
    """Copy the wanted files of a zip archive into folder, under their last names only."""
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                inside = Path(entry.filename)
                wanted = any(inside.match(pattern) for pattern in files)
                if entry.is_dir() or not wanted or "__MACOSX" in inside.parts:
                    continue
                if entry.file_size > LARGEST:  # no more than that is ever read of it
                    raise DataError(f"{archive.name} holds {inside.name} of {entry.file_size:,} bytes")
                with opened.open(entry) as source, open(folder / inside.name, "wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{archive.name} is damaged ({error}); try again") from error


def _check_counts(folder: Path, name: str) -> None:
    from embedstore.loaders import load

    published, dataset = PUBLISHED[name], load(folder, name=name)
    counts: Mapping[str, tuple[int, int]] = {
        "users": (len(dataset.users), published.n_users),
        "movies": (len(dataset.movies), published.n_movies),
        "ratings": (dataset.n_ratings + dataset.n_duplicates, published.n_ratings),
    }
    for what, (found, expected) in counts.items():
        if found != expected:
            raise DataError(f"{name} has {found:,} {what}, expected {expected:,} as published; try again")
