"""Runs of strangers: changed at random, their digests made right again, and read by whatever reads runs.

`python -m tests.faults.fuzz SOURCES FOLDER FIRST COUNT` reads the runs of COUNT seeds from FIRST on in a
process of its own, and prints a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.cli import run as command
from embedstore.data.features import Bags
from embedstore.errors import EmbedstoreError
from embedstore.query.recommend import recommend
from embedstore.query.similar import similar
from embedstore.runs.debias import debiased
from embedstore.runs.evaluation import add_evaluation, read_evaluation
from embedstore.runs.manifest import MANIFEST, digest_of, with_digest
from embedstore.runs.run import Run
from embedstore.runs.tower import DenseTower, MovieFeature, TowerInput, TowerLayer
from embedstore.runs.writer import write_run
from embedstore.stores.base import open_store
from embedstore.sync import sync
from tests.builders import GENRES, tiny_dataset, tiny_run
from tests.faults.report import Count, Tally
from tests.runs.models import served_run

__all__ = ["mutated_runs"]

BATCH = 250  # runs of one process
SECONDS = 30  # for one run, on a busy machine too; then the process is ended
ADDRESS_SPACE = 4 << 30
ALLOWANCE = 2 << 20  # of memory beyond twice the files, for what any run takes
SYNCED = 20  # every so many runs are also put into a store
RUN_ID = "20261124t031500-1a2b"
SOURCES = 5
RAW = "@raw@"

NASTY: list[Any] = [
    None, True, False, -1, 0, 1, 2**31, 2**63, 2**64, 1e308, 0.5, float("nan"), float("inf"), "", "x",
    "\ud800", "\x1b[2J", "\u202e", "x" * 70_000, "../../etc/passwd", "/etc/passwd", "movies.jsonl", [], {},
    [[]] * 50, {"a": {"b": {}}}, [1, "a", None], f"{RAW}1e999", f"{RAW}{'9' * 5000}", f"{RAW}{'9' * 400}",
    f"{RAW}{'[' * 50}{']' * 50}", f"{RAW}{'[' * 100_000}", f'{RAW}{{"a": 1, "a": 2}}', f"{RAW}-0",
]  # fmt: skip
HEADERS = [
    (b"'<f4'", b"'<f8'"), (b"'<f4'", b"'|O'"), (b"'<f4'", b"'>f4'"), (b"'<f4'", b"'<i4'"),
    (b"'<i8'", b"'<f8'"), (b"'<i8'", b"'<U2'"), (b"'<i8'", b"'|V0'"), (b"False", b"True"),
    (b"(40", b"(4000000000"), (b"(40", b"(-40"), (b"(40", b"(" + b"9" * 18), (b"(40", b"(" + b"9" * 30),
    (b"(40", b"(0"), (b", 4)", b", 4, 1)"), (b", 4)", b",)"), (b"{", b"[" * 300 + b"{"), (b"}", b"} + 1"),
    (b"'descr'", b"'descr': 1, 'descr'"), (b"\x93NUMPY\x01", b"\x93NUMPY\x02"),
    (b"\x93NUMPY", b"\x80\x04NUMP"), (b"shape", b"shap\xff"),
]  # fmt: skip


def mutated_runs(folder: Path, size: int) -> Count:
    """Change a run at random and read it with everything that reads runs.

    Five small runs (an additive one, one with ids that are text, two with a dense tower, one of these
    with genres, and one whose psi an ONNX model computes) are changed in one or two of these ways, and
    their digests made right again, so that the change gets past them: a value of a JSON file becomes
    another (of any type, huge, deep, not a number, half a character, a path), the header of an array says
    something else, bytes and numbers become others, a file is cut, extended, swapped with another, or is
    a link, a pipe or a folder. Then: load, verify, tower, histories, catalog, scores of all movies,
    `similar`, debiasing, `runs list` and `runs show`, and of every twentieth run a sync and a query. What
    must hold: nothing but EmbedstoreError within 30 s, nothing is read through a link or outside of the
    folder, and Python and NumPy take no more memory (tracemalloc, at its peak) than twice the files of
    the run and 2 MB, in a process that can have 4 GB of addresses.
    """
    sources = folder / "sources"
    _write_sources(sources)
    tally = Tally("a run of a stranger", "-")
    seed = 0
    while seed < size:
        results = _in_a_process(sources, folder / "work", seed, min(BATCH, size - seed))
        for found in results:
            with tally.attempt(f"seed {found['seed']}: {found['what']}"):
                assert not found["problems"], found["problems"]
                tally.outcome(found["outcome"])
        seed += len(results)
    return tally.count()


def _in_a_process(sources: Path, work: Path, first: int, count: int) -> list[dict[str, Any]]:
    """Return what became of the seeds from first on, up to the one that ended its process."""
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, str(sources), str(work), str(first), str(count)],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    if len(results) < count:
        what = f"ended the process with {done.returncode} ({done.stderr.strip()[-500:]})"
        results.append({"seed": first + len(results), "what": "", "problems": [what], "outcome": ""})
    return results


def _write_sources(folder: Path) -> None:
    tiny_run(folder / "0", run_id=RUN_ID)
    tiny_run(folder / "1", run_id=RUN_ID, text_ids=True)
    tiny_run(folder / "2", run_id=RUN_ID, additive=False)
    dataset, rng = tiny_dataset(), np.random.default_rng(0)
    movies = [[GENRES.index(genre) for genre in movie.genres] for movie in dataset.catalog]
    offsets = np.cumsum([0, *map(len, movies)])
    genres = MovieFeature(
        "genres", offsets, np.concatenate([np.array(rows, np.int64) for rows in movies]), GENRES
    )
    tables = [
        TowerInput("movies", rng.normal(size=(40, 3)).astype(np.float32), "mean"),
        TowerInput("genres", rng.normal(size=(len(GENRES), 3)).astype(np.float32), "mean"),
    ]
    layers = [TowerLayer(rng.normal(size=(6, 3)).astype(np.float32), np.ones(3, np.float32), "relu")]
    write_run(
        folder / "3" / "runs",
        dataset=dataset,
        config={"preset": "tiny"},
        movie_vectors=rng.normal(size=(40, 4)).astype(np.float32),
        tower=DenseTower(tables, layers, constant=True, features={"genres": genres}),
        metrics={"ndcg@100": 0.5},
        log=[{"epoch": 1, "loss": 0.1}],
        run_id=RUN_ID,
    )
    served_run(folder / "4", run_id=RUN_ID)
    measured: dict[str, Any] = {
        "ndcg@100": 0.5,
        "intervals": {"ndcg@100": [0.4, 0.6]},
        "users": {"scored": 3},
    }
    protocols = {"serving": {"headline": "ndcg@100", **measured}}
    for path in folder.glob("*/runs"):
        add_evaluation(path / RUN_ID, protocols)


# In the process


def _main(sources: Path, work: Path, first: int, count: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    warnings.simplefilter("ignore")  # of NumPy, for numbers that overflow
    answers, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115 - what the commands print, until the end
    for number in range(SOURCES):
        _read(sources / str(number) / "runs", work / "first")  # imports are not memory of a run
    tracemalloc.start()
    for seed in range(first, first + count):
        signal.alarm(SECONDS)
        print(json.dumps(_attempt(sources, work, seed)), file=answers, flush=True)
        signal.alarm(0)


def _attempt(sources: Path, work: Path, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)  # noqa: S311 - changes, not secrets
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(sources / str(rng.randrange(SOURCES)), work)
    (work / "secret").write_text("secret")
    run = work / "runs" / RUN_ID
    what = [_change(run, rng) for _ in range(rng.choice((1, 1, 1, 2)))]
    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file() and not path.is_symlink())
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    problems, refused = _read(
        work / "runs",
        work / "store" if seed % SYNCED == 0 else None,
        *rng.choice(((), ("--json",), ("--csv",))),
    )
    peak = tracemalloc.get_traced_memory()[1] - before
    if peak > 2 * size + ALLOWANCE:
        problems.append(f"takes {peak:,} bytes of memory for {size:,} of files")
    if not refused and any(change.endswith(("a link", "elsewhere")) for change in what):
        problems.append("is read outside of its folder")
    outcome = "refused" if refused else "read, and harmless"
    return {"seed": seed, "what": "; ".join(what), "problems": problems, "outcome": outcome}


def _read(runs: Path, store: Path | None, *style: str) -> tuple[list[str], bool]:
    """Return what went wrong with the run as a defect, and whether anything refused it."""
    problems: list[str] = []
    refused = False
    opened: list[Run] = []

    def attempt(name: str, reader: Callable[[], object]) -> None:
        nonlocal refused
        try:
            reader()
        except EmbedstoreError:
            refused = True
        except Exception as error:  # noqa: BLE001 - which is the defect that is looked for
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            place = trace and f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
            problems.append(f"{name}: {type(error).__name__}: {str(error)[:200]} at {place}")

    attempt("load", lambda: opened.append(Run.load(runs / RUN_ID)))
    attempt("evaluation", lambda: read_evaluation(runs / RUN_ID))
    for run in opened:
        for name, reader in _readers(run):
            attempt(name, reader)
        if store is not None:
            attempt("sync", lambda: _synced(run, store))  # noqa: B023 - called at once
    for arguments in (["list", *style], ["show", RUN_ID, *style]):
        said = _said(["runs", *arguments, "--runs", str(runs)])
        refused |= said.startswith("Error:")
        if "unexpected" in said or "Traceback" in said:
            problems.append(f"{arguments}: {said[:300]}")
    return problems, refused


def _readers(run: Run) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "verify", run.verify
    yield "fingerprint", lambda: run.fingerprint
    yield "manifest", lambda: (run.manifest.to_json(), run.reference, repr(run))
    yield (
        "movies",
        lambda: [run.movies.row(movie_id) for movie_id in run.movies.ids(np.arange(len(run.movies)))],
    )
    yield "vectors", lambda: np.sum(run.movie_vectors)
    yield "catalog", lambda: [movie.title for movie in run.catalog]
    yield "popularity", lambda: np.sum(run.popularity)
    yield "cold", lambda: np.sum(run.cold)
    yield "histories", lambda: _histories(run)
    yield "psi", lambda: [run.tower(rows) for rows in _histories(run)]
    yield "psi of all", lambda: run.tower.batch(Bags.of(_histories(run)))
    yield "terms", lambda: [run.tower.terms(rows) for rows in _histories(run)[:1]]
    yield "scores", lambda: [run.movie_vectors @ run.tower(rows) for rows in _histories(run)]
    yield "similar", lambda: similar(run, run.movies.ids(np.arange(1))[0], k=3)
    yield "debiased", lambda: (debiased(run, 0.5).movie_vectors.sum(), debiased(run, 0.5).fingerprint)


def _histories(run: Run) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    users = run.users.ids(np.arange(min(3, len(run.users))))
    return [rows for rows in map(run.history, users) if rows.size]


def _synced(run: Run, folder: Path) -> None:
    with open_store(folder, create=True) as store:
        sync(run, store)
        for user_id in run.users.ids(np.arange(min(1, len(run.users)))):
            recommend(run, store, user_id=user_id, k=3)


def _said(arguments: list[str]) -> str:
    """Return what a command says on standard error."""
    import io

    kept, sys.stderr = sys.stderr, io.StringIO()
    try:
        command(arguments)
        return sys.stderr.getvalue()
    finally:
        sys.stderr = kept


# Changes


def _change(run: Path, rng: random.Random) -> str:
    kinds = [_json, _json, _json, _header, _header, _numbers, _bytes, _cut, _swap, _foreign, _names]
    return rng.choice(kinds)(run, rng)


def _files(run: Path, end: str = "") -> list[str]:
    return sorted(
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.name.endswith(end) and path.is_file() and not path.is_symlink()
    )


def _json(run: Path, rng: random.Random) -> str:
    """A value of a JSON file, at any depth, becomes another, goes, or comes twice."""
    name = rng.choice(
        [*_files(run, ".json"), *_files(run, ".jsonl"), f"../{RUN_ID}.evaluation.json", MANIFEST]
    )
    path = run / name
    if path.is_symlink() or not path.is_file():
        return "nothing"
    try:
        text = path.read_text()
        lines = [json.loads(line) for line in (text.splitlines() if name.endswith("l") else [text])]
    except (OSError, ValueError, RecursionError):
        return "nothing"
    if not lines:
        return "nothing"
    if isinstance(lines[0], dict):
        lines[0].pop("digest", None)
    number = rng.randrange(len(lines))
    target, value = lines[number], rng.choice(NASTY)
    at: list[Any] = []
    holder: Any = lines
    key: Any = number
    while isinstance(target, dict | list) and target and (not at or rng.random() < 0.7):
        holder, key = (
            target,
            rng.choice(list(target)) if isinstance(target, dict) else rng.randrange(len(target)),
        )
        at.append(key)
        target = holder[key]
    if rng.random() < 0.15:
        del holder[key]
        value = "gone"
    elif rng.random() < 0.15 and isinstance(holder, dict):
        holder[rng.choice(["x\x00", "\ud800", "../x", "\x1b]0;x\x07", "n" * 300])] = holder.pop(key)
        value = "another name"
    else:
        holder[key] = value
    ascii_only = rng.random() < 0.5
    if name in (MANIFEST, f"../{RUN_ID}.evaluation.json"):
        _write_sealed(path, lines[0], ascii_only=ascii_only)
    else:
        text = "".join(json.dumps(line, ensure_ascii=ascii_only) + "\n" for line in lines)
        path.write_bytes(_raw(text).encode("utf-8", "surrogatepass"))
    _redigest(run, but=name == MANIFEST)
    return f"{name} {at} is {str(value)[:60]!r}"


def _write_sealed(path: Path, content: Any, *, ascii_only: bool = True) -> None:
    """Write a JSON file whose last field is the digest of the rest, as if it had been written so."""
    text = _raw(json.dumps(content, indent=1, ensure_ascii=ascii_only) + "\n")
    body = text.encode("utf-8", "surrogatepass")
    try:
        path.write_bytes(with_digest(body.decode()))
    except UnicodeDecodeError:
        path.write_bytes(body)


def _raw(text: str) -> str:
    """Return text with what JSON cannot write in place of its stand-in."""
    for value in NASTY:
        if isinstance(value, str) and value.startswith(RAW):
            text = text.replace(json.dumps(value), value.removeprefix(RAW))
    return text


def _header(run: Path, rng: random.Random) -> str:
    """What an array file says of itself is something else, with or without a fitting length."""
    name = rng.choice(_files(run, ".npy"))
    content = (run / name).read_bytes()
    old, new = rng.choice([pair for pair in HEADERS if pair[0] in content[:128]] or [(b"x", b"y")])
    header, body = content[:128].replace(old, new, 1), content[128:]
    if rng.random() < 0.5:
        header = header[:8] + struct.pack("<H", max(0, len(header) - 10)) + header[10:]
    elif rng.random() < 0.3:
        header = header[:8] + struct.pack("<H", rng.randrange(1 << 16)) + header[10:]
    (run / name).write_bytes(header + body)
    _redigest(run)
    return f"{name}: {old!r} is {new!r}"


def _numbers(run: Path, rng: random.Random) -> str:
    """Some numbers of an array become others, of any size."""
    name = rng.choice(_files(run, ".npy"))
    content = bytearray((run / name).read_bytes())
    value = rng.choice(
        [
            b"\xff\xff\xff\x7f",
            b"\x00\x00\xc0\x7f",
            b"\x00\x00\x80\xff",
            b"\xff" * 8,
            b"\x00" * 8,
            b"\xff\xff\x7f\x7f",
        ]
    )
    for _ in range(rng.choice((1, 5))):
        if len(content) > 136:
            at = rng.randrange(128, len(content) - 8, 4)
            content[at : at + len(value)] = value
    (run / name).write_bytes(content)
    _redigest(run)
    return f"{name}: numbers are {value!r}"


def _bytes(run: Path, rng: random.Random) -> str:
    name = rng.choice(_files(run))
    content = bytearray((run / name).read_bytes())
    for _ in range(rng.choice((1, 3, 20)) if content else 0):
        content[rng.randrange(len(content))] = rng.randrange(256)
    (run / name).write_bytes(content)
    _redigest(run, but=name == MANIFEST)
    return f"{name}: other bytes"


def _cut(run: Path, rng: random.Random) -> str:
    name = rng.choice(_files(run))
    content = (run / name).read_bytes()
    content = rng.choice(
        [content[: rng.randrange(len(content) + 1)], content * 2, content + b"\0" * 4096, b""]
    )
    (run / name).write_bytes(content)
    if rng.random() < 0.8:
        _redigest(run, but=name == MANIFEST)
    return f"{name} has {len(content)} bytes"


def _swap(run: Path, rng: random.Random) -> str:
    one, other = rng.sample([name for name in _files(run) if name != MANIFEST], 2)
    content = (run / one).read_bytes()
    (run / one).write_bytes((run / other).read_bytes())
    (run / other).write_bytes(content)
    _redigest(run)
    return f"{one} and {other} are swapped"


def _foreign(run: Path, rng: random.Random) -> str:
    """A file, or a folder in the run, is a link, a pipe or a folder."""
    folders = sorted(path.name for path in run.iterdir() if path.is_dir() and not path.is_symlink())
    name = rng.choice([*_files(run), *folders])
    path, kept = run / name, run.parent.parent / "kept"
    kind = rng.choice(
        ["a link", "a link to a secret", "a link to a device", "a pipe", "a folder", "a loop", "nothing"]
    )
    if path.is_dir():
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(path, kept)
        shutil.rmtree(path)
    else:
        path.replace(kept)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind != "nothing":
        targets = {"a link": kept, "a link to a secret": run.parent.parent / "secret", "a loop": path}
        path.symlink_to(targets.get(kind, Path("/dev/zero")))
    return f"{name} is {kind}"


def _names(run: Path, rng: random.Random) -> str:
    """The manifest names a file elsewhere."""
    path = run / MANIFEST
    if path.is_symlink() or not path.is_file():
        return "nothing"
    try:
        manifest = json.loads(path.read_bytes())
        name = rng.choice(sorted(manifest["files"]))
        new = rng.choice(
            [
                "../../secret",
                "/etc/passwd",
                "histories/../movie_ids.npy",
                "./x",
                "a\\b",
                "x" * 300,
                "\x1b[2J",
                "a//b",
                "",
            ]
        )
        manifest["files"][new] = manifest["files"].pop(name)
        manifest.pop("digest", None)
    except (ValueError, KeyError, TypeError, OSError, AttributeError, RecursionError):
        return "nothing"
    _write_sealed(path, manifest)
    return f"{name} is {new[:20]!r}, elsewhere"


def _redigest(run: Path, *, but: bool = False) -> None:
    """Write the digests of the files, as they are now, into the manifest, unless it was itself changed."""
    path = run / MANIFEST
    if path.is_symlink() or not path.is_file():  # a device, a pipe
        return
    try:
        manifest = json.loads(path.read_bytes())
        for name, entry in manifest["files"].items():
            if not but and (run / name).is_file():
                entry |= {"bytes": (run / name).stat().st_size, "sha256": digest_of(run / name)}
    except (ValueError, KeyError, TypeError, OSError, AttributeError, RecursionError):
        return
    if not but:
        manifest.pop("digest", None)
        _write_sealed(path, manifest)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
