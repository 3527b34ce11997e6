"""Writing an adapter: PEFT's file of 16-bit floats, or ours of int8."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm._core import WeightStore, palettize_tensor
from pocketlm.adapters.config import CONFIG, GROUP, TILE_ROWS, WEIGHTS, WEIGHTS_INT8, config_json
from pocketlm.errors import AdapterError
from pocketlm.loading.files import storage_errors
from pocketlm.loading.layout import Layout, Part, plan_layout

Pair = tuple[NDArray[np.float32], NDArray[np.float32]]  # A [rank, inputs] and B [outputs, rank]

_PREFIX = "base_model.model."


def _name(module: str, letter: str) -> str:
    return f"{_PREFIX}{module}.lora_{letter}.weight"


def adapter_layout(shapes: Mapping[str, tuple[int, int, int]], *, int8: bool) -> Layout:
    """The file of weights of an adapter: ``shapes`` maps a weight's name to the term's rank, outputs and
    inputs."""
    parts: list[Part] = []
    palettes = {}
    modules = {name.removesuffix(".weight"): shapes[name] for name in sorted(shapes)}
    for module, (rank, outputs, inputs) in modules.items():
        for letter, (rows, cols) in {"A": (rank, inputs), "B": (outputs, rank)}.items():
            name = _name(module, letter)
            if not int8:
                parts.append(Part(name, "F16", (rows, cols)))
                continue
            tiles, width = -(-rows // TILE_ROWS), -(-cols // GROUP) * GROUP * TILE_ROWS
            parts += [Part(f"{name}.codes", "U8", (tiles, width)), Part(f"{name}.scale", "F16", (rows,))]
            palettes[name] = {"kind": "p8", "shape": [rows, cols]}
    ours = {"pocketlm_format_version": "1", "pocketlm_palettes": json.dumps(palettes, separators=(",", ":"))}
    return plan_layout(parts, ours if int8 else {"format": "pt"})


def write_adapter(directory: Path, pairs: Mapping[str, Pair], base: str, *, int8: bool) -> None:
    """Writes an adapter of scale 1: ``pairs`` maps a weight's name to A [rank, inputs], B [outputs, rank].

    With ``int8`` matrices are stored as palettes of kind p8, in a file of our own; else as float16 in PEFT's.
    Results do not depend on the machine. Synced to disk.

    Raises:
        AdapterError: a value is beyond half precision or not finite; names the tensor.
        StorageError: it cannot be written.
    """
    modules = {name.removesuffix(".weight"): pairs[name] for name in sorted(pairs)}
    data: dict[str, NDArray[Any]] = {}
    for module, pair in modules.items():
        for letter, matrix in zip("AB", pair, strict=True):
            name = _name(module, letter)
            if not np.isfinite(matrix).all() or np.abs(matrix).max(initial=0) > 65504:
                raise AdapterError(f"tensor {name!r:.200} has a value beyond half precision")
            if not int8:
                data[name] = matrix.astype(np.float16)
            else:
                memory = WeightStore()
                memory.add(name, np.ascontiguousarray(matrix, np.float32))
                packed = palettize_tensor(memory, name, "p8")
                data[f"{name}.codes"], data[f"{name}.scale"] = packed.codes, packed.scale
    layout = adapter_layout({n: (len(a), len(b), a.shape[1]) for n, (a, b) in pairs.items()}, int8=int8)
    config = config_json({m: len(a) for m, (a, _) in modules.items()}, base, int8=int8)
    with storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for stale in (WEIGHTS, WEIGHTS_INT8):
            (directory / stale).unlink(missing_ok=True)
        with (directory / (WEIGHTS_INT8 if int8 else WEIGHTS)).open("wb") as file:
            file.write(layout.header)
            for name, offset in sorted(layout.offsets.items(), key=lambda item: item[1]):
                assert file.tell() == offset
                file.write(np.ascontiguousarray(data[name]).tobytes())
            file.flush()
            os.fsync(file.fileno())
        with (directory / CONFIG).open("w", encoding="utf-8") as text:
            text.write(json.dumps(config, indent=2) + "\n")
            text.flush()
            os.fsync(text.fileno())
