"""The weight store: values are those of the file; damaged and hostile files end in typed errors."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints import bf16, safetensors_bytes
from pocketlm import _core
from pocketlm._core import WeightStore
from pocketlm.errors import (
    FileFormatError,
    MissingFileError,
    ParameterError,
    PocketlmError,
    StorageError,
    WeightError,
)
from pocketlm.kinds import PALETTES

RNG = np.random.default_rng(7)
MATRIX = RNG.standard_normal((37, 45)).astype(np.float32)


def opened(path: Path, content: bytes) -> WeightStore:
    path.write_bytes(content)
    store = WeightStore()
    store.open(path)
    return store


def header(entries: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_dense_values_are_those_of_the_file(tmp_path: Path) -> None:
    arrays = {
        "odd": np.zeros(3, np.uint8),  # makes everything after it unaligned
        "f32": MATRIX,
        "f16": MATRIX.astype(np.float16),
        "bf16": bf16(MATRIX),
        "cube": MATRIX[:36].reshape(4, 9, 45),
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 5), np.float32),
    }
    store = opened(tmp_path / "a.safetensors", safetensors_bytes(arrays, {"note": "x"}))
    assert store.names() == sorted(arrays)
    assert len(store) == 7
    assert "f32" in store
    assert "f33" not in store
    assert store.metadata() == {"note": "x"}
    np.testing.assert_array_equal(store.dense("f32"), MATRIX)
    np.testing.assert_array_equal(store.dense("f32", 3, 9), MATRIX[3:9])
    np.testing.assert_array_equal(store.dense("f16"), MATRIX.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(
        store.dense("bf16"), (bf16(MATRIX).astype(np.uint32) << 16).view(np.float32)
    )
    np.testing.assert_array_equal(store.dense("cube", 1, 3), arrays["cube"][1:3])
    assert store.dense("scalar").shape == ()
    assert store.dense("none").shape == (0, 5)
    np.testing.assert_array_equal(
        store.raw("f16", 2, 8), np.frombuffer(arrays["f16"].tobytes()[2:8], np.uint8)
    )
    info = store.info("bf16")
    assert (info.kind, info.shape, info.elements, info.bytes, info.bits) == (
        "bf16",
        (37, 45),
        1665,
        3330,
        16.0,
    )
    assert info.file == tmp_path / "a.safetensors"
    assert store.info("odd").kind == "U8"
    store.check_finite()
    store.release("f32")
    np.testing.assert_array_equal(store.dense("f32"), MATRIX)
    with pytest.raises(WeightError, match="odd"):
        store.dense("odd")
    for start, stop in ((5, 4), (0, 38), (2**62, 2**63)):
        with pytest.raises(PocketlmError):
            store.dense("f32", start, stop)
    with pytest.raises(ParameterError):
        store.raw("f32", 0, 10**9)


def test_an_overlay_stands_in_the_place_of_others(tmp_path: Path) -> None:
    below = opened(tmp_path / "a.safetensors", safetensors_bytes({"a": MATRIX, "b": MATRIX}, {"note": "x"}))
    first, second = WeightStore(), WeightStore()
    first.add("a", 2 * MATRIX)
    first.add("c", 3 * MATRIX)
    second.add("a", 4 * MATRIX)
    both = below.overlay(first, second)
    for name, factor in (("a", 4), ("b", 1), ("c", 3)):
        np.testing.assert_array_equal(both.dense(name), factor * MATRIX)
    assert both.metadata() == below.metadata() and below.names() == ["a", "b"]
    below.add("d", MATRIX)
    assert both.names() == ["a", "b", "c"] and below.overlay().names() == ["a", "b", "d"]
    np.testing.assert_array_equal(below.dense("a"), MATRIX)


def test_arrays_are_copied_in_whatever_form_they_come() -> None:
    store = WeightStore()
    array = MATRIX.copy()
    store.add("a", array)
    array[:] = 0
    np.testing.assert_array_equal(store.dense("a"), MATRIX)
    store.add("t", MATRIX.T)
    store.add("s", MATRIX[::2, ::3])
    store.add("b", bf16(MATRIX), "bf16")
    np.testing.assert_array_equal(store.dense("t"), MATRIX.T)
    np.testing.assert_array_equal(store.dense("s"), MATRIX[::2, ::3])
    assert store.info("b").kind == "bf16"
    for bad in (MATRIX.astype(np.float64), MATRIX.astype(">f4"), bf16(MATRIX), MATRIX.astype(np.int32)):
        with pytest.raises(ParameterError, match="array"):
            store.add("x", bad)
    with pytest.raises(WeightError, match=r'"a"'):
        store.add("a", MATRIX)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_values_that_are_not_finite_are_found(tmp_path: Path, bad: float, dtype: str) -> None:
    values = MATRIX.copy()
    values[35, 44] = bad
    convert = {"f32": lambda x: x, "f16": lambda x: x.astype(np.float16), "bf16": bf16}[dtype]
    store = opened(tmp_path / "a", safetensors_bytes({"fine": convert(MATRIX), "w": convert(values)}))
    store.check_finite("fine")
    for name in (None, "w"):
        with pytest.raises(WeightError, match=r'"w" of .*\[35, 44\]'):
            store.check_finite(name)


DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "short": (b"1234567", "too few"),
    "2^60": (struct.pack("<Q", 1 << 60) + b"{}", "1152921504606846976"),
    "2^64-1": (struct.pack("<Q", 2**64 - 1) + b"{}", "limit"),
    "truncated header": (struct.pack("<Q", 5000) + b"{}", "truncated"),
    "not json": (struct.pack("<Q", 4) + b"{{{{", "header"),
    "array": (struct.pack("<Q", 2) + b"[]", "header"),
    "deep": (struct.pack("<Q", 50_000) + b"[" * 50_000, "header"),
    "not utf-8": (struct.pack("<Q", 4) + b'{"\xff"', "UTF-8"),
    "truncated data": (header({"w": entry("F32", [4], 0, 16)}, b"\0" * 15), '"w".*truncated'),
    "trailing": (header({"w": entry("F32", [4], 0, 16)}, b"\0" * 17), "no tensor"),
    "overlap": (
        header({"w": entry("U8", [4], 0, 4), "x": entry("U8", [4], 3, 7)}, b"\0" * 7),
        '"x".*overlap',
    ),
    "hole": (header({"w": entry("U8", [4], 0, 4), "x": entry("U8", [4], 5, 9)}, b"\0" * 9), '"x".*no tensor'),
    "oversized": (header({"w": entry("F32", [2**62], 0, 2**64 - 1)}, b"\0" * 8), '"w"'),
    "overflow": (header({"w": entry("F32", [2**32, 2**32, 2**32], 0, 8)}, b"\0" * 8), '"w".*overflow'),
    "negative": (header({"w": entry("F32", [-1], 0, 8)}, b"\0" * 8), '"w"'),
    "mismatch": (header({"w": entry("F32", [3], 0, 8)}, b"\0" * 8), '"w".*8 bytes'),
    "backwards": (header({"w": entry("F32", [0], 8, 0)}, b"\0" * 8), '"w".*backwards'),
    "dtype": (header({"w": entry("F12", [2], 0, 8)}, b"\0" * 8), '"w".*F12'),
    "keys": (header({"w": {"dtype": "F32"}}), '"w"'),
    "duplicate": (
        struct.pack("<Q", 124)
        + b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'.ljust(62)
        + b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(62)
        + b"\0" * 4,
        '"w".*twice',
    ),
    "version": (header({"__metadata__": {"pocketlm_format_version": "99"}}), "version"),
    "palettes": (
        header({"__metadata__": {"pocketlm_format_version": "1", "pocketlm_palettes": "[1"}}),
        "palettes",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_name_the_fault(tmp_path: Path, case: str) -> None:
    content, expected = DAMAGED[case]
    store = WeightStore()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=f"(?s)bad.safetensors.*{expected}") as caught:
        store.open(path)
    assert len(str(caught.value)) < 1000
    assert len(store) == 0


def test_paths_that_cannot_be_mapped(tmp_path: Path) -> None:
    store = WeightStore()
    with pytest.raises(MissingFileError, match="nowhere"):
        store.open(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="directory"):
        store.open(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MissingFileError, match="regular"):
        store.open(tmp_path / "pipe")
    with pytest.raises((MissingFileError, StorageError)):
        store.open("a" * 5000)


def test_hostile_files_cost_no_memory(tmp_path: Path) -> None:
    sizes = [2**31, 2**40, 2**62]
    for index, size in enumerate(sizes):
        (tmp_path / f"{index}").write_bytes(header({"w": entry("F16", [size], 0, 2 * size)}, b"\0" * 64))
    (tmp_path / "3").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    palette = {
        "pocketlm_format_version": "1",
        "pocketlm_palettes": json.dumps({"w": {"kind": "p8", "shape": [2**50, 8]}}),
    }
    (tmp_path / "4").write_bytes(header({"__metadata__": palette}))
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "from pocketlm._core import WeightStore\n"
        "from pocketlm.errors import FileFormatError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        WeightStore().open(path)\n"
        "    except FileFormatError:\n"
        "        continue\n"
        "    raise SystemExit('accepted ' + path)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    paths = [str(path) for path in tmp_path.iterdir()]
    done = subprocess.run(
        [sys.executable, "-c", program, *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000  # kilobytes


def palettized_file() -> bytes:
    store = WeightStore()
    store.add("w", MATRIX)
    made = _core.palettize_tensor(store, "w", "p3")
    palettes = {"w": {"kind": "p3", "shape": [37, 45]}}
    metadata = {"pocketlm_format_version": "1", "pocketlm_palettes": json.dumps(palettes)}
    arrays = {"w.codes": made.codes, "w.scale": made.scale, "w.codebook": made.codebook, "v": MATRIX[0]}
    content = safetensors_bytes(arrays, metadata)
    (length,) = struct.unpack("<Q", content[:8])
    padding = -(8 + length) % 64
    return (
        struct.pack("<Q", length + padding) + content[8 : 8 + length] + b" " * padding + content[8 + length :]
    )


SOUND = palettized_file()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_mutation_does_harm(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(SOUND)
    (length,) = struct.unpack("<Q", SOUND[:8])
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly the header: data is only numbers.
        at = data.draw(st.integers(0, 8 + length) | st.integers(0, len(content) - 1))
        piece = data.draw(
            st.binary(min_size=1, max_size=4) | st.sampled_from([b"0", b"9" * 19, b"-", b'"', b"}", b"F32"])
        )
        content[at : at + len(piece)] = piece
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    path = tmp_path / "mutated"
    path.write_bytes(bytes(content))
    store = WeightStore()
    try:
        store.open(path)
        for name in store.names():
            info = store.info(name)
            assert info.bytes <= len(content)
            if info.kind in (*PALETTES, "f32", "f16", "bf16"):
                store.dense(name)
        store.check_finite()
    except PocketlmError as error:
        assert len(str(error)) < 2000
