"""Arrays of statistics on the disk: a file says in its first bytes what it holds, and is measured by that
before anything of it is read."""

from __future__ import annotations

import math
import os
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pocketlm.errors import FileFormatError
from pocketlm.loading.files import storage_errors


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[np.generic]


def load_array(path: Path, shape: Sequence[int]) -> NDArray[np.float32]:
    """A float32 array of one ``.npy`` file.

    Raises:
        MissingFileError, StorageError: it cannot be read.
        FileFormatError: it holds something else, or numbers that are not finite.
    """
    with storage_errors(path), path.open("rb") as file:
        header = _read_header(path, file)
        if header.dtype != np.float32 or header.shape != tuple(shape):
            raise FileFormatError(
                f"{path}: holds {header.dtype} {list(header.shape)}, expected float32 {list(shape)}"
            )
        flat = np.fromfile(file, np.float32, math.prod(shape))
    if flat.size != math.prod(shape):
        raise FileFormatError(f"{path}: damaged (it became shorter while it was read)")
    array: NDArray[np.float32] = flat.reshape(shape, order="F" if header.fortran else "C")
    if not np.isfinite(array).all():
        raise FileFormatError(f"{path}: holds numbers that are not finite")
    return array


def has_shape(path: Path, shape: Sequence[int]) -> bool:
    """Whether an array's file is there and whole; its numbers are not read."""
    try:
        with path.open("rb") as file:
            return _read_header(path, file).shape == tuple(shape)
    except (OSError, FileFormatError):
        return False


def _read_header(path: Path, file: BinaryIO) -> _Header:
    """What the file holds by its own words; the file has just as many bytes behind them."""
    try:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        header = _Header(*read(file))
    # A header is Python's text, which can be wrong in all the ways that this can.
    except (
        ValueError,
        EOFError,
        TypeError,
        SyntaxError,
        tokenize.TokenError,
        RecursionError,
        MemoryError,
    ) as error:
        raise FileFormatError(f"{path}: damaged ({error!s:.200})") from error
    needed = math.prod(header.shape) * header.dtype.itemsize
    there = os.fstat(file.fileno()).st_size - file.tell()
    if header.dtype.hasobject or there != needed:
        raise FileFormatError(
            f"{path}: damaged (holds {there} bytes, {header.dtype} {list(header.shape)} has {needed})"
        )
    return header
