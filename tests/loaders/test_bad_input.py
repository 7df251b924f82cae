"""One sentence, with file and line, for everything that can be wrong in a rating or movie file."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embedstore.errors import DataError
from embedstore.loaders import load
from embedstore.loaders.reading import RatingFile, read_fast, scan_ratings
from embedstore.loaders.validate import validate

GOOD = {
    "u.data": "1\t1\t5\t100\n",
    "ratings.dat": "1::1::5::100\n",
    "ratings.csv": "1,1,5,100\n",
    "x.inter": "1\t1\t5\t100\n",
    "r.csv": "1,1,5,100\n",
}
HEADERS = {
    "ratings.csv": "userId,movieId,rating,timestamp\n",
    "x.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n",
    "r.csv": "user,movie,rating,timestamp\n",
}
BAD_FIELDS = [
    ("1,1,five,100", "rating 'five' is not a number"),
    ("1,1,nan,100", "rating 'nan' is not a finite number"),
    ("1,1,-inf,100", "rating '-inf' is not a finite number"),
    ("1,1,1e39,100", "rating '1e39' is not a finite number"),
    ("1,1,,100", "has no rating"),
    ("1,1,5,-1", "timestamp '-1' is negative"),
    ("1,1,5,999999999999", "lies in the future"),
    ("1,1,5,soon", "timestamp 'soon' is neither"),
    ("1,1,5,", "has no timestamp"),
    ("1,1,5", "has 3 fields, expected 4"),
    ("1,1,5,100,7", "has 5 fields, expected 4"),
    (",1,5,100", "has no user id"),
    ("1,,5,100", "has no movie id"),
]
CASES = [(name, row, words) for name in GOOD for row, words in BAD_FIELDS]
CASES += [
    (name, row, words)
    for name in ("u.data", "ratings.dat", "ratings.csv")
    for row, words in [
        ("a,1,5,100", "user id 'a' is not an integer"),
        ("1,2.5,5,100", "movie id '2.5' is not an integer"),
        ("1,-2,5,100", "movie id '-2' is not an integer"),
        ("18446744073709551616,1,5,100", "is not an integer from 0 to"),
    ]
]


def write(folder: Path, name: str, rows: list[str], *, end: str = "\n") -> Path:
    path = folder / name
    mark = {"u.data": "\t", "x.inter": "\t", "ratings.dat": "::"}.get(name, ",")
    lines = [row.replace(",", mark) for row in rows]
    path.write_text(HEADERS.get(name, "") + "\n".join(lines) + end)
    return path


@pytest.mark.parametrize(("name", "row", "words"), CASES)
def test_a_bad_line_is_named(tmp_path: Path, name: str, row: str, words: str) -> None:
    path = write(tmp_path, name, ["1,1,5,100", "2,1,5,100", row, "3,1,5,100"])
    line = 3 + (name in HEADERS)
    with pytest.raises(DataError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    problems = [problem for problem in validate(path) if problem.severity == "error"]
    assert [(problem.line, str(problem)) for problem in problems] == [(line, str(caught.value))]


@pytest.mark.parametrize("name", GOOD)
def test_a_file_that_was_cut_off_says_so(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, ["1,1,5,100", "2,1"], end="")
    with pytest.raises(DataError, match="expected 4"):
        load(path)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \n"])
def test_an_empty_file_says_so(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*empty"):
        load(path)


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_without_ratings_says_so(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(HEADERS[name])
    with pytest.raises(DataError, match="has no rating; expected"):
        load(path)
    assert len(validate(path)) == 1


@pytest.mark.parametrize("name", GOOD)
def test_utf_16_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes((HEADERS.get(name, "") + GOOD[name]).encode("utf-16"))
    with pytest.raises(DataError, match=f"{name}.*(UTF-16|name:type)"):
        load(path)


def test_latin_1_where_utf_8_belongs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(b"user,movie\nann,1\nJos\xe9,1\n")
    with pytest.raises(DataError, match="line 3: is not valid UTF-8"):
        load(path)


@pytest.mark.parametrize(
    ("name", "content", "line", "words"),
    [
        ("u.item", b"1|A (1990)|x||u|0|1\n", 1, "has 7 fields, expected 24"),
        ("u.item", b"1|A|x||u" + b"|0" * 18 + b"|7\n", 1, "neither 0 nor 1"),
        ("u.item", b"x|A|x||u" + b"|0" * 19 + b"\n", 1, "movie id 'x' is not an integer"),
        ("movies.dat", b"1::A (1990)::Drama\n2::B\n", 2, "has 2 fields, expected 3"),
        ("movies.csv", b"movieId,title,genres\n1,A, The,Drama\n", 2, "has 4 fields, expected 3"),
        ("movies.csv", b"movieId,title,genres\n1,Caf\xe9,Drama\n", 2, "is not valid UTF-8"),
        ("movies.csv", b"1,A,Drama\n", 1, "is not the header"),
        ("x.item", b"item_id:token\tmovie_title:token_seq\n1\n", 2, "has 1 fields, expected 2"),
        ("x.item", b"item_id:token\tmovie_title:token_seq\nx\tA\n", 2, "movie id 'x' is not an integer"),
        ("x.item", b"id\ttitle\n1\tA\n", 1, "is not name:type"),
    ],
)
def test_a_bad_line_of_a_movie_file_is_named(
    tmp_path: Path, name: str, content: bytes, line: int, words: str
) -> None:
    ratings = {
        "u.item": "u.data",
        "movies.dat": "ratings.dat",
        "movies.csv": "ratings.csv",
        "x.item": "x.inter",
    }
    write(tmp_path, ratings[name], ["1,1,5,100"])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}, line {line}: ")
    assert words in str(caught.value)
    assert any(words in problem.message for problem in validate(tmp_path))


def test_something_between_two_colons_is_no_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "ratings.dat"
    path.write_text("1::1::5::100\n1:x:2:x:5:x:100\n")
    with pytest.raises(DataError, match="line 2: has 1 fields"):
        load(path)


def test_validate_lists_every_problem_and_the_duplicates(tmp_path: Path) -> None:
    path = write(tmp_path, "ratings.csv", ["1,1,5,100", "1,1,4,200", "2,1,x,100", "3,9,5,-4", "4,9,5,100"])
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,A,\n1,B,\n")
    found = [(problem.file.name, problem.line, problem.severity) for problem in validate(path)]
    assert found == [
        ("ratings.csv", 3, "warning"),
        ("ratings.csv", 4, "error"),
        ("ratings.csv", 5, "error"),
        ("movies.csv", 3, "warning"),
        ("movies.csv", None, "warning"),  # movie 9 is not there
    ]


def test_the_lines_of_duplicates_are_right_after_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "u.data"
    path.write_text("1\t1\t5\t100\n\n\n1\t1\t5\t100\n")
    assert [problem.line for problem in validate(path)] == [4]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    path.write_bytes(b"PAR1 and nothing that follows")
    with pytest.raises(DataError, match=r"r\.parquet: is not a readable Parquet file"):
        load(path)


def test_rows_of_parquet_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = tmp_path / "r.parquet"
    parquet.write_table(
        pa.table({"user": [1, None, 3], "movie": [1, 2, 3], "rating": [1.0, 2.0, float("nan")]}), path
    )
    assert [(problem.line, problem.message) for problem in validate(path)] == [
        (2, "has no user id"),
        (3, "rating 'nan' is not a finite number"),
    ]


FIELD = st.one_of(
    st.integers(0, 99).map(str),
    st.sampled_from(
        ["007", "a b", "2.5", "", " 3", "-4", "1e2", "0x1", "nan", "é", "18446744073709551615", "+5"]
    ),
)


@settings(max_examples=150, deadline=None)
@example([("0", "0", "1", "0"), ("0", "0", "1", "0x1")])  # Arrow reads hexadecimal numbers
@given(
    st.lists(st.tuples(FIELD, FIELD, st.sampled_from(["1", "2.5", "nan", ""]), FIELD), min_size=1, max_size=6)
)
def test_the_fast_way_agrees_with_the_exact_way(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "r.csv"
    path.write_text("u,m,r,t\n" + "".join(",".join(row) + "\n" for row in rows))
    file = RatingFile(path, ",", 4, 0, 1, 2, 3, header=True, quoted=True)
    fast, exact = read_fast(file), scan_ratings(file)
    if fast is None:
        return
    assert not exact.problems
    for column in fields(fast):
        ours, theirs = getattr(fast, column.name), getattr(exact.columns, column.name)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype.kind == theirs.dtype.kind


@pytest.mark.parametrize("mark", [",", "::"])
def test_a_large_file_is_read_in_two_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    from embedstore.loaders import reading

    monkeypatch.setattr(reading, "PARALLEL_FROM", 1)
    monkeypatch.setattr(reading, "BLOCK", 512)
    draw = random.Random(0)  # noqa: S311
    rows = [
        [draw.randrange(1000), draw.randrange(10**6), draw.randrange(1, 11) / 2, draw.randrange(10**9)]
        for _ in range(999)
    ]
    path = tmp_path / "r"
    path.write_text("".join(mark.join(map(str, row)) + "\n" for row in rows))
    file = RatingFile(path, mark, 4, 0, 1, 2, 3, integer_ids=True)
    fast = read_fast(file)
    assert fast is not None
    read = [fast.user_ids, fast.movie_ids, fast.ratings, fast.timestamps]
    assert [list(row) for row in zip(*(column.tolist() for column in read), strict=True)] == rows
