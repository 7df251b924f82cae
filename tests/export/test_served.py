"""The export of a run whose psi its own model computes: that model, and how to feed it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embedstore.errors import UsageError
from embedstore.export import export_run
from embedstore.export.served import inputs_of
from embedstore.runs.consent import allow
from embedstore.runs.tower import MovieFeature
from tests.export.test_export import snippet
from tests.runs.models import N, expected, served_run, served_tower, write_model


def test_the_model_is_copied_and_its_inputs_are_told(tmp_path: Path) -> None:
    positions = np.arange(N)
    positions[0] = -1
    run = served_run(tmp_path, positions=positions)
    report = export_run(run, ["onnx"], tmp_path / "out")
    assert report.formats[0].largest_difference == 0
    assert (tmp_path / "out/model.onnx").read_bytes() == (run.path / "tower/model.onnx").read_bytes()
    told = json.loads((tmp_path / "out/vocabulary.json").read_text())
    assert (told["schema"], told["run_id"], told["constant"]) == (2, run.run_id, False)
    code = f"history = [1, 6, 8]\n{snippet('python served')}\nprint(psi.tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == expected([5, 7])  # movie 1 is not in the model's vocabulary


@pytest.mark.tf
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_saved_model_is_copied_whole(tmp_path: Path) -> None:
    run = served_run(tmp_path, "saved_model")
    allow(run.manifest)
    assert export_run(run, ["saved-model"], tmp_path / "out").formats[0].largest_difference == 0


def test_the_features_of_the_movies_are_told(tmp_path: Path) -> None:
    genres = MovieFeature("genres", np.array([0, 2, 2, 3]), np.array([1, 0, -1]), ("a", "b"))
    tower = served_tower(write_model("onnx", tmp_path), features={"genres": genres})
    assert inputs_of(tower)["genres"] == [[1, 0], [], [-1]]


@pytest.mark.parametrize("name", ["npz", "saved-model"])
def test_another_format_is_refused(name: str, tmp_path: Path) -> None:
    run = served_run(tmp_path)
    with pytest.raises(
        UsageError, match=f"own ONNX model, of which no --{name} can be made; export that with --onnx"
    ):
        export_run(run, ["onnx", name], tmp_path / "out")
    assert not (tmp_path / "out").exists()
