"""How much each operation reads and computes in a step, from the graph alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from pocketlm._core import TensorInfo, WeightStore
from pocketlm.graph import Attention, Embed, Graph, Linear, Op, Positions
from pocketlm.kinds import PALETTE_KINDS
from pocketlm.loading.check import stored_name

_CACHE_BYTES = {"f16": (2, 0), "int8": (1, 4)}  # of a cached number, and of the scale of a key or a value


@dataclasses.dataclass(frozen=True)
class Load:
    """A step as chunks of ``(first position, tokens)``; ``selected`` rows go through the tail."""

    chunks: tuple[tuple[int, int], ...]
    selected: int = 1

    @classmethod
    def decode(cls, context: int) -> Load:
        """One token after ``context`` others."""
        return cls(((context, 1),))

    @classmethod
    def prefill(cls, tokens: int, most: int) -> Load:
        """A prompt in chunks of at most ``most`` tokens."""
        return cls(tuple((at, min(most, tokens - at)) for at in range(0, tokens, most)))

    @property
    def tokens(self) -> int:
        return sum(count for _, count in self.chunks)


def matrix(store: WeightStore, op: Op) -> TensorInfo | None:
    """The matrix of an operation, as it is stored."""
    if isinstance(op, Linear | Embed | Positions):
        return store.info(stored_name(store, op.weight))
    return None


def work(
    graph: Graph,
    store: WeightStore,
    load: Load,
    tail: Mapping[str, bool],
    kv_dtype: str = "f16",
    *,
    precise: bool = False,
) -> dict[str, tuple[int, int]]:
    """Bytes of weights and cache read, and multiply-adds, of every operation. ``tail`` tells which
    operations see only the selected rows, ``precise`` that activations are in float32."""
    attentions = [op.name for op in graph.ops if isinstance(op, Attention)]
    found, head = {}, graph.head()
    for op in graph.ops:
        # Chunks before the last end when their keys and values are in the cache.
        last = tail.get(op.name, False) or (attentions and op.name == attentions[-1])
        chunks = load.chunks[-1:] if last else load.chunks
        rows = load.selected if tail.get(op.name, False) else sum(count for _, count in chunks)
        read, macs = _of(op, store, chunks, rows, kv_dtype)
        info = matrix(store, op)
        if op is head and info is not None and info.kind in PALETTE_KINDS and not precise:
            macs *= 2  # it reads its activations in two terms
        found[op.name] = read, macs
    return found


def _of(
    op: Op, store: WeightStore, chunks: tuple[tuple[int, int], ...], rows: int, kv_dtype: str
) -> tuple[int, int]:
    info = matrix(store, op)
    if isinstance(op, Attention):
        seen = list(_visible(op, chunks))
        products = 2 * op.heads * op.head_dim * sum(seen)
        ends = sum(min(first + count, (op.window or first + count) + count - 1) for first, count in chunks)
        number, scale = _CACHE_BYTES[kv_dtype]
        return 2 * op.kv_heads * (op.head_dim * number + scale) * ends, products
    if isinstance(op, Linear) and info is not None:
        vectors = 4 * op.width if op.bias else 0
        return len(chunks) * (info.bytes + vectors), rows * op.weight.shape[0] * op.weight.shape[1]
    if info is not None:
        return rows * (info.bytes // max(1, op.weights()[0].shape[0])), 0
    return len(chunks) * sum(4 * weight.shape[0] for weight in op.weights()), 0


def _visible(op: Attention, chunks: tuple[tuple[int, int], ...]) -> Iterator[int]:
    """Tokens that each row attends to."""
    for first, count in chunks:
        for position in range(first, first + count):
            yield min(position + 1, op.window or position + 1)
