"""Text to learn from, as windows of token ids, spread evenly over what is given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketlm.errors import FileFormatError, ParameterError
from pocketlm.loading import LoadedModel
from pocketlm.loading.files import as_path, storage_errors

LENGTH = 256  # tokens of a window
_PIECE = 1 << 18  # bytes read at a place of a file, characters tokenized at a time
_BYTES = 8  # for each token: more than most tokens have


def read_windows(
    text: str | PathLike[str] | Iterable[str], model: LoadedModel, tokens: int
) -> NDArray[np.uint32]:
    """Token ids [windows, length] of a text file or of texts; a window has 256 tokens, or the model's
    context.

    There are no more than ``tokens`` asks for, spread evenly over the text. Of a large file only as many
    pieces are read as they need.

    Raises:
        MissingFileError, StorageError, FileFormatError: the file cannot be read, or is not UTF-8.
        ParameterError: there is no text, or not enough for one window.
    """
    pieces: Iterable[str]
    if isinstance(text, str | PathLike):
        pieces = _pieces(as_path(text, "recover_text"), tokens * _BYTES)
    else:
        pieces = list(text)
        if not all(isinstance(piece, str) for piece in pieces):
            raise ParameterError("recover_text: must be the path of a text file, or texts")
        pieces = [piece[at : at + _PIECE] for piece in pieces for at in range(0, len(piece), _PIECE)]
    length = min(LENGTH, model.graph.context_length)
    found = [np.array(model.tokenizer.encode(piece).ids, np.uint32) for piece in pieces if piece.strip()]
    if not found:
        raise ParameterError("recover_text: there is no text")
    ids = np.concatenate(found)
    there = len(ids) // length
    if not there:
        raise ParameterError(f"recover_text: has {len(ids)} tokens, a window needs {length}")
    count = min(there, -(-tokens // length))
    firsts = np.arange(count) * there // count * length
    windows: NDArray[np.uint32] = ids[firsts[:, None] + np.arange(length)]
    return windows


def _pieces(path: Path, wanted: int) -> Iterator[str]:
    """About ``wanted`` bytes of a file, in pieces from places spread evenly over it."""
    with storage_errors(path), path.open("rb") as file:
        size = path.stat().st_size
        count = max(1, -(-min(wanted, size) // _PIECE))
        for index in range(count):
            start, following = index * size // count, (index + 1) * size // count
            file.seek(start)
            yield _decoded(path, file.read(min(_PIECE, following - start)), start)


def _decoded(path: Path, data: bytes, start: int) -> str:
    """The text of a piece, without the characters that its ends cut."""
    lead = next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0) if start else 0
    for cut in range(min(4, len(data))):
        try:
            return data[lead : len(data) - cut].decode("utf-8")
        except UnicodeDecodeError as error:
            if error.reason != "unexpected end of data" or cut == 3:
                at = start + lead + error.start
                raise FileFormatError(f"{path}: not UTF-8 ({error.reason} at byte {at})") from error
    return ""
