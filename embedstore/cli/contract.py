"""contract: what other applications rely on, and how they ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from embedstore.cli.output import Column, escape, print_json, table_lines
from embedstore.cli.settings import alias_option, connection, open_store_at, runs_option, store_option
from embedstore.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from embedstore.query.contract import Contract
    from embedstore.runs.run import Run
    from embedstore.stores.connection import Endpoint

__all__ = ["contract"]

_LANGUAGES = ("curl", "python", "javascript", "go")  # of query.snippets, not imported for a help text
_RECIPES = ("embedding", "history", "filters")
_WIDE = 26
_LOCAL = "http://localhost:6333"


@click.command()
@click.option("--language", type=click.Choice(_LANGUAGES), help="Only the snippets in this language.")
@click.option("--snippet", type=click.Choice(_RECIPES), help="Print one snippet alone; say --language too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_option
@store_option
@alias_option
def contract(
    language: str | None, snippet: str | None, as_json: bool, runs_dir: Path, store_location: str, alias: str
) -> None:
    """Print what other applications need to query the live collection, with snippets to paste.

    \b
    embedstore contract --language python
    embedstore contract --snippet history --language curl | bash

    The snippets hold the values of a real user and are answered by a Qdrant server; their key is
    taken from QDRANT_API_KEY when they run.
    """
    from embedstore.query.contract import describe
    from embedstore.query.recommend import live_collection
    from embedstore.stores.connection import endpoints_of, is_url

    if snippet is not None and language is None:
        raise UsageError(f"--snippet needs a language; expected --language {', '.join(_LANGUAGES)}")
    embedded = not is_url(store_location)
    endpoint = endpoints_of(_LOCAL)[0] if embedded else endpoints_of(store_location, connection())[0]
    with open_store_at(store_location) as store:
        told = describe(store, alias, _run_if_here(runs_dir, live_collection(store, alias)[1]), endpoint)
    if snippet is not None and language is not None:
        click.echo(_snippet(told, snippet, language), nl=False)
    elif as_json:
        print_json(told.to_dict())
    else:
        languages = _LANGUAGES if language is None else (language,)
        click.echo("\n".join([*_overview(told, endpoint, embedded=embedded), *_recipes(told, languages)]))


def _run_if_here(runs_dir: Path, reference: str) -> Run | None:
    from embedstore.runs.registry import find_run

    try:
        return find_run(runs_dir, reference)
    except NotFoundError:
        return None


def _snippet(told: Contract, name: str, language: str) -> str:
    for recipe in told.recipes:
        if recipe.name == name:
            return recipe.snippets[language]
    raise NotFoundError(
        f"run {told.metadata.run_id} has {_tower(told)}, so Qdrant cannot compute psi(X) from "
        f"a history; take --snippet {' or '.join(recipe.name for recipe in told.recipes)}"
    )


def _overview(told: Contract, endpoint: Endpoint, *, embedded: bool) -> Iterator[str]:
    from embedstore.query.contract import METADATA, PAYLOAD, POINT_ID

    metadata = told.metadata
    yield escape(f"{told.alias} -> {told.collection}")
    yield (
        f"run {metadata.run_id}, {metadata.count:,} movies, {metadata.dim} dimensions, "
        f"{_tower(told)}; metric: dot product, higher is better"
    )
    if metadata.tower == "none":
        yield "psi(X) comes from elsewhere: `embedstore query --vector` asks by it; `similar` needs none"
    yield from _section(
        "Vectors",
        [
            (name or "(unnamed)", f"{metadata.dim} x float32, dot", text)
            for name, text in told.vectors().items()
        ],
    )
    yield from _section("Point id", [(POINT_ID,)])
    payload = [(name, kind, told.indexes.get(name, ""), text) for name, (kind, text) in PAYLOAD.items()]
    yield from _section("Payload", payload, columns=("field", "type", "index", "meaning"))
    present = metadata.to_dict()
    yield from _section(
        "Metadata",
        [(key, _short(present[key]), text) for key, text in METADATA.items()],
        columns=("key", "now", "meaning"),
    )
    yield from _section(
        "Which run answers",
        [
            ("Every point says it (payload run_id), and so does the alias:",),
            (f"GET {endpoint.url}/collections/{told.alias} -> result.config.metadata.run_id",),
            ("Compare with the run of your psi(X); where they differ, drop the answer, compute psi anew.",),
            ("A history recipe reads the alias twice: where its run_id differs afterwards, ask again.",),
        ],
    )
    if embedded:
        yield ""
        yield "The store here is a folder, which only embedstore reads: the snippets work on a Qdrant server,"
        yield f"after `embedstore copy @{told.alias} --to URL` or `embedstore sync --store URL`."


def _tower(told: Contract) -> str:
    kind = told.metadata.tower
    return "no user tower" if kind == "none" else f"{'an' if kind == 'additive' else 'a'} {kind} tower"


def _section(
    title: str, rows: Sequence[tuple[str, ...]], *, columns: tuple[str, ...] | None = None
) -> Iterator[str]:
    shapes = [Column(name) for name in columns or ("",) * len(rows[0])]
    lines = table_lines(shapes, rows)
    yield ""
    yield title
    yield from (f"  {line.rstrip()}" for line in (lines if columns else lines[2:]))


def _recipes(told: Contract, languages: tuple[str, ...]) -> Iterator[str]:
    yield ""
    yield f"Snippets in {', '.join(languages)}; --language prints one of them, --snippet one alone"
    for recipe in told.recipes:
        yield ""
        yield f"Recipe {recipe.name}: {recipe.title}"
        if recipe.command is not None:
            part = "the second half of" if recipe.name == "filters" else "as"
            yield f"  {part} {escape(recipe.command)}"
        yield f"  {escape(told.example.who)} now gets:"
        for hit in recipe.expected[:3]:
            yield escape(f"  {hit.movie_id}  {hit.score:.5f}  {hit.payload['title'] or ''}".rstrip())
        if recipe.name == "filters":
            yield "  Movies of equal score have no order among them: a page border may split or repeat them."
        for language in languages:
            yield ""
            yield f"--- {recipe.name}, {language}"
            yield recipe.snippets[language].rstrip("\n")


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {content}" for key, content in value.items())
    text = "" if value is None else str(value)
    return text if len(text) <= _WIDE else f"{text[:12]}..."
