"""Imports point down, and the names and the weight of `import embedstore` are fixed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import embedstore

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "embedstore"

LEVEL = {  # {cli} -> {sync, query, evaluation, training, export} -> {stores, runs} -> data -> errors
    "errors": 0,
    "data": 1,
    "stores": 2,
    "runs": 2,
    "sync": 3,
    "query": 3,
    "evaluation": 3,
    "training": 3,
    "export": 3,
    "importing": 3,
    "loaders": 3,
    "tracking": 3,
    "cli": 4,
}
AGAIN = ("evaluation", "training")  # global-time trains again, on what a training is given
# Imports within one level, each for a reason. A ring of rooms is refused, but for the oldest, AGAIN.
SIDEWAYS = {
    ("stores", "runs"),  # contract.points reads a run
    ("training", "evaluation"),  # early stopping and metrics of a run
    AGAIN,
    ("evaluation", "query"),  # through the store: what is measured is what a query answers
    ("importing", "evaluation"),  # what is imported is measured,
    ("importing", "training"),  # as a training measures
    ("sync", "evaluation"),  # a gate names a metric, or asks how far the lists of two runs overlap
}
HEAVY = (
    "tensorflow",
    "keras",
    "pandas",
    "scipy",
    "pyarrow",
    "qdrant_client",
    "rich.console",
    "onnx",
    "onnxruntime",
    "optuna",
    "tomlkit",
    "mlflow",
)


def imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every module of embedstore that a file imports, and whether only for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [node.module or ""]
            if node.module == "embedstore":
                names = [f"embedstore.{alias.name}" for alias in node.names if alias.name != "__version__"]
        else:
            continue
        for name in names:
            yield name, id(node) in typing_only


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE) + sorted(
        (PACKAGE / "loaders").glob("*.py")
    )


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    for name, _ in imports_of(path):
        if not name.startswith("embedstore."):
            continue
        other = name.split(".")[1]
        if other == room:
            continue
        assert other in LEVEL, f"{name} is a room that LEVEL does not know"
        assert LEVEL[other] < LEVEL[room] or (room, other) in SIDEWAYS, f"{room} imports {name}"
        assert other != "loaders" or room == "cli", f"only cli meets loaders, {room} imports {name}"


def test_every_import_within_a_level_is_needed_and_no_rooms_make_a_ring() -> None:
    used = {
        (path.relative_to(PACKAGE).parts[0], name.split(".")[1])
        for path in modules()
        for name, _ in imports_of(path)
        if name.startswith("embedstore.")
    }
    assert used >= SIDEWAYS
    above: dict[str, set[str]] = {}
    for room, other in SIDEWAYS - {AGAIN}:
        above.setdefault(room, set()).add(other)
    TopologicalSorter(above).prepare()  # raises CycleError


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_imports_loaders_by_its_folder(path: Path) -> None:
    assert [name for name, _ in imports_of(path) if name.split(".")[0] == "loaders"] == []


def test_only_what_trains_or_reads_models_imports_tensorflow() -> None:
    users = {
        path.relative_to(PACKAGE).as_posix().replace("training/", "training:").partition(":")[0]
        for path in modules()
        for name, typing_only in imports_of(path)
        if name.split(".")[0] in ("tensorflow", "keras") and not typing_only
    }
    importing = {"importing/graph.py", "importing/keras_model.py"}
    assert users <= {"training", "runs/quiet.py", "runs/served.py", "export/saved_model.py"} | importing


def test_public_names_are_frozen() -> None:
    assert embedstore.__all__ == [
        "Dataset",
        "Run",
        "TrainConfig",
        "embed",
        "import_run",
        "load",
        "open_store",
        "recommend",
        "similar",
        "sync",
        "train",
        "verify",
    ]


@pytest.mark.parametrize("name", embedstore.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert callable(getattr(embedstore, name))
    assert name in dir(embedstore)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'embedstore' has no attribute 'recommand'"):
        _ = embedstore.recommand


@pytest.mark.parametrize("first", ["import embedstore.sync", "from embedstore.sync import verify", "pass"])
def test_sync_is_a_function_whatever_was_imported_first(first: str) -> None:
    code = (
        f"{first}\nfrom embedstore import sync\nimport embedstore.sync as room\n"
        "try:\n    sync()\nexcept TypeError as error:\n    assert 'sync() missing' in str(error), error\n"
        "else:\n    raise SystemExit('no error')\nassert room.verify"
    )
    assert python(code) == ""


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "statement",
    [
        "import embedstore",
        "from embedstore import Run, open_store, recommend, embed, similar, sync, verify",
        "import embedstore.cli",
        "import embedstore.cli.query, embedstore.cli.sync, embedstore.cli.runs, embedstore.cli.data",
        "import embedstore.cli.train, embedstore.cli.tune",
        "import embedstore.cli.export, embedstore.export",
        "import embedstore.cli.mlflow, embedstore.tracking",
    ],
)
def test_import_is_light(statement: str) -> None:
    printed = python(f"import sys\n{statement}\nprint(*[m for m in {HEAVY!r} if m in sys.modules])")
    assert printed == ""


def test_import_embedstore_needs_no_numpy() -> None:
    assert python("import sys, embedstore, embedstore.cli\nprint('numpy' in sys.modules)") == "False"
