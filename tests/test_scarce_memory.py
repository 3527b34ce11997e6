"""Sizes that a file, a caller or a short machine decides: a typed error, not the end of the process."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pocketlm import _core, errors
from pocketlm.builder import GraphBuilder
from pocketlm.graph import Rotary, Weight

HUGE = 1 << 20  # rows and columns of a sparse file's matrix: 2 TiB of f16, nothing on the disk
EMBEDDING = Weight("t", (16, HUGE))


def sparse(path: Path, shapes: dict[str, tuple[int, int]]) -> _core.WeightStore:
    """A store over a file that has no bytes but its header's."""
    header, end = {}, 0
    for name, (rows, cols) in shapes.items():
        header[name] = {"dtype": "F16", "shape": [rows, cols], "data_offsets": [end, end + 2 * rows * cols]}
        end += 2 * rows * cols
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        try:
            file.truncate(8 + len(text) + end)
        except OSError as problem:
            pytest.skip(f"no sparse files of that size here: {problem}")
    store = _core.WeightStore()
    try:
        store.open(path)
    except errors.PocketlmError as problem:
        pytest.skip(f"files of that size are not mapped here: {problem}")
    return store


def test_a_sparse_matrix_is_refused_where_a_copy_would_be_made(tmp_path: Path) -> None:
    store = sparse(tmp_path / "m.safetensors", {"w": (HUGE, HUGE)})
    for call in (
        lambda: _core.palettize_tensor(store, "w", "p4", threads=1),
        lambda: store.raw("w"),
        lambda: store.dense("w"),
    ):
        with pytest.raises((errors.MemoryLimitError, errors.WeightError), match=r"w.* (memory|needs)"):
            call()


def test_a_sparse_transposed_weight_is_refused(tmp_path: Path) -> None:
    builder = GraphBuilder("test", HUGE, 16)
    builder.linear(builder.embed("e", EMBEDDING), "h", "w", HUGE, transposed=True)
    store = sparse(tmp_path / "m.safetensors", {"t": (16, HUGE), "w": (HUGE, HUGE)})
    with pytest.raises(errors.MemoryLimitError, match=r"the transpose of \"w.* needs"):
        _core.Engine(builder.build().to_json(), store, cache_tokens=64)


@pytest.mark.parametrize(("tables", "fits"), [(32, True), (33, False)])
def test_the_tables_of_a_graphs_rotary_embeddings_are_bounded(tables: int, fits: bool) -> None:
    builder = GraphBuilder("test", 32, 1 << 15)
    x = builder.embed("e", Weight("t", (32, 1024)))
    for i in range(tables):
        x = builder.rope(x, f"rope{i}", 1024, Rotary((1.0 / (i + 1),) * 512))
    builder.head(x, "t", 32)
    graph, store = builder.build(), _core.WeightStore()
    for name, weight in graph.weights().items():
        store.add(name, np.ones(weight.shape, np.float32))
    if fits:
        _core.Engine(graph.to_json(), store, cache_tokens=64).close()
        return
    with pytest.raises(errors.PocketlmError, match="rope32: all rotary embeddings have over 16384 pairs"):
        _core.Engine(graph.to_json(), store, cache_tokens=64)


SAVING = """
import resource, sys
import numpy as np
from pocketlm import _core, errors
from test_scarce_memory import wide
engine, sequence, size = wide()
used = int(open("/proc/self/statm").read().split()[0]) * 4096
for share in (0.5, 1.5):
    resource.setrlimit(resource.RLIMIT_AS, (used + int(share * size), resource.RLIM_INFINITY))
    try:
        engine.export(sequence)
    except errors.MemoryLimitError as error:
        assert "keys and values needs" in str(error), error
    else:
        raise AssertionError("there was room")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
assert len(engine.export(sequence)) == size
"""


def wide() -> tuple[_core.Engine, _core.Sequence, int]:
    """An engine whose sequence has 256 MiB of keys and values."""
    builder = GraphBuilder("test", 32, 4096)
    x = builder.embed("e", Weight("t", (32, 16)))
    with builder.layer(0):
        q, k, v = (builder.linear(x, name, name, 16384) for name in "qkv")
        a = builder.attention(q, k, v, "a", heads=128, kv_heads=128, head_dim=128, scale=0.1, cache=0)
        x = builder.add(x, builder.linear(a, "o", "o", 16), "r")
    builder.head(x, "t", 32)
    graph, store = builder.build(), _core.WeightStore()
    for name, weight in graph.weights().items():
        store.add(name, np.ones(weight.shape, np.float32))
    engine = _core.Engine(graph.to_json(), store, cache_tokens=4096, max_rows=16, threads=1)
    data = bytes(engine.block_bytes * 64)
    return engine, engine.restore(4096, data), len(data)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit of the address space")
def test_a_sequence_that_cannot_be_copied_is_an_error() -> None:
    found = subprocess.run(
        [sys.executable, "-c", SAVING], cwd=Path(__file__).parent, timeout=300, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
