"""Reads and writes Hugging Face checkpoints with NumPy alone, a piece at a time.

Used by benchmarks only, also inside the environments of the peers, where pocketlm is not installed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

DTYPES = {"bf16": ("BF16", 2), "f16": ("F16", 2), "f32": ("F32", 4)}
SHARD_BYTES = 4 << 30
ALIGNMENT = 64


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of finite float32 values, rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def encode(values: NDArray[np.float32], dtype: str) -> bytes:
    """The little-endian bytes of ``values`` in a checkpoint's dtype."""
    if dtype == "bf16":
        return to_bf16(values).astype("<u2").tobytes()
    return values.astype({"f16": "<f2", "f32": "<f4"}[dtype]).tobytes()


def plan(
    tensors: Iterable[tuple[str, tuple[int, ...]]], dtype: str
) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Tensors grouped into shards of at most ``SHARD_BYTES`` (or one tensor)."""
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, shape in tensors:
        length = math.prod(shape) * DTYPES[dtype][1]
        if shards[-1] and size + length > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size += length
    return shards


Pieces = Callable[[str, tuple[int, ...]], Iterator[NDArray[np.float32]]]


def write(
    target: Path,
    tensors: Iterable[tuple[str, tuple[int, ...]]],
    dtype: str,
    pieces: Pieces,
    progress: Callable[[int], object] = lambda _: None,
) -> int:
    """Writes ``model.safetensors``, or shards with their index; returns the bytes of the tensors.

    ``pieces`` gives the values of a tensor in consecutive parts; ``progress`` is told the bytes written of
    each.
    """
    shards = plan(tensors, dtype)
    where: dict[str, str] = {}
    total = 0
    for i, shard in enumerate(shards):
        single = len(shards) == 1
        name = "model.safetensors" if single else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        with (target / name).open("wb") as file:
            total += _write_shard(file, shard, dtype, pieces, progress)
        where |= dict.fromkeys((tensor for tensor, _ in shard), name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def _write_shard(
    file: BinaryIO,
    shard: list[tuple[str, tuple[int, ...]]],
    dtype: str,
    pieces: Pieces,
    progress: Callable[[int], object],
) -> int:
    label, size = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in shard:
        end = position + math.prod(shape) * size
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shard:
        start = file.tell()
        for piece in pieces(name, shape):
            progress(file.write(encode(piece, dtype)))
        if file.tell() - start != math.prod(shape) * size:
            raise ValueError(
                f"{name}: {file.tell() - start} bytes written, expected {math.prod(shape) * size}"
            )
    return position


class Checkpoint:
    """A checkpoint directory, mapped: tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = json.loads((path / "config.json").read_text())
        self._entries: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for file in sorted(path.glob("*.safetensors")):
            with file.open("rb") as f:
                length = int.from_bytes(f.read(8), "little")
                header = json.loads(f.read(length))
            header.pop("__metadata__", None)
            self._entries |= {name: (file, 8 + length, entry) for name, entry in header.items()}

    def names(self) -> list[str]:
        """The tensors' names."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._entries[name][2]["shape"])

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """A tensor's values in float32."""
        file, base, entry = self._entries[name]
        start, end = entry["data_offsets"]
        dtype = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}[entry["dtype"]]
        count = (end - start) // np.dtype(dtype).itemsize
        raw = np.memmap(file, dtype, "r", base + start, (count,))
        values = (raw.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else raw
        return np.asarray(values, np.float32).reshape(entry["shape"])
