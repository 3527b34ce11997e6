"""One palettized tensor: its bytes mean what the format says, and its error is as small as promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketlm._core import Palettized, WeightStore, measure_tensor, palettize_tensor
from pocketlm.errors import ParameterError, WeightError

KINDS = ("p2", "p2v", "p3", "p4", "p8")
GRIDS = {"p2": (-16, 15), "p2v": (-64, 63), "p3": (-32, 31), "p4": (-64, 63), "p8": (-127, 127)}


def made(weights: NDArray[np.float32], kind: str, **options: object) -> Palettized:
    store = WeightStore()
    store.add("w", weights)
    return palettize_tensor(store, "w", kind, **options)  # type: ignore[arg-type]


def codes(lines: NDArray[np.uint8], kind: str) -> NDArray[np.int64]:
    """Codes [tiles, 16, inputs] by the words of the format: byte 4r+j of a 64-byte line belongs to row r.
    For p2v, where in the codebook the value is: k and k + 4 share a code, and second elements follow 16 first
    ones."""
    tiles = lines.shape[0]
    if kind == "p3":
        groups = lines.reshape(tiles, -1, 3, 16, 4)
        low = np.stack([groups[:, :, :2] >> 2 * p & 3 for p in range(4)], axis=4)
        low = low.transpose(0, 3, 1, 2, 4, 5).reshape(tiles, 16, -1)
        high = np.stack([groups[:, :, 2] >> p & 1 for p in range(8)], axis=3)
        high = high.transpose(0, 2, 1, 3, 4).reshape(tiles, 16, -1)
        return (low | high << 2).astype(np.int64)
    if kind == "p2v":
        split = lines.reshape(tiles, -1, 16, 4)
        low, high = split & 15, split >> 4
        parts = np.stack([low, low + 16, high, high + 16], axis=3)
        return parts.transpose(0, 2, 1, 3, 4).reshape(tiles, 16, -1).astype(np.int64)
    bits = int(kind[1])
    split = lines.reshape(tiles, -1, 16, 4)
    parts = np.stack([split >> bits * p & (1 << bits) - 1 for p in range(8 // bits)], axis=3)
    return parts.transpose(0, 2, 1, 3, 4).reshape(tiles, 16, -1).astype(np.int64)


def decoded(result: Palettized, rows: int, cols: int) -> NDArray[np.float64]:
    values = codes(result.codes, result.kind)
    if result.kind == "p8":
        values = np.where(values > 127, values - 256, values)
    else:
        values = np.take_along_axis(result.codebook.astype(np.int64)[:, None, :], values, axis=2)
    low, high = GRIDS[result.kind]
    assert values.min() >= low
    assert values.max() <= high
    return values.reshape(-1, values.shape[2])[:rows, :cols] * result.scale.astype(np.float64)[:, None]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    cols=st.integers(1, 130),
    kind=st.sampled_from(KINDS),
    tail=st.sampled_from([1, 3, 5]),
    weighted=st.sampled_from(["no", "columns", "elements"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_bytes_mean_what_the_format_says(
    rows: int, cols: int, kind: str, tail: int, weighted: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weights = (rng.standard_normal((rows, cols)) ** tail).astype(np.float32)
    h = np.ones((rows, cols), np.float32)
    importance = None
    if weighted == "columns":
        importance = rng.random(cols, np.float32) + np.float32(0.01)
        h *= importance
    elif weighted == "elements":
        h = rng.random((rows, cols), np.float32) + np.float32(0.01)
        importance = h.reshape(-1)
    result = made(weights, kind, importance=importance)
    values = decoded(result, rows, cols)
    error = float((h * (weights.astype(np.float64) - values) ** 2).sum())
    energy = float((h * weights.astype(np.float64) ** 2).sum())
    assert result.error == pytest.approx(error, rel=1e-6, abs=1e-9 * energy)
    assert result.energy == pytest.approx(energy)
    store = WeightStore()
    store.add_palette("q", kind, (rows, cols), result.codes, result.codebook, result.scale)
    np.testing.assert_allclose(store.dense("q"), values, rtol=1e-7)
    assert store.info("q").shape == (rows, cols)
    if kind == "p2v":
        first, second = np.split(result.codebook.astype(int), 2, axis=1)
        assert (np.diff(1000 * first + second, axis=1) >= 0).all()
    elif kind != "p8":
        assert (np.diff(result.codebook.astype(int), axis=1) > 0).all()


def test_errors_are_near_the_theoretical_optimum() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 2048)).astype(np.float32)
    # Lloyd-Max quantizers of the normal distribution (Max 1960), which a free codebook approaches.
    for kind, optimum in (("p2", 0.1175), ("p3", 0.03454), ("p4", 0.009497)):
        result = made(weights, kind)
        assert result.error / result.energy < 1.01 * optimum
    result = made(weights, "p8")
    assert result.error / result.energy < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_threads_orientation_and_progress(kind: str) -> None:
    weights = np.random.default_rng(1).standard_normal((1100, 40)).astype(np.float32)
    rows: list[int] = []
    one = made(weights, kind, threads=1, progress=rows.append)
    two = made(weights, kind, threads=2)
    turned = made(np.ascontiguousarray(weights.T), kind, transposed=True)
    for other in (two, turned):
        assert one.codes.tobytes() == other.codes.tobytes()
        assert one.codebook.tobytes() == other.codebook.tobytes()
        assert one.scale.tobytes() == other.scale.tobytes()
    assert rows == sorted(rows)
    assert rows[-1] == 1100
    assert len(rows) > 1
    store = WeightStore()
    store.add("w", weights)
    error, energy = measure_tensor(store, "w", kind, tiles=10**9)
    assert (error, energy) == (one.error, one.energy)
    error, energy = measure_tensor(store, "w", kind, tiles=20)
    assert error / energy == pytest.approx(one.error / one.energy, rel=0.1)


def test_what_progress_raises_ends_the_work() -> None:
    class Enough(Exception):
        pass

    def stop(rows: int) -> None:
        raise Enough(rows)

    with pytest.raises(Enough):
        made(np.ones((4000, 64), np.float32), "p4", progress=stop)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_cannot_be_palettized(kind: str) -> None:
    weights = np.ones((40, 40), np.float32)
    weights[33, 7] = np.nan
    with pytest.raises(WeightError, match=r'"w".*\[33, 7\]'):
        made(weights, kind)
    weights[33, 7] = np.inf
    with pytest.raises(WeightError, match=r'"w".*\[33, 7\]'):
        made(weights, kind)
    with pytest.raises(WeightError, match=r"row 2 .*f16"):
        made(np.where(np.arange(40)[:, None] == 2, np.float32(1e38), np.ones((40, 40), np.float32)), kind)
    for shape in ((40,), (4, 4, 4), (0, 4), (4, 0)):
        with pytest.raises(WeightError, match='"w"'):
            made(np.zeros(shape, np.float32), kind)
    good = np.ones((40, 40), np.float32)
    for importance in (np.ones(39), np.full(40, -1), np.full(40, np.nan), np.full(40, np.inf)):
        with pytest.raises(WeightError, match="importance"):
            made(good, kind, importance=importance.astype(np.float32))
    for bad in ("p5", "", "P4", "f16"):
        with pytest.raises(ParameterError, match="kind"):
            made(good, bad)
    with pytest.raises(ParameterError, match="threads"):
        made(good, kind, threads=0)
    store = WeightStore()
    with pytest.raises(WeightError, match="nothing"):
        palettize_tensor(store, "nothing", kind)
