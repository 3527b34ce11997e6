"""What the tests of allocation share."""

from __future__ import annotations

from pathlib import Path

import pytest

from profiles import quick

TEXT = " ".join(f"w{i * i % 97}" for i in range(900))


def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Times of products made up, and few steps."""
    quick(monkeypatch)
    monkeypatch.setattr("pocketlm.palettize.speed._REPEATS", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
