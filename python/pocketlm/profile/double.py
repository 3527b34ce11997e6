"""A model's double: its own operations over random weights, of any kinds.

A product in it runs between the same others as in the model, after as much other data has gone through the
caches, and shares its phase with the same neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from pocketlm._core import WeightStore
from pocketlm.graph import Embed, Graph, Op, Positions, Weight
from pocketlm.kinds import PALETTE_KINDS

_TABLE_ROWS = 64  # of embeddings that are only looked up

Weights = dict[Weight, str]  # with their kinds


def double_of(graph: Graph, kinds: Mapping[str, str], tokens: int) -> tuple[Graph, Weights]:
    """The graph of a model's double, for texts of so many tokens, and the weights that it reads.

    Args:
        kinds: of each product's weight, by the operation's name. All else is in half precision.
    """
    used = {_stored(op.weight): kinds[op.name] for op in graph.linears()}
    weights: Weights = {}

    def new(op: Op, weight: Weight) -> Weight:
        name = _stored(weight)
        rows = weight.shape[0]
        if name not in used:
            rows = {Embed: min(rows, _TABLE_ROWS), Positions: tokens}.get(type(op), rows)
        found = Weight(name, (rows, *weight.shape[1:]))
        weights[found] = used.get(name, "f16")
        return found

    ops = []
    for old in graph.ops:
        fields = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
        fields |= {key: new(old, value) for key, value in fields.items() if isinstance(value, Weight)}
        ops.append(type(old)(**fields))
    return dataclasses.replace(graph, context_length=tokens, ops=tuple(ops)), weights


def token_ids(double: Graph, count: int) -> list[int]:
    """Tokens that a double's embeddings have."""
    tables = [op.weight.shape[0] for op in double.ops if isinstance(op, Embed)]
    return [at % min([_TABLE_ROWS, *tables]) for at in range(count)]


def random_store(weights: Weights) -> WeightStore:
    """Weights of a double, so small that numbers stay finite through any number of layers."""
    random = np.random.default_rng(0)
    store = WeightStore()
    for weight, kind in weights.items():
        if kind in PALETTE_KINDS:
            _add_palette(store, weight, kind, random)
        elif len(weight.shape) == 1:
            store.add(weight.name, np.full(weight.shape, 0.5, np.float16))
        else:
            _add_dense(store, weight, kind, random)
    return store


def _add_palette(store: WeightStore, weight: Weight, kind: str, random: np.random.Generator) -> None:
    rows, cols = shape = weight.shape[0], weight.shape[1]
    bits, entries = PALETTE_KINDS[kind].bits, PALETTE_KINDS[kind].entries
    tiles = -(-rows // 16)
    codes = np.frombuffer(random.bytes(tiles * -(-cols // 32) * 64 * bits), np.uint8).reshape(tiles, -1)
    if not entries:
        codes = np.maximum(codes.view(np.int8), -127).view(np.uint8)
    book = np.arange(-(entries // 2), entries - entries // 2, dtype=np.int8)
    codebook = np.ascontiguousarray(np.broadcast_to(book, (tiles, entries)))
    greatest = max(1, entries // 2) if entries else 127
    scale = np.full(rows, 1 / (greatest * cols**0.5), np.float16)
    store.add_palette(weight.name, kind, shape, codes, codebook, scale)


def _add_dense(store: WeightStore, weight: Weight, kind: str, random: np.random.Generator) -> None:
    least = weight.shape[1] ** -0.5
    if kind == "bf16":
        # Random mantissas of numbers from about `least` to twice that, as exact as the type.
        top = np.uint16(int(np.float32(least).view(np.uint32)) >> 16 & 0xFF80)
        halves = random.integers(0, 0x80, weight.shape, np.uint16)
        halves |= top
        store.add(weight.name, halves, kind)
        return
    values = random.random(weight.shape, np.float32)
    values -= 0.5
    values *= least
    store.add(weight.name, values if kind == "f32" else values.astype(np.float16))


def _stored(weight: Weight) -> str:
    """The tensor whose bytes this one has."""
    return weight.shared_with or weight.name
