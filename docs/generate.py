"""Write docs/cli.md from the help of every command: `python docs/generate.py`, or `make docs`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

TARGET = Path(__file__).parent / "cli.md"
WIDTH = 80
HEAD = """# Commands

<!-- Written by docs/generate.py from the help of the commands; a test compares. Run `make docs`. -->
"""


def reference() -> str:
    """Return the text of docs/cli.md."""
    from embedstore.cli import cli

    parts = [HEAD]
    for path, text in helps(cli, "embedstore"):
        parts.append(f"{'#' * min(2 + path.count(' ') - (' ' in path), 4)} {path}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def helps(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """Yield the full name and the help of command and of everything below it."""
    width = {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **{**command.context_settings, **width})
    yield context.command_path, "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is None:
                raise RuntimeError(f"{context.command_path} lists {child} and does not have it")
            yield from helps(found, child, context)


if __name__ == "__main__":
    sys.path.insert(0, str(TARGET.parent.parent))
    TARGET.write_text(reference(), encoding="utf-8")
