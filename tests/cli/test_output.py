"""Tables fit, escape and align; JSON and CSV are what their names say."""

from __future__ import annotations

import csv
import io
import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from embedstore.cli.output import Column, escape, print_csv, print_json, print_table, table_lines

Capture = pytest.CaptureFixture[str]
COLUMNS: list[Column | str] = [Column("rank", right=True), Column("title", shrink=True), "year"]


def plain(lines: list[str]) -> list[str]:
    return [click.unstyle(line) for line in lines]


def test_a_table() -> None:
    assert plain(table_lines(COLUMNS, [(1, "Alien", 1979), (10, "Amélie", None)])) == [
        "rank  title   year",
        "──────────────────",
        "   1  Alien   1979",
        "  10  Amélie",
    ]


def test_a_narrow_table_cuts_the_columns_that_shrink() -> None:
    lines = plain(table_lines(COLUMNS, [(1, "Alien: the director's cut", 1979)], width=24))
    assert lines[2] == "   1  Alien: the …  1979"


def test_wide_letters_count_twice() -> None:
    lines = plain(table_lines(["title", "year"], [("千と千尋", 2001), ("Ran", 1985)]))
    assert lines[2:] == ["千と千尋  2001", "Ran       1985"]


def test_notes_stand_under_their_rows_and_break_between_their_parts(capsys: Capture) -> None:
    notes = [["because of", "Ran (+.82),", "Ikiru (+.41)"], ["a part that is too long\x1b"], []]
    print_table(["title"], [("Alien",), ("Heat",), ("Big",)], notes=notes, indent=2, width=26)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "Alien",
        "  because of Ran (+.82),",
        "  Ikiru (+.41)",
        "Heat",
        "  a part that is too long…",
        "Big",
    ]


def test_no_rows_is_a_header() -> None:
    assert plain(table_lines(["a", "bc"], [])) == ["a  bc", "─────"]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has 1 cells, expected 2"):
        table_lines(["a", "b"], [("x",)])


@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), max_size=4), st.integers(0, 60))
def test_lines_fit_and_hold_no_control_characters(rows: list[tuple[str, str]], width: int) -> None:
    columns = [Column("first", shrink=True), Column("second", shrink=True)]
    lines = plain(table_lines(columns, rows, width=width))
    assert len(lines) == 2 + len(rows)
    assert all(cell_len(line) <= max(width, 8 + 2 + 8) for line in lines)
    assert all(character.isprintable() for line in lines for character in line)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("Alien", "Alien"),
        ("a\x1b]0;title\x07", "a\\x1b]0;title\\x07"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b31m", "\\x9b31m"),
        ("right\u202eleft", "right\\u202eleft"),
        ("\udcff", "\\udcff"),
    ],
)
def test_escape(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_print_table_into_a_pipe_cuts_nothing_and_has_no_colour(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table([Column("title", shrink=True)], [("x" * 300,)])
    out = capsys.readouterr().out
    assert "x" * 300 in out
    assert "\x1b" not in out


def test_columns_sets_the_width(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    print_table([Column("title", shrink=True)], [("x" * 300,)])
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) == 20


def test_json_round_trips(capsys: Capture) -> None:
    value = {"title": 'é "x" 千', "year": None, "score": 0.1}
    print_json(value)
    assert json.loads(capsys.readouterr().out) == value


def test_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON"):
        print_json({"score": float("nan")})


def test_csv_round_trips(capsys: Capture) -> None:
    print_csv([Column("title"), "year"], [('a, "b"\nc', 1979), ("d", None)])
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [
        ["title", "year"],
        ['a, "b"\nc', "1979"],
        ["d", ""],
    ]
