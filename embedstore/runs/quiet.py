"""TensorFlow started without the lines that it writes to standard error."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["start_tensorflow"]


def start_tensorflow() -> None:
    """Import TensorFlow, where nothing has, and run a first operation, which has log lines of its own."""
    if "tensorflow" in sys.modules:
        return
    with _quiet_import():
        import tensorflow as tf

        tf.constant(0)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Keep TensorFlow's C++ start-up lines off standard error; show them where the import fails.

    TF_CPP_MIN_LOG_LEVEL does not reach the lines that it writes before its logger is set up.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        real = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)
