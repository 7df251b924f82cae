"""What `make audit` asks of licences; the rest of it needs its own tools and a network."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

import pytest

from docs.audit import is_allowed, licence_of, licences


def test_the_licence_of_every_package_here_is_known_and_allowed(tmp_path: Path) -> None:
    assert licences(tmp_path) == 0
    assert "numpy: BSD-3-Clause" in (tmp_path / "licences.txt").read_text()


@pytest.mark.parametrize("licence", ["GPL-3.0-only", "MIT AND LGPL-2.1-or-later", "Proprietary", "", None])
def test_another_licence_is_not(licence: str | None) -> None:
    assert not is_allowed(licence)


def test_a_package_that_tells_no_licence_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "silent-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: silent\nVersion: 1.0\nLicense: Ask us\n")
    found = next(iter(distributions(path=[str(tmp_path)])))
    assert licence_of(found) == "Ask us"
    monkeypatch.setattr("docs.audit.distributions", lambda: [found])
    assert licences(tmp_path) == 1
    assert "NOT ALLOWED: silent: Ask us" in capsys.readouterr().out
