"""The hidden state of all tokens at the border of two segments, or the loss's gradient with respect to it, as
a tensor on the disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketlm.loading.files import storage_errors
from pocketlm.palettize.segments import HIDDEN, Segment

STATE, GRADIENT = "hidden", "gradient"


@dataclasses.dataclass(frozen=True)
class Hidden:
    """float32 [tokens, width], a safetensors file whose one tensor an engine maps."""

    path: Path
    tokens: int
    width: int
    start: int

    @classmethod
    def create(cls, directory: Path, border: int, tokens: int, width: int, what: str = STATE) -> Hidden:
        """A new file without rows, in place of an old one; :meth:`append` adds them."""
        start = _start(tokens, width)
        made = cls(path_of(directory, border, what), tokens, width, len(start))
        with storage_errors(made.path):
            made.path.unlink(missing_ok=True)
            made.path.write_bytes(start)
        return made

    @classmethod
    def open(cls, directory: Path, border: int, segment: Segment, tokens: int, what: str = STATE) -> Hidden:
        """The file of the border before ``segment``."""
        width = segment.graph.ops[segment.start - 1].width
        return cls.at(directory, border, tokens, width, what)

    @classmethod
    def at(cls, directory: Path, border: int, tokens: int, width: int, what: str = STATE) -> Hidden:
        """A file that is there, whose width is known."""
        path = path_of(directory, border, what)
        with storage_errors(path):
            size = path.stat().st_size
        return cls(path, tokens, width, size - 4 * tokens * width)

    @classmethod
    def is_there(cls, directory: Path, border: int, tokens: int, width: int, what: str = STATE) -> bool:
        """Whether the segments up to ``border``, or those behind it, left their whole result."""
        path = path_of(directory, border, what)
        with storage_errors(path):
            return path.exists() and path.stat().st_size == len(_start(tokens, width)) + 4 * tokens * width

    @staticmethod
    def remove_at(directory: Path, border: int, behind: int) -> None:
        """Deletes the state of a border and the gradient of one behind it, between which the way back is
        done."""
        for path in (path_of(directory, border, STATE), path_of(directory, behind, GRADIENT)):
            with storage_errors(path):
                path.unlink(missing_ok=True)

    @staticmethod
    def remove_all(directory: Path) -> None:
        """Deletes what a run that was killed before it could do so has left."""
        for what in (STATE, GRADIENT):
            for path in directory.glob(f"{what}-*.safetensors"):
                path.unlink(missing_ok=True)

    def append(self, values: NDArray[np.float32]) -> None:
        """Adds rows behind those that are there."""
        with storage_errors(self.path), self.path.open("ab") as file:
            file.write(np.ascontiguousarray(values, "<f4").data)

    def rows(self, first: int, count: int) -> NDArray[np.float32]:
        """Rows ``first`` to ``first + count``."""
        with storage_errors(self.path), self.path.open("rb") as file:
            file.seek(self.start + 4 * self.width * first)
            data = np.fromfile(file, "<f4", count * self.width)
        return data.reshape(count, self.width)

    def remove(self) -> None:
        """Deletes the file."""
        with storage_errors(self.path):
            self.path.unlink(missing_ok=True)


def path_of(directory: Path, border: int, what: str) -> Path:
    return directory / f"{what}-{border:04d}.safetensors"


def _start(tokens: int, width: int) -> bytes:
    """The file before its numbers."""
    shape = {"dtype": "F32", "shape": [tokens, width], "data_offsets": [0, 4 * tokens * width]}
    header = json.dumps({HIDDEN: shape}).encode()
    header += b" " * (-len(header) % 64)
    return len(header).to_bytes(8, "little") + header
