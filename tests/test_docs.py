"""The docs say what the commands say."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import click
import pytest

from docs.generate import TARGET, helps, reference
from embedstore.cli import cli
from embedstore.runs.declaration import InputRule, parse_declaration

ROOT = Path(__file__).parent.parent


def test_command_reference_is_the_help_of_the_commands() -> None:
    assert TARGET.read_text(encoding="utf-8") == reference(), "run `make docs`"


def every_command() -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []

    def walk(command: click.Command, name: str) -> None:
        found.append((name, command))
        if isinstance(command, click.Group):
            context = click.Context(command)
            for child in command.list_commands(context):
                below = command.get_command(context, child)
                assert below is not None, f"{name} lists {child} and does not have it"
                walk(below, f"{name} {child}")

    walk(cli, "embedstore")
    return found


def test_every_command_has_help() -> None:
    assert [name for name, command in every_command() if not (command.help or "").strip()] == []


def test_every_option_has_help() -> None:
    bare = [
        f"{name} {parameter.opts[0]}"
        for name, command in every_command()
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help
    ]
    assert bare == []


def test_help_fits_a_terminal_of_80_columns() -> None:
    long = [
        f"{path}: {line}"
        for path, text in helps(cli, "embedstore")
        for line in text.splitlines()
        if len(line) > 80
    ]
    assert long == []


def test_the_declarations_of_the_docs_are_some() -> None:
    text = (ROOT / "docs" / "import.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    declared = [parse_declaration(block.encode(), name="the block") for block in blocks]
    assert len(declared) >= 4
    assert [field.name for field in fields(InputRule) if f"`{field.name}`" not in text] == ["name"]


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "docs/import.md"])
def test_every_command_that_the_docs_name_is_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    known = {path for path, _ in every_command()}
    groups = {path.split()[-1] for path, command in every_command() if isinstance(command, click.Group)}
    for first, second in re.findall(r"^\$ embedstore ([a-z]+)(?: ([a-z]+))?", text, re.MULTILINE):
        path = f"embedstore {first} {second}" if first in groups else f"embedstore {first}"
        assert path in known


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
