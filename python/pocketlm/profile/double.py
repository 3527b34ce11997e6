"""A model's double: its own operations over random weights, of any kinds.

A product in it runs between the same others as in the model, after as much other data has gone through the
caches, and shares its phase with the same neighbours. Of a model that is larger than the caches, layers share
matrices: which of them is read makes no difference where all come from memory.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from pocketlm._core import WeightStore
from pocketlm.graph import Embed, Graph, Op, Positions, Weight
from pocketlm.kinds import PALETTE_KINDS
from pocketlm.profile.whatif import stored_bytes

TABLE_ROWS = 64  # of embeddings that are only looked up: tokens must be below
_MOST_BYTES = 128 << 20  # of matrices, from where on layers share them: larger than most caches

Weights = dict[Weight, str]  # with their kinds


def double_of(graph: Graph, kinds: Mapping[str, str], tokens: int) -> tuple[Graph, Weights]:
    """The graph of a model's double, for texts of so many tokens, and the weights that it reads.

    Args:
        kinds: of each product's weight, by the operation's name. All else is in half precision.
    """
    used: dict[str, tuple[tuple[int, ...], str]] = {}
    groups: dict[tuple[tuple[int, ...], str], list[str]] = defaultdict(list)
    for op in graph.linears():
        name = _stored(op.weight)
        if name not in used:
            used[name] = op.weight.shape, kinds[op.name]
            groups[used[name]].append(name)
    whole = sum(_bytes(*key) * len(group) for key, group in groups.items())
    part = min(1.0, _MOST_BYTES / max(1, whole))
    copies = {key: max(1, round(part * len(group))) for key, group in groups.items()}
    weights: Weights = {}

    def new(op: Op, weight: Weight) -> Weight:
        key = used.get(_stored(weight))
        if key is None:
            rows = {Embed: TABLE_ROWS, Positions: tokens}.get(type(op), weight.shape[0])
            found = Weight(weight.name, (rows, *weight.shape[1:]))
        else:
            number = groups[key].index(_stored(weight)) % copies[key]
            found = Weight(f"{key[1]} {'x'.join(map(str, key[0]))} {number}", weight.shape)
        weights[found] = "f16" if key is None else key[1]
        return found

    ops = []
    for old in graph.ops:
        fields = {field.name: getattr(old, field.name) for field in dataclasses.fields(old)}
        fields |= {key: new(old, value) for key, value in fields.items() if isinstance(value, Weight)}
        ops.append(type(old)(**fields))
    return dataclasses.replace(graph, context_length=tokens, ops=tuple(ops)), weights


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
        # Random mantissas of numbers from `least` to twice that, as exact as the type.
        top = np.array(least, np.float32).view(np.uint32) >> 16 & 0xFF80
        halves = np.frombuffer(random.bytes(2 * weight.shape[0] * weight.shape[1]), np.uint16)
        store.add(weight.name, (halves & 0x007F | top).astype(np.uint16).reshape(weight.shape), kind)
        return
    values = random.random(weight.shape, np.float32)
    values -= 0.5
    values *= least
    store.add(weight.name, values if kind == "f32" else values.astype(np.float16))


def _stored(weight: Weight) -> str:
    """The tensor whose bytes this one has."""
    return weight.shared_with or weight.name


def _bytes(shape: tuple[int, ...], kind: str) -> int:
    return stored_bytes((shape[0], shape[1]), kind, kind)
