"""A sealed run, opened for reading."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from io import FileIO
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Movie
from embedstore.data.features import Ids, MovieId, Rows, Vocabulary
from embedstore.errors import NotFoundError, RunError, UsageError
from embedstore.runs.consent import allowed
from embedstore.runs.declaration import rules_of
from embedstore.runs.files import content_of, map_array, open_file, parse_json, release, release_map
from embedstore.runs.manifest import Manifest, read_manifest
from embedstore.runs.served import FILES, NAMES, ServedTower, Session, model_files, open_session, require
from embedstore.runs.tower import (
    AdditiveTower,
    DenseTower,
    MovieFeature,
    TowerInput,
    TowerLayer,
    UserTower,
)

__all__ = ["Catalog", "Run"]

_FEATURES = ("movies", "genres", "years")
_POOLINGS = ("mean", "l2", "sum")
_ACTIVATIONS = ("linear", "tanh", "relu")
_FIELDS = {"movie_id", "title", "year", "genres", "popularity"}
_LONGEST_LINE = 64 << 10  # of movies.jsonl
_LARGEST = 2**63
_LINES = 1000  # read at a time where all are read
_BLOCK = 1 << 20
_MOST_POSITIONS = 1 << 31  # of a vocabulary


class Catalog(Sequence[Movie]):
    """The movies of movies.jsonl, one per line, each parsed when it is asked for.

    Holds where the lines begin, 8 bytes a movie, and maps the file, which may be closed then. damaged
    makes the error that is raised where a line does not describe a movie.
    """

    def __init__(self, file: FileIO, damaged: Callable[[str], RunError]) -> None:
        self._damaged = damaged
        try:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (ValueError, OSError) as error:
            raise damaged(f"cannot be mapped ({error})") from error
        bounds = [np.zeros(1, np.int64)]
        for start in range(0, len(self._map), _BLOCK):
            block = np.frombuffer(self._map[start : start + _BLOCK], np.uint8)
            bounds.append(np.flatnonzero(block == ord("\n")) + (start + 1))
            self.release()
        self._bounds = np.concatenate(bounds)
        if self._bounds[-1] != len(self._map):
            raise damaged("does not end with a whole line")
        if int(np.diff(self._bounds).max()) > _LONGEST_LINE:
            raise damaged(f"has a line of more than {_LONGEST_LINE:,} bytes")

    def __len__(self) -> int:
        return int(self._bounds.size - 1)

    @overload
    def __getitem__(self, row: int) -> Movie: ...
    @overload
    def __getitem__(self, row: slice) -> list[Movie]: ...
    def __getitem__(self, row: int | slice) -> Movie | list[Movie]:
        if isinstance(row, slice):
            return [_movie(line) for line in self.lines(np.arange(*row.indices(len(self)), dtype=np.int64))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"movie row {row} is outside of 0 to {len(self) - 1}")
        return _movie(self.lines(np.array([row % len(self)]))[0])

    def __iter__(self) -> Iterator[Movie]:
        for start in range(0, len(self), _LINES):
            yield from self[start : start + _LINES]

    def lines(self, rows: Rows) -> list[dict[str, Any]]:
        """Return what the file says of the movies at rows: movie_id, title, year, genres, popularity.

        Of a movie whose vectors are predicted, cold is true; other lines do not have it.
        """
        bounds = list(zip(self._bounds[rows].tolist(), self._bounds[rows + 1].tolist(), strict=True))
        if rows.size and bool(np.all(np.diff(rows) == 1)):
            text = self._map[bounds[0][0] : bounds[-1][1] - 1].replace(b"\n", b",")
        else:
            text = b",".join([self._map[start:end] for start, end in bounds])
        try:
            lines: list[dict[str, Any]] = json.loads(f"[{text.decode()}]")  # faster than one by one
            right = len(lines) == len(bounds) and all(map(_is_movie, lines))
            if b"\\u" in text:
                json.dumps(lines, ensure_ascii=False).encode()  # raises for half a character
        except (ValueError, AttributeError, RecursionError) as error:
            raise self._damaged(f"does not hold one movie per line ({error!r})") from error
        if not right:
            raise self._damaged("does not hold one movie per line")
        return lines

    def release(self) -> None:
        """See Run.release."""
        release_map(self._map)


class Run:
    """A sealed run folder: the movie vectors, the user tower and the histories of one training.

    Nothing is read until it is asked for, and every file's sha256 is checked before its first
    use. RunError names the file that is missing, damaged or of the wrong shape.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._checked: dict[str, tuple[int, ...]] = {}  # what a file was when its digest was right

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Open the run folder path. Raises RunError where it is unfinished or damaged."""
        folder = Path(path)
        if not folder.exists():
            raise NotFoundError(f"no run folder {folder}; list them with `embedstore runs list`")
        folder = folder.resolve()
        return cls(folder, read_manifest(folder))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def moved(self, path: Path) -> Run:
        """Return this run with its files in the folder path."""
        return Run(path, self.manifest)

    @property
    def run_id(self) -> str:
        return self.manifest.run_id

    @property
    def reference(self) -> str:
        """What find_run takes for this run; the end of the name of its collection."""
        return self.manifest.reference

    @property
    def embedding_dim(self) -> int:
        return self.manifest.embedding_dim

    @property
    def additive(self) -> bool:
        """Whether psi(X) is the mean of one history vector per movie."""
        return self.manifest.tower == "additive"

    @cached_property
    def movies(self) -> Vocabulary:
        """The movie ids in the order of the vectors' rows."""
        return self._vocabulary("movie_ids.npy")

    @cached_property
    def movie_vectors(self) -> npt.NDArray[np.float32]:
        """V_j, shape (n_movies, embedding_dim), float32, memory-mapped."""
        return self._matrix("movie_vectors.npy", (len(self.movies), self.embedding_dim))

    @cached_property
    def history_vectors(self) -> npt.NDArray[np.float32] | None:
        """E_j, shape (n_movies, embedding_dim), float32, memory-mapped; None unless additive."""
        if not self.additive:
            return None
        return self._matrix("history_vectors.npy", (len(self.movies), self.embedding_dim))

    @cached_property
    def tower(self) -> UserTower:
        """psi. Raises RunError where the run has none."""
        if self.history_vectors is not None:
            return AdditiveTower(self.history_vectors)
        self.check_tower()
        spec = self._tower_json()
        return self._served_tower(spec) if str(spec.get("kind")) in FILES else self._dense_tower(spec)

    def check_tower(self) -> None:
        """Raise RunError where the run has no tower, and says what works without."""
        if self.manifest.tower == "none":
            raise RunError(
                f"run {self.run_id} has no user tower to make psi(X) of a history; `embedstore query "
                "--vector` takes one made elsewhere, and `embedstore similar` works as always"
            )

    @cached_property
    def users(self) -> Vocabulary:
        """The ids of the users with a history in this run."""
        return self._vocabulary("histories/user_ids.npy")

    def history(self, user_id: MovieId) -> Rows:
        """Return the movie rows that a known user rated, oldest first.

        Raises NotFoundError where the user is unknown.
        """
        row = self.users.row(user_id)
        if row < 0:
            raise self.unknown_user(user_id)
        offsets, rows = self._histories
        start, stop = int(offsets[row]), int(offsets[row + 1])
        if not 0 <= start <= stop <= rows.size:
            raise self._damaged("histories/offsets.npy", "points outside of histories/movie_rows.npy")
        history = np.asarray(rows[start:stop], dtype=np.int64)
        if not _within(history, len(self.movies)):
            raise self._damaged("histories/movie_rows.npy", "points outside of the movies")
        return history

    def unknown_user(self, user_id: object) -> NotFoundError:
        """Return the error for a user who is not among users."""
        if restored_from := self.manifest.config.get("restored_from"):
            return NotFoundError(
                f"run {self.run_id} was restored from {restored_from} and knows no users; give the movies "
                "they rated with --history, or put the run's own folder in its place"
            )
        return NotFoundError(
            f"user {user_id} is not among the {len(self.users)} users of run {self.run_id}; "
            "give the movies they rated with --history"
        )

    @cached_property
    def _histories(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Where the history of every user begins among the movie rows of all, and these, memory-mapped."""
        offsets = self._array("histories/offsets.npy", ("int64",))
        if offsets.shape != (len(self.users) + 1,):
            raise self._damaged("histories/offsets.npy", f"has shape {offsets.shape}")
        return offsets, self._array("histories/movie_rows.npy", ("int32",))

    @cached_property
    def catalog(self) -> Catalog:
        """Title, year, genres and cold of every movie, in the order of the vectors' rows."""
        name = "movies.jsonl"
        with self._open(name) as file:
            catalog = Catalog(file, partial(self._damaged, name))
        if len(catalog) != len(self.movies):
            raise self._damaged(name, f"has {len(catalog)} lines for {len(self.movies)} vectors")
        return catalog

    @cached_property
    def popularity(self) -> npt.NDArray[np.int64]:
        """The number of ratings of every movie, shape (n_movies,)."""
        counts = np.empty(len(self.movies), np.int64)
        for start in range(0, counts.size, _LINES):
            rows = np.arange(start, min(start + _LINES, counts.size))
            counts[rows] = [line["popularity"] for line in self.catalog.lines(rows)]
        return counts

    @cached_property
    def cold(self) -> npt.NDArray[np.bool_]:
        """Whether the vectors of a movie are predicted, since nobody rated it, shape (n_movies,)."""
        return np.fromiter((movie.cold for movie in self.catalog), np.bool_, len(self.movies))

    def release(self) -> None:
        """Give the memory of the mapped vectors and movies back; they are mapped again where they are used.

        For who reads all of them: what was read counts as memory of the process until then.
        """
        for name in ("movie_vectors", "history_vectors"):
            if isinstance(mapped := self.__dict__.get(name), np.ndarray):
                release(mapped)
        if "catalog" in self.__dict__:
            self.catalog.release()

    @cached_property
    def fingerprint(self) -> str:
        """The digest of all that goes into a collection: ids, vectors, payload, run id and scaling.

        Taken from the files' digests, which are checked first.
        """
        for name in ("movie_ids.npy", "movie_vectors.npy", "movies.jsonl"):
            self._open(name).close()
        if self.additive:
            self._open("history_vectors.npy").close()
        return self.manifest.fingerprint

    def verify(self, *, size_alone: bool = False) -> None:
        """Check the size and sha256 of every file. Raises RunError that names the first difference."""
        self._checked.clear()
        for name in self.manifest.files:
            self._open(name, size_alone=size_alone).close()

    def _tower_json(self) -> dict[str, Any]:
        name = "tower.json"
        with self._open(name) as file:
            try:
                spec = parse_json(content_of(file))
            except ValueError as error:
                raise self._damaged(name, f"is not a tower ({error!r})") from error
        if not isinstance(spec, dict):
            raise self._damaged(name, f"is not a tower, but a {type(spec).__name__}")
        return spec

    def _served_tower(self, spec: dict[str, Any]) -> ServedTower:
        name, kind, n = "tower.json", str(spec["kind"]), len(self.movies)
        output, signature, constant = spec.get("output"), spec.get("signature"), spec.get("constant")
        if not (
            isinstance(output, str | None)
            and isinstance(signature, str | None)
            and isinstance(constant, bool)
        ):
            raise self._damaged(name, "describes a tower that this embedstore does not know")
        try:
            rules = rules_of(spec.get("inputs"))
        except ValueError as error:
            raise self._damaged(name, f"is not a tower ({error})") from error
        positions = self._array("tower.positions.npy", ("int64",))
        if positions.shape != (n,) or not _within(positions + 1, _MOST_POSITIONS):
            raise self._damaged("tower.positions.npy", f"does not hold a place for each of {n} movies")
        features: dict[str, MovieFeature] = {
            rule.feature: self._feature(rule.feature, rule.labels, len(rule.labels), least=-1)
            for rule in rules
            if rule.labels
        }
        files = model_files(self.manifest.files, kind)
        n_bytes = sum(self.manifest.files[found]["bytes"] for found in files)
        for rule in rules:
            highest = len(rule.labels) - 1 if rule.labels else int(positions.max(initial=0))
            columns = max(rule.first + highest, rule.unknown or 0) + 1
            # Each is a row of a table in the model, of a byte at least.
            if rule.form == "multi_hot" and not columns <= (rule.size or 0) <= n_bytes:
                raise self._damaged(name, f"describes an input {rule.name!r} that its model cannot have")
        return ServedTower(
            session=self._session(kind, files, output, signature),
            kind=kind,
            rules=rules,
            positions=positions,
            features=features,
            ids=self.movies.values,
            width=self.embedding_dim - constant,
            constant=constant,
            model=self.path / FILES[kind],
            output=output,
            signature=signature,
        )

    def _session(self, kind: str, files: list[str], output: str | None, signature: str | None) -> Session:
        """Return the model of the tower. What is loaded is a copy of what was checked, and nothing else."""
        require(kind)
        try:
            if kind == "onnx":
                with self._open(FILES[kind]) as file:
                    return open_session(kind, file.read(), output=output, signature=signature)
            if not allowed(self.manifest):
                raise RunError(
                    f"psi of run {self.run_id} is computed by its {NAMES[kind]}, which is a program; where "
                    f"you know whose it is, let it run with `embedstore runs allow {self.run_id}`"
                )
            with tempfile.TemporaryDirectory() as folder:
                for name in files:
                    (copied := Path(folder, name)).parent.mkdir(parents=True, exist_ok=True)
                    with self._open(name) as file, open(copied, "xb") as copy:
                        shutil.copyfileobj(file, copy)
                return open_session(kind, Path(folder, FILES[kind]), output=output, signature=signature)
        except UsageError as error:
            raise self._damaged(FILES[kind], f"is not a model of its tower.json: {error}") from error
        except OSError as error:
            raise RunError(f"the model of run {self.run_id} cannot be read: {error.strerror}") from error

    def _dense_tower(self, spec: dict[str, Any]) -> DenseTower:
        name = "tower.json"
        try:
            inputs = spec["inputs"]
            layers = spec["layers"]
            labels = spec.get("labels", {})
            known = (
                all(_known_input(part) for part in inputs)
                and all(layer["activation"] in _ACTIVATIONS for layer in layers)
                and all(isinstance(names, list) for names in labels.values())
                and isinstance(spec["constant"], bool)
                and bool(inputs)
            )
            biased = [bool(layer["bias"]) for layer in layers]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(name, f"is not a tower ({error!r})") from error
        if not known:
            raise self._damaged(name, "describes a tower that this embedstore does not know")
        tables = [
            TowerInput(
                part["feature"],
                self._matrix(f"tower.{part['feature']}.npy"),
                part["pooling"],
                part.get("half_life"),
                part.get("newest"),
            )
            for part in inputs
        ]
        features: dict[str, MovieFeature] = {
            part.feature: self._feature(part.feature, labels.get(part.feature, ()), len(part.table))
            for part in tables
            if part.feature != "movies"
        }
        for part in tables:
            if part.feature == "movies" and len(part.table) != len(self.movies):
                raise self._damaged(
                    "tower.movies.npy", f"has {len(part.table)} rows for {len(self.movies)} movies"
                )
        width = sum(table.table.shape[1] for table in tables)
        dense = []
        for number, layer in enumerate(layers):
            kernel = self._matrix(f"tower.kernel{number}.npy")
            bias = self._array(f"tower.bias{number}.npy", ("float32",)) if biased[number] else None
            if len(kernel) != width or (bias is not None and bias.shape != kernel.shape[1:]):
                raise self._damaged(
                    f"tower.kernel{number}.npy", f"has shape {kernel.shape} after width {width}"
                )
            width = kernel.shape[1]
            dense.append(TowerLayer(kernel=kernel, bias=bias, activation=layer["activation"]))
        tower = DenseTower(inputs=tables, layers=dense, constant=spec["constant"], features=features)
        if tower.embedding_dim != self.embedding_dim:
            raise self._damaged(name, f"has width {tower.embedding_dim}, the run has {self.embedding_dim}")
        return tower

    def _feature(self, feature: str, labels: Sequence[str], n_values: int, *, least: int = 0) -> MovieFeature:
        """Return what every movie has of feature: numbers from least on, and below n_values."""
        n, name = len(self.movies), f"tower.{feature}"
        offsets = self._array(f"{name}.offsets.npy", ("int64",))
        values = self._array(f"{name}.values.npy", ("int64",))
        if (
            offsets.shape != (n + 1,)
            or values.ndim != 1
            or int(offsets[0]) != 0
            or int(offsets[-1]) != values.size
            or bool((np.diff(offsets) < 0).any())
        ):
            raise self._damaged(f"{name}.offsets.npy", f"points outside of {name}.values.npy")
        if not _within(values - least, n_values - least):
            raise self._damaged(
                f"{name}.values.npy", f"points outside of the {n_values} {feature} of the tower"
            )
        return MovieFeature(feature, offsets, values, labels)

    def _vocabulary(self, name: str) -> Vocabulary:
        values: Ids = self._array(name, None)
        try:
            if values.dtype.kind == "U":
                "".join(values.tolist()).encode()  # what cannot be printed, or is no character
            return Vocabulary(values)
        except (ValueError, SystemError) as error:
            raise self._damaged(name, f"is not a vocabulary: {error}") from error

    def _matrix(self, name: str, shape: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        array = self._array(name, ("float32",))
        if array.ndim != 2 or (shape is not None and array.shape != shape):
            raise self._damaged(name, f"has shape {array.shape}, expected {shape or '(rows, width)'}")
        return array

    def _array(self, name: str, dtypes: tuple[str, ...] | None) -> npt.NDArray[Any]:
        with self._open(name) as file:
            try:
                array = map_array(file)
            except (ValueError, OSError) as error:
                raise self._damaged(name, f"is not an array file ({error})") from error
        if dtypes is not None and array.dtype.name not in dtypes:
            raise self._damaged(name, "does not hold the type of numbers that it should")
        return array

    def _open(self, name: str, *, size_alone: bool = False) -> FileIO:
        """Open a file of the run whose digest was checked, or its size alone."""
        entry = self.manifest.files.get(name)
        if entry is None:
            raise self._damaged(name, "is not in the manifest")
        try:
            file = open_file(self.path, name)
        except FileNotFoundError:
            raise self._damaged(name, "is missing") from None
        except (OSError, ValueError) as error:
            raise self._damaged(name, f"cannot be read ({getattr(error, 'strerror', error)})") from error
        try:
            found = os.fstat(file.fileno())
            if found.st_size != entry["bytes"]:
                raise self._damaged(name, f"has {found.st_size} bytes, the manifest says {entry['bytes']}")
            state = (found.st_dev, found.st_ino, found.st_mtime_ns)
            if not size_alone and self._checked.get(name) != state:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise self._damaged(name, "does not have the sha256 of the manifest")
                file.seek(0)
                self._checked[name] = state
        except OSError as error:
            file.close()
            raise self._damaged(name, f"cannot be read ({error.strerror})") from error
        except BaseException:
            file.close()
            raise
        return file

    def _damaged(self, name: str, what: str) -> RunError:
        return RunError(
            f"run {self.run_id} is damaged: {name} {what}; restore the folder {self.path} or remove it"
        )


def _known_input(part: dict[str, Any]) -> bool:
    half_life, newest = part.get("half_life"), part.get("newest")
    if newest is not None and not (type(newest) is int and newest > 0 and part["feature"] == "movies"):
        return False
    if half_life is None:
        return part["feature"] in _FEATURES and part["pooling"] in _POOLINGS
    decays = isinstance(half_life, float) and 0 < half_life < math.inf and newest is None
    return decays and (part["feature"], part["pooling"]) == ("movies", "mean")


def _is_movie(line: dict[str, Any]) -> bool:
    year, popularity = line.get("year", ""), line.get("popularity")
    return (
        line.keys() >= _FIELDS
        and type(line["movie_id"]) in (int, str)
        and (line["title"] is None or type(line["title"]) is str)
        and (year is None or (type(year) is int and -_LARGEST <= year < _LARGEST))
        and type(line["genres"]) is list
        and all(type(genre) is str for genre in line["genres"])
        and type(popularity) is int
        and 0 <= popularity < _LARGEST
        and type(line.get("cold", False)) is bool
    )


def _within(rows: npt.NDArray[Any], n: int) -> bool:
    """Whether every row is one of n."""
    return not rows.size or (int(rows.min()) >= 0 and int(rows.max()) < n)


def _movie(line: dict[str, Any]) -> Movie:
    genres = tuple(sys.intern(genre) for genre in line["genres"])
    return Movie(title=line["title"], year=line["year"], genres=genres, cold=line.get("cold", False))
