"""A run that nobody else can change while it is read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from embedstore.errors import RunError
from embedstore.runs.run import Run
from embedstore.runs.scratch import scratch_folder

__all__ = ["private"]


@contextmanager
def private(run: Run) -> Iterator[Run]:
    """Yield a copy of run for the time of the block, each file of it checked before its first use.

    The files of a run are mapped: where other hands write to one, what was read changes, and where they cut
    it, the process ends. Takes the room of the run beside it, or in the temporary folder where nothing can
    be written there. RunErrors in the block name the folder of run.
    """
    beside = run.path.parent
    home = beside if os.access(beside, os.W_OK) else Path(tempfile.gettempdir())
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(scratch_folder(home))
            for name in run.manifest.files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # said at its first use
                    shutil.copyfile(run.path / name, folder / name, follow_symlinks=False)
        except OSError as error:
            raise RunError(
                f"run {run.run_id} cannot be copied to {home}: {error.strerror or error}"
            ) from error
        try:
            yield run.moved(folder)
        except RunError as error:
            raise RunError(str(error).replace(str(folder), str(run.path))) from error
