"""Small checkpoints on disk for tests: written with json and NumPy alone, to be independent of the reader."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from independent.cases import llama
from pocketlm.families import build_graph

Arrays = Mapping[str, NDArray[Any]]

_TYPES = {
    "float32": "F32",
    "float16": "F16",
    "uint16": "BF16",
    "uint8": "U8",
    "int8": "I8",
    "int64": "I64",
    "bool": "BOOL",
}


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of float32 (cut, not rounded), which the writer stores as bfloat16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def safetensors_bytes(arrays: Arrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file; uint16 arrays are stored as bfloat16."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _TYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def read_safetensors(path: Path) -> tuple[dict[str, Any], bytes, int]:
    """Header, bytes of the whole file, and where its data starts."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content, 8 + length


def weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random weights of the right shapes for a configuration."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, weight in build_graph(config).weights().items():
        values = rng.standard_normal(weight.shape).astype(np.float32)
        result[name] = 1 + 0.1 * values if len(weight.shape) == 1 else values / np.sqrt(weight.shape[1])
    return {name: values.astype(np.float32) for name, values in result.items()}


def write_checkpoint(
    path: Path,
    config: Mapping[str, Any] | None = None,
    arrays: Arrays | None = None,
    vocab: int | None = None,
) -> Path:
    """A Hugging Face directory with configuration, weights and a tokenizer of single words."""
    config = llama() if config is None else config
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").write_bytes(safetensors_bytes(weights(config) if arrays is None else arrays))
    vocab = config["vocab_size"] if vocab is None else vocab
    model = {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(vocab)}, "unk_token": "w0"}
    split = {"type": "WhitespaceSplit"}
    (path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": split, "model": model})
    )
    return path


def write_sharded(path: Path, config: Mapping[str, Any], arrays: Arrays, shards: int = 3) -> Path:
    """As :func:`write_checkpoint`, in several files with an index."""
    write_checkpoint(path, config, {})
    (path / "model.safetensors").unlink()
    names, index = list(arrays), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        chosen = names[shard::shards]
        (path / file).write_bytes(safetensors_bytes({name: arrays[name] for name in chosen}))
        index |= dict.fromkeys(chosen, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path
