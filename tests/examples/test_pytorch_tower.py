"""examples/pytorch_tower.py, from the first line to the last, and what it says can be typed after it."""

from __future__ import annotations

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from embedstore.runs.run import Run
from tests.examples.tastes import EXAMPLES, environment, write_ratings

MISSING = [name for name in ("torch", "onnxscript", "onnx", "onnxruntime") if find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"NOT TESTED: the PyTorch example needs {', '.join(MISSING)}, see its first lines"
)


def test_the_answers_are_those_of_pytorch_and_need_it_no_more(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment(tmp_path / "bin"),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    write_ratings(tmp_path / "data")
    said = run("python", EXAMPLES / "pytorch_tower.py", "--data", "data", "--epochs", "40")
    assert "a dense tower, served by numpy" in said
    assert "weights in files beside the model were read into one file" in said
    assert "the model beats popularity" in said
    assert said.splitlines()[-1] == "the same movies and scores as brute force over V by PyTorch's psi"

    answer = json.loads(run("embedstore", "query", "--history", "1,4,7", "--json"))
    sealed = Run.load(next(path for path in (tmp_path / "runs").iterdir() if path.name[0].isdigit()))
    vectors = np.load(tmp_path / "pytorch_tower" / "V.npy")
    rows = sealed.movies.rows([1, 4, 7])
    scores = vectors @ sealed.tower(rows)
    scores[rows] = -np.inf
    best = np.argsort(-scores)[:10]
    found = answer["recommendations"]
    assert [movie["movie_id"] for movie in found] == sealed.movies.values[best].tolist()
    np.testing.assert_allclose([movie["score"] for movie in found], scores[best], rtol=1e-5)
