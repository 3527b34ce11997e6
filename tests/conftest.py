"""Fixtures of several test files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from checkpoints import write_checkpoint

# No timed tests: a busy machine would fail them.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint to palettize."""
    path = write_checkpoint(tmp_path / "src")
    (path / "generation_config.json").write_text('{"temperature": 0.6}')
    (path / "secret.py").write_text("not copied")
    return path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and short sequences: the tests are quick."""
    monkeypatch.setattr("pocketlm.palettize.held_out.TOKENS", 48)
    monkeypatch.setattr("pocketlm.palettize.held_out.LENGTH", 24)
