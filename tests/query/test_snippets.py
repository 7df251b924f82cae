"""What `embedstore contract` prints, run as a stranger would, answers what `embedstore query` answers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

import pytest

from embedstore.sync import sync
from tests.builders import tiny_run
from tests.server import clean, server_store, server_url

pytestmark = pytest.mark.server

ROOT = Path(__file__).parent.parent.parent
NODE_APP = ROOT / "examples" / "node-app"
GO_CLIENT = "github.com/qdrant/go-client@v1.17.1"
RECIPES = ("embedding", "history", "filters")

Ask = Callable[..., str]


@pytest.fixture(scope="module", params=["integer ids", "text ids", "dense"])
def ask(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Return what runs a command of embedstore on a synced server, and returns what it prints."""
    folder = tmp_path_factory.mktemp("contract")
    kind = request.param
    run = tiny_run(folder, n=200, dim=8, text_ids=kind == "text ids", additive=kind != "dense")
    with server_store() as store:
        sync(run, store)
    settings = {
        "EMBEDSTORE_QDRANT_API_KEY": os.environ.get("QDRANT_API_KEY", ""),
        "EMBEDSTORE_STORE": server_url(),
        "EMBEDSTORE_RUNS": str(folder / "runs"),
    }

    @cache
    def printed(*arguments: str) -> str:
        return _read([sys.executable, "-m", "embedstore", *arguments], "", ROOT, settings)

    yield printed
    clean(server_url())


def execute(language: str, text: str, folder: Path) -> list[tuple[str, float]]:
    """Return the movie ids and scores that a snippet prints."""
    out = _RUN[language](text, folder)
    if language == "curl":
        points = json.loads(out)["result"]["points"]
        return [(str(point["payload"]["movie_id"]), point["score"]) for point in points]
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    return [(movie_id, float(score)) for movie_id, score, *_ in lines]


def _done(
    command: list[str], text: str, folder: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    key = os.environ.get("QDRANT_READ_ONLY_API_KEY") or os.environ.get("QDRANT_API_KEY", "")
    environment = {**os.environ, "QDRANT_API_KEY": key, **variables}
    return subprocess.run(
        command, input=text, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def _read(
    command: list[str], text: str, folder: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> str:
    done = _done(command, text, folder, variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _curl(text: str, folder: Path) -> str:
    return _read(["bash", "-euo", "pipefail"], text, folder)


def _python(text: str, folder: Path) -> str:
    return _read([sys.executable, "-"], text, folder)


def _javascript(text: str, folder: Path) -> str:
    if shutil.which("node") is None or not (NODE_APP / "node_modules").is_dir():
        pytest.skip(f"NO NODE CLIENT: install node and run `npm ci` in {NODE_APP}")
    return _read(["node", "--input-type=module"], text, NODE_APP)


def _go(text: str, folder: Path) -> str:
    go = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
    if go is None:
        pytest.skip("NO GO: install it to run this test")
    offline = {"GOPROXY": "off", "GOSUMDB": "off", "GOFLAGS": "-mod=mod"}
    (folder / "go.mod").write_text("module recipe\n\ngo 1.24\n")
    (folder / "main.go").write_text(text)
    if _done([go, "get", GO_CLIENT], "", folder, offline).returncode:
        pytest.skip(f"NO GO CLIENT in the module cache: run `go mod download {GO_CLIENT}`")
    gofmt = str(Path(go).with_name("gofmt"))
    assert _read([gofmt, "-l", "main.go"], "", folder) == ""
    return _read([go, "run", "."], "", folder, offline)


_RUN = {"curl": _curl, "python": _python, "javascript": _javascript, "go": _go}


@pytest.mark.parametrize("language", ["curl", "python", "javascript", "go"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_snippet_answers_what_query_answers(
    ask: Ask, tmp_path: Path, recipe: str, language: str
) -> None:
    told = {entry["name"]: entry for entry in json.loads(ask("contract", "--json"))["recipes"]}
    if recipe not in told:
        pytest.skip("a dense tower has no recipe from a history")
    theirs = execute(language, ask("contract", "--snippet", recipe, "--language", language), tmp_path)
    ours = json.loads(ask(*shlex.split(told[recipe]["command"])[1:], "--json"))["recommendations"]
    if recipe == "filters":
        ours = ours[5:]
    assert len(theirs) == (5 if recipe == "filters" else 10)
    assert [movie_id for movie_id, _ in theirs] == [str(movie["movie_id"]) for movie in ours]
    assert [score for _, score in theirs] == pytest.approx([movie["score"] for movie in ours], abs=1e-5)


@pytest.mark.parametrize("language", ["curl", "python", "javascript", "go"])
def test_an_unknown_id_in_the_history_changes_nothing(ask: Ask, tmp_path: Path, language: str) -> None:
    told = json.loads(ask("contract", "--json"))
    if "history" not in told["vectors"]:
        pytest.skip("a dense tower has no recipe from a history")
    text = ask("contract", "--snippet", "history", "--language", language)
    first = told["example"]["point_ids"][0]
    unknown = 999_999_999 if isinstance(first, int) else "00000000-0000-5000-8000-000000000000"
    if language == "go":
        call = "qdrant.NewIDNum({})" if isinstance(first, int) else 'qdrant.NewIDUUID("{}")'
        first, unknown = call.format(first), call.format(unknown)
    else:
        first, unknown = json.dumps(first), json.dumps(unknown)
    changed = text.replace(f"{first}, ", f"{first}, {unknown}, ", 1)
    assert changed != text
    assert execute(language, changed, tmp_path) == execute(language, text, tmp_path)


@pytest.mark.parametrize("language", ["python", "javascript", "go"])
def test_a_snippet_refuses_the_answer_of_another_run(ask: Ask, tmp_path: Path, language: str) -> None:
    run_id = json.loads(ask("contract", "--json"))["run_id"]
    text = ask("contract", "--snippet", "embedding", "--language", language)
    with pytest.raises(AssertionError, match=f"run {run_id} answered, psi is of run 20000101t000000-0000"):
        execute(language, text.replace(run_id, "20000101t000000-0000"), tmp_path)


def test_no_key_is_printed(ask: Ask) -> None:
    key = os.environ.get("QDRANT_API_KEY")
    if not key:
        pytest.skip("the server has no key")
    assert key not in ask("contract") + ask("contract", "--json")
