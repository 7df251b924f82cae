"""examples/softmax_course.ipynb: executed on a small folder in MovieLens' layout, and fit to be read."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.builders import GENRES

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "examples" / "softmax_course.ipynb"
LARGEST = 600_000  # bytes
NEEDED = ("nbclient", "nbformat", "ipykernel", "matplotlib", "tensorflow")
OF_A_MACHINE = (
    r"/(?:work|home|root|tmp|usr|opt|Users)/|site-packages|[A-Z]:\\|https?://(?!127\.0\.0\.1|localhost)"
)

missing = [name for name in NEEDED if find_spec(name) is None]
if missing:
    pytest.skip(
        f"NO NOTEBOOK: {', '.join(missing)} missing, see the extra [examples]", allow_module_level=True
    )


def read() -> Any:
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]


def cells_of_code() -> list[Any]:
    return [cell for cell in read().cells if cell.cell_type == "code"]


def movielens_folder(folder: Path, *, n_users: int = 80, n_movies: int = 60) -> Path:
    """Write u.data, u.genre, u.item: two tastes, a title that is there twice, a year missing."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    numbers = np.arange(1, n_movies + 1)
    with (folder / "u.data").open("w", encoding="latin-1") as file:
        for user in range(1, n_users + 1):
            chance = np.where(numbers % 2 == user % 2, 5, 1) / numbers**0.5
            watched = rng.choice(numbers, rng.integers(8, 25), replace=False, p=chance / chance.sum())
            file.writelines(f"{user}\t{movie}\t{rng.integers(1, 6)}\t{movie + user}\n" for movie in watched)
    with (folder / "u.genre").open("w", encoding="latin-1") as file:
        file.writelines(f"{name}|{number}\n" for number, name in enumerate(GENRES))
    with (folder / "u.item").open("w", encoding="latin-1") as file:
        for number in numbers.tolist():
            year = "" if number == 7 else f" ({1950 + number % 9})"
            flags = "".join(f"|{number >> bit & 1}" for bit in range(len(GENRES)))
            file.write(f"{number}|Movie {2 if number == 11 else number}{year}|||{flags}\n")
    return folder


@pytest.mark.tf
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    data = movielens_folder(tmp_path / "ml-100k")
    for name, value in {
        "COURSE_DATA": str(data),
        "COURSE_STEPS": "200",
        "COURSE_USER": "3",
        "QDRANT_URL": "",
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "HTTPS_PROXY": "http://127.0.0.1:9",  # nobody there: what asks the network fails
        "HTTP_PROXY": "http://127.0.0.1:9",
    }.items():
        monkeypatch.setenv(name, value)
    notebook = read()
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    )
    assert "a dense tower, served by numpy" in printed
    assert "the import's verdict: additive" in printed
    assert printed.count("the same ten movies in the same order") == 2
    assert "User 3: " in printed  # the command line


def test_every_cell_of_the_committed_notebook_was_executed_in_order_and_without_an_error() -> None:
    cells = cells_of_code()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures == sum("plt.show()" in cell.source for cell in cells) >= 3


def test_the_committed_notebook_tells_nothing_of_the_machine_that_it_ran_on() -> None:
    notebook = read()
    shown = [cell.source for cell in notebook.cells]
    for cell in cells_of_code():
        for output in cell.outputs:
            texts = output.get("data", {})
            shown += [output.get("text", ""), *(texts[kind] for kind in texts if kind.startswith("text/"))]
    assert [found[0] for text in shown for found in re.finditer(OF_A_MACHINE, text)] == []
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}
    assert NOTEBOOK.stat().st_size < LARGEST


def test_every_link_of_the_notebook_is_there() -> None:
    text = "".join(cell.source for cell in read().cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links
    assert [link for link in links if not (NOTEBOOK.parent / link).exists()] == []
