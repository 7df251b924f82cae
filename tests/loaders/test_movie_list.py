"""The movies of a file in its own order: the ids of the rows of V."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedstore.data.dataset import Movie
from embedstore.errors import DataError, EmbedstoreError, NotFoundError, UsageError
from embedstore.loaders import movie_list

ITEM = "|".join(["0"] * 5 + ["1"] + ["0"] * 13)  # a comedy
HEAT = Movie("Heat", 1995, ("Action", "Crime"))


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "text", "ids", "first"),
    [
        (
            "movies.csv",
            'movieId,title,genres\n9,Heat (1995),Action|Crime\n2,"Boss, The",(no genres listed)\n',
            [9, 2],
            HEAT,
        ),
        ("movies.dat", "9::Heat (1995)::Action|Crime\n0002::Boss::Drama\n", [9, 2], HEAT),
        (
            "u.item",
            f"9|Café (1947)|||http://a|{ITEM}\n2|B|||http://b|{ITEM}\n",
            [9, 2],
            Movie("Café", 1947, ("Comedy",)),
        ),
        (
            "ml.item",
            (
                "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
                "9\tHeat\t1995\tAction Crime\n2\tBoss\t\t\n"
            ),
            [9, 2],
            HEAT,
        ),
        ("films.csv", "genres;title;movie_id;year\nAction|Crime;Heat;9;1995\n;;2;\n", [9, 2], HEAT),
        ("films.tsv", "asin\ttitle\nB9\tHeat (1995)\nA2\tBoss\n", ["B9", "A2"], Movie("Heat", 1995)),
        ("ids.txt", "9\n2\n", [9, 2], Movie()),
        ("ids.csv", "movie_id\n9\n2\n", [9, 2], Movie()),
        ("ids.csv", "tt9\r\ntt2\r\n", ["tt9", "tt2"], Movie()),
        ("ids.txt", "007\n2\n", ["007", "2"], Movie()),
    ],
)
def test_ids_keep_the_order_of_the_file(
    name: str, text: str, ids: list[int | str], first: Movie, tmp_path: Path
) -> None:
    encoding = "latin-1" if name == "u.item" else "utf-8"
    found, movies = movie_list(write(tmp_path, name, text, encoding))
    assert found.tolist() == ids
    assert found.dtype.kind == ("i" if isinstance(ids[0], int) else "U")
    assert movies[ids[0]] == first
    assert list(movies) == ids


def test_a_parquet_table_is_one_too(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "movies.parquet"
    parquet.write_table(pa.table({"item": [9, 2], "title": ["Heat (1995)", None]}), path)
    found, movies = movie_list(path)
    assert found.tolist() == [9, 2]
    assert movies == {9: Movie("Heat", 1995), 2: Movie()}


def test_the_largest_ids_are_unsigned(tmp_path: Path) -> None:
    found, movies = movie_list(write(tmp_path, "ids.txt", "5\n18446744073709551615\n"))
    assert found.dtype == np.uint64
    assert list(movies) == [5, 2**64 - 1]


@given(ids=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20, unique=True))
def test_a_list_that_is_written_is_read_back(
    ids: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_text("".join(f"{movie_id}\n" for movie_id in ids), encoding="utf-8")
    assert movie_list(path)[0].tolist() == ids


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        (
            "movies.csv",
            "movieId,title,genres\n1,A,\n2,B,\n01,C,\n",
            DataError,
            "line 4: movie 1 stands here again, first on line 2; expected one line per movie",
        ),
        ("films.csv", "movie,title\n1,A\n,B\n", DataError, "line 3: has no movie id"),
        ("movies.csv", "movieId,title,genres\n1,A\n", DataError, "line 2: has 2 fields, expected 3"),
        ("ids.txt", "1\n2\n1\n", DataError, "line 3: movie 1 stands here again, first on line 1"),
        ("ids.csv", "movie_id\n", DataError, "holds no movie"),
        ("ids.txt", "", DataError, "the file is empty"),
        ("ids.txt", "\ufeff\n", DataError, "holds no movie"),
        ("films.csv", "name,title\n1,A\n", UsageError, "cannot tell the movie column, found name, title"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,2,3,4\n", UsageError, "is a file of ratings"),
        ("bad.item", "item_id:token\ttitle\n1\tA\n", DataError, "is not name:type"),
    ],
)
def test_what_is_no_list_of_movies_is_one_sentence(
    name: str, text: str, error: type[EmbedstoreError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        movie_list(write(tmp_path, name, text))


def test_a_folder_or_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; name the file of the movies in it"):
        movie_list(tmp_path)
    with pytest.raises(NotFoundError, match="there is no such file"):
        movie_list(tmp_path / "movies.csv")
