"""Arrays that unfinished training keeps: written whole or not at all; what is damaged counts as not there."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketlm.loading.files import storage_errors


def save_state(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Writes arrays so that a kill leaves the old file or the new one. Synced to disk.

    Raises:
        StorageError: it cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.new")
    with storage_errors(path):
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)


def load_state(path: Path) -> dict[str, NDArray[Any]]:
    """What :func:`save_state` wrote; nothing where there is no such file, or one that is damaged: whoever
    asks begins anew, and ends in the same numbers.

    Raises:
        StorageError: it is there and cannot be read.
    """
    with storage_errors(path):
        if not path.exists():
            return {}
        try:
            # Opened here: of what is no zip file NumPy leaves its own open.
            with path.open("rb") as file, np.load(file) as saved:
                return {name: saved[name] for name in saved.files}
        # All that a damaged zip file or a damaged array in it leads to.
        except (
            zipfile.BadZipFile,
            zipfile.LargeZipFile,
            ValueError,
            EOFError,
            KeyError,
            TypeError,
            AttributeError,
            NotImplementedError,
            RuntimeError,
            MemoryError,
            SyntaxError,
            struct.error,
        ):
            return {}
