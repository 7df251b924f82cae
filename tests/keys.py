"""The keys of tests, and the watch that nothing which the suite prints or reads of what is printed holds one.

Every key begins with MARK. Looked at are the captured output and the log of every test, at every level and of
every logger; what capsys and capfd gave to a test; what the programs that it started printed; and what
pytest itself tells of it: its name, its traceback.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Generator
from typing import Any

import pytest

__all__ = [
    "KEY",
    "MARK",
    "OTHER_KEY",
    "READ_ONLY_KEY",
    "printed",
    "pytest_configure",
    "pytest_runtest_makereport",
]

MARK = "s3cret-key"
KEY = f"{MARK}-of-all-the-tests-0123456789"
READ_ONLY_KEY = f"{MARK}-which-only-reads-0123456789"
OTHER_KEY = f"{MARK}-of-another-server-0123456789"

_read: list[str] = []


def printed(text: str | bytes | None) -> None:
    """Have text looked through at the end of the test."""
    if text:
        _read.append(text.decode(errors="replace") if isinstance(text, bytes) else text)


def pytest_configure() -> None:
    """Look at what tests read of their own output, which pytest then does not have."""
    plain_read, plain_communicate = pytest.CaptureFixture.readouterr, subprocess.Popen.communicate

    @functools.wraps(plain_read)
    def readouterr(self: pytest.CaptureFixture[Any]) -> Any:
        found = plain_read(self)
        printed(found.out)
        printed(found.err)
        return found

    @functools.wraps(plain_communicate)
    def communicate(self: subprocess.Popen[Any], *args: Any, **more: Any) -> Any:
        found = plain_communicate(self, *args, **more)
        for text in found:
            printed(text)
        return found

    pytest.CaptureFixture.readouterr = readouterr  # type: ignore[method-assign]
    subprocess.Popen.communicate = communicate  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a test that shows a key, and take the key out of its report."""
    report = yield
    keys = [MARK, *filter(None, map(os.environ.get, ("QDRANT_API_KEY", "QDRANT_READ_ONLY_API_KEY")))]
    places = {"what it read": "\n".join(_read), "its name": item.nodeid, "its report": report.longreprtext}
    places |= dict(report.sections)
    _read.clear()
    leaks = [place for place, text in places.items() if any(key in text for key in keys)]
    if leaks:
        report.outcome = "failed"
        report.longrepr = f"a key is in {', '.join(leaks)}"
        report.sections = [section for section in report.sections if section[0] not in leaks]
    return report
