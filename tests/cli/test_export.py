"""The `export` command: what it prints, and how it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from embedstore.cli import run as embedstore
from embedstore.stores.base import open_store
from embedstore.sync import sync
from tests.builders import edit_json, tiny_run

RUN = "20240101t000000-aaaa"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_run(tmp_path, run_id=RUN, additive=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_format_says_its_bytes_and_its_difference(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    assert embedstore(["export", "--onnx", "--npz"]) == 0
    printed = capsys.readouterr().out
    assert f"psi of run {RUN} written to export/{RUN}" in printed
    size = (folder / "export" / RUN / "model.onnx").stat().st_size
    assert f"onnx    model.onnx             {size:,} " in printed


def test_the_live_run_by_its_alias_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    live = tiny_run(folder, run_id="20230101t000000-bbbb", seed=1)
    with open_store("store", create=True) as store:
        sync(live, store)
    assert embedstore(["export", "@movies", "--npz", "-o", "out", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["run_id"], report["path"]) == (live.run_id, "out")
    (made,) = report["formats"]
    assert (made["format"], made["files"]) == ("npz", ["tower.npz", "tower.json"])
    assert made["largest_difference"] <= 1e-6
    assert json.loads((folder / "out" / "vocabulary.json").read_text("utf-8"))["run_id"] == live.run_id


@pytest.mark.tf
def test_tensorflow_says_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert embedstore(["export", "--saved-model"]) == 0
    assert capfd.readouterr().err == ""
    assert (folder / "export" / RUN / "saved_model" / "saved_model.pb").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ([], 2, "say in which format: one or more of --onnx, --saved-model and --npz"),
        (["--npz", "-o", "runs"], 2, "holds more than an export; choose another folder with -o"),
        (["--npz", "-o", "."], 2, "holds more than an export"),
        (["--npz", "2019"], 3, "no run '2019'"),
        (["--npz", "@films"], 3, "no store"),
        (["--saved-model"], 2, "--saved-model needs tensorflow; install with `pip install tensorflow`"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert embedstore(["export", *arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["runs"]


def test_a_run_without_tower(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_json(folder / "runs" / RUN / "manifest.json", tower="none")
    assert embedstore(["export", "--npz"]) == 1
    assert f"Error: run {RUN} has no user tower to make psi(X) of a history;" in capsys.readouterr().err
