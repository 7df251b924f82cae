"""docs/security.md says what is so."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from docs.audit import ALLOWED
from embedstore.cli import COMMANDS
from embedstore.runs import files
from embedstore.stores import server
from embedstore.stores.contract import Metadata

TEXT = (Path(__file__).parent.parent.parent / "docs" / "security.md").read_text(encoding="utf-8")
TELLING = TEXT.partition("## What a collection tells of you")[2].partition("\n## ")[0]


def test_every_field_of_the_metadata_that_tells_of_people_and_machines_is_named() -> None:
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", TELLING, re.MULTILINE))))
    about_the_vectors = {
        "state",
        "run_id",
        "dim",
        "count",
        "tower",
        "fingerprint",
        "search",
        "recall",
        "schema",
        "debias",
    }
    assert named == {part.name for part in fields(Metadata)} - about_the_vectors | {server._PROMOTIONS}


def test_the_bounds_are_those_of_the_code() -> None:
    assert (
        f"at most {files._LARGEST >> 20} MB, {files._MOST_VALUES:,} values and {files._DEEPEST} levels"
        in TEXT
    )


def test_the_commands_are_there() -> None:
    named = re.findall(r"embedstore (access|doctor|server) ", TEXT)
    assert set(named) == {"access", "doctor", "server"} <= set(COMMANDS)


def test_the_list_of_licences_holds_none_that_would_bind_who_uses_embedstore() -> None:
    assert not [licence for licence in ALLOWED if "GPL" in licence]
