"""The layout of a safetensors file that is known before its tensors are.

Codes come first, at multiples of 64 bytes (their sizes are such multiples, and the header is padded), then
tensors of descending alignment. So the file has no holes, which the format forbids, and every part lies where
kernels can read it.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterable, Mapping

from pocketlm.errors import InternalError

ALIGNMENT = 64
_SIZES = {"F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1}


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor of the file: its name there, type as safetensors spells it, and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        product = _SIZES[self.dtype]
        for size in self.shape:
            product *= size
        return product

    @property
    def alignment(self) -> int:
        return ALIGNMENT if self.name.endswith(".codes") and self.dtype == "U8" else _SIZES[self.dtype]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Header, where each part starts in the file, and the size of the whole."""

    header: bytes
    offsets: dict[str, int]
    size: int


def plan_layout(parts: Iterable[Part], metadata: Mapping[str, str]) -> Layout:
    """Places ``parts``; those of equal alignment stay in the given order."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    starts, end = {}, 0
    for part in sorted(parts, key=lambda part: -part.alignment):
        if end % part.alignment:
            raise InternalError(f"tensor {part.name!r} would not be aligned")
        starts[part.name] = end
        end += part.nbytes
        entries[part.name] = {
            "dtype": part.dtype,
            "shape": list(part.shape),
            "data_offsets": [starts[part.name], end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    return Layout(header, {name: len(header) + start for name, start in starts.items()}, len(header) + end)
