"""Fixtures of several test files."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints import write_checkpoint


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint to palettize."""
    path = write_checkpoint(tmp_path / "src")
    (path / "generation_config.json").write_text('{"temperature": 0.6}')
    (path / "secret.py").write_text("not copied")
    return path
