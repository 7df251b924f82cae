"""How good recommendations are: metrics, baselines and the serving protocol."""

from __future__ import annotations

__all__: list[str] = []
