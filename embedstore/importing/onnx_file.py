"""An ONNX model out of its file, and the files of weights beside it."""

from __future__ import annotations

import math
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import external_data_helper, helper

from embedstore.errors import DataError, UsageError

__all__ = ["read_model"]

_LARGEST = 2**31 - 2**20  # bytes of a protobuf message, less some for the graph itself


def read_model(source: Path | bytes, who: str) -> tuple[onnx.ModelProto, bool]:
    """Return the model of an .onnx file or of its bytes, and whether it had weights in other files.

    These must be beside it: no path leads out of its folder. who: what a message calls the model.

    Raises DataError where it is none, cut off, or too large to be one file, UsageError for bytes without
    all weights.
    """
    try:
        if isinstance(source, Path):
            _check_size(source.stat().st_size, who)
        model = onnx.load_model_from_string(source if isinstance(source, bytes) else source.read_bytes())
    except OSError as error:
        raise DataError(f"{who} cannot be read: {error.strerror or error}") from error
    except DecodeError as error:
        raise DataError(f"{who} is no ONNX model, or is cut off ({error})") from error
    if not model.graph.output or not model.opset_import:
        raise DataError(f"{who} is no ONNX model, or is cut off: it has no outputs or no opset")
    outside = [
        tensor for tensor in model.graph.initializer if external_data_helper.uses_external_data(tensor)
    ]
    if not outside:
        return model, False
    if isinstance(source, bytes):
        raise UsageError(f"{who} has weights in other files; give the path of the .onnx file")
    sizes = {
        tensor.name: math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in outside
    }
    _check_size(sum(sizes.values()), who)
    try:
        onnx.load_external_data_for_model(model, str(source.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise DataError(f"{who}: its weights in other files cannot be read: {error}") from error
    for tensor in outside:
        if len(tensor.raw_data) != sizes[tensor.name]:
            raise DataError(
                f"{who}: weight {tensor.name!r} has {len(tensor.raw_data):,} bytes in its file, expected "
                f"{sizes[tensor.name]:,}; it is cut off"
            )
    return model, True


def _check_size(size: int, who: str) -> None:
    if size > _LARGEST:
        raise DataError(
            f"{who} has {size:,} bytes, expected at most {_LARGEST:,}, which one ONNX file holds; import the "
            "vectors alone, and give psi with query --vector"
        )
