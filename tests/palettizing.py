"""What the tests of palettize share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pocketlm.palettize import compensate, palettize, run

QUIET: dict[str, Any] = {"progress": False}
UP = "model.layers.1.mlp.up_proj.weight"


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def tree(path: Path) -> dict[str, bytes]:
    """The files of a directory and of those in it."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@contextmanager
def full_disk(room: int = 100) -> Iterator[None]:
    """No file can grow beyond ``room`` bytes."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def interrupted(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch, after: int, **options: Any
) -> Path:
    """Stops at the tensor number ``after``; returns the partial directory."""
    count = itertools.count()

    def limited(real: Callable[..., Any]) -> Callable[..., Any]:
        def work(*args: Any, **kwargs: Any) -> Any:
            if next(count) == after:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return work

    with monkeypatch.context() as patch:
        for module, name in ((run, "palettize_tensor"), (compensate, "compensate_tensor")):
            patch.setattr(module, name, limited(getattr(module, name)))
        with pytest.raises(KeyboardInterrupt):
            palettize(source, target, **options, **QUIET)
    assert not target.exists()
    (partial,) = target.parent.glob(f"{target.name}.partial-*")
    return partial


def stopped(
    source: Path,
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    replacement: Callable[..., Any],
    **options: Any,
) -> None:
    """Palettizes with a function of ``owner`` replaced by one that ends the work as Ctrl+C does."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        with pytest.raises(KeyboardInterrupt):
            palettize(source, target, **options)
