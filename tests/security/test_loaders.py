"""Data files of strangers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from embedstore.errors import DataError
from embedstore.loaders import fetch, load


def test_an_archive_cannot_fill_the_disk_nor_write_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, folder = tmp_path / "some.zip", tmp_path / "to" / "here"
    folder.parent.mkdir()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../ratings.csv", "1")
        file.writestr("/ratings.csv", "22")
        file.writestr("x/../../movies.csv", b"\0" * (1 << 20))
    fetch._extract(archive, ("ratings.csv", "movies.csv"), folder)
    assert sorted(path.name for path in tmp_path.rglob("*.csv")) == ["movies.csv", "ratings.csv"]
    assert (folder / "ratings.csv").read_text() == "22"
    monkeypatch.setattr(fetch, "LARGEST", 1000)
    with pytest.raises(DataError, match=r"holds movies\.csv of 1,048,576 bytes"):
        fetch._extract(archive, ("ratings.csv", "movies.csv"), folder.with_name("there"))


@pytest.mark.parametrize(
    "line",
    [
        '1,"' + "x" * 1_000_000 + '",5,1',
        "1," + "9" * 1_000_000 + ",5,1",
        "1,1," + "9" * 1_000_000 + ",1",
        "," * 1_000_000,
        '"' * 999_999,
        "\0" * 1_000_000,
    ],
    ids=["text", "digits", "rating", "fields", "quotes", "zeros"],
)
def test_a_line_without_end_is_one_sentence(line: str, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n1,1,5,1\n{line}\n")
    with pytest.raises(DataError) as caught:
        load(folder)
    assert len(str(caught.value)) < 1000
