"""What somebody else's arrays and lists of ids become, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from embedstore.data.features import Ids
from embedstore.errors import DataError, NotFoundError, UsageError
from embedstore.importing.vectors import check_ids, read_ids, read_vectors

V = np.array([[1, -2, 0.5], [0.25, 3, -4]], np.float32)  # exact in every type of float


def saved(path: Path, array: npt.NDArray[np.generic]) -> Path:
    np.save(path, array, allow_pickle=False)
    return path


def bfloat16(array: npt.NDArray[np.float32]) -> npt.NDArray[np.void]:
    """Return array as ml_dtypes' bfloat16 is read back from a file: the upper halves of float32."""
    return np.ascontiguousarray((array.view(np.uint32) >> 16).astype("<u2")).view("|V2")


def test_a_plain_file_is_mapped_and_nothing_is_said(tmp_path: Path) -> None:
    found = read_vectors(saved(tmp_path / "V.npy", V))
    assert found.array.tolist() == V.tolist()
    assert not found.array.flags.owndata
    assert not found.array.flags.writeable
    assert found.notes == []


def test_an_array_stays_the_same_memory() -> None:
    assert np.shares_memory(read_vectors(V).array, V)


@pytest.mark.parametrize(
    ("array", "note"),
    [
        (V.astype(np.float16), "float16 was converted to float32"),
        (V.astype(np.float64), "float64 was converted to float32"),
        (V.astype(">f4"), "big-endian float32 was converted to float32"),
        (V.astype(">f8"), "big-endian float64 was converted to float32"),
        (bfloat16(V), "bfloat16 was converted to float32"),
        (np.asfortranarray(V), "its columns lay one after the other (Fortran order) and were copied to rows"),
    ],
    ids=["float16", "float64", "big-endian", "big-endian-64", "bfloat16", "fortran"],
)
def test_other_floats_are_converted_and_said(
    array: npt.NDArray[np.generic], note: str, tmp_path: Path
) -> None:
    path = saved(tmp_path / "V.npy", array)
    for found in (read_vectors(path), read_vectors(array, name=str(path))):
        assert found.array.tolist() == V.tolist()
        assert found.array.dtype == np.float32
        assert found.array.dtype.isnative
        assert found.array.flags.c_contiguous
        assert found.notes == [f"{path}: {note}"]


def test_an_array_of_ml_dtypes_is_told_as_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    found = read_vectors(V.astype(ml_dtypes.bfloat16), name="V")
    assert (found.array.tolist(), found.notes) == (V.tolist(), ["V: bfloat16 was converted to float32"])


finite = arrays(np.float32, (2, 3), elements=st.floats(width=16, allow_nan=False, allow_infinity=False))


@given(finite)
def test_bfloat16_is_the_upper_half_of_float32(array: npt.NDArray[np.float32]) -> None:
    kept = (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert np.array_equal(read_vectors(bfloat16(array)).array, kept)


def test_one_array_of_an_npz_is_named_where_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, V=V, other=V[:1])
    assert read_vectors(f"{path}:V").array.tolist() == V.tolist()
    with pytest.raises(
        NotFoundError, match=r"does not say which array; name one as .*:NAME, it holds V, other"
    ):
        read_vectors(path)
    with pytest.raises(NotFoundError, match=r"holds no array 'W'; .* it holds V, other"):
        read_vectors(f"{path}:W")
    np.savez(path, V=V)
    assert read_vectors(path).array.tolist() == V.tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(3, np.float32), r"has shape \(3,\), expected \(n_movies, embedding_dim\)"),
        (np.ones((0, 3), np.float32), r"has shape \(0, 3\)"),
        (np.ones((3, 0), np.float32), r"has shape \(3, 0\)"),
        (np.ones((1, 2, 3), np.float32), r"has shape \(1, 2, 3\)"),
        (np.ones((2, 3), np.int64), "holds int64, expected float32"),
        (np.array([[1, 2], [1, np.nan]], np.float32), r"row 1 \(counted from 0\) holds NaN, infinity"),
        (np.array([[np.inf, 2], [1, np.nan]], np.float16), r"row 0 \(counted from 0\) holds NaN, infinity"),
        (np.array([[1.0], [1e39]]), r"row 1 \(counted from 0\) holds .* a number beyond float32"),
    ],
)
def test_what_is_no_matrix_of_finite_floats_is_refused(
    array: npt.NDArray[np.generic], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read_vectors(saved(tmp_path / "V.npy", array))


class Trap:
    """Says that it was unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path("unpickled"),))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["V.pkl", "V.pickle", "V.pt", "V.pth", "V.joblib", "V.npy", "V.npz:V"])
def test_a_pickle_is_refused_unread_with_what_to_write(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trap = np.array([[Trap()]], dtype=object)
    if name == "V.npy":
        np.save(name, trap, allow_pickle=True)
    elif name == "V.npz:V":
        np.savez("V.npz", V=trap)
    else:
        Path(name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(
        UsageError, match=r"a pickle runs code when it is read.*np\.save\(.*allow_pickle=False"
    ):
        read_vectors(name)
    if ":" not in name:
        with pytest.raises(UsageError, match="a pickle runs code when it is read"):
            read_ids(name)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("V.npy", None, NotFoundError, "there is no such file"),
        ("V.npz:V", None, NotFoundError, "there is no such file"),
        ("V.npy", b"", DataError, "is not an array that NumPy saved"),
        ("V.npy", b"\x93NUMPY\x01\x00", DataError, "cannot be read"),
        ("V.npz:V", b"no archive", DataError, "cannot be read"),
        ("V.csv", b"1,2\n", UsageError, r"is no file of arrays; expected FILE.npy or FILE.npz:NAME"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(
    name: str, content: bytes | None, error: type[Exception], message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name.partition(":")[0]).write_bytes(content)
    with pytest.raises(error, match=message):
        read_vectors(tmp_path / name)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "V.npy", np.ones((100, 8), np.float32))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(path)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("ids.txt", "3\n1\r\n2\n", np.array([3, 1, 2], np.int64)),
        ("ids.txt", "\ufeff3\n18446744073709551615", np.array([3, 2**64 - 1], np.uint64)),
        ("ids.txt", "007\n8\n", np.array(["007", "8"])),
        ("ids.txt", "tt01\ntt02\n", np.array(["tt01", "tt02"])),
        ("ids.json", "[3, 1]", np.array([3, 1], np.int64)),
        ("ids.json", '["3", "1"]', np.array([3, 1], np.int64)),
        ("ids.json", '[3, "a"]', np.array(["3", "a"])),
    ],
)
def test_ids_are_read_in_the_order_of_the_file(name: str, text: str, expected: Ids, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    found = read_ids(path)
    assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([3, 1], np.int32), np.array([3, 1], np.int64)),
        (np.array([3, 2**63], np.uint64), np.array([3, 2**63], np.uint64)),
        (np.array(["b", "a"]), np.array(["b", "a"])),
        (np.array([b"b", b"a"]), np.array(["b", "a"])),
    ],
)
def test_ids_of_an_array_file(array: Ids, expected: Ids, tmp_path: Path) -> None:
    found = read_ids(saved(tmp_path / "ids.npy", array))
    assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("ids.txt", "", DataError, "holds no id"),
        ("ids.json", "{}", DataError, "is a JSON dict, expected a list of ids"),
        ("ids.json", "[1, null]", DataError, r"id 1 \(counted from 0\) is None"),
        ("ids.json", "[1.5]", DataError, r"id 0 \(counted from 0\) is 1.5"),
        ("ids.json", "[true]", DataError, r"id 0 \(counted from 0\) is True"),
        ("ids.json", "[-1]", DataError, r"id 0 \(counted from 0\) is -1"),
        ("ids.json", "[", DataError, "expected a JSON list of ids"),
        ("ids.csv", "1", UsageError, r"expected .txt \(one id a line\), .npy or .json"),
    ],
)
def test_what_is_no_list_of_ids_is_refused(
    name: str, text: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_ids(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1.0, 2.0]), "is float64 of shape"),
        (np.array([[1], [2]]), r"is int64 of shape \(2, 1\)"),
        (np.array([1, -2]), "holds the id -2"),
    ],
)
def test_an_array_file_that_holds_no_ids(
    array: npt.NDArray[np.generic], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read_ids(saved(tmp_path / "ids.npy", array))


def test_no_id_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no such file"):
        read_ids(tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("ids", "n", "dim", "message"),
    [
        (
            np.arange(8),
            3,
            8,
            r"8 movie ids for 3 vectors; V has shape \(3, 8\) and looks transposed, save V.T",
        ),
        (np.arange(3), 4, 8, r"3 movie ids for 4 vectors; .* save V\[1:\]"),
        (np.arange(5), 3, 8, "5 movie ids for 3 vectors; expected as many, in the order of V's rows"),
        (np.array([5, 1, 5, 2, 1]), 5, 8, r"movie ids stand there more than once \(1, 5\)"),
        (np.repeat(np.arange(7), 2), 14, 8, r"movie ids .* \(0, 1, 2, 3, 4, …\)"),
        (np.array(["a", ""]), 2, 8, r"row 1 \(counted from 0\) has no movie id"),
        (np.ones((2, 2), np.int64), 2, 8, r"movie ids have shape \(2, 2\)"),
    ],
)
def test_ids_that_do_not_fit_the_rows_are_refused(ids: Ids, n: int, dim: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_ids(ids, n, dim)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, unique=True))
def test_distinct_ids_in_any_order_are_right(values: list[int]) -> None:
    check_ids(np.array(values, np.int64), len(values))
