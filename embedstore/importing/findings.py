"""What a check of somebody else's model finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Checked", "Finding"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found, in one sentence. serious: it stops an import."""

    name: str
    text: str
    serious: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Checked:
    """What was found, and of a model that was measured, the metrics and settings that a run has of it."""

    findings: Sequence[Finding] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
