"""The memory that a sync of 1,000,000 movies x 64 takes, verification in, and a verify after it.

    python -m benchmarks.memory [--movies 1000000] [--dim 64] [--run DIR]

Peak growth over the process with its imports: of its own (RssAnon, sampled 20 times a second), and with the
mapped pages of the files (VmHWM), which the system takes back where it needs them. Each part runs in a
process of its own. The store is the server at QDRANT_URL (QDRANT_API_KEY is its key), without it the embedded
one, whose engine lives in the process. Search stays exact: an index of random vectors costs the server an
hour, and this process nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.generated import generated_run
from benchmarks.server import ALIAS, clean, connection

PARTS = ("sync", "verify")


def measure(part: str, path: Path, location: str) -> dict[str, Any]:
    """Return the seconds and the peak growth in bytes of one part."""
    import numpy as np

    from embedstore.runs.run import Run
    from embedstore.stores.base import open_store
    from embedstore.sync import sync, upsert, verify

    upsert._LARGEST_EXACT = sys.maxsize
    run = Run.load(path)
    np.ones((64, 64), np.float32) @ np.ones((64, 64), np.float32)  # the buffers of BLAS
    with open_store(location, create=True, connection=connection()) as store:
        if part == "sync":
            return growth(lambda: sync(run, store, alias=ALIAS))
        return growth(lambda: verify(store, ALIAS, run))


def growth(work: Callable[[], object]) -> dict[str, Any]:
    """Do work and return its seconds and how far memory rose in bytes: of its own, and with mapped pages."""
    before, whole = _memory("RssAnon"), _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    highest, done = [before], threading.Event()

    def sample() -> None:
        while not done.wait(0.05):
            highest[0] = max(highest[0], _memory("RssAnon"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.perf_counter()
    try:
        work()
    finally:
        seconds = time.perf_counter() - started
        done.set()
        sampler.join()
    return {"seconds": seconds, "own": highest[0] - before, "whole": _memory("VmHWM") - whole}


def _memory(key: str) -> int:
    """Return bytes of this process: RssAnon without the pages of files, VmRSS with, VmHWM the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--movies", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--run", type=Path, help="folder of a run; without it, one is generated")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(measure(options.part, options.run, options.store)))
        return
    server = os.environ.get("QDRANT_URL")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = options.run or generated_run(folder / "runs", n_movies=options.movies, dim=options.dim).path
        print("part    store     seconds  of its own (MB)  with mapped pages (MB)")
        for part in PARTS:
            found = _measured(part, run, server or str(folder / "store"))
            print(
                f"{part:<7} {'server' if server else 'embedded':<8} {found['seconds']:>8.1f}"
                f"  {found['own'] / 1e6:>15.0f}  {found['whole'] / 1e6:>22.0f}",
                flush=True,
            )
    if server:
        clean()


def _measured(part: str, run: Path, store: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--part", part, "--run", str(run), "--store", store]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
