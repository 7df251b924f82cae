"""What a fault campaign counts, and how a page of such counts reads.

A campaign breaks things many times and counts what came of it: it does not stop where an invariant fails,
but counts that and keeps how to reproduce it. A fault is a module of this folder; its campaigns are listed
in campaigns.py, and its tests run them in the sizes of the normal suite.
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embedstore.errors import EmbedstoreError

__all__ = ["Campaign", "Count", "Mixed", "StoreKind", "Tally", "check", "counts_of", "page"]

StoreKind = Literal["embedded", "server", "-"]


@dataclass(frozen=True)
class Count:
    """What came of one fault on one kind of store.

    outcomes: what happened, in a few words, to how often; they sum to tried. lost: how often an invariant
    failed, mixed: how often an answer was of two runs. failures: one reproduction for each of these.
    """

    fault: str
    store: StoreKind
    tried: int
    outcomes: Mapping[str, int]
    lost: int
    mixed: int
    seconds: float
    failures: Sequence[str] = ()


@dataclass(frozen=True)
class Campaign:
    """A fault, and how often it is tried: full in the slow suite and for the page, normal in `make test`.

    run(folder, size) works in folder, which is empty; its docstring is the paragraph of the page. server:
    whether it starts a server of its own, so needs QDRANT_BIN.
    """

    name: str
    run: Callable[[Path, int], Count | Sequence[Count]]
    full: int
    normal: int
    server: bool = False


class Mixed(AssertionError):  # noqa: N818 - read as a count of the report, not as an error
    """An answer of two runs at once, or tower and vectors of different runs."""


class Tally:
    """Counts the attempts of one fault on one kind of store.

    >>> tally = Tally("SIGKILL", "embedded")
    >>> with tally.attempt("seed 3, `embedstore sync`, killed at its rename 7"):
    ...     ...  # break it, then assert the invariants
    ...     tally.outcome("killed, then finished")
    """

    def __init__(self, fault: str, store: StoreKind) -> None:
        self.fault, self.store = fault, store
        self._started = time.perf_counter()
        self._outcomes: Counter[str] = Counter()
        self._tried = self._lost = self._mixed = 0
        self._failures: list[str] = []

    def outcome(self, what: str) -> None:
        """Say what came of the attempt that is under way: once, and last."""
        self._outcomes[what] += 1

    @contextmanager
    def attempt(self, reproduction: str) -> Iterator[None]:
        """Count one attempt; where an assertion fails in it, or embedstore gives up, keep reproduction.

        Mixed counts as mixed, any other AssertionError or EmbedstoreError as lost.
        """
        self._tried += 1
        try:
            yield
        except (AssertionError, EmbedstoreError) as error:
            mixed = isinstance(error, Mixed)
            self._mixed += mixed
            self._lost += not mixed
            self._outcomes["mixed" if mixed else "lost"] += 1
            line = traceback.extract_tb(error.__traceback__)[-1].line
            self._failures.append(f"{reproduction}: {str(error) or line}")

    def count(self) -> Count:
        """Return the counts so far."""
        return Count(
            self.fault,
            self.store,
            self._tried,
            dict(self._outcomes),
            self._lost,
            self._mixed,
            time.perf_counter() - self._started,
            tuple(self._failures),
        )


def counts_of(campaign: Campaign, folder: Path, size: int) -> list[Count]:
    """Run a campaign and return its counts."""
    found = campaign.run(folder, size)
    return [found] if isinstance(found, Count) else list(found)


def check(counts: Count | Sequence[Count]) -> None:
    """Raise AssertionError where something was lost or mixed, nothing was tried, or an outcome is untold."""
    for count in [counts] if isinstance(counts, Count) else counts:
        assert not count.failures, "\n".join(count.failures)
        assert count.tried > 0, f"{count.fault}: nothing was tried"
        assert sum(count.outcomes.values()) == count.tried, f"{count.fault}: {count}"
        assert not count.lost, count
        assert not count.mixed, count


def page(results: Sequence[tuple[Campaign, Sequence[Count]]], head: str) -> str:
    """Return docs/faults.md: a table of all counts, then what each campaign does and what must hold."""
    lines = ["# Faults", "", head, ""]
    lines += ["| fault | store | tried | what happened | lost | mixed | seconds |"]
    lines += ["|---|---|--:|---|--:|--:|--:|"]
    lines += [_row(count) for _, counts in results for count in counts]
    for campaign, counts in results:
        lines += ["", f"## {campaign.name}", "", inspect.getdoc(campaign.run) or ""]
        if failures := [failure for count in counts for failure in count.failures]:
            lines += ["", "What did not hold:", "", *(f"- {failure}" for failure in failures)]
    return "\n".join(lines) + "\n"


def _row(count: Count) -> str:
    happened = ", ".join(f"{what} {n:,}" for what, n in sorted(count.outcomes.items(), key=lambda x: -x[1]))
    numbers = f"{count.lost:,} | {count.mixed:,} | {count.seconds:.1f}"
    return f"| {count.fault} | {count.store} | {count.tried:,} | {happened} | {numbers} |"
