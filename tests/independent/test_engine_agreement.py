"""The engine against mlx-lm's logits on 16- and 32-bit weights, and against the oracle on palettized ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from independent import cases
from independent.test_agreement import distance, each_case, stored
from pocketlm import _core
from pocketlm.graph import Attention, Linear
from pocketlm.interpret.reference import Reference

ACT_BLOCK = 256  # inputs that share a scale when activations are quantized
F32 = 2.0**-24  # unit roundoff


class HalfCache(Reference):
    """The oracle with keys and values in half precision, as the engine keeps them."""

    def attention(self, op: Attention, q: Any, k: Any = None, v: Any = None) -> Any:
        if k is not None:
            k, v = (a.astype(np.float16).astype(self.dtype) for a in (k, v))
        return super().attention(op, q, k, v)


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves; exact for ``coarse`` values."""
    bits = values.view(np.uint32)
    assert not (bits & 0xFFFF).any()
    return (bits >> 16).astype(np.uint16)


def test_coarse_values_are_the_same_in_every_16_bit_type() -> None:
    for value in cases.weights("llama-biases", "coarse").values():
        assert (value.astype(np.float16) == value).all()
        bf16(value)


def dense_engine(case: str, dtype: str, precision: cases.Precision, threads: int) -> _core.Engine:
    store = _core.WeightStore()
    for name, value in cases.weights(case, precision).items():
        if dtype == "bf16":
            store.add(name, bf16(value), "bf16")
        else:
            store.add(name, value.astype({"f16": np.float16, "f32": np.float32}[dtype]))
    return _core.Engine(cases.graph(case).to_json(), store, threads=threads, cache_tokens=256, max_rows=256)


@each_case
@pytest.mark.parametrize(("dtype", "precision"), [("f32", "full"), ("f16", "coarse"), ("bf16", "coarse")])
@pytest.mark.parametrize("threads", [1, 2])
def test_dense_weights(case: str, dtype: str, precision: cases.Precision, threads: int) -> None:
    graph, ids = cases.graph(case), cases.ids(case)
    engine = dense_engine(case, dtype, precision, threads)
    (result,) = engine.step([(engine.sequence(), ids.tolist(), None, "all")])
    assert result.logits is not None
    assert result.logits.dtype == np.float32
    assert result.logits.shape == (len(ids), graph.vocab_size)
    expected = stored(case, precision)
    assert distance(result.logits[-len(expected) :], expected) < 5e-3
    # Nearly all of that distance is the half-precision cache; what remains is a value that rounds the other
    # way.
    oracle = HalfCache(graph, cases.weights(case, precision)).logits(ids)
    assert distance(result.logits, oracle) < 5e-4


def palettized(case: str, kinds: list[str]) -> tuple[_core.WeightStore, dict[str, NDArray[np.float32]]]:
    """The case's weights, every matrix palettized, with the values that the palettes stand for."""
    dense, store = _core.WeightStore(), _core.WeightStore()
    weights = cases.weights(case)
    for i, (name, value) in enumerate(weights.items()):
        if value.ndim == 1:
            store.add(name, value)
            continue
        dense.add(name, value)
        part = _core.palettize_tensor(dense, name, kinds[i % len(kinds)], threads=1)
        store.add_palette(name, part.kind, value.shape, part.codes, part.codebook, part.scale)
    return store, {name: store.dense(name) for name in weights}


def steps(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The step between quantized activations [tokens, inputs]: their block's maximum / 127, or as much more
    as lets no four of one sign that meet in 16 bits sum to more than 258 steps."""
    size = np.empty_like(x)
    for start in range(0, x.shape[1], ACT_BLOCK):
        block = slice(start, start + ACT_BLOCK)
        step = np.abs(x[:, block]).max(1, keepdims=True) / 127
        eights = np.pad(x[:, block], ((0, 0), (0, -x[:, block].shape[1] % 8))).reshape(len(x), -1, 8)
        fours = np.stack([eights[..., [0, 1, 4, 5]], eights[..., [2, 3, 6, 7]]])
        sums = np.maximum(np.maximum(fours, 0).sum(-1), np.maximum(-fours, 0).sum(-1)).max((0, 2))[:, None]
        # Those that round to 259 steps or more are 257 at least (less some roundings of float32), and get
        # steps of which they are 256. The sum of the rounded ones is at most 2 more, and two are added to it.
        size[:, block] = np.where(sums >= 256.99 * step, np.maximum(step, (sums + 4 * step) / 256), step)
    return size


def bound(
    op: Linear, x: NDArray[np.float64], weights: Mapping[str, NDArray[np.float32]], head: bool
) -> NDArray[np.float64]:
    """How far a product with int8 activations may be from the exact one, for every element [tokens, width].

    An activation is off by at most half a step, with some roundings of the division; each error counts by the
    size of its weight. One fused addition per block, one product with the row's scale, and the bias round the
    sum: fewer than (blocks + 4) roundings of at most the sum of the absolute terms. The head reads what is
    left, at most half a step, in a second term, whose own step is at most that over 63.75; what is left, the
    second product and the sum are each rounded.
    """
    weight = np.abs(weights[op.weight.name].astype(np.float64))
    step = steps(x)
    terms = (np.abs(x) + step) @ weight.T
    if op.bias is not None:
        terms = terms + np.abs(weights[op.bias.name])
    roundings = -(-x.shape[1] // ACT_BLOCK) + (8 if head else 4)
    step = step / 127.5 if head else step
    return (0.5 + 256 * F32) * (step @ weight.T) + roundings * F32 * terms


@each_case
@pytest.mark.parametrize("kinds", [["p8"], ["p4", "p3", "p2v", "p2"]], ids="-".join)
def test_palettized_weights(case: str, kinds: list[str]) -> None:
    """Every operation on the engine's own inputs: products within the bound, the others as in float32."""
    graph, ids = cases.graph(case), cases.ids(case)
    store, weights = palettized(case, kinds)
    traced = _core.Engine(graph.to_json(), store, threads=1, cache_tokens=256).trace(ids)
    oracle = HalfCache(graph, weights)
    for op in graph.ops:
        inputs = [traced[graph.ops[i].name].astype(np.float64) for i in op.inputs()]
        expected = oracle.apply(op, ids, *inputs)
        error = np.abs(traced[op.name] - expected)
        if isinstance(op, Linear):
            limit = bound(op, inputs[0], weights, op is graph.head())
        else:
            limit = 2e-6 * np.abs(expected).max()
        worst = float((error / limit).max())
        assert worst <= 1, f"{op.name}: {worst:.3f} times the bound"


@each_case
def test_palettized_weights_with_exact_activations(case: str) -> None:
    graph, ids = cases.graph(case), cases.ids(case)
    store, weights = palettized(case, ["p4", "p3", "p2v", "p2", "p8"])
    engine = _core.Engine(graph.to_json(), store, cache_tokens=256, max_rows=256, precise=True)
    (result,) = engine.step([(engine.sequence(), ids.tolist(), None, "all")])
    assert result.logits is not None
    assert distance(result.logits, Reference(graph, weights).logits(ids)) < 5e-3
