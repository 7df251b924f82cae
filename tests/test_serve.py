"""A host that only serves has neither TensorFlow nor pandas, nor what else training needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.builders import tiny_run

ROOT = Path(__file__).parent.parent
ABSENT = ("tensorflow", "keras", "pandas", "qdrant_client", "grpc", "httpx", "pydantic")
WITHOUT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from embedstore.cli import main
main()
"""

Embedstore = Callable[..., str]


def runner(folder: Path, *command: str | Path, path: str = "") -> Embedstore:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("EMBEDSTORE_")}

    def embedstore(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments],
            cwd=folder,
            env={**kept, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return embedstore


def serve(folder: Path, embedstore: Embedstore, *, additive: bool) -> None:
    """Go through everything that a serving host does, from a run folder alone."""
    run = tiny_run(folder, additive=additive)
    assert run.run_id in embedstore("runs", "list")
    embedstore("plan")
    embedstore("sync")
    assert f"movies__{run.run_id}" in embedstore("status")
    embedstore("verify")
    answer = json.loads(embedstore("query", "--history", "3,5", "-k", "5", "--json"))
    assert answer["run_id"] == run.run_id
    assert [item["rank"] for item in answer["recommendations"]] == [1, 2, 3, 4, 5]
    assert "Movie" in embedstore("query", "--user", "2", "-k", "30")
    known = json.loads(embedstore("embed", "--user", "2", "--json"))
    assert len(known["user_embedding"]) == run.embedding_dim
    assert "Movie" in embedstore("similar", "5")
    (folder / "users.txt").write_text("2\n3\n")
    embedstore("query", "--users-file", "users.txt", "-o", "answers.jsonl")
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert {answer["user_id"] for answer in answers} == {2, 3}


@pytest.mark.parametrize("additive", [True, False])
def test_serving_imports_nothing_that_only_training_needs(tmp_path: Path, additive: bool) -> None:
    embedstore = runner(tmp_path, sys.executable, "-c", WITHOUT, path=str(ROOT))
    serve(tmp_path, embedstore, additive=additive)


@pytest.mark.slow
def test_the_documented_install_serves(tmp_path: Path) -> None:
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    install = (
        environment / "bin" / "python",
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
    )
    subprocess.run(
        [*install, "-c", "constraints.txt", "-r", "requirements-serve.txt"], cwd=ROOT, check=True, timeout=600
    )
    subprocess.run([*install, "--no-deps", "."], cwd=ROOT, check=True, timeout=600)
    absent = f"import importlib.util as u; print([m for m in {ABSENT!r} if u.find_spec(m)])"
    found = subprocess.run(
        [environment / "bin" / "python", "-c", absent],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
    serve(tmp_path, runner(tmp_path, environment / "bin" / "embedstore"), additive=True)
