"""Reading ratings beside pandas' own default way: 1M lines with '::', and a CSV of 20M.

Each reading runs in a process of its own, in turn with the other; the ratio is pair by pair. Peak
memory is what the process takes beyond its imports, beside the columns themselves (28 bytes a
rating). `load` adds what makes a Dataset: vocabularies, order, duplicates.

    python -m benchmarks.loading [--runs 3] [--csv-ratings 20000000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

PRELUDE = """
import json, re, sys, time
from pathlib import Path
def memory(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
path = sys.argv[1]
"""
READ = """
import pyarrow.csv
from embedstore.loaders.layout import find_layout, read_columns
before, started = memory("VmRSS"), time.perf_counter()
columns = read_columns(find_layout(Path(path), {}))
"""
LOAD = """
import pyarrow.csv
from embedstore.loaders import load
before, started = memory("VmRSS"), time.perf_counter()
dataset = load(path)
"""
PANDAS = """
import pandas as pd
before, started = memory("VmRSS"), time.perf_counter()
frame = pd.read_csv(path, **json.loads(sys.argv[2]))
"""
REPORT = """
print(json.dumps([time.perf_counter() - started, memory("VmHWM") - before]))
"""
BYTES_PER_RATING = 8 + 8 + 4 + 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--csv-ratings", type=int, default=20_000_000)
    options = parser.parse_args()
    print(
        "file               columns (s)  pandas (s)  ratio  peak/arrays  pandas' peak  load (s)  load's peak"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for n, name, how in (
            (1_000_000, "ratings.dat", {"sep": "::", "engine": "python", "header": None}),
            (options.csv_ratings, "ratings.csv", {}),
        ):
            path = Path(temporary) / name
            write_ratings(path, n)
            arguments = [str(path), json.dumps(how)]
            rounds = [
                [_measured(code, arguments) for code in (READ, PANDAS, LOAD)] for _ in range(options.runs)
            ]
            times, peaks = (
                [statistics.median(found[side][what] for found in rounds) for side in range(3)]
                for what in (0, 1)
            )
            ratio = statistics.median(found[1][0] / found[0][0] for found in rounds)
            arrays = n * BYTES_PER_RATING / 2**20
            print(
                f"{n / 1e6:>3.0f}M {name:<13} {times[0]:>12.2f}  {times[1]:>10.2f}  {ratio:>4.1f}x"
                f"  {peaks[0] / arrays:>11.2f}  {peaks[1] / arrays:>12.2f}"
                f"  {times[2]:>8.2f}  {peaks[2] / arrays:>11.2f}",
                flush=True,
            )


def write_ratings(path: Path, n: int) -> None:
    """Write n made-up ratings, sorted by user, in the layout that the name of the file asks for."""
    import pyarrow as pa
    import pyarrow.csv as arrow_csv

    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "userId": np.sort(rng.integers(1, n // 140 + 2, n)),
        "movieId": rng.integers(1, 130_000 if n > 5_000_000 else 4_000, n),
        "rating": rng.integers(1, 11, n) / 2 if path.suffix == ".csv" else rng.integers(1, 6, n),
        "timestamp": rng.integers(800_000_000, 1_500_000_000, n),
    }
    if path.suffix == ".csv":
        with open(path, "wb") as file:
            file.write(b"userId,movieId,rating,timestamp\n")
            options = arrow_csv.WriteOptions(include_header=False, quoting_style="none")
            arrow_csv.write_csv(pa.table(columns), file, options)
        return
    with open(path, "w", encoding="ascii") as text:
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        text.writelines("{}::{}::{}::{}\n".format(*row) for row in rows)


def _measured(code: str, arguments: list[str]) -> list[float]:
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + code + REPORT, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[float] = json.loads(result.stdout)
    return found


if __name__ == "__main__":
    main()
