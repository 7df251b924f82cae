"""Streams of answers and embeddings into JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from embedstore.cli.output import Shown, json_text
from embedstore.errors import EmbedstoreError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["FORMATS", "cell_of", "format_of", "write_records"]

Record = Mapping[str, Any]
FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_ROWS_A_GROUP = 50_000  # a row counts once more for every part of its explanation


def format_of(output: Path | None, *, as_csv: bool = False) -> str:
    """Return jsonl, csv or parquet. Raises UsageError for another extension."""
    if output is None:
        return "csv" if as_csv else "jsonl"
    try:
        return FORMATS[output.suffix.lower()]
    except KeyError:
        raise UsageError(
            f"output {output} has the extension {output.suffix!r}; expected {', '.join(FORMATS)}"
        ) from None


def write_records(
    records: Iterable[Record],
    output: Path | None,
    *,
    as_csv: bool = False,
    flatten: Callable[[Record], Iterable[Record]],
) -> None:
    """Write records to output, or to standard output where it is None, one at a time.

    JSON lines hold a record each, CSV and Parquet the rows that flatten makes of it. The file
    appears whole or not at all.
    """
    kind = format_of(output, as_csv=as_csv)
    if output is None:
        _write_text(kind, records, sys.stdout, flatten)
        return
    with _whole_file(output) as temporary:
        if kind == "parquet":
            _write_parquet(records, temporary, flatten)
            return
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            _write_text(kind, records, file, flatten)


def _write_text(
    kind: str, records: Iterable[Record], file: TextIO, flatten: Callable[[Record], Iterable[Record]]
) -> None:
    if kind == "jsonl":
        file.writelines(json_text(record) + "\n" for record in records)
        return
    writer: csv.DictWriter[str] | None = None
    for record in records:
        for row in flatten(record):
            if writer is None:
                writer = csv.DictWriter(Shown(file), list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow({key: cell_of(value) for key, value in row.items()})


def cell_of(value: Any) -> Any:
    """Return value as one cell of CSV: lists are joined by |, explanations and true are JSON."""
    if isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, list | tuple):
        return value
    if value and isinstance(value[0], dict):
        return json.dumps(value, ensure_ascii=False)
    return "|".join(str(part) for part in value)


def _write_parquet(
    records: Iterable[Record], path: Path, flatten: Callable[[Record], Iterable[Record]]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: pq.ParquetWriter | None = None
    try:
        for rows in _groups(row for record in records for row in flatten(record)):
            table = pa.Table.from_pylist(rows, schema=_schema(rows) if writer is None else writer.schema)
            writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise EmbedstoreError("nothing was answered, so there is no Parquet file to write; give more people")


def _schema(rows: list[dict[str, Any]]) -> pa.Schema:
    import pyarrow as pa

    fixed = {
        "run_id": pa.string(),
        "collection": pa.string(),
        "rank": pa.int32(),
        "score": pa.float32(),
        "title": pa.string(),
        "year": pa.int32(),
        "genres": pa.list_(pa.string()),
        "cold": pa.bool_(),
        "user_embedding": pa.list_(pa.float32()),
        "explanation_kind": pa.string(),
    }
    inferred = pa.Table.from_pylist(rows).schema
    if "explanation" in inferred.names:
        movie = ("movie_id", inferred.field("movie_id").type)
        part = pa.struct([movie, ("title", pa.string()), ("contribution", pa.float64())])
        fixed["explanation"] = pa.list_(part)
    return pa.schema([pa.field(name, fixed.get(name, inferred.field(name).type)) for name in inferred.names])


def _groups(rows: Iterator[Record]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(dict(row))
        size += 1 + len(row.get("explanation", ()))
        if size >= _ROWS_A_GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


@contextmanager
def _whole_file(output: Path) -> Iterator[Path]:
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(output)
    except OSError as error:
        raise EmbedstoreError(f"output {output} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
