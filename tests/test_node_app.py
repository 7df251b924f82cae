"""examples/node-app: another application, which knows an alias and a read-only key, while the alias moves."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from embedstore.data.features import MovieId
from embedstore.errors import StoreError, UsageError
from embedstore.query.recommend import recommend
from embedstore.runs.run import Run
from embedstore.stores.access import check_token, read_token
from embedstore.sync import rollback, sync
from tests.builders import tiny_run
from tests.server import clean, connection_of_tests, server_store, server_url

pytestmark = pytest.mark.server

APP = Path(__file__).parent.parent / "examples" / "node-app"
HISTORIES = ((1,), (2, 3, 5), tuple(range(10, 40)))
FLIPS = 40


@contextmanager
def application(token: str | None = None) -> Iterator[httpx.Client]:
    """Start the application, by default with a read-only key, and yield a client; it must run to the end."""
    if shutil.which("node") is None or not (APP / "node_modules").is_dir():
        pytest.skip(f"NO NODE CLIENT: install node and run `npm ci` in {APP}")
    key = token or os.environ.get("QDRANT_READ_ONLY_API_KEY") or os.environ.get("QDRANT_API_KEY", "")
    environment = {**os.environ, "QDRANT_URL": server_url(), "QDRANT_API_KEY": key, "PORT": "0"}
    with subprocess.Popen(
        ["node", "app.js"], cwd=APP, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with httpx.Client(base_url=url, timeout=60) as client:
                yield client
            assert process.poll() is None
        finally:
            process.kill()


def token_of_alias() -> str | None:
    """Return a token that reads the alias alone; None where the server takes no tokens."""
    connection = connection_of_tests()
    if connection.api_key is None:
        return None
    try:
        token = read_token(connection.api_key, "movies", None)
        check_token(token, "movies", server_url(), connection)
    except (StoreError, UsageError):
        return None
    return token.reveal()


def question(history: tuple[MovieId, ...]) -> dict[str, Any]:
    return {"history": ",".join(map(str, history)), "k": 5}


@pytest.fixture(params=[False, True], ids=["integer ids", "text ids"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Run]]:
    url = server_url()
    yield [
        tiny_run(tmp_path, n=60, seed=seed, run_id=f"20260101t00000{seed}-0000", text_ids=request.param)
        for seed in (1, 2)
    ]
    clean(url)


def test_no_error_and_no_mixed_answer_while_the_alias_moves(runs: list[Run]) -> None:
    histories = [tuple(runs[0].movies.ids(np.array(rows))) for rows in HISTORIES]
    answers: list[tuple[tuple[MovieId, ...], httpx.Response]] = []
    done = threading.Event()
    with ExitStack() as stack:
        store = stack.enter_context(server_store())
        for run in runs:
            sync(run, store)
        client = stack.enter_context(application(token_of_alias()))
        expected = {
            (run.run_id, history): {
                movie.movie_id: movie.score
                for movie in recommend(run, store, history=history, k=5).recommendations
            }
            for run in runs
            for history in histories
        }

        def reader() -> None:
            while not done.is_set():
                answers.extend(
                    (history, client.get("/recommend", params=question(history))) for history in histories
                )

        thread = threading.Thread(target=reader)
        thread.start()
        try:
            for flip in range(FLIPS):
                before = len(answers)
                if flip % 2:
                    store.promote("movies", f"movies__{runs[1].run_id}")
                else:
                    rollback(store)
                while len(answers) == before and thread.is_alive():  # no faster than it can answer
                    done.wait(0.01)
        finally:
            done.set()
            thread.join()
    assert [answer.text for _, answer in answers if answer.status_code != 200] == []
    seen = set()
    for history, answer in answers:
        content = answer.json()
        seen.add(content["run_id"])
        theirs = {movie["movie_id"]: movie["score"] for movie in content["recommendations"]}
        assert theirs == pytest.approx(expected[content["run_id"], history], abs=1e-5)
    assert seen == {run.run_id for run in runs}
    assert len(answers) >= FLIPS


def test_what_cannot_be_answered_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with server_store() as store, application() as client:
        try:
            missing = client.get("/recommend", params=question((1,)))
            sync(tiny_run(tmp_path, additive=False), store)
            dense = client.get("/recommend", params=question((1,)))
            assert (dense.status_code, "has a dense tower" in dense.text) == (503, True)
            assert missing.status_code == 502
            sync(tiny_run(tmp_path, run_id="20270101t000000-0000"), store)
            for params, status in (
                (question((1, 2)), 200),
                (question((1, 999)), 200),  # an unknown movie is left out
                (question((999,)), 404),
                (question(()), 400),
                ({"history": "1", "k": "x"}, 400),
            ):
                answer = client.get("/recommend", params=params)
                assert answer.status_code == status, answer.text
                assert status == 200 or answer.json()["error"]
        finally:
            clean(server_url())
