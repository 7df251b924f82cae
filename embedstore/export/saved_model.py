"""psi as a TensorFlow SavedModel: signature serving_default, rows -> psi."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from embedstore.data.features import Rows
from embedstore.export.tables import Psi, TowerTables

__all__ = ["load", "write"]


_ACTIVATIONS = {"linear": tf.identity, "tanh": tf.tanh, "relu": tf.nn.relu}


def write(tables: TowerTables, path: Path) -> None:
    """Write the folder path."""
    module = _module(tables)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.psi})


def load(path: Path) -> Psi:
    """Return psi as TensorFlow computes it from path."""
    module = tf.saved_model.load(str(path))

    def psi(rows: Rows) -> npt.NDArray[np.float32]:
        # The signature does not keep its module's variables alive, this closure does.
        return np.asarray(module.signatures["serving_default"](rows=tf.constant(rows))["psi"])

    return psi


def _module(tables: TowerTables) -> Any:
    """Return a module with psi.

    Row 0 of a table is zeros and stands for the padding; movie j is row j + 1.
    """
    module = tf.Module()
    module.rows = [_variable(part.rows) for part in tables.inputs]
    module.counts = [_variable(part.counts) for part in tables.inputs]

    @tf.function(  # type: ignore[untyped-decorator]
        input_signature=[tf.TensorSpec((None, None), tf.int64, name="rows")], autograph=False
    )
    def psi(rows: tf.Tensor) -> dict[str, tf.Tensor]:
        places = tf.maximum(rows, -1) + 1  # (n_users, length)
        known = tf.cast(places > 0, tf.float64)
        age = tf.cumsum(known, axis=1, exclusive=True, reverse=True)  # 0 for the newest movie
        size = tf.reduce_sum(known, axis=1, keepdims=True)
        pooled = []
        for part, table, counts in zip(tables.inputs, module.rows, module.counts, strict=True):
            rows = tf.cast(tf.gather(table, places), tf.float64)
            sizes = tf.cast(tf.gather(counts, places), tf.float64)
            weights = None
            if part.half_life is not None:
                weights = 0.5 ** (age / part.half_life)
            elif part.newest is not None:
                weights = tf.cast(age < part.newest, tf.float64)
            if weights is not None:
                rows, sizes = rows * weights[:, :, None], sizes * weights
            total = tf.reduce_sum(rows, axis=1)
            count = tf.reduce_sum(sizes, axis=1, keepdims=True)
            pooled.append(total / _divisor(part.pooling, count))
        x = tf.concat(pooled, axis=1)  # (n_users, width)
        for layer in tables.layers:
            x = tf.matmul(x, tf.constant(layer.kernel, tf.float64))
            if layer.bias is not None:
                x += tf.constant(layer.bias, tf.float64)
            x = _ACTIVATIONS[layer.activation](x)
        if tables.constant:
            x = tf.concat([x, tf.ones_like(size)], axis=1)
        return {"psi": tf.cast(tf.where(size > 0, x, np.nan), tf.float32)}

    module.psi = psi
    return module


def _variable(table: npt.NDArray[Any]) -> tf.Variable:
    return tf.Variable(np.concatenate([np.zeros_like(table[:1]), table]), trainable=False)


def _divisor(pooling: str, count: tf.Tensor) -> tf.Tensor:
    divisor = tf.ones_like(count) if pooling == "sum" else tf.maximum(count, 1)
    return tf.sqrt(divisor) if pooling == "l2" else divisor
