"""From a model that was trained elsewhere to a sealed run.

Everything after it, sync, gates, query, evaluate, export, is the path of a run that was trained here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Dataset, MovieTable
from embedstore.data.features import Ids, MovieId, Vocabulary
from embedstore.errors import RunError, UsageError, VerificationError
from embedstore.importing.checks import Finding, check
from embedstore.importing.sources import Movies, Source, of_arrays, of_model
from embedstore.importing.vectors import check_ids, ids_given, is_array
from embedstore.runs.consent import allow, is_program
from embedstore.runs.declaration import Declaration
from embedstore.runs.manifest import read_manifest
from embedstore.runs.writer import Histories, RunContent, describe, movie_line, write_content
from embedstore.stores.contract import LARGEST_DIM

__all__ = ["Finding", "Imported", "SeriousError", "import_run"]

Array = npt.NDArray[Any]
Say = Callable[[str], None]


class SeriousError(VerificationError):
    """A finding stopped an import. declaration: of the model's inputs, None where there is no model."""

    def __init__(self, message: str, declaration: Declaration | None) -> None:
        super().__init__(message)
        self.declaration = declaration


@dataclass(frozen=True)
class Imported:
    """What an import sealed, and what it found.

    tower: additive, dense or none. served_by: what computes psi: numpy, onnxruntime, tensorflow, or None.
    difference: the largest of the NumPy tower from the model, of the largest value of its dimension, on
    1,000 random histories; None where there is no model or it serves itself.
    """

    path: str
    run_id: str
    tower: str
    served_by: str | None
    embedding_dim: int
    n_movies: int
    n_users: int
    declaration: Declaration | None = None
    difference: float | None = None
    findings: Sequence[Finding] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        declared = self.declaration
        return {
            "run_id": self.run_id,
            "path": self.path,
            "tower": self.tower,
            "served_by": self.served_by,
            "embedding_dim": self.embedding_dim,
            "n_movies": self.n_movies,
            "n_users": self.n_users,
            "declaration": None if declared is None else declared.to_dict(),
            "difference": self.difference,
            "findings": [finding.to_dict() for finding in self.findings],
            "metrics": dict(self.metrics),
        }


def import_run(
    vectors: Array | str | Path | None,
    movie_ids: Sequence[MovieId] | Ids,
    *,
    runs_dir: str | Path,
    movies: MovieTable | None = None,
    tower: Array | str | Path | Any | None = None,
    declaration: Declaration | str | Path | None = None,
    output: str | None = None,
    signature: str | None = None,
    ratings: Dataset | None = None,
    anyway: bool = False,
    progress: Say | None = None,
    run_id: str | None = None,
) -> Imported:
    """Seal a run in runs_dir from a model that was trained elsewhere, and return what was found.

    vectors: V_j, shape (n_movies, embedding_dim), one row for each of movie_ids, in their order: an array,
    FILE.npy, FILE.npz:NAME, or model:NAME, the layer, variable or initializer of the tower that holds them;
    None for the only weight of the tower that has their shape. A bias of that layer becomes one more
    dimension, of which psi is 1, so that scores are the model's logits.

    tower: psi. A Keras model, alive or as .keras or SavedModel, or an ONNX model, whose output is psi; an
    array, or .npy, of one row per movie whose mean over a history is psi; None for a run that cannot
    compute psi: similar and queries by vector work with it. Of a model, output names the one of several
    outputs, or the layer, that is psi, and signature that of a SavedModel.

    declaration: how a history becomes the model's inputs, see runs.declaration; None to infer it. A model
    that is a mean of one vector per movie, or a plain stack, becomes a tower in NumPy, equal to the model
    on 1,000 random histories; any other is copied into the run and serves psi itself.

    ratings: whose histories the run knows, and on which it is measured. movies: titles, years and genres.

    Raises UsageError, NotFoundError and DataError for what cannot be imported, SeriousError where the ids
    look like those of other rows, unless anyway. Nothing is written before all is well.
    """
    say = progress or (lambda _: None)
    ids = ids_given(movie_ids)
    check_ids(ids, ids.size)
    order = np.argsort(ids, kind="stable")  # a run has its movies in ascending order of ids
    known = Movies(Vocabulary(ids[order]), order, movies or {})
    with ExitStack() as stack:
        if tower is None or is_array(tower):
            source = of_arrays(known, vectors, tower)
        else:
            source = stack.enter_context(
                of_model(
                    known,
                    vectors,
                    tower,
                    declaration=declaration,
                    output=output,
                    signature=signature,
                    say=say,
                )
            )
        return _sealed(source, known, ratings, Path(runs_dir), anyway=anyway, say=say, run_id=run_id)


def _sealed(
    source: Source,
    movies: Movies,
    ratings: Dataset | None,
    runs_dir: Path,
    *,
    anyway: bool,
    say: Say,
    run_id: str | None,
) -> Imported:
    """Check what was found, and write the run."""
    width = source.movie_vectors.shape[1]
    if width > LARGEST_DIM:
        raise UsageError(f"V has width {width:,}, and Qdrant takes vectors of up to {LARGEST_DIM:,} numbers")
    say("checking the vectors" if ratings is None else "measuring the model on the ratings")
    checked = check(
        movies.ids, source.movie_vectors, source.tower, ratings, order=movies.order, bias=source.bias
    )
    serious = next((finding for finding in checked.findings if finding.serious), None)
    if serious is not None and not anyway:
        raise SeriousError(
            f"{serious.text}; nothing was imported, --anyway imports it as it is", source.declaration
        )
    say("writing the run")
    histories, popularity = _histories(movies.ids, ratings)
    content = RunContent(
        movie_ids=movies.ids.values,
        movie_lines=_lines(movies, popularity),
        movie_vectors=source.movie_vectors,
        tower=source.tower,
        histories=histories,
    )
    path = write_content(
        runs_dir,
        content,
        dataset={"n_users": 0, "n_movies": len(movies), "n_ratings": 0}
        if ratings is None
        else describe(ratings),
        config={"preset": "import", **source.named, "served_by": source.served_by, **checked.config},
        metrics=checked.metrics,
        run_id=run_id,
    )
    if is_program(manifest := read_manifest(path)):  # who imports a model has let it run
        with suppress(RunError):  # where it cannot be noted, a query says what to do
            allow(manifest)
    return Imported(
        path=str(path),
        run_id=path.name,
        tower=content.tower_kind,
        served_by=source.served_by,
        embedding_dim=int(content.movie_vectors.shape[1]),
        n_movies=len(movies),
        n_users=len(histories.user_ids),
        declaration=source.declaration,
        difference=source.difference,
        findings=[*(Finding("note", note) for note in source.notes), *checked.findings],
        metrics=checked.metrics,
    )


def _histories(movies: Vocabulary, ratings: Dataset | None) -> tuple[Histories, npt.NDArray[np.int64]]:
    """Return the histories of all users, of the movies that are imported, and how often each was rated."""
    if ratings is None:
        return Histories(), np.zeros(len(movies), np.int64)
    values = ratings.movies.values
    rows = movies.rows(values if movies.integer == ratings.movies.integer else values.tolist())
    rated = rows[ratings.movie_rows]
    known = ratings.histories.where(rated >= 0)
    kept = rated[rated >= 0]
    histories = Histories(ratings.users.values, known.offsets, kept.astype(np.int32))
    return histories, np.bincount(kept, minlength=len(movies))


def _lines(movies: Movies, popularity: npt.NDArray[np.int64]) -> Iterator[str]:
    told = zip(movies.ids.values.tolist(), movies, popularity.tolist(), strict=True)
    for movie_id, movie, n_ratings in told:
        yield movie_line(
            movie_id=movie_id,
            title=movie.title,
            year=movie.year,
            genres=movie.genres,
            popularity=n_ratings,
        )
