"""The command line: a lazy click group, and the one place where an error becomes an exit code.

A command's module is imported only when that command runs, so that `query` never pays for `train`.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 verification or gate failed, 5 store
unreachable, 130 interrupted, 141 the reader of standard output went away.
"""

from __future__ import annotations

import atexit
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from embedstore import __version__
from embedstore.errors import EmbedstoreError, UsageError

__all__ = ["cli", "main", "run"]

COMMANDS = {
    "access": "embedstore.cli.server:access",
    "compare-live": "embedstore.cli.canary:compare_live",
    "completion": "embedstore.cli.completion:completion",
    "contract": "embedstore.cli.contract:contract",
    "copy": "embedstore.cli.copy:copy",
    "data": "embedstore.cli.data:data",
    "doctor": "embedstore.cli.doctor:doctor",
    "embed": "embedstore.cli.query:embed",
    "evaluate": "embedstore.cli.evaluate:evaluate",
    "export": "embedstore.cli.export:export",
    "gc": "embedstore.cli.lifecycle:gc",
    "history": "embedstore.cli.lifecycle:history",
    "mlflow": "embedstore.cli.mlflow:mlflow",
    "pin": "embedstore.cli.lifecycle:pin",
    "plan": "embedstore.cli.sync:plan",
    "promote": "embedstore.cli.lifecycle:promote",
    "query": "embedstore.cli.query:query",
    "rollback": "embedstore.cli.lifecycle:rollback",
    "runs": "embedstore.cli.runs:runs",
    "server": "embedstore.cli.server:server",
    "similar": "embedstore.cli.query:similar",
    "status": "embedstore.cli.sync:status",
    "sync": "embedstore.cli.sync:sync",
    "train": "embedstore.cli.train:train",
    "tune": "embedstore.cli.tune:tune",
    "unpin": "embedstore.cli.lifecycle:unpin",
    "verify": "embedstore.cli.sync:verify",
    "watch": "embedstore.cli.watch:watch",
}

INTERRUPTED = 130
BROKEN_PIPE = 141  # 128 + SIGPIPE, as any Unix tool whose reader has gone


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="embedstore")
def cli() -> None:
    """Train a recommender, put its movie vectors into Qdrant, ask what a user should watch next.

    \b
    embedstore data fetch ml-100k    ratings into ./data
    embedstore train                 a sealed run in ./runs; or runs import yours
    embedstore sync                  its vectors into ./store, alias `movies`
    embedstore query --user 196      recommendations

    Results go to standard output, progress to standard error. Settings: flag, then environment
    (EMBEDSTORE_DATA, _RUNS, _STORE, _ALIAS), then embedstore.toml, then default.
    EMBEDSTORE_DEBUG=1 shows the traceback of an error.
    """


def main() -> NoReturn:
    """Run the command of sys.argv and exit with its code."""
    _leave(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are printed to standard error."""
    try:
        if "_EMBEDSTORE_COMPLETE" in os.environ:
            cli.main(list(arguments), prog_name="embedstore")
        _check_encoding(arguments)
        code = _invoke(list(arguments))
        if sys.stdout is not None:
            sys.stdout.flush()  # a full disk or a closed pipe shows here, not after the last line
        return code
    except BaseException as error:  # noqa: BLE001 - the outermost layer: every error becomes a code
        return _code_of(error)


def _invoke(arguments: list[str]) -> int:
    try:
        with cli.make_context("embedstore", arguments) as context:
            cli.invoke(context)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    return 0


def _check_encoding(arguments: Sequence[str]) -> None:
    for position, argument in enumerate(arguments, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"argument {position} ({os.fsencode(argument)!r}) is not valid UTF-8; type it in UTF-8"
            ) from None


def _code_of(error: BaseException) -> int:
    """Print what went wrong in one sentence and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, BrokenPipeError):
        _forget_stdout()
        return BROKEN_PIPE
    if os.environ.get("EMBEDSTORE_DEBUG", "0") not in ("", "0"):
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            _say(line)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        _say("Interrupted.")
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.ClickException):
        _say(f"Error: {_with_hint(error)}")
        return error.exit_code
    if isinstance(error, EmbedstoreError):
        _say(f"Error: {error}")
        return error.exit_code
    if isinstance(error, OSError):
        _say(f"Error: {_sentence_of(error)}")
        _forget_stdout()  # where standard output itself failed, the flush at exit would fail again
        return 1
    _say(
        f"Error: unexpected {type(error).__name__}: {error}; "
        "this is a defect, set EMBEDSTORE_DEBUG=1 to see the traceback"
    )
    return 1


def _with_hint(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message}; see `{context.command_path} --help`"


def _sentence_of(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _say(message: str) -> None:
    from embedstore.cli.output import escape

    try:
        click.echo(escape(message), err=True)
    except (OSError, ValueError):
        return  # nobody can be told: standard error is closed


def _leave(code: int) -> NoReturn:
    """End the process as sys.exit would, less the taking apart of every module.

    With NumPy and the engine of the store loaded that takes 40 ms, a fifth of a `query`.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            continue  # run() has flushed, and said so where it could not
    os._exit(code)


def _forget_stdout() -> None:
    """Point standard output at nothing, so that the flush at exit stays silent."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    except OSError:
        return
