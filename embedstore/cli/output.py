"""What commands print: tables for people, JSON and CSV for programs.

Tables are laid out here, since importing rich.table costs a fifth of a whole `query`; the
width of a character comes from rich.cells, which is cheap and knows wide and joined ones.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import click

__all__ = [
    "Column",
    "Shown",
    "escape",
    "format_options",
    "json_text",
    "one_format",
    "print_csv",
    "print_json",
    "print_lines",
    "print_table",
    "say",
    "status",
    "table_lines",
    "terminal_width",
]

GAP = 2
NARROWEST = 8  # a column that shrinks never gets narrower, even where the terminal is


@dataclass(frozen=True)
class Column:
    """One column of a table; right: align right; shrink: cut its cells where the line is too long."""

    name: str
    right: bool = False
    shrink: bool = False


def format_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json and --csv, as as_json and as_csv; the command refuses both by one_format."""
    as_csv = click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return as_json(as_csv(command))


def one_format(as_json: bool, as_csv: bool) -> None:
    """Raise click's UsageError where both are asked for."""
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other; give one", click.get_current_context())


def print_table(
    columns: Sequence[Column | str],
    rows: Iterable[Sequence[object]],
    *,
    notes: Sequence[Sequence[str]] = (),
    indent: int = 0,
    width: int | None = None,
) -> None:
    """Print rows under the names of their columns; None is shown as an empty cell.

    notes: what stands under every row, indented, in parts between which a line may break. width
    defaults to the terminal's, or COLUMNS; where standard output is no terminal, lines are as long
    as they need to be.
    """
    room = terminal_width() if width is None else width
    head, rule, *lines = table_lines(columns, rows, width=room)
    below = [_packed(parts, indent, room) for parts in notes] or [[]] * len(lines)
    noted = (part for line, note in zip(lines, below, strict=True) for part in (line, *note))
    print_lines([head, rule, *noted])


def print_lines(lines: Iterable[str]) -> None:
    """Print lines that are free of control characters but for style; style is left out of a pipe."""
    keep_style = False if "NO_COLOR" in os.environ else None
    click.echo("\n".join(lines), color=keep_style)


def print_json(value: object) -> None:
    """Print value as one indented JSON document; NaN is refused with ValueError."""
    ascii_only = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") != "utf8"
    click.echo(json_text(value, indent=2, ensure_ascii=ascii_only))


def json_text(value: object, *, indent: int | None = None, ensure_ascii: bool = False) -> str:
    """Return value as JSON in which what is not printable is escaped; NaN is refused with ValueError."""
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else _in_json(character)
        for character in text
    )


def print_csv(columns: Sequence[Column | str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a header and rows as CSV (RFC 4180 quoting, lines end in a newline); None is an empty cell."""
    writer = csv.writer(Shown(sys.stdout), lineterminator="\n")
    writer.writerow([column if isinstance(column, str) else column.name for column in columns])
    writer.writerows(rows)


class Shown:
    """A text file whose control characters, but for newlines, are escaped where it is a terminal."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._escaped = file, file.isatty()

    def write(self, text: str) -> int:
        return self._file.write("\n".join(map(escape, text.split("\n"))) if self._escaped else text)


def escape(text: str) -> str:
    """Return text with control characters, also of terminals, written as \\x1b and the like."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def say(sentence: str) -> None:
    """Print a sentence to standard error."""
    click.echo(escape(sentence), err=True)


@contextmanager
def status() -> Iterator[Callable[[str], None] | None]:
    """Show what is being done on standard error, where it is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as shown:
        yield shown.update


def table_lines(
    columns: Sequence[Column | str], rows: Iterable[Sequence[object]], *, width: int | None = None
) -> list[str]:
    """Return the lines of a table, no longer than width cells where the shrinking columns allow it."""
    from rich.cells import cell_len, set_cell_size

    shapes = [Column(column) if isinstance(column, str) else column for column in columns]
    cells = [["" if cell is None else escape(str(cell)) for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(shapes):
            raise ValueError(f"a row has {len(row)} cells, expected {len(shapes)}")
    widths = [
        max([cell_len(shape.name), *(cell_len(row[index]) for row in cells)])
        for index, shape in enumerate(shapes)
    ]
    if width is not None:
        _shrink(widths, shapes, width)

    def fit(text: str, index: int) -> str:
        room = widths[index]
        if cell_len(text) > room:
            return set_cell_size(text, room - 1) + "…"
        padding = " " * (room - cell_len(text))
        return padding + text if shapes[index].right else text + padding

    def line(texts: Sequence[str]) -> str:
        return (" " * GAP).join(fit(text, index) for index, text in enumerate(texts)).rstrip()

    header = click.style(line([shape.name for shape in shapes]), bold=True)
    rule = click.style("─" * (sum(widths) + GAP * (len(widths) - 1)), dim=True)
    return [header, rule, *(line(row) for row in cells)]


def _in_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _packed(parts: Iterable[str], indent: int, width: int | None) -> list[str]:
    """Return parts as indented lines of at most width cells that break between them; a long part is cut."""
    from rich.cells import cell_len, set_cell_size

    room = sys.maxsize if width is None else max(width - indent, NARROWEST)
    lines: list[str] = []
    for part in map(escape, parts):
        if lines and cell_len(lines[-1]) + 1 + cell_len(part) <= room:
            lines[-1] += f" {part}"
        else:
            lines.append(part if cell_len(part) <= room else set_cell_size(part, room - 1) + "…")
    return [click.style(" " * indent + line, dim=True) for line in lines]


def _shrink(widths: list[int], shapes: Sequence[Column], width: int) -> None:
    """Make the widest shrinking column narrower, one cell at a time, until the line fits."""
    while sum(widths) + GAP * (len(widths) - 1) > width:
        wide = [i for i, shape in enumerate(shapes) if shape.shrink and widths[i] > NARROWEST]
        if not wide:
            return
        widths[max(wide, key=lambda i: widths[i])] -= 1


def terminal_width() -> int | None:
    """Return the width of the terminal, or COLUMNS; None where lines may be as long as they need to be."""
    if "COLUMNS" not in os.environ and not (sys.stdout is not None and sys.stdout.isatty()):
        return None
    return shutil.get_terminal_size().columns
