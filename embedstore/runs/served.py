"""psi computed by a model itself, from the file that it was trained into: by onnxruntime or TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from embedstore.data.features import Bags, Ids, Rows
from embedstore.errors import EmbedstoreError, RunError, UsageError
from embedstore.runs.declaration import InputRule
from embedstore.runs.encoding import encode, indices_of
from embedstore.runs.quiet import start_tensorflow
from embedstore.runs.tower import Matrix, MovieFeature, Terms, one_history

__all__ = [
    "FILES",
    "NAMES",
    "Kind",
    "ServedTower",
    "Session",
    "model_files",
    "open_session",
    "require",
    "session_of",
]

Kind = Literal["onnx", "keras", "saved_model"]
Array = npt.NDArray[Any]
Session = Callable[[Mapping[str, Array]], Matrix]
"""The inputs of a model by name, each (n_users, ...), to what it gives, (n_users, width) float32.

Raises RunError where the model does not take them, or gives something else.
"""

FILES: Final[Mapping[str, str]] = {  # by kind: the file of a run, or the folder, that holds the model
    "onnx": "tower/model.onnx",
    "keras": "tower/model.keras",
    "saved_model": "tower/saved_model",
}
NAMES = {"onnx": "ONNX model", "keras": "Keras model", "saved_model": "SavedModel"}
_PACKAGES = {"onnx": "onnxruntime", "keras": "tensorflow", "saved_model": "tensorflow"}

_BATCH_FLOATS = 1 << 22  # of the inputs of one call, 16 MB in float32
_INDEX_FLOATS = 64  # what an index becomes in the model: its row of a table
_LEFT_OUT_ROWS = 1 << 20  # of the histories that terms asks about at a time, 8 MB


def model_files(names: Iterable[str], kind: str) -> list[str]:
    """Return those of names, the files of a run, that its model consists of."""
    return [name for name in names if f"{name}/".startswith(f"{FILES[kind]}/")]


def require(kind: str) -> None:
    """Raise UsageError where the package that computes a model of this kind is not installed."""
    package = _PACKAGES[kind]
    if find_spec(package) is None:
        raise UsageError(
            f"psi is computed by {'an' if kind == 'onnx' else 'a'} {NAMES[kind]}, which needs {package}; "
            f"install with `pip install {package}`"
        )


def open_session(
    kind: str, model: Path | bytes, *, output: str | None = None, signature: str | None = None
) -> Session:
    """Return the model as a function.

    model: the file of an ONNX model, or its bytes; a .keras file; the folder of a SavedModel. output: which
    of several outputs of an ONNX model or signature is psi, or the layer of a Keras model. signature: which
    of several of a SavedModel.

    Nothing is unpickled: a Keras model with a Lambda layer or a class of its own is refused, and so is an
    ONNX model whose weights are in other files, or with operators that onnxruntime does not bring along.
    Keras models and SavedModels are programs nevertheless, see runs.consent.

    Raises UsageError where a package is missing, the model cannot be read, or does not have that output or
    signature.
    """
    require(kind)
    try:
        if kind == "onnx":
            run, size = _onnx(model if isinstance(model, bytes) else model.read_bytes(), output)
        elif kind == "keras":
            run, size = _keras(model, output)
        else:
            run, size = _saved_model(model, output, signature)
    except EmbedstoreError:
        raise
    except Exception as error:  # these libraries raise anything of a file that is not theirs
        raise UsageError(f"the {NAMES[kind]} cannot be opened: {said(error)}") from error

    return session_of(kind, run, size)


_Call = Callable[[Mapping[str, Array]], Array]


def session_of(kind: str, run: _Call, size: int | None = None) -> Session:
    """Return an open model as a function. size: the number of users of a call, None where any will do."""

    def session(feeds: Mapping[str, Array]) -> Matrix:
        try:
            psi = np.asarray(run(feeds) if size is None else _in_parts(run, feeds, size))
            if psi.dtype.name == "bfloat16":  # which NumPy does not know as a floating number
                psi = psi.astype(np.float32)
        except Exception as error:
            raise RunError(
                f"the {NAMES[kind]} refuses what its declaration makes of a history: {said(error)}"
            ) from error
        n = len(next(iter(feeds.values())))
        if psi.ndim != 2 or len(psi) != n or psi.dtype.kind != "f":
            raise RunError(
                f"the {NAMES[kind]} gives {psi.dtype} of shape {psi.shape} for {n} users; expected floating "
                f"numbers of shape ({n}, width): name another output, or embed users one by one"
            )
        return psi.astype(np.float32, copy=False)

    return session


def _onnx(content: bytes, output: str | None) -> tuple[_Call, int | None]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_pattern = False  # of which there is one for every length of a history
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    session = onnxruntime.InferenceSession(
        content,
        options,
        providers=["CPUExecutionProvider"],
        enable_fallback=0,  # to another provider, which it prints
    )
    name = one_of("output", output, [found.name for found in session.get_outputs()])

    def run(feeds: Mapping[str, Array]) -> Array:
        return np.asarray(session.run([name], dict(feeds))[0])

    return run, _fixed([found.shape for found in session.get_inputs()])


def _keras(path: Path | bytes, output: str | None) -> tuple[_Call, int | None]:
    start_tensorflow()
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    inputs = {tensor.name: tensor for tensor in model.inputs}
    named = {tensor._keras_history.operation.name: tensor for tensor in model.outputs}
    if output is None or output in named:
        psi = named[one_of("output", output, list(named))]
    else:
        psi = model.get_layer(output).output
    part = keras.Model(inputs, psi)
    asked = tf.function(  # made once, for every length of a history
        lambda feeds: part(feeds, training=False),
        input_signature=[{name: tf.TensorSpec(of.shape, of.dtype) for name, of in inputs.items()}],
    )

    def run(feeds: Mapping[str, Array]) -> Array:
        return np.asarray(
            asked({name: tf.constant(value, inputs[name].dtype) for name, value in feeds.items()})
        )

    return run, _fixed([tensor.shape for tensor in model.inputs])


def _saved_model(path: Path | bytes, output: str | None, signature: str | None) -> tuple[_Call, int | None]:
    start_tensorflow()
    import tensorflow as tf

    module = tf.saved_model.load(str(path))
    given = signature or ("serving_default" if "serving_default" in module.signatures else None)
    which = one_of("signature", given, list(module.signatures))
    inputs = module.signatures[which].structured_input_signature[1]
    name = one_of("output", output, sorted(module.signatures[which].structured_outputs))

    def run(feeds: Mapping[str, Array]) -> Array:
        tensors = {key: tf.constant(value) for key, value in feeds.items()}
        # A signature does not keep the variables of its module alive, this closure does.
        return np.asarray(module.signatures[which](**tensors)[name])

    return run, _fixed([tuple(found.shape) for found in inputs.values()])


def one_of(what: str, given: str | None, names: Sequence[str]) -> str:
    """Return the name that is given, or the only one there is."""
    if given in names:
        return str(given)
    if given is None and len(names) == 1:
        return names[0]
    listed = ", ".join(names) or "none"
    if given is not None:
        raise UsageError(f"the model has no {what} {given!r}; expected one of its {what}s: {listed}")
    raise UsageError(f"the model has {len(names)} {what}s; name the one that is psi with --{what}: {listed}")


def _fixed(shapes: Sequence[Sequence[Any]]) -> int | None:
    """Return the number of users that every call must be about, None where any will do."""
    return next((shape[0] for shape in shapes if shape and isinstance(shape[0], int)), None)


def _in_parts(run: _Call, feeds: Mapping[str, Array], size: int) -> Array:
    """Return what run gives for size users at a time; the last of all fills up the last part."""
    n = len(next(iter(feeds.values())))
    parts = []
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        parts.append(run({name: values[rows] for name, values in feeds.items()})[: n - start])
    return np.concatenate(parts)


def said(error: Exception) -> str:
    """Return the first line of an error, cut off: what these libraries say can be pages."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return first[:300]


@dataclass(frozen=True)
class ServedTower:
    """psi as a model gives it, and where constant, a last dimension of 1.

    rules, positions, features, ids: see encode. width: of what the model gives. model: the file, or the
    folder, that session was opened from, None where there is none.
    """

    session: Session
    kind: str
    rules: Sequence[InputRule]
    positions: Rows
    features: Mapping[str, MovieFeature]
    ids: Ids
    width: int
    constant: bool = False
    model: Path | None = None
    output: str | None = None
    signature: str | None = None

    @property
    def embedding_dim(self) -> int:
        return self.width + int(self.constant)

    def __call__(self, rows: Sequence[int] | Rows) -> npt.NDArray[np.float32]:
        psi: npt.NDArray[np.float32] = self.batch(Bags.of([one_history(rows)]))[0]
        return psi

    def knows(self, bags: Bags) -> npt.NDArray[np.bool_]:
        """Return whether a movie of each history is in the vocabulary of the model, shape (n_users,)."""
        return bags.where(self.positions[bags.rows] >= 0).sizes > 0

    def batch(self, bags: Bags) -> Matrix:
        """Return the user embeddings, shape (n_users, embedding_dim), of many histories.

        Raises UsageError where none of the movies of a history is in the vocabulary of the model, and
        RunError where the model does not answer.
        """
        known = self.knows(bags)
        if not known.all():
            raise UsageError(
                f"none of the movies of history {int(np.argmin(known))} is in the vocabulary of the model "
                "that computes psi; expected one of those that it was trained on"
            )
        psi = np.ones((len(bags), self.embedding_dim), np.float32)
        for users in self._groups(bags):
            part = Bags.of(bags.rows[bags.offsets[user] : bags.offsets[user + 1]] for user in users.tolist())
            found = self.session(
                encode(self.rules, part, positions=self.positions, features=self.features, ids=self.ids)
            )
            if found.shape[1] != self.width:
                raise RunError(
                    f"the {NAMES[self.kind]} gives {found.shape[1]} numbers a user; expected {self.width}"
                )
            psi[users, : self.width] = found
        return psi

    def terms(self, rows: Sequence[int] | Rows) -> Terms:
        """Return psi less psi without the movie, for every movie of one history; see UserTower."""
        history = one_history(rows)
        psi, n = self(history).astype(np.float64), history.size
        without = np.zeros((n, self.embedding_dim))  # a history of nothing has no psi
        step = max(1, _LEFT_OUT_ROWS // n)
        for start in range(0, n, step):
            bags = Bags.of(np.delete(history, place) for place in range(start, min(start + step, n)))
            known = self.knows(bags)
            without[start : start + step][known] = self.batch(bags.of_users(known))
        return Terms(psi - without, exact=False)

    def _groups(self, bags: Bags) -> Iterator[Rows]:
        """Yield users, a bounded number at a time, whose inputs need no padding among each other.

        So psi of a user is the same whoever else is asked about, of a model that counts its padding too.
        """
        if not len(bags):
            return
        sizes = [self._sizes(rule, bags) for rule in self.rules]
        free = [of for rule, of in zip(self.rules, sizes, strict=True) if _is_free(rule)]
        order = np.lexsort(free) if free else np.arange(len(bags))
        ends = np.any([np.diff(of[order]) != 0 for of in free], axis=0) if free else np.zeros(len(bags) - 1)
        start = 0
        for end in [*(np.flatnonzero(ends) + 1).tolist(), len(bags)]:
            floats = sum(
                _floats(rule, int(of[order[start]])) for rule, of in zip(self.rules, sizes, strict=True)
            )
            step = max(1, _BATCH_FLOATS // floats)
            while start < end:
                yield order[start : min(start + step, end)]
                start += step
            start = end

    def _sizes(self, rule: InputRule, bags: Bags) -> Rows:
        """Return how many values every history has for an input, shape (n_users,)."""
        if rule.form == "ids":
            return bags.sizes
        return indices_of(rule, bags, self.positions, self.features).sizes


def _is_free(rule: InputRule) -> bool:
    """Whether an input is as long as the longest history asked about."""
    return rule.length is None and rule.form in ("indices", "ids", "mask")


def _floats(rule: InputRule, size: int) -> int:
    """Return what one user takes of the memory of a call, for an input with so many values."""
    if rule.form == "multi_hot":
        return int(rule.size or 1)
    return _INDEX_FLOATS * (rule.length or max(1, size))
