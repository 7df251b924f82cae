"""What our own code never does, and what it needs an exception from the linter for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("embedstore", "loaders", "benchmarks", "docs", "examples", "tests")
MODULES = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch", "pty"}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    ("os", "system"), ("os", "popen"), ("os", "execv"), ("os", "execvp"), ("os", "spawnv"), ("yaml", "load"),
    ("yaml", "unsafe_load"), ("torch", "load"), ("pd", "read_pickle"), ("np", "fromregex"),
    ("subprocess", "getoutput"),
}  # fmt: skip
# A key cannot be pickled, a snippet can be compiled, and the README's program runs. Pickles are refused, for
# which they have to be made. A PyTorch tower is trained and exported, and never loaded.
ALLOWED = {
    ("tests/stores/test_connection.py", "pickle"),
    ("tests/query/test_contract.py", "compile"),
    ("tests/evaluation/test_report.py", "exec"),
    ("tests/importing/test_vectors.py", "pickle"),
    ("tests/importing/test_vectors.py", "allow_pickle=True"),
    ("tests/cli/test_bad_input_import.py", "allow_pickle=pickled"),
    ("tests/query/test_vector.py", "allow_pickle=True"),
    ("examples/pytorch_tower.py", "torch"),
    ("examples/pytorch_tower.py", "torch.export"),
    ("examples/pytorch_tower.py", "torch.nn.utils.rnn"),
}


def sources() -> list[Path]:
    found = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    link = ROOT / "embedstore" / "loaders"
    return [path for path in found if "node_modules" not in path.parts and not path.is_relative_to(link)]


def deeds(tree: ast.AST) -> Iterator[str]:
    """Yield what a module does of all that it must not do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.module or ""
        elif isinstance(node, ast.Call):
            yield from calls(node)


def calls(node: ast.Call) -> Iterator[str]:
    """Yield what a call does of all that it must not do."""
    if isinstance(node.func, ast.Name) and node.func.id in CALLS:
        yield node.func.id
    if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        name = (node.func.value.id, node.func.attr)
        if name in METHODS:
            yield ".".join(name)
        if name in (("np", "load"), ("np", "save"), ("np", "savez")) and not _refuses_pickle(node):
            yield f"np.{node.func.attr} without allow_pickle=False"
    if ast.unparse(node.func) in ("keras.saving.load_model", "keras.models.load_model"):
        kept = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if kept.get("safe_mode") != "True" or kept.get("compile") != "False":
            yield "load_model without safe_mode=True, compile=False"
    for keyword in node.keywords:
        if keyword.arg in ("shell", "allow_pickle") and not _is_false(keyword.value):
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def _refuses_pickle(call: ast.Call) -> bool:
    return any(keyword.arg == "allow_pickle" and _is_false(keyword.value) for keyword in call.keywords)


def _is_false(value: ast.AST) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_nothing_is_unpickled_or_evaluated_or_given_to_a_shell() -> None:
    found = {
        (str(path.relative_to(ROOT)), deed)
        for path in sources()
        for deed in deeds(ast.parse(path.read_text(encoding="utf-8")))
    }
    told = {(name, deed) for name, deed in found if name.startswith("tests/") and deed.startswith("np.")}
    assert found - ALLOWED - told == set()  # NumPy itself refuses pickles, too, where nothing is said


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from marshal import loads", "import torch.nn", "eval(x)", "exec(x)", "os.system(x)",
        "yaml.load(x)", "np.load(x)", "np.load(x, allow_pickle=True)", "subprocess.run(x, shell=True)",
        "f(shell=y)", "np.save(x, y)", "pd.read_pickle(x)", "keras.saving.load_model(x, compile=False)",
    ],
)  # fmt: skip
def test_what_must_not_be_done_is_seen(text: str) -> None:
    assert list(deeds(ast.parse(text)))


# The one place that starts programs; a folder of mode 700 in shared memory, where every disk is full.
EXCEPTIONS = [("embedstore/runs/programs.py", "S603"), ("embedstore/stores/shards.py", "S108")]


def test_the_package_has_no_other_exception_from_the_rules_of_security() -> None:
    found = [
        (str(path.relative_to(ROOT)), rule)
        for path in sources()
        if path.relative_to(ROOT).parts[0] in ("embedstore", "loaders")
        for rule in re.findall(r"noqa:.*\b(S\d+)", path.read_text(encoding="utf-8"))
    ]
    assert sorted(found) == EXCEPTIONS
