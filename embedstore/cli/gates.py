"""--gate: what has to hold before an alias moves, as sync, promote and watch take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.output import escape
from embedstore.errors import UsageError, VerificationError

if TYPE_CHECKING:
    from embedstore.sync import Gate, GateResult

__all__ = ["gate_option", "print_gates", "refuse_failed", "refuse_unasked"]


def gate_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --gate, repeatable, as gates: list[Gate]."""
    return click.option(
        "--gate",
        "gates",
        multiple=True,
        callback=_parsed,
        metavar="TEXT",
        help="What must hold before the alias moves: ndcg@100>=0.98*live, overlap@10>=0.3; repeatable.",
    )(command)


def refuse_unasked(gates: Sequence[Gate], *, no_promote: bool) -> None:
    """Raise UsageError where there are gates that nobody would ask."""
    if gates and no_promote:
        raise UsageError("--no-promote leaves the alias where it is, so no gate is asked; see `plan --gate`")


def print_gates(results: Sequence[GateResult]) -> None:
    """Print a line for every gate."""
    for result in results:
        click.echo(escape(f"gate {result.gate} {'passed' if result.passed else 'failed'}: {result.text}"))


def refuse_failed(results: Sequence[GateResult], *, alias: str, before: str | None, reference: str) -> None:
    """Raise VerificationError where a gate failed, and alias stays on before."""
    if failed := [repr(result.gate) for result in results if not result.passed]:
        raise VerificationError(
            f"gate{'s' * (len(failed) > 1)} {', '.join(failed)} failed, so alias {alias} stays on "
            f"{before or 'nothing'}; to serve the run all the same: "
            f"`embedstore promote {reference} --alias {alias}`"
        )


def _parsed(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> list[Gate]:
    if not texts:
        return []
    from embedstore.sync import parse_gate

    return [parse_gate(text) for text in texts]
