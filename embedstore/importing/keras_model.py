"""Keras models and SavedModels whose output is psi, of a file, a folder or a program that holds one."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt

from embedstore.errors import NotFoundError, UsageError
from embedstore.importing.model import Matrix, PlainStack, shape_text
from embedstore.runs.declaration import InputRule, ModelInput
from embedstore.runs.quiet import start_tensorflow
from embedstore.runs.served import FILES, Session, one_of, said, session_of

__all__ = ["KerasModel", "open_keras"]

_CONVERTED = ("float16", "bfloat16", "float64")


@dataclass(frozen=True)
class _Traced:
    """A ConcreteFunction, the placeholder of every input by its name, and which of its outputs is psi."""

    function: Any
    placeholders: Mapping[str, str]
    output: int = 0


@dataclass(frozen=True)
class KerasModel:
    """A TowerModel of a Keras model or a SavedModel.

    weights: the variables by their paths, such as dense/kernel. call: inputs by name to psi. trace: the same
    as a graph. copy: writes the model to the path that it is given.
    """

    kind: str
    inputs: Sequence[ModelInput]
    width: int | None
    weights: Mapping[str, Any]
    call: Callable[[Mapping[str, npt.NDArray[Any]]], Any]
    trace: Callable[[], _Traced]
    copy: Callable[[Path], object]

    @cached_property
    def notes(self) -> Sequence[str]:
        """What is converted, a sentence each."""
        types = sorted({_type(weight) for weight in self.weights.values()} & set(_CONVERTED))
        return (
            [f"the weights of the model are {', '.join(types)}: V is converted to float32"] if types else []
        )

    @property
    def tables(self) -> Mapping[str, int]:
        """How many rows the table or kernel has that an input goes into, by the input's name."""
        return {} if self._graph is None else self._graph.tables

    def candidates(self) -> Mapping[str, tuple[int, int]]:
        """Return the shape of every matrix, by the name of its layer, or by its path where that has more."""
        wide = {path: weight for path, weight in self.weights.items() if _is_matrix(weight)}
        layers = [_layer(path).rpartition("/")[2] for path in wide]
        names = [
            layer if layers.count(layer) == 1 and layer else path
            for path, layer in zip(wide, layers, strict=True)
        ]
        shapes = [(int(weight.shape[0]), int(weight.shape[1])) for weight in wide.values()]
        return dict(zip(names, shapes, strict=True))

    def matrix(self, name: str, n: int) -> tuple[Matrix, Matrix | None]:
        """Return the weight of a layer, or of that path, as (n, width), and the bias (n,) of a Dense layer.

        Raises UsageError where there is none of that name, or it has not n rows or columns.
        """
        path = self._path(name)
        found = _array(self.weights[path])
        rows, columns = found.shape
        if n not in (rows, columns):
            raise UsageError(
                f"{name!r} has shape ({rows}, {columns}); expected {n} rows or columns, one for each movie"
            )
        is_kernel = path.rpartition("/")[2] == "kernel"
        if columns != n or (rows == n and not is_kernel):
            return found, None
        bias = self.weights.get(f"{_layer(path)}/bias") if is_kernel else None
        has_bias = bias is not None and tuple(bias.shape) == (n,)
        return np.ascontiguousarray(found.T), _array(bias) if has_bias else None

    def session(self) -> Session:
        """Return the model as a function; it raises RunError where the model does not take what it is fed."""
        sizes = [given.shape[0] for given in self.inputs if given.shape and given.shape[0] is not None]
        return session_of(self.kind, self.call, sizes[0] if sizes else None)

    def plain(self, rules: Sequence[InputRule]) -> PlainStack | None:
        """Return the model as a plain stack, None where it does not look like one. It is not proven yet."""
        return None if self._graph is None else self._graph.plain(rules)

    def save(self, folder: Path) -> None:
        """Write into folder what open_session loads: model.keras, or the folder saved_model."""
        self.copy(folder / Path(FILES[self.kind]).name)

    @cached_property
    def _graph(self) -> Any:
        import tensorflow as tf

        from embedstore.importing.graph import Graph

        traced = self.trace()
        if len(traced.function.captured_inputs) > len(traced.function.variables):
            return None  # what else it holds on to, such as a vocabulary of texts, is no constant
        try:
            return Graph(traced.function, traced.placeholders, traced.output)
        except (ValueError, tf.errors.OpError):  # more than a graph can hold: TensorFlow has to serve it
            return None

    def _path(self, name: str) -> str:
        """Return the path of the one matrix that name stands for."""
        wide = [path for path, weight in self.weights.items() if _is_matrix(weight)]
        ends = f"/{name}"
        fits = [path for path in wide if path == name] or [
            path for path in wide if f"/{path}".endswith(ends) or f"/{_layer(path)}".endswith(ends)
        ]
        if len(fits) != 1:
            found = f"{len(fits)} matrices ({', '.join(fits)})" if fits else "no matrix"
            raise UsageError(
                f"the model has {found} of the name {name!r}; expected one of {', '.join(self.candidates())}"
            )
        return fits[0]


def open_keras(source: Any, *, output: str | None = None, signature: str | None = None) -> KerasModel:
    """Return the model of a .keras file, of the folder of a SavedModel, or a keras.Model as it is.

    output: the layer whose output is psi, or the output of a SavedModel's signature; None: the only one.
    signature: of a SavedModel; None: the only one, or serving_default where Keras wrote it beside "serve".

    A model with Python code of its own (a Lambda layer, a class that Keras does not know) is read from a file
    only where the program has registered that code; it becomes a SavedModel, whose graph does without.

    Raises NotFoundError where there is no source, UsageError where it cannot be read, or does not say which
    of its outputs is psi, (n, width).
    """
    path = Path(source) if isinstance(source, str | Path) else None
    if path is not None and path.suffix.lower() in (".h5", ".hdf5"):
        raise UsageError(
            f"{path} is in Keras' old HDF5 format, whose layers may hold code that runs when it is read; "
            "load it where it was trained, write it anew with model.save('model.keras'), and import that"
        )
    start_tensorflow()
    import keras

    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"Keras runs on {keras.backend.backend()} here, and its models are read with TensorFlow; set "
            "KERAS_BACKEND=tensorflow"
        )
    if path is not None and path.is_dir():
        return _saved_model(path, output, signature)
    if signature is not None:
        raise UsageError(
            f"signature {signature!r} is of a SavedModel, and this is a Keras model; leave it out"
        )
    if path is not None:
        model, foreign = _read(path)
        return _keras_model(model, output, foreign, file=path)
    if not isinstance(source, keras.Model):
        raise UsageError(
            f"a {type(source).__name__} is no model; expected a .keras file, a SavedModel or a keras.Model"
        )
    return _keras_model(source, output, _foreign_of(source))


def _read(path: Path) -> tuple[Any, Sequence[str]]:
    """Return the model of a .keras file and the Python code that it needs, by name."""
    import keras

    try:
        with zipfile.ZipFile(path) as file:
            config = json.loads(file.read("config.json"))
            version = str(json.loads(file.read("metadata.json")).get("keras_version"))
    except FileNotFoundError as error:
        raise NotFoundError(
            f"there is no model {path}; expected a .keras file or the folder of a SavedModel"
        ) from error
    except OSError as error:
        raise UsageError(f"model {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        raise UsageError(
            f"{path} is no .keras file, or not all of it; expected what model.save('model.keras') of Keras 3 "
            "writes"
        ) from error
    foreign = sorted(set(_foreign(config)))
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True), foreign
    except Exception as error:
        if foreign:
            raise UsageError(
                f"{path} needs Python code that it cannot bring along ({', '.join(foreign)}); where that "
                "code is, write the model with model.export(FOLDER), which needs none, and import that"
            ) from error
        if _numbers(version) > _numbers(keras.__version__):
            raise UsageError(
                f"{path} was written by Keras {version}, and this is Keras {keras.__version__}; install that "
                "one, or write the model there with model.export(FOLDER) and import FOLDER"
            ) from error
        raise UsageError(f"{path} cannot be read as a Keras model: {said(error)}") from error


def _keras_model(
    model: Any, output: str | None, foreign: Sequence[str], file: Path | None = None
) -> KerasModel:
    import keras

    weights = _weights(model)
    if not getattr(model, "outputs", None):  # of a class of its own, whose layers only its code connects
        if output is not None:
            raise UsageError(
                f"the model is a {type(model).__name__}, in which no layer can be found by name; leave "
                f"--output {output} out, and give a model whose only output is psi"
            )
        return _exported(model, weights)
    psi = _psi(model, output)
    name = _made_by(psi)
    if output is not None and output != name:  # open_session finds it by the name of a layer
        psi = keras.layers.Identity(name=output)(psi)
    of = _reached([psi])
    inputs = {tensor.name: tensor for tensor in model.inputs if tensor.name in of}
    given = [_keras_input(tensor) for tensor in inputs.values()]
    width = _checked_width(psi.shape, output or name)
    whole = len(inputs) == len(model.inputs) and psi is model.outputs[0]
    tower = keras.Model(inputs, psi)
    if foreign:
        return _exported(tower if output is None else keras.Model(inputs, {output: psi}), weights)

    def trace() -> _Traced:
        import tensorflow as tf

        at = {name: f"input_{number}" for number, name in enumerate(inputs)}
        specs = [tf.TensorSpec(tensor.shape, tensor.dtype, at[name]) for name, tensor in inputs.items()]

        @tf.function(input_signature=specs, autograph=False)  # type: ignore[untyped-decorator]
        def function(*tensors: Any) -> Any:
            return tower(dict(zip(inputs, tensors, strict=True)), training=False)

        return _Traced(function.get_concrete_function(), at)

    return KerasModel(
        kind="keras",
        inputs=given,
        width=width,
        weights=weights,
        call=lambda feeds: tower(dict(feeds), training=False).numpy(),
        trace=trace,
        copy=(lambda target: shutil.copyfile(file, target)) if file is not None and whole else tower.save,
    )


def _exported(model: Any, weights: Mapping[str, Any]) -> KerasModel:
    """Return model as a SavedModel, with the weights of what it is a part of."""
    folder = Path(mkdtemp(prefix="embedstore-"))
    try:
        model.export(folder, verbose=False)
    except Exception as error:
        shutil.rmtree(folder)
        raise UsageError(
            f"the model is a {type(model).__name__} that cannot become a SavedModel ({said(error)}); call "
            "it once on a batch, so that it knows its inputs, or give a SavedModel of it"
        ) from error
    exported = replace(_saved_model(folder, None, None), weights=weights)
    finalize(exported, shutil.rmtree, folder, ignore_errors=True)
    return exported


def _psi(model: Any, output: str | None) -> Any:
    """Return the tensor that the output of a layer is, or the model's only one."""
    made = getattr(model, "output", None)  # which a Sequential lacks
    named = [*made.items()] if isinstance(made, dict) else [(_made_by(one), one) for one in model.outputs]
    if output is None:
        if len(named) > 1:
            raise UsageError(
                f"the model has {len(named)} outputs ({', '.join(name for name, _ in named)}); name the one "
                "that is psi with --output"
            )
        return model.outputs[0]
    reached = _reached(model.outputs)
    tensors = reached.get(output) or [tensor for name, tensor in named if name == output]
    if not tensors:
        inputs = {tensor.name for tensor in model.inputs}
        layers = [
            name
            for name, (first, *_) in reached.items()
            if len(first.shape) == 2 and "float" in first.dtype and name not in inputs
        ]
        raise UsageError(f"the model has no layer {output!r}; expected one of {', '.join(reversed(layers))}")
    if len(tensors) > 1:
        raise UsageError(
            f"layer {output!r} has {len(tensors)} outputs, as it is used more than once or has several; "
            "expected a layer with one"
        )
    return tensors[0]


def _made_by(tensor: Any) -> str:
    """Return the name of the layer whose output tensor is."""
    return str(tensor._keras_history.operation.name)


def _reached(tensors: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the outputs of every layer that tensors are made by, by its name, the last layer first."""
    found: dict[str, list[Any]] = {}
    waiting, seen = list(tensors), set()
    while waiting:
        history = waiting.pop(0)._keras_history
        if (history.operation.name, history.node_index) in seen:
            continue
        seen.add((history.operation.name, history.node_index))
        node = history.operation._inbound_nodes[history.node_index]
        found.setdefault(history.operation.name, []).extend(node.output_tensors)
        waiting.extend(node.input_tensors)
    return found


def _weights(model: Any) -> dict[str, Any]:
    """Return the variables of a model by path: the names of the models and the layer it is in, its own."""
    import keras

    found: dict[int, tuple[str, Any]] = {}

    def add(part: Any, at: str) -> None:
        for layer in part.layers:
            if isinstance(layer, keras.Model):
                add(layer, f"{at}{layer.name}/")
            for variable in layer.variables:
                own = variable.path.rpartition(f"{layer.name}/")[2]
                found.setdefault(id(variable), (f"{at}{layer.name}/{own}", variable))

    add(model, "")
    for variable in model.variables:  # those that are of no layer
        found.setdefault(id(variable), (variable.path, variable))
    return dict(found.values())


def _keras_input(tensor: Any) -> ModelInput:
    if getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False):
        raise UsageError(f"input {tensor.name!r} is sparse or ragged; expected a dense one")
    return ModelInput(tensor.name, tuple(tensor.shape), _numpy_name(tensor.dtype))


def _saved_model(path: Path, output: str | None, signature: str | None) -> KerasModel:
    import tensorflow as tf

    try:
        module = tf.saved_model.load(str(path))
    except Exception as error:
        raise UsageError(f"{path} cannot be read as a SavedModel: {said(error)}") from error
    names = sorted(module.signatures)
    if not names:
        raise UsageError(
            f"{path} has no signature; expected one, as model.export(FOLDER) of Keras or signatures= of "
            "tf.saved_model.save writes it"
        )
    if signature is None and names == ["serve", "serving_default"]:  # Keras writes one under both
        signature = "serving_default"
    signature = one_of("signature", signature, names)
    function = module.signatures[signature]
    specs = function.structured_input_signature[1]
    for name, spec in specs.items():
        if not isinstance(spec, tf.TensorSpec):
            raise UsageError(
                f"input {name!r} of signature {signature!r} is sparse or ragged; expected a dense one"
            )
    outputs = sorted(function.structured_outputs)
    chosen = one_of("output", output, outputs)

    def call(feeds: Mapping[str, npt.NDArray[Any]]) -> Any:
        tensors = {name: tf.constant(value, specs[name].dtype) for name, value in feeds.items()}
        # A signature does not keep the variables of its module alive, this closure does.
        return module.signatures[signature](**tensors)[chosen].numpy()

    return KerasModel(
        kind="saved_model",
        inputs=[
            ModelInput(name, _shape(spec.shape) or (), _numpy_name(spec.dtype.name))
            for name, spec in specs.items()
        ],
        width=_checked_width(_shape(function.structured_outputs[chosen].shape), chosen),
        weights=_variables(module),
        call=call,
        trace=lambda: _Traced(function, {name: name for name in specs}, outputs.index(chosen)),
        copy=lambda target: shutil.copytree(path, target),
    )


def _variables(module: Any) -> dict[str, Any]:
    """Return the variables of a SavedModel by name, or by place where a name is not theirs alone."""
    import tensorflow as tf

    view = tf.train.TrackableView(module)
    found: dict[str, dict[str, Any]] = {}  # by name and place
    waiting, seen = [("", module)], {id(module)}
    while waiting:
        at, parent = waiting.pop(0)
        for name, child in view.children(parent).items():
            if id(child) in seen:
                continue
            seen.add(id(child))
            place = f"{at}/{name}" if at else name
            if not isinstance(child, tf.Variable):
                waiting.append((place, child))
                continue
            named = found.setdefault(child.name.removesuffix(":0"), {})
            if not any(_equal(child, other) for other in named.values()):  # Keras holds each twice
                named[place] = child
    return {
        name if len(named) == 1 else place: variable
        for name, named in found.items()
        for place, variable in named.items()
    }


def _equal(one: Any, other: Any) -> bool:
    return one.shape == other.shape and np.array_equal(one.numpy(), other.numpy())


def _checked_width(shape: Sequence[int | None] | None, name: str) -> int | None:
    """Return the width of psi. Raises UsageError where a shape is known and is not (users, width)."""
    if shape is None:
        return None
    if len(shape) != 2:
        raise UsageError(
            f"output {name!r} has shape {shape_text(shape)}; expected psi, (users, width): name another"
        )
    return shape[1]


def _foreign_of(model: Any) -> Sequence[str]:
    """Return the Python code that a model needs, by name."""
    try:
        return sorted(set(_foreign(json.loads(model.to_json()))))
    except (NotImplementedError, TypeError, ValueError):  # a layer that does not say how it was made
        return [type(model).__name__]


def _foreign(config: Any) -> Iterator[str]:
    """Yield the names of what is not Keras' own in the configuration of a model."""
    if isinstance(config, list):
        for part in config:
            yield from _foreign(part)
    elif isinstance(config, dict):
        kind, module = config.get("class_name"), config.get("module", "keras")
        if kind in ("Lambda", "function") or (isinstance(kind, str) and not str(module).startswith("keras")):
            inner = config.get("config")
            yield inner if kind == "function" and isinstance(inner, str) else kind
        else:
            for key, part in config.items():
                if key != "compile_config":  # of the training, which is not read
                    yield from _foreign(part)


def _is_matrix(weight: Any) -> bool:
    return len(weight.shape) == 2 and _type(weight) in ("float32", *_CONVERTED)


def _array(weight: Any) -> Matrix:
    return np.asarray(weight.numpy()).astype(np.float32, copy=False)


def _type(weight: Any) -> str:
    return str(getattr(weight.dtype, "name", weight.dtype))


def _layer(path: str) -> str:
    return path.rpartition("/")[0]


def _numpy_name(dtype: str) -> str:
    return "str" if dtype == "string" else dtype


def _shape(shape: Any) -> tuple[int | None, ...] | None:
    return None if shape.rank is None else tuple(shape.as_list())


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
