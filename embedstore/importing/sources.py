"""V_j and psi out of what a person has: arrays, or a model and the declaration of its inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedstore.data.dataset import Movie, MovieTable, labels_of
from embedstore.data.features import Rows, Vocabulary
from embedstore.errors import NotFoundError, UsageError
from embedstore.importing.vectors import check_ids, read_ids, read_vectors, refuse_pickle
from embedstore.runs.declaration import (
    EXACT_BITS,
    Declaration,
    InputRule,
    parse_declaration,
    read_declaration,
)
from embedstore.runs.files import release
from embedstore.runs.tower import AdditiveTower, DenseTower, MovieFeature

if TYPE_CHECKING:
    from embedstore.importing.model import Matrix, TowerModel
    from embedstore.importing.towers import Proven
    from embedstore.runs.served import ServedTower

__all__ = ["IN_MODEL", "Movies", "Source", "of_arrays", "of_model"]

Array = npt.NDArray[Any]
Say = Callable[[str], None]

IN_MODEL = "model:"  # of a source of vectors: a weight of the tower's model
_PADDING = 2  # rows that a table may have beyond its vocabulary
_SERVED_BY = {"onnx": "onnxruntime", "keras": "tensorflow", "saved_model": "tensorflow"}


@dataclass(frozen=True)
class Movies:
    """The movies that are imported: ids ascending, as a run has them.

    order: where each of them stands among the ids as they were given, (n_movies,). table: titles, years
    and genres, of some of them.
    """

    ids: Vocabulary
    order: Rows
    table: MovieTable

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, given: Matrix) -> Matrix:
        """Return given, a row per id in the order that they were given, in the order of a run."""
        if (self.order[1:] > self.order[:-1]).all():
            return given
        rows = given[self.order]
        release(given)
        return rows

    def __iter__(self) -> Iterator[Movie]:
        nothing = Movie()
        return (self.table.get(movie_id, nothing) for movie_id in self.ids.values.tolist())

    def labels(self, feature: str) -> list[str]:
        """Return the genres or years of all movies, ascending."""
        return sorted({label for movie in self for label in labels_of(feature, movie)})


@dataclass(frozen=True)
class Source:
    """What is sealed: movie vectors in the order of a run, and the tower; notes: what a person should know.

    declaration, difference: see importing.Imported. served_by: what computes psi. bias: the last dimension is
    a bias of the movies.
    """

    movie_vectors: Matrix
    tower: AdditiveTower | DenseTower | ServedTower | None
    served_by: str | None
    notes: Sequence[str] = ()
    declaration: Declaration | None = None
    difference: float | None = None
    named: Mapping[str, Any] = field(default_factory=dict)
    bias: bool = False


def of_arrays(movies: Movies, vectors: Array | str | Path | None, tower: Array | str | Path | None) -> Source:
    """Return V of vectors, and the tower that is a mean of tower's rows, or none.

    Raises what read_vectors raises, and UsageError where their shapes do not fit.
    """
    if vectors is None or _in_model(vectors):
        raise UsageError(
            "V is in no model without one: give its file with --vectors, or the model with --tower"
        )
    found = read_vectors(vectors)
    check_ids(movies.ids.values, *found.array.shape)
    if tower is None:
        return Source(movies.rows(found.array), None, None, found.notes, named={"vectors": _named(vectors)})
    history = read_vectors(tower, name="the array of the tower")
    if history.array.shape != found.array.shape:
        raise UsageError(
            f"{history.name} has shape {history.array.shape} and V {found.array.shape}; expected one row per "
            "movie, as wide as V, whose mean over a history is psi"
        )
    return Source(
        movies.rows(found.array),
        AdditiveTower(movies.rows(history.array)),
        "numpy",
        [*found.notes, *history.notes],
        named={"vectors": _named(vectors), "tower": _named(tower)},
    )


@contextmanager
def of_model(
    movies: Movies,
    vectors: Array | str | Path | None,
    tower: Any,
    *,
    declaration: Declaration | str | Path | None,
    output: str | None,
    signature: str | None,
    say: Say,
) -> Iterator[Source]:
    """Yield V and the tower of a model, whose file is there within the block.

    Raises UsageError, NotFoundError and DataError where it does not become a tower; see import_run.
    """
    from embedstore.importing.infer import infer
    from embedstore.importing.towers import prove, sided
    from embedstore.runs.served import FILES, ServedTower, open_session

    say("opening the model")
    model = open_model(tower, output=output, signature=signature)
    if isinstance(declaration, str | Path):
        home, declaration = Path(declaration).parent, read_declaration(Path(declaration))
    else:
        home = Path()
    told: list[str] = []
    inferred = declaration is None
    if declaration is None:
        declaration = infer(model.inputs, model.tables, n_movies=len(movies), labels=movies.labels)
        told += [
            f"what the columns of {rule.name!r} hold cannot be told from the model: 1 was taken for every "
            f"{rule.feature[:-1]} of the history; where they were divided, declare values as mean or l2"
            for rule in declaration.inputs
            if rule.form == "multi_hot"
        ]
    declaration = parse_declaration(declaration.to_json().encode(), name="the declaration")
    rules = declaration.inputs
    places, size = _places(movies, declaration.vocabulary, home)
    _check_inputs(model, rules, size)
    _check_ids_fit(movies, rules)
    in_vocabulary = places[np.argsort(movies.order)]  # as the ids were given
    in_vocabulary = in_vocabulary[in_vocabulary >= 0]
    if (vectors is None or _in_model(vectors)) and (in_vocabulary[1:] < in_vocabulary[:-1]).any():
        raise UsageError(
            "V is in the model, whose vocabulary has the movies in another order; give --movies or --ids in "
            "the order of the vocabulary, or V as a file"
        )
    matrix, bias, name, notes = _vectors_of(model, vectors, movies, rules)
    with tempfile.TemporaryDirectory(prefix="embedstore-import-") as folder:
        model.save(Path(folder))
        path = Path(folder) / Path(FILES[model.kind]).name
        served = ServedTower(
            session=open_session(model.kind, path, output=output, signature=signature),
            kind=model.kind,
            rules=rules,
            positions=places,
            features={rule.feature: _feature(movies, rule) for rule in rules if rule.labels},
            ids=movies.ids.values,
            width=matrix.shape[1],
            constant=bias is not None,
            model=path,
            output=output,
            signature=signature,
        )
        proven = prove(served, lambda: model.plain(rules), say)
        if inferred and proven.tower is served:
            told += [
                f"psi depends on which side of {name!r} the padding stands, and the model does not tell: the "
                "right was taken; where it is the left, as Keras' pad_sequences has it, declare side as left"
                for name in sided(served)
            ]
        yield Source(
            matrix if bias is None else np.column_stack([matrix, bias]),
            proven.tower,
            _SERVED_BY[model.kind] if proven.tower is served else "numpy",
            [*model.notes, *told, *notes, *_of_proof(proven, served)],
            declaration,
            proven.difference,
            {"vectors": name, "tower": _named(tower)},
            bias=bias is not None,
        )


def _of_proof(proven: Proven, served: ServedTower) -> Iterator[str]:
    """Yield what a person should know of the tower that was proven, beside its difference."""
    from embedstore.importing.towers import TOLERANCE

    if proven.refused is not None:
        yield (
            f"the weights look like a plain stack, but that is {proven.refused:.0e} off the model, of the "
            f"largest value of a dimension, more than {TOLERANCE:.0e}: the model itself serves psi"
        )
    for feature in proven.silent:
        done = "can have none" if proven.tower is served else "takes zeros in place of its mean"
        yield f"the model answers NaN where no movie of a history has {feature}: this run {done}"
    if proven.limit is not None:
        yield (
            f"psi is a mean of one vector per movie, but only of the newest {proven.limit}, since the input "
            "of the model has no room for more: with an input of any length Qdrant could compute it"
        )


def open_model(tower: Any, *, output: str | None, signature: str | None) -> TowerModel:
    """Return the model of a file, a folder, a living keras.Model or the bytes of an ONNX model.

    Raises NotFoundError where there is none, UsageError where it is of no kind that can be read.
    """
    kind = ""
    if isinstance(tower, str | Path):
        refuse_pickle(str(tower))
        kind = Path(tower).suffix.lower()
        if not Path(tower).exists():
            raise NotFoundError(f"model {tower}: there is no such file or folder; check the path")
    if isinstance(tower, bytes) or kind == ".onnx":
        from embedstore.importing.onnx_model import OnnxModel

        return OnnxModel(tower if isinstance(tower, bytes) else Path(tower), output=output)
    if kind not in ("", ".keras", ".h5", ".hdf5") and not Path(tower).is_dir():
        raise UsageError(f"{tower} is no model: expected .onnx, .keras or the folder of a SavedModel")
    from embedstore.importing.keras_model import open_keras
    from embedstore.runs.served import require

    require("keras")

    return open_keras(Path(tower) if isinstance(tower, str) else tower, output=output, signature=signature)


def _feature(movies: Movies, rule: InputRule) -> MovieFeature:
    """Return the labels of every movie as rows of rule.labels, -1 where a label is none of them.

    Raises UsageError where no movie has one of them.
    """
    row = {label: number for number, label in enumerate(rule.labels)}
    values = [[row.get(label, -1) for label in labels_of(rule.feature, movie)] for movie in movies]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in values])]).astype(np.int64)
    flat = np.array([value for part in values for value in part], dtype=np.int64)
    if not (flat >= 0).any():
        raise UsageError(
            f"no movie has one of the {len(rule.labels)} {rule.feature} that input {rule.name!r} takes; give "
            f"movies with {rule.feature} by --movies, in the words of the labels"
        )
    return MovieFeature(rule.feature, offsets, flat, rule.labels)


def _places(movies: Movies, vocabulary: str, home: Path) -> tuple[Rows, int]:
    """Return the place of every movie in a vocabulary, -1 where it has none, and how long that is."""
    if vocabulary == "movies":
        return movies.order.astype(np.int64), len(movies)
    if vocabulary == "ascending":
        return np.arange(len(movies)), len(movies)
    ids = read_ids(home / vocabulary)
    known = Vocabulary.of(ids)
    if len(known) < ids.size:
        raise UsageError(
            f"{home / vocabulary} has an id twice; expected each once, in the order of the indices"
        )
    rows = known.rows(
        movies.ids.values if known.integer == movies.ids.integer else movies.ids.values.tolist()
    )
    order = np.argsort(ids, kind="stable")  # of the rows of known
    places = np.where(rows >= 0, order[rows], -1)
    if not (places >= 0).any():
        raise UsageError(f"{home / vocabulary} has none of the {len(movies):,} movies; expected their ids")
    return places, int(ids.size)


def _check_inputs(model: TowerModel, rules: Sequence[InputRule], size: int) -> None:
    """Raise UsageError where rules are not of the model's inputs, or have other indices than these take.

    size: of the vocabulary of movies.
    """
    given, asked = {rule.name for rule in rules}, {found.name for found in model.inputs}
    for name in sorted(given ^ asked):
        if name in asked:
            raise UsageError(f"the model needs {name!r} and the declaration has no rule for it; add one")
        raise UsageError(f"the declaration has a rule for {name!r}; the model has {', '.join(sorted(asked))}")
    shapes = {found.name: found.shape for found in model.inputs}
    for rule in rules:
        key = "size" if rule.form == "multi_hot" else "length"
        wide, told = shapes[rule.name][1:2], getattr(rule, key)
        if rule.form in ("multi_hot", "indices", "ids") and wide not in ((), (None,), (told,)):
            raise UsageError(
                f"input {rule.name!r} takes {wide[0]:,} values a user, the declaration has {key} "
                f"{'null' if told is None else f'{told:,}'} for its {rule.form}; expected {key} {wide[0]}"
            )
        if rule.form not in ("indices", "multi_hot"):
            continue
        table = model.tables.get(rule.name)
        n = size if rule.feature == "movies" else len(rule.labels)
        others = [rule.unknown] if rule.unknown is not None else []
        if rule.form == "indices" and isinstance(rule.padding, int):
            others.append(rule.padding)
        expected = max(rule.first + n, *(other + 1 for other in others), 0)
        room = rule.size if rule.form == "multi_hot" else 1 << EXACT_BITS[rule.dtype]
        if room is not None and expected > room:
            raise UsageError(
                f"input {rule.name!r} has indices up to {expected - 1:,}, which its "
                f"{'size' if rule.form == 'multi_hot' else 'dtype'} cannot hold (below {room:,}); correct it"
            )
        if table not in (None, expected):
            raise UsageError(
                f"input {rule.name!r} goes into a table of {table:,} rows, the declaration has indices up to "
                f"{expected - 1:,}: the vocabulary of {n:,} {rule.feature} is "
                f"{'shorter' if expected < table else 'longer'} than the table, correct it or its first"
            )


def _check_ids_fit(movies: Movies, rules: Sequence[InputRule]) -> None:
    """Raise UsageError where the ids of the movies are no numbers of the input that takes them."""
    for rule in rules:
        if rule.form != "ids" or rule.dtype == "str":
            continue
        highest = int(movies.ids.values[-1]) if movies.ids.integer else None
        if highest is None or highest >= 1 << EXACT_BITS[rule.dtype]:
            found = "text" if highest is None else f"{highest:,}"
            raise UsageError(
                f"input {rule.name!r} takes ids as {rule.dtype}, and the movies have {found}; declare "
                "indices, and the vocabulary that they are of"
            )


def _vectors_of(
    model: TowerModel, vectors: Array | str | Path | None, movies: Movies, rules: Sequence[InputRule]
) -> tuple[Matrix, Matrix | None, str, list[str]]:
    """Return V and its bias in the order of a run, where it was found, and what to say of it."""
    if vectors is not None and not _in_model(vectors):
        found = read_vectors(vectors)
        check_ids(movies.ids.values, *found.array.shape)
        _check_width(found.array.shape[1], model, found.name)
        return movies.rows(found.array), None, _named(vectors), list(found.notes)
    shapes = model.candidates()
    n = len(movies)
    name = _only_one(shapes, n, model.width) if vectors is None else str(vectors).removeprefix(IN_MODEL)
    first, second = shapes.get(name, (n, n))
    sides = ((first, second), (second, first))
    fits = (rows for rows, width in sides if n <= rows <= n + _PADDING and model.width in (None, width))
    rows = next(fits, n)
    matrix, bias = model.matrix(name, rows)
    matrix = read_vectors(matrix, name=name).array
    first = next(
        (rule.first for rule in rules if rule.feature == "movies" and rule.form in ("indices", "multi_hot")),
        rows - n,
    )
    notes = []
    if vectors is None:
        notes.append(
            f"V is {name}, the only weight of its shape in the model; if it is not, name a file or another"
        )
    if rows > n:
        matrix = matrix[first : first + n]
        bias = None if bias is None else bias[first : first + n]
        notes.append(f"V is rows {first} to {first + n - 1} of {name}: what is before or after is no movie")
    if len(matrix) != n:
        raise UsageError(
            f"{name} has {rows:,} rows, of which {n:,} from {first} on are no movies; give V as a file"
        )
    _check_width(matrix.shape[1], model, name)
    if bias is not None:
        notes.append(
            f"the bias of {name} is one more dimension of V, of which psi is 1: scores are the logits"
        )
        bias = movies.rows(bias)
    return movies.rows(matrix), bias, f"{IN_MODEL}{name}", notes


def _in_model(vectors: Array | str | Path) -> bool:
    return isinstance(vectors, str) and vectors.startswith(IN_MODEL)


def _only_one(shapes: Mapping[str, tuple[int, int]], n: int, width: int | None) -> str:
    """Return the name of the only weight that may be V. Raises UsageError where it cannot be told."""
    fitting = [
        name
        for name, (first, second) in shapes.items()
        if (n <= first <= n + _PADDING and width in (None, second))
        or (n <= second <= n + _PADDING and width in (None, first))
    ]
    if len(fitting) == 1:
        return fitting[0]
    if width is not None and n <= width <= n + _PADDING:
        raise UsageError(
            f"the model gives {width:,} numbers, the scores of all movies rather than psi; name the layer "
            "before with --output, and the layer of the scores with --vectors model:NAME"
        )
    said = "no weight" if not fitting else f"{len(fitting)} weights ({', '.join(fitting[:5])})"
    wanted = f"({n:,}, {width or 'width of psi'})"
    raise UsageError(
        f"the model has {said} of the shape of V, {wanted}; name it with --vectors model:NAME or a file"
    )


def _check_width(width: int, model: TowerModel, name: str) -> None:
    if model.width is not None and model.width != width:
        raise UsageError(
            f"{name} has width {width} and psi of the model {model.width}; expected the same, name the layer "
            "or output that is psi with --output"
        )


def _named(source: Any) -> str:
    """Return what a manifest calls a source: its file without the folder."""
    return Path(str(source)).name if isinstance(source, str | Path) else type(source).__name__
