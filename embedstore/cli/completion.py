"""`embedstore completion`: the script that teaches a shell to complete embedstore."""

from __future__ import annotations

import click

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    ~/.bashrc                   eval "$(embedstore completion bash)"
    ~/.zshrc                    eval "$(embedstore completion zsh)"
    ~/.config/fish/config.fish  embedstore completion fish | source
    """
    from click.shell_completion import BashComplete, get_completion_class

    kind = get_completion_class(shell)
    if kind is None:  # a click without this shell
        raise click.UsageError(f"this version of click cannot complete {shell}")
    command = click.get_current_context().find_root().command
    # click asks the installed bash for its version first; printing a script needs no bash.
    source = super(BashComplete, kind).source if issubclass(kind, BashComplete) else kind.source
    click.echo(source(kind(command, {}, "embedstore", "_EMBEDSTORE_COMPLETE")))
