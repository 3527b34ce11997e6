"""Unfinished work on the disk belongs to one process at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

from pocketlm.errors import StorageError
from pocketlm.loading.files import storage_errors


def open_locked(path: Path) -> BinaryIO:
    """Opens a file of a directory with unfinished work, made if need be, and locks it until it is closed.

    Raises:
        StorageError: another process has it locked, or it cannot be written.
    """
    with storage_errors(path):
        # Held until the end, so it is opened outside of a with statement.
        file = path.open("a+b")
        if _lock(file) and _is_at(file, path):
            return file
        file.close()
    raise StorageError(f"{path.parent}: another process is writing here")


def _lock(file: BinaryIO) -> bool:
    """Takes the lock of an open file; the system gives it back when the process ends, however it ends."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether the file is still there: another process may have finished before the lock was taken."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
