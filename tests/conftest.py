"""Fixtures of several test files."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from checkpoints import write_checkpoint

# Tests train the same small models again and again: JAX compiles each function once, for all processes of a
# run. Set before anything imports it; workers of pytest-xdist have it from the process that starts them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled = tempfile.mkdtemp(prefix="pocketlm-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)

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
