"""Every layout with a few made-up movies, and the one Dataset that comes out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from embedstore.data.dataset import Dataset, Movie
from embedstore.errors import DataError, NotFoundError, UsageError
from embedstore.loaders import detect, load, resolve

Write = Callable[[str, str], Path]
FLAGS = {"Comedy": 5, "Film-Noir": 10, "unknown": 0}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to(name: str, text: str, encoding: str = "utf-8") -> Path:
        path = tmp_path / "set" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode(encoding))
        return path.parent

    return to


def item(movie_id: int, title: str, release: str, *genres: str) -> str:
    flags = ["0"] * 19
    for genre in genres:
        flags[FLAGS[genre]] = "1"
    return f"{movie_id}|{title}|{release}||http://a|{'|'.join(flags)}\n"


def ratings_of(dataset: Dataset) -> list[tuple[object, object, float, int]]:
    frame = dataset.to_frame()
    return sorted(frame.itertuples(index=False, name=None))


def test_ml_100k_is_latin_1_and_takes_the_year_from_title_or_release_date(write: Write) -> None:
    write("u.data", "7\t1\t5\t100\n7\t2\t3\t90\n8\t1\t1\t80\n")
    lines = item(1, "Café, The (1947)", "01-Jan-1950", "Comedy", "Film-Noir") + item(
        2, "Plain", "03-Mar-1960"
    )
    folder = write("u.item", lines + item(3, "unknown", "", "unknown"), "latin-1")  # type: ignore[call-arg]
    assert detect(folder) == "movielens-100k"
    dataset = load(folder)
    assert dataset.name == "set"
    assert dataset.movies.values.tolist() == [1, 2, 3]
    assert dataset.catalog == [
        Movie("Café, The", 1947, ("Comedy", "Film-Noir")),
        Movie("Plain", 1960),
        Movie("unknown"),
    ]
    assert ratings_of(dataset) == [(7, 1, 5.0, 100), (7, 2, 3.0, 90), (8, 1, 1.0, 80)]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_double_colons_half_stars_and_either_encoding(write: Write, encoding: str) -> None:
    write("movies.dat", "1::Élan: A Story::(1999)::Drama|Sci-Fi\n9::No Rating (2001)::Drama\n", encoding)  # type: ignore[call-arg]
    folder = write("ratings.dat", "1::1::4.5::100\r\n2::5::.5::200\r\n")
    assert detect(folder) == "movielens-dat"
    dataset = load(folder)
    assert dataset.movies.values.tolist() == [1, 5, 9]  # 5 has no metadata, 9 no rating
    assert dataset.catalog == [
        Movie("Élan: A Story::", 1999, ("Drama", "Sci-Fi")),
        Movie(),
        Movie("No Rating", 2001, ("Drama",)),
    ]
    assert sorted(dataset.ratings.tolist()) == [0.5, 4.5]


def test_csv_titles_keep_commas_and_quotes(write: Write) -> None:
    write("ratings.csv", "userId,movieId,rating,timestamp\n1,10,3.5,5\n")
    folder = write(
        "movies.csv",
        'movieId,title,genres\n10,"American ""Boss"", The (1995)",Comedy|Drama\n11,Bab,(no genres listed)\n',
    )
    assert detect(folder) == "movielens-csv"
    assert load(folder).catalog == [
        Movie('American "Boss", The', 1995, ("Comedy", "Drama")),
        Movie("Bab"),
    ]


def test_recbole_splits_genres_at_spaces_and_takes_an_unreadable_year_as_none(write: Write) -> None:
    write("x.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t5.0\n")
    folder = write(
        "x.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "2\tA Title\t1995\tChildren's Film-Noir Sci-Fi\n3\tunkonwn\tunkonwn\tunknown\n",
    )
    assert detect(folder) == "recbole"
    dataset = load(folder)
    assert dataset.catalog == [
        Movie("A Title", 1995, ("Children's", "Film-Noir", "Sci-Fi")),
        Movie("unkonwn"),
    ]
    assert dataset.timestamps.tolist() == [5]


def test_a_table_with_a_mapping_and_nothing_else_is_implicit(write: Write) -> None:
    folder = write("log.csv", "when,who,what\nx,ann,007\ny,bob,8\n")
    dataset = load(folder / "log.csv", columns="user=who,movie=what")
    assert ratings_of(dataset) == [("ann", "007", 1.0, 0), ("bob", "8", 1.0, 0)]


def test_a_table_with_titles_of_its_own_and_usual_names(write: Write) -> None:
    folder = write(
        "all.tsv",
        "User ID\tItem_Id\tscore\tdate\ttitle\tgenres\n"
        "5\t1\t4\t1970-01-02\tOne (1990)\tA;B\n6\t1\t2\t1970-01-01T00:01:00+00:00\tOne (1990)\tA;B\n",
    )
    dataset = load(folder)
    assert ratings_of(dataset) == [(5, 1, 4.0, 86_400), (6, 1, 2.0, 60)]
    assert dataset.catalog == [Movie("One", 1990, ("A", "B"))]


def test_a_movie_table_beside_a_rating_table(write: Write) -> None:
    write("items.csv", "movie_id;name;year\n1;One;1990\n2;Two;\n")
    folder = write("views.csv", "uid;iid\n1;1\n1;2\n")
    dataset = load(folder, columns={"user": "uid", "movie": "iid"})
    assert dataset.catalog == [Movie("One", 1990), Movie("Two")]


@pytest.mark.parametrize("moment", [100, datetime(1970, 1, 1, 0, 1, 40)])  # noqa: DTZ001 - Parquet without a zone
def test_parquet_with_seconds_or_datetimes(tmp_path: Path, moment: object) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = tmp_path / "r.parquet"
    table = {"uid": [1, 2], "iid": [2**63, 5], "ts": [moment, moment], "g": [["A", "B"], []]}
    iid = pa.array(table.pop("iid"), pa.uint64())
    parquet.write_table(pa.table({**table, "iid": iid}), path)
    dataset = load(path, columns="user=uid,movie=iid,genres=g")
    assert dataset.movies.values.tolist() == [5, 2**63]
    assert dataset.timestamps.tolist() == [100, 100]
    assert dataset.catalog == [Movie(), Movie(genres=("A", "B"))]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1", "20"], [1, 20]),
        (["9223372036854775808", "1"], [1, 2**63]),
        (["18446744073709551615", "0"], [0, 2**64 - 1]),
        (["18446744073709551616", "0"], ["0", "18446744073709551616"]),
        (["01", "1"], ["01", "1"]),
        (["0x1f", "1"], ["0x1f", "1"]),
        (["-1", "1"], ["-1", "1"]),
        (["1.0", "1"], ["1", "1.0"]),
        (["tt1", "tt02"], ["tt02", "tt1"]),
        (["ключ", " b "], ["b", "ключ"]),
    ],
)
def test_ids_are_integers_only_where_all_are(write: Write, ids: list[str], expected: list[object]) -> None:
    folder = write("r.csv", "user,movie\n" + "".join(f"1,{movie_id}\n" for movie_id in ids))
    assert load(folder).movies.values.tolist() == expected


def test_of_duplicates_the_newest_counts(write: Write) -> None:
    dataset = load(write("u.data", "1\t1\t5\t10\n1\t1\t2\t30\n1\t1\t4\t20\n"))
    assert ratings_of(dataset) == [(1, 1, 2.0, 30)]
    assert dataset.n_duplicates == 2


def test_an_unpacked_archive_may_keep_its_inner_folder(write: Write) -> None:
    folder = write("u.data", "1\t1\t5\t10\n")
    assert load(folder.parent).n_ratings == 1


def test_names_resolve_in_the_data_folder_first(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write("u.data", "1\t1\t5\t10\n")
    monkeypatch.chdir(folder)
    assert resolve("set", folder.parent) == folder
    assert resolve("u.data", folder.parent) == Path("u.data")
    with pytest.raises(NotFoundError, match="embedstore data fetch ml-1m"):
        resolve("ml-1m", folder.parent)
    with pytest.raises(NotFoundError, match="neither in"):
        resolve("nowhere", folder.parent)


def test_two_rating_files_are_not_guessed_between(write: Write) -> None:
    write("a.csv", "user,movie\n1,1\n")
    folder = write("b.csv", "user,movie\n1,1\n")
    with pytest.raises(UsageError, match=r"a\.csv, b\.csv"):
        load(folder)


def test_a_folder_without_ratings_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"u\.data"):
        load(tmp_path)
    with pytest.raises(NotFoundError, match="no such"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("user", "ROLE=NAME"),
        ("", "ROLE=NAME"),
        ("user=a,user=b", "twice"),
        ("person=a", "unknown role 'person'"),
        ("user=a,movie=a", "two roles"),
        ("user=nobody,movie=movie", "no column 'nobody'"),
        ("rating=stars", "no column 'stars'"),
    ],
)
def test_a_mapping_that_cannot_be_meant(write: Write, columns: str, words: str) -> None:
    folder = write("r.csv", "user,movie\n1,1\n")
    with pytest.raises(UsageError, match=words):
        load(folder / "r.csv", columns=columns)


def test_a_mapping_is_refused_where_columns_have_no_names(write: Write) -> None:
    folder = write("u.data", "1\t1\t5\t10\n")
    with pytest.raises(UsageError, match="no names of columns"):
        load(folder, columns="user=a,movie=b")
