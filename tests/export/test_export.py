"""psi of an export is psi of the run, in every format and for every shape of tower."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from embedstore.data.features import Bags
from embedstore.errors import EmbedstoreError, RunError, UsageError, VerificationError
from embedstore.export import FORMATS, export_run
from embedstore.export.gate import check, padded, random_histories
from embedstore.export.tables import MovieTable, Psi, TowerTables
from embedstore.runs.run import Run
from embedstore.runs.tower import AdditiveTower, TowerLayer
from tests.export.towers import FORMS, RUN_ID, run_of, tower_of

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "onnx-node"
GRAPHS = ("onnx", pytest.param("saved-model", marks=pytest.mark.tf))
EVERY_FORMAT = (*GRAPHS, "npz")


def module_of(name: str) -> Any:
    for package in FORMATS[name].packages:
        pytest.importorskip(package)
    return importlib.import_module(f"embedstore.export.{FORMATS[name].module}")


def exported(tables: TowerTables, name: str, folder: Path) -> Psi:
    path = folder / FORMATS[name].files[0]
    module_of(name).write(tables, path)
    psi: Psi = module_of(name).load(path)
    return psi


def f32(*rows: object) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize("name", EVERY_FORMAT)
@pytest.mark.parametrize("form", FORMS)
def test_psi_of_an_export_is_psi_of_the_run(tmp_path: Path, form: str, name: str) -> None:
    run = run_of(form, tmp_path)
    module = module_of(name)
    report = export_run(run, [name], tmp_path / "out")
    assert report.formats[0].largest_difference <= 1e-6
    psi = module.load(tmp_path / "out" / FORMATS[name].files[0])
    rng = np.random.default_rng(7)
    histories = Bags.of([rng.integers(40, size=size) for size in (1, 3, 40, 2000)])
    found = psi(padded(histories))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, run.tower.batch(histories), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(psi(np.array([[6]]))[0], run.tower([6]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", EVERY_FORMAT)
def test_psi_worked_by_hand(tmp_path: Path, name: str) -> None:
    movies = MovieTable("movies", "mean", f32([1, 2], [3, 6], [0, 1]), np.ones(3, np.int32))
    genres = MovieTable("genres", "l2", np.array([[5.0], [0.0], [4.0]]), np.array([3, 0, 1], np.int32))
    layers = [TowerLayer(f32([1, -1], [1, 0.25], [0, 1]), None, "relu"), TowerLayer(f32([2], [10]), f32(1))]
    psi = exported(TowerTables(RUN_ID, [movies, genres], layers, constant=True), name, tmp_path)
    # movies 0 and 1: mean (2, 4), genres 5 / sqrt(3); kernel (6, 1.886751), relu, 12 + 18.86751 + 1
    # movie 1: (3, 6), no genre 0; kernel (9, -1.5), relu (9, 0), 18 + 1
    # movies 0 and 2: (0.5, 1.5), 9 / sqrt(4); kernel (2, 4.375), 4 + 43.75 + 1
    found = psi(np.array([[1, 0, -1], [-1, 1, -1], [0, -1, 2]]))
    np.testing.assert_allclose(found, f32([31.867514, 1], [19, 1], [48.75, 1]), rtol=1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_user_without_a_movie_gets_nan_and_a_row_past_the_last_movie_is_an_error(
    tmp_path: Path, name: str
) -> None:
    run = run_of("l2 tanh constant", tmp_path)
    module = module_of(name)
    export_run(run, [name], tmp_path / "out")
    psi = module.load(tmp_path / "out" / FORMATS[name].files[0])
    assert np.isnan(psi(np.array([[-1, -1], [3, -1]]))).all(axis=1).tolist() == [True, False]
    assert np.isnan(psi(np.zeros((2, 0), np.int64))).all()
    assert psi(np.zeros((0, 3), np.int64)).shape == (0, 4)
    with pytest.raises(Exception, match=r"indices|40 is not in"):
        psi(np.array([[40]]))


def test_the_onnx_file_is_standard_and_old_runtimes_read_it(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    for form in FORMS:
        export_run(run_of(form, tmp_path / form), ["onnx"], tmp_path / form / "out")
        model = onnx.load(tmp_path / form / "out" / "model.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
        assert model.ir_version == 7
        assert model.graph.name == f"psi of run {RUN_ID}"


def test_every_movie_is_in_a_random_history() -> None:
    for n_movies in (1, 40, 5000, 60_000):
        histories = random_histories(n_movies)
        assert np.unique(histories.rows).tolist() == list(range(n_movies))
        sizes = histories.sizes
        assert len(sizes) >= 50
        assert (sizes[0], sizes[-1]) == (1, 2000)
        assert (np.diff(sizes) >= 0).all()


@pytest.mark.parametrize(
    ("change", "passes"), [(1 + 5e-7, True), (1 + 3e-6, False), (np.nan, False), (np.inf, False)]
)
def test_the_gate_is_one_in_a_million(change: float, passes: bool) -> None:
    tower = AdditiveTower(np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32))

    def psi(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        exact = np.stack([tower(history[history >= 0]) for history in rows]).astype(np.float64)
        return (exact * [1, 1, change]).astype(np.float32)

    if passes:
        assert 1e-7 < check("npz", psi, tower, random_histories(40), width=3) <= 1e-6
        return
    with pytest.raises(VerificationError, match=r"psi of npz differs .* by (\S+e-06|nan|inf) .* 1e-06"):
        check("npz", psi, tower, random_histories(40), width=3)


def test_the_gate_is_the_same_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = tower_of("colab")
    calls = []

    def psi(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        calls.append(rows.shape)
        return np.stack([tower(history[history >= 0]) for history in rows])

    check("npz", psi, tower, random_histories(40), width=9)
    assert len(calls) == 1
    monkeypatch.setattr("embedstore.export.gate._BATCH_FLOATS", 9 * 3000)
    check("npz", psi, tower, random_histories(40), width=9)
    assert sum(users for users, _ in calls[1:]) == calls[0][0]
    assert max(users * length for users, length in calls[1:]) <= 3000


def tamper_onnx(path: Path) -> None:
    import onnx

    model = onnx.load(path)
    table = next(part for part in model.graph.initializer if len(part.dims) == 2)
    values = np.frombuffer(table.raw_data, np.float32).copy()
    values[-1] += 1  # the last movie alone
    table.raw_data = values.tobytes()
    onnx.save(model, path)


def tamper_npz(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    arrays["movies.rows"][-1, -1] += 1
    np.savez(path, allow_pickle=False, **arrays)


@pytest.mark.parametrize(("name", "tamper"), [("onnx", tamper_onnx), ("npz", tamper_npz)])
def test_one_wrong_number_is_found_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tamper: Callable[[Path], None]
) -> None:
    module = module_of(name)
    run = run_of("additive", tmp_path)
    export_run(run, ["npz"], tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    write = module.write

    def write_wrong(tables: TowerTables, path: Path) -> None:
        write(tables, path)
        tamper(path)

    monkeypatch.setattr(module, "write", write_wrong)
    with pytest.raises(VerificationError, match=f"psi of {name} differs from the run's tower by"):
        export_run(run, [name], tmp_path / "out", force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_several_formats_at_once_and_a_vocabulary(tmp_path: Path) -> None:
    module_of("onnx")
    run = run_of("colab", tmp_path, text_ids=True)
    report = export_run(run, ["onnx", "npz"], tmp_path / "out")
    names = ["model.onnx", "tower.json", "tower.npz", "vocabulary.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]
    assert [made.bytes for made in report.formats] == [
        (tmp_path / "out" / "model.onnx").stat().st_size,
        sum((tmp_path / "out" / name).stat().st_size for name in ("tower.npz", "tower.json")),
    ]
    vocabulary = json.loads((tmp_path / "out" / "vocabulary.json").read_text("utf-8"))
    assert vocabulary["schema"] == 1
    assert vocabulary["movie_ids"] == run.movies.values.tolist()
    assert (vocabulary["run_id"], vocabulary["fingerprint"]) == (RUN_ID, run.fingerprint)
    assert vocabulary["embedding_dim"] == 4


def test_an_export_is_replaced_whole_and_only_when_told(tmp_path: Path) -> None:
    run = run_of("additive", tmp_path)
    output = tmp_path / "out"
    output.mkdir()  # an empty folder is free
    export_run(run, ["npz"], output)
    (output / "tower.json").write_text("old")
    (output / "model.onnx").write_text("of another run")
    with pytest.raises(UsageError, match="holds an export; replace it with --force"):
        export_run(run, ["npz"], output)
    assert (output / "tower.json").read_text() == "old"
    export_run(run, ["npz"], output, force=True)
    assert sorted(path.name for path in output.iterdir()) == ["tower.json", "tower.npz", "vocabulary.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_export_is_never_replaced(tmp_path: Path, kind: str) -> None:
    run = run_of("additive", tmp_path)
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("mine")
    else:
        export_run(run, ["npz"], output)
        (output / "letters.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds more than an export; choose another folder"):
        export_run(run, ["npz"], output, force=True)
    assert (output if kind == "file" else output / "letters.txt").read_text() == "mine"


def test_a_run_without_tower_has_nothing_to_export(tmp_path: Path) -> None:
    run = run_of("additive", tmp_path)
    bare = Run(run.path, replace(run.manifest, tower="none"))
    with pytest.raises(RunError, match="has no user tower"):
        export_run(bare, ["npz"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r"needs onnx and onnxruntime; .* `pip install onnx onnxruntime`"):
        export_run(run_of("additive", tmp_path), ["onnx"], tmp_path / "out")


def test_tables_past_the_size_of_an_onnx_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of("onnx"), "_LARGEST", 100)
    with pytest.raises(EmbedstoreError, match=r"have 800 bytes and an ONNX file holds 2 GB"):
        export_run(run_of("additive", tmp_path), ["onnx"], tmp_path / "out")  # 40 x (4 x 4 + 4)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbedstoreError, match=r"file/out cannot be written: Not a directory"):
        export_run(run_of("additive", tmp_path), ["npz"], tmp_path / "file" / "out")


def snippet(label: str) -> str:
    text = (ROOT / "docs" / "export.md").read_text("utf-8")
    (found,) = re.findall(rf"^```{label}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(found)


def in_a_fresh_process(folder: Path, *command: str) -> list[float]:
    """Return the numbers that a program prints, run in folder without this checkout on its path."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    printed: list[float] = json.loads(done.stdout)
    return printed


HISTORY = [1, 17, 999_999, 7, 40]  # 999,999 is unknown, 7 has no year


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("onnx", "onnx"),
        pytest.param("saved-model", "tensorflow", marks=pytest.mark.tf),
        ("npz", "numpy"),
    ],
)
@pytest.mark.parametrize("form", ["l2 tanh constant", "colab"])
def test_the_python_of_the_docs(tmp_path: Path, name: str, label: str, form: str) -> None:
    module_of(name)
    run = run_of(form, tmp_path)
    export_run(run, [name], tmp_path / "out")
    code = f"history = {HISTORY}\n{snippet(f'python {label}')}\nprint([float(value) for value in psi])"
    found = in_a_fresh_process(tmp_path / "out", sys.executable, "-I", "-c", code)
    np.testing.assert_allclose(found, run.tower([0, 16, 6, 39]), rtol=1e-6, atol=1e-7)


@pytest.fixture
def node() -> str:
    """Return the path of Node. Skips where it, or the package of the example, is not installed."""
    found = shutil.which("node")
    if found is None or not (EXAMPLE / "node_modules" / "onnxruntime-node").exists():
        pytest.skip("needs node, and `npm install` in examples/onnx-node")
    return found


def test_the_node_example(tmp_path: Path, node: str) -> None:
    module_of("onnx")
    run = run_of("colab", tmp_path)
    export_run(run, ["onnx"], tmp_path / "out")
    done = subprocess.run(
        [node, "psi.js", tmp_path / "out", "1,17,999999,7,40"],
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["run_id"], answer["unknown_movies"]) == (RUN_ID, ["999999"])
    np.testing.assert_allclose(answer["psi"], run.tower([0, 16, 6, 39]), rtol=1e-6, atol=1e-7)


def test_the_javascript_of_the_docs(tmp_path: Path, node: str) -> None:
    module_of("onnx")
    run = run_of("l2 tanh constant", tmp_path)
    export_run(run, ["onnx"], tmp_path / "out")
    (tmp_path / "out" / "node_modules").symlink_to(EXAMPLE / "node_modules")
    script = f"const history = {HISTORY};\n{snippet('js')}\nconsole.log(JSON.stringify([...psi]));\n"
    (tmp_path / "out" / "psi.mjs").write_text(script)
    found = in_a_fresh_process(tmp_path / "out", node, "psi.mjs")
    np.testing.assert_allclose(found, run.tower([0, 16, 6, 39]), rtol=1e-6, atol=1e-7)
