"""restore: a run, rebuilt from its collection alone."""

from __future__ import annotations

import tempfile
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Ids, Rows, Vocabulary
from embedstore.errors import VerificationError
from embedstore.runs.run import Run
from embedstore.runs.scratch import scratch_folder
from embedstore.runs.writer import (
    ADDITIVE,
    describe_run,
    ids_of,
    movie_line,
    run_folder,
    save_array,
    seal_run,
    write_json,
)
from embedstore.stores.base import Progress, Store
from embedstore.stores.contract import Metadata

__all__ = ["bring", "rebuild", "rebuilt"]

_LINE = ("movie_id", "title", "year", "genres", "popularity")


def rebuild(
    store: Store, name: str, metadata: Metadata, runs_dir: Path, *, progress: Progress | None = None
) -> Path:
    """Write and seal the run of a collection, without users, and without its tower unless additive.

    Reads the collection twice, a bounded number of points at a time. The folder appears when it is whole;
    see run_folder. Raises VerificationError where what was read does not have the fingerprint of the run,
    RunError where the folder exists or cannot be written.
    """
    with run_folder(runs_dir, metadata.run_id) as path:
        try:
            movies = Vocabulary(_movie_ids(store, name))
            n_ratings = _write_points(path, store, name, metadata, movies, progress)
        except (KeyError, TypeError, ValueError, OverflowError) as error:  # payloads of other hands
            raise _differs(name, metadata, f"holds points that no run has ({error!r})") from error
        save_array(path / "movie_ids.npy", movies.values)
        if metadata.tower == "additive":
            write_json(path / "tower.json", ADDITIVE)
        save_array(path / "histories/user_ids.npy", np.zeros(0, np.int64))
        save_array(path / "histories/offsets.npy", np.zeros(1, np.int64))
        save_array(path / "histories/movie_rows.npy", np.zeros(0, np.int32))
        told = {key: getattr(metadata, key) for key in ("debias", "origin", "measured_on")}
        manifest = describe_run(
            path,
            dataset={"n_users": 0, "n_movies": metadata.count, "n_ratings": n_ratings},
            config={"restored_from": name} | {key: value for key, value in told.items() if value is not None},
            embedding_dim=metadata.dim,
            tower=metadata.tower,
            metrics=metadata.metrics or {},
            git_commit=None,
        )
        if manifest.fingerprint != metadata.fingerprint:
            raise _differs(name, metadata, f"gives the fingerprint {manifest.fingerprint[:12]}")
        seal_run(path, manifest)
    return runs_dir / path.name


def rebuilt(store: Store, name: str, metadata: Metadata, *, progress: Progress | None = None) -> Run:
    """Return the run of a collection in a folder that goes with it; see rebuild. It may be debiased."""
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder(Path(tempfile.gettempdir())))
        run = Run.load(rebuild(store, name, metadata, folder, progress=progress))
        weakref.finalize(run, stack.pop_all().close)
    return run


def _movie_ids(store: Store, name: str) -> Ids:
    """Return the movie ids of a collection in ascending order."""
    found = [p["movie_id"] for batch in store.scroll(name, vectors=False) for p in batch.payloads]
    if any(isinstance(movie_id, str) for movie_id in found) != all(isinstance(i, str) for i in found):
        raise ValueError("ids of text among integers")
    return np.sort(ids_of(found))


def _write_points(
    path: Path, store: Store, name: str, metadata: Metadata, movies: Vocabulary, progress: Progress | None
) -> int:
    """Write vectors and lines of all points, each at the row of its movie; return the number of ratings."""
    n, read, n_ratings = len(movies), 0, 0
    starts, sizes = np.zeros(n, np.int64), np.zeros(n, np.int64)  # of the lines in unordered
    files = ("movie_vectors.npy", "history_vectors.npy")[: 2 if metadata.spec.additive else 1]
    with ExitStack() as stack:
        unordered = stack.enter_context(tempfile.TemporaryFile(dir=path))
        ordered = stack.enter_context(open(path / "movies.jsonl", "wb"))
        matrices = [stack.enter_context(open(path / file, "wb")) for file in files]
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, metadata.dim)}
        for matrix in matrices:
            np.lib.format.write_array_header_1_0(matrix, header)
        data = matrices[0].tell()
        for batch in store.scroll(name):
            rows = movies.rows([payload["movie_id"] for payload in batch.payloads])
            if (rows < 0).any():
                raise ValueError("points that were not there a moment ago")
            for matrix, vectors in zip(matrices, (batch.movie_vectors, batch.history_vectors), strict=False):
                if vectors is not None:
                    _write_rows(matrix, data, rows, vectors)
            for row, payload in zip(rows.tolist(), batch.payloads, strict=True):
                told = {key: payload[key] for key in _LINE}
                line = movie_line(**told, cold=payload.get("cold", False)).encode()
                starts[row], sizes[row] = unordered.tell(), len(line)
                unordered.write(line)
                n_ratings += payload["popularity"]
            read += len(batch)
            if progress is not None:
                progress("reading", read, n)
        for start, size in zip(starts, sizes, strict=True):
            unordered.seek(int(start))
            ordered.write(unordered.read(int(size)))
    return n_ratings


def _write_rows(file: BinaryIO, data: int, rows: Rows, vectors: npt.NDArray[np.float32]) -> None:
    """Write vectors at rows of the matrix that begins at byte data, neighbours at once."""
    for part in np.split(np.arange(rows.size), np.flatnonzero(np.diff(rows) != 1) + 1):
        file.seek(data + int(rows[part[0]]) * vectors[0].nbytes)
        file.write(vectors[part].tobytes())


def _differs(name: str, metadata: Metadata, what: str) -> VerificationError:
    return VerificationError(
        f"collection {name!r} {what}, expected the points of run {metadata.run_id} "
        f"(fingerprint {metadata.fingerprint[:12]}); repair it with `embedstore sync` where the run is"
    )


def bring(metadata: Metadata, runs_dir: Path) -> str:
    """Return what a person has to do who needs the folder of the run of a collection in runs_dir."""
    import shlex
    import socket

    wanted = f"copy the folder {metadata.run_id} to {runs_dir} from"
    if metadata.origin is None:
        return f"{wanted} the machine that trained it"
    host, _, path = metadata.origin.partition(":")
    here = host == socket.gethostname()
    if here and not Path(path).is_dir():
        return f"its folder was {path} and is gone: bring back a copy, or `embedstore rollback`"
    command = ["cp" if here else "scp", "-r", "--", path if here else metadata.origin, f"{runs_dir}/"]
    first = "" if runs_dir.is_dir() else f"{shlex.join(['mkdir', '-p', '--', str(runs_dir)])} && "
    return f"{wanted} where it was on {metadata.created_at[:10]}: `{first}{shlex.join(command)}`"
