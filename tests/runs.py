"""Runs as the benchmarks keep them."""

from __future__ import annotations

from typing import Any


def run(number: int, at: float, **figures: float) -> dict[str, Any]:
    """A run of a round, at a time in seconds, with its figures."""
    return {"round": number, "at": at, "figures": figures}
