"""A Qdrant server: sync beside upload_points, cold and warm queries beside qdrant-client and other stores.

    QDRANT_URL=http://127.0.0.1:6333 python -m benchmarks.server [--runs 5] [--other-python PYTHON]

Without QDRANT_URL nothing is measured; QDRANT_API_KEY is its key. Every part runs in a process of its own,
in turn with the one it is compared with; figures are medians, ratios are pair by pair. PYTHON is an
interpreter that has langchain-qdrant and llama-index-vector-stores-qdrant (default: OTHER_PYTHON, or this
one). The collections are deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from embedstore.runs.run import Run
    from embedstore.stores.base import Filters
    from embedstore.stores.connection import Connection
    from embedstore.stores.server import ServerStore

ROOT = Path(__file__).resolve().parent.parent
ALIAS = "bench"
RAW = "bench-raw"
USER = 7
QUERIES = 200
BATCH = 256  # the fastest of upload_points among 64, 256 and 1,000; so are one process and wait=False
ASKED = "asked.json"  # what every query of the others asks for


def generated(folder: Path) -> Run:
    from embedstore.runs.run import Run

    return Run.load(next((folder / "runs").iterdir()))


def opened() -> ServerStore:
    from embedstore.stores.server import ServerStore

    return ServerStore(os.environ["QDRANT_URL"], connection())


def connection() -> Connection:
    from embedstore.stores.connection import Connection, Secret

    key = os.environ.get("QDRANT_API_KEY")
    return Connection(api_key=Secret(key) if key else None)


def raw_client(*, grpc: bool = False) -> QdrantClient:
    from qdrant_client import QdrantClient

    url = os.environ["QDRANT_URL"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a key over http, on loopback
        return QdrantClient(
            url,
            api_key=os.environ.get("QDRANT_API_KEY"),
            prefer_grpc=grpc,
            grpc_port=(urlsplit(url).port or 6333) + 1,
            timeout=60,
            check_compatibility=False,
        )


def clean() -> None:
    """Delete what the parts leave behind."""
    client = raw_client()
    for collection in client.get_collections().collections:
        if collection.name == RAW or collection.name.startswith(f"{ALIAS}__"):
            client.delete_collection(collection.name)


def make(folder: Path, movies: int) -> None:
    """Write a generated run, and what the queries of one of its users ask for."""
    from benchmarks.generated import generated_run

    run = generated_run(folder / "runs", n_movies=movies, n_users=500)
    rows = run.history(USER)
    asked = {
        "collection": f"{ALIAS}__{run.run_id}",
        "psi": run.tower(rows).tolist(),
        "seen": run.movies.ids(rows),
    }
    (folder / ASKED).write_text(json.dumps(asked))


def first_sync(folder: Path) -> dict[str, float]:
    """Sync into a server without the collection, verification included."""
    from embedstore.sync import sync

    clean()
    run = generated(folder)
    stages: dict[str, float] = {}
    with opened() as store:
        store.bulk_way()  # imports gRPC
        started = time.perf_counter()
        report = sync(
            run,
            store,
            alias=ALIAS,
            progress=lambda what, _done, _all: stages.update({what: time.perf_counter()}),
        )
        seconds = time.perf_counter() - started
    assert report.written == len(run.movies)
    return {"seconds": seconds, "written": stages["writing"] - started}


def upload(folder: Path) -> dict[str, float]:
    """Write the same points into a new collection: those that were made before, then made from the run."""
    run = generated(folder)
    n = len(run.movies)
    points = list(_point_structs(run))
    return {"seconds": _upload(points, n), "from_run": _upload(_point_structs(generated(folder)), n)}


def _upload(points: Iterator[Any] | Sequence[Any], n: int) -> float:
    from qdrant_client import models

    client = raw_client(grpc=True)
    client.delete_collection(RAW)
    exact = models.HnswConfigDiff(m=0)
    movies, history = (
        models.VectorParams(size=64, distance=models.Distance.DOT, hnsw_config=exact, on_disk=on_disk)
        for on_disk in (None, True)
    )
    started = time.perf_counter()
    client.create_collection(RAW, vectors_config={"": movies, "history": history})
    client.create_payload_index(RAW, "genres", models.PayloadSchemaType.KEYWORD)
    client.create_payload_index(RAW, "year", models.PayloadSchemaType.INTEGER)
    client.upload_points(RAW, points, batch_size=BATCH, parallel=1, wait=False)
    while client.count(RAW, exact=True).count < n:
        time.sleep(0.01)
    return time.perf_counter() - started


def _point_structs(run: Run) -> Iterator[Any]:
    from qdrant_client import models

    from embedstore.stores.contract import points

    for start in range(0, len(run.movies), 1000):
        batch = points(run, start, min(start + 1000, len(run.movies)))
        assert batch.history_vectors is not None
        for key, movie, history, payload in zip(
            batch.ids, batch.movie_vectors, batch.history_vectors, batch.payloads, strict=True
        ):
            vectors = {"": movie.tolist(), "history": history.tolist()}
            yield models.PointStruct(id=key, vector=vectors, payload=dict(payload))


def again(folder: Path) -> dict[str, float]:
    """Sync once more; the seconds of the function and of the whole command. Fails where it wrote."""
    from embedstore.sync import sync

    run = generated(folder)
    with opened() as store:
        started = time.perf_counter()
        report = sync(run, store, alias=ALIAS)
        seconds = time.perf_counter() - started
    assert (report.state, report.written, report.promoted) == ("unchanged", 0, False)
    taken, said = _command(["sync", "--json"], folder)
    assert json.loads(said)["state"] == "unchanged"
    return {"seconds": seconds, "command": taken}


COLD = """
import json, os
from qdrant_client import QdrantClient, models
asked = json.load(open("asked.json"))
url, key = os.environ["QDRANT_URL"], os.environ.get("QDRANT_API_KEY")
client = QdrantClient(url, api_key=key, check_compatibility=False)
watched = models.Filter(must_not=[models.HasIdCondition(has_id=asked["seen"])])
print(client.query_points(asked["collection"], query=asked["psi"], query_filter=watched, limit=10).points)
"""


def cold(folder: Path) -> dict[str, float]:
    """A whole `embedstore query --user`, and a whole script that knows psi and asks qdrant-client once."""
    ours, _ = _command(["query", "--user", str(USER), "--json"], folder)
    theirs, _ = _timed([sys.executable, "-c", COLD], folder)
    return {"ours": ours, "theirs": theirs}


def warm(folder: Path) -> dict[str, float]:
    """recommend() and query_points by turns, milliseconds a call, also with a filter."""
    from embedstore.query.recommend import recommend
    from embedstore.stores.base import Filters

    run, asked = generated(folder), json.loads((folder / ASKED).read_text())
    name = asked["collection"]
    client = raw_client()
    narrow = Filters(genres=("Comedy",), years=((">=", 1990),))
    found: dict[str, float] = {}
    with opened() as store:
        for filters in (None, narrow):
            condition = _filter(asked["seen"], narrow=filters is not None)

            def ours(filters: Filters | None = filters) -> object:
                answer = recommend(run, store, user_id=USER, filters=filters, collection=name)
                return [movie.movie_id for movie in answer.recommendations]

            def theirs(condition: Any = condition) -> object:
                answer = client.query_points(name, query=asked["psi"], query_filter=condition, limit=10)
                return [point.id for point in answer.points]

            found |= _by_turns("filter" if filters else "plain", ours=ours, theirs=theirs)
    return found


def others(folder: Path) -> dict[str, float]:
    """The stores of LangChain and llama-index and query_points by turns, on the same collection."""
    from langchain_qdrant import QdrantVectorStore as LangChain
    from llama_index.core.vector_stores.types import VectorStoreQuery
    from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndex
    from qdrant_client import models

    asked = json.loads((folder / ASKED).read_text())
    name, psi = asked["collection"], asked["psi"]
    client = raw_client()
    chain = LangChain(
        client,
        name,
        vector_name="",
        content_payload_key="title",
        distance=models.Distance.DOT,
        validate_embeddings=False,
        validate_collection_config=False,
    )
    index = LlamaIndex(name, client=client, text_key="title")
    query = VectorStoreQuery(query_embedding=psi, similarity_top_k=10)
    found: dict[str, float] = {}
    for narrow in (False, True):
        condition = _filter(asked["seen"], narrow=narrow)

        def theirs(condition: Any = condition) -> object:
            return [p.id for p in client.query_points(name, psi, query_filter=condition, limit=10).points]

        def langchain(condition: Any = condition) -> object:
            answer = chain.similarity_search_with_score_by_vector(psi, k=10, filter=condition)
            return [document.metadata["_id"] for document, _ in answer]

        def llama(condition: Any = condition) -> object:
            return [int(key) for key in index.query(query, qdrant_filters=condition).ids]

        found |= _by_turns("filter" if narrow else "plain", theirs=theirs, langchain=langchain, llama=llama)
    return found


def _filter(seen: list[Any], *, narrow: bool) -> Any:
    from qdrant_client import models

    must: list[Any] = [
        models.FieldCondition(key="genres", match=models.MatchValue(value="Comedy")),
        models.FieldCondition(key="year", range=models.Range(gte=1990)),
    ]
    return models.Filter(must=must if narrow else None, must_not=[models.HasIdCondition(has_id=seen)])


def _by_turns(what: str, **calls: Callable[[], object]) -> dict[str, float]:
    """Return the median milliseconds of every call, and its ratio to that of theirs, round by round."""
    assert len({json.dumps(call()) for call in calls.values()}) == 1, "the answers differ"
    rounds = [{name: _seconds(call) for name, call in calls.items()} for _ in range(QUERIES)]
    found = {}
    for name in calls:
        found[f"{what} {name}"] = 1e3 * statistics.median(each[name] for each in rounds)
        found[f"{what} {name} ratio"] = statistics.median(each[name] / each["theirs"] for each in rounds)
    return found


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _command(arguments: Sequence[str], folder: Path) -> tuple[float, str]:
    """Run embedstore on the server; return the seconds and what it printed."""
    command = [sys.executable, "-m", "embedstore", *arguments]
    return _timed([*command, "--alias", ALIAS, "--store", os.environ["QDRANT_URL"]], folder)


def _timed(command: Sequence[str], folder: Path) -> tuple[float, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if key := environment.get("QDRANT_API_KEY"):
        environment["EMBEDSTORE_QDRANT_API_KEY"] = key
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=environment)
    return time.perf_counter() - started, done.stdout


PARTS: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "first": first_sync,
    "upload": upload,
    "again": again,
    "cold": cold,
    "warm": warm,
    "others": others,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--movies", type=int, default=62_000)
    parser.add_argument(
        "--other-python", default=os.environ.get("OTHER_PYTHON", sys.executable), metavar="PYTHON"
    )
    parser.add_argument("--part", choices=["make", *PARTS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "make":
        make(options.folder, options.movies)
        return
    if options.part:
        print(json.dumps(PARTS[options.part](options.folder)))
        return
    if "QDRANT_URL" not in os.environ:
        print("not measured: no Qdrant server; set QDRANT_URL (and QDRANT_API_KEY)")
        return
    version, load = raw_client().info().version, os.getloadavg()[0]
    print(f"Qdrant {version}; medians of {options.runs}; load {load:.1f} before", flush=True)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            _report(Path(temporary), options.movies, options.runs, options.other_python)
    finally:
        clean()
    print(f"load {os.getloadavg()[0]:.1f} after")


def _report(folder: Path, movies: int, runs: int, other_python: str) -> None:
    _run_part("make", folder, "--movies", str(movies))
    rounds = [(_measured("first", folder), _measured("upload", folder)) for _ in range(runs)]
    first, upload = (_medians([each[side] for each in rounds]) for side in (0, 1))
    made, from_run = (
        statistics.median(theirs[key] / ours["seconds"] for ours, theirs in rounds)
        for key in ("seconds", "from_run")
    )
    print(f"{movies:,} movies x 64, two vectors each, with payload")
    rows = [
        (f"first sync, verified (written after {first['written']:.2f} s)", first["seconds"], ""),
        ("upload_points, points made before", upload["seconds"], f"sync: {made:.2f} of it"),
        ("upload_points, points made from the run", upload["from_run"], f"sync: {from_run:.2f} of it"),
    ]
    for what, seconds, beside in rows:
        print(f"{what:<44}{movies / seconds:>7,.0f} points/s {seconds:>6.2f} s  {beside}", flush=True)
    again = _medians([_measured("again", folder) for _ in range(runs)])
    print(
        f"unchanged sync  {again['command']:.2f} s the command, {again['seconds']:.2f} s the function; "
        "nothing written"
    )
    cold = [_measured("cold", folder) for _ in range(2 * runs)][1:]
    times = _medians(cold)
    ratio = statistics.median(pair["ours"] / pair["theirs"] for pair in cold)
    print(
        f"cold query  {times['ours']:.2f} s, importing qdrant_client and one query_points "
        f"{times['theirs']:.2f} s: {ratio:.2f}x"
    )
    warm = _medians([_measured("warm", folder) for _ in range(runs)])
    print("warm query, k = 10, 100 seen excluded        plain         with a filter")
    _print_calls(warm, {"theirs": "query_points", "ours": "recommend"})
    if _imports_others(other_python):
        found = _medians([_measured("others", folder, python=other_python) for _ in range(runs)])
        _print_calls(found, {"theirs": "query_points", "langchain": "LangChain's", "llama": "llama-index's"})
    else:
        print("LangChain's and llama-index's stores are not installed: not measured; see --other-python")


def _print_calls(found: Mapping[str, float], names: Mapping[str, str]) -> None:
    for key, name in names.items():
        columns = (
            f"{found[f'{what} {key}']:>6.2f} ms {found[f'{what} {key} ratio']:>5.2f}x"
            for what in ("plain", "filter")
        )
        print(f"  {name:<36}" + "  ".join(columns))


def _imports_others(python: str) -> bool:
    imported = [python, "-c", "import langchain_qdrant, llama_index.vector_stores.qdrant"]
    return subprocess.run(imported, capture_output=True, check=False).returncode == 0


def _measured(part: str, folder: Path, *, python: str = sys.executable) -> dict[str, float]:
    figures: dict[str, float] = json.loads(_run_part(part, folder, python=python))
    return figures


def _run_part(part: str, folder: Path, *arguments: str, python: str = sys.executable) -> str:
    command = [python, "-m", "benchmarks.server", "--part", part, "--folder", str(folder), *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def _medians(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: statistics.median(each[key] for each in figures) for key in figures[0]}


if __name__ == "__main__":
    main()
