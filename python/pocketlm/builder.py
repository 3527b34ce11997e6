"""Builds graphs: one method for each operation, which works out the widths and names that follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pocketlm.graph import (
    Activation,
    ActivationKind,
    Add,
    Attention,
    Clip,
    Embed,
    Gated,
    Graph,
    Linear,
    Norm,
    NormKind,
    Op,
    Positions,
    Rope,
    Rotary,
    Scale,
    Slice,
    Softcap,
    Weight,
)


class GraphBuilder:
    """Collects operations. Each method appends one and returns its index."""

    def __init__(self, model_type: str, vocab_size: int, context_length: int) -> None:
        self._header = (model_type, vocab_size, context_length)
        self._ops: list[Op] = []
        self._prefix = ""

    @contextmanager
    def layer(self, index: int) -> Iterator[None]:
        """Names operations ``layers.<index>.<name>`` inside the ``with`` block."""
        self._prefix = f"layers.{index}."
        try:
            yield
        finally:
            self._prefix = ""

    def width(self, value: int) -> int:
        """Channels of a value."""
        return self._ops[value].width

    def build(self) -> Graph:
        """The finished graph."""
        return Graph(*self._header, tuple(self._ops))

    def _append(self, cls: type[Op], name: str, width: int, **fields: Any) -> int:
        self._ops.append(cls(self._prefix + name, width, **fields))
        return len(self._ops) - 1

    def embed(self, name: str, weight: Weight, scale: float = 1.0) -> int:
        return self._append(Embed, name, weight.shape[1], weight=weight, scale=scale)

    def positions(self, name: str, weight: Weight) -> int:
        return self._append(Positions, name, weight.shape[1], weight=weight)

    def norm(
        self,
        x: int,
        name: str,
        weight: str | None,
        eps: float,
        *,
        norm: NormKind = "rms",
        bias: str | None = None,
        offset: float = 0.0,
        group: int | None = None,
    ) -> int:
        shape = (group or self.width(x),)
        return self._append(
            Norm,
            name,
            self.width(x),
            x=x,
            norm=norm,
            eps=eps,
            weight=Weight(weight, shape) if weight else None,
            bias=Weight(bias, shape) if bias else None,
            offset=offset,
            group=group,
        )

    def linear(
        self, x: int, name: str, weight: str, width: int, *, bias: str | None = None, transposed: bool = False
    ) -> int:
        return self._append(
            Linear,
            name,
            width,
            x=x,
            weight=Weight(weight, (width, self.width(x)), transposed=transposed),
            bias=Weight(bias, (width,)) if bias else None,
        )

    def slice(self, x: int, name: str, start: int, width: int) -> int:
        return self._append(Slice, name, width, x=x, start=start)

    def split(self, x: int, *parts: tuple[str, int]) -> tuple[int, ...]:
        """Consecutive slices of ``x``, each given as (name, width)."""
        start, values = 0, []
        for name, width in parts:
            values.append(self.slice(x, name, start, width))
            start += width
        return tuple(values)

    def rope(self, x: int, name: str, head_dim: int, rotary: Rotary) -> int:
        return self._append(Rope, name, self.width(x), x=x, head_dim=head_dim, rotary=rotary)

    def attention(
        self,
        q: int,
        k: int | None,
        v: int | None,
        name: str,
        *,
        heads: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        cache: int,
        window: int | None = None,
        softcap: float | None = None,
    ) -> int:
        return self._append(
            Attention,
            name,
            heads * head_dim,
            q=q,
            k=k,
            v=v,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            scale=scale,
            cache=cache,
            window=window,
            softcap=softcap,
        )

    def add(self, a: int, b: int, name: str) -> int:
        return self._append(Add, name, self.width(a), a=a, b=b)

    def activation(self, x: int, name: str, activation: ActivationKind) -> int:
        return self._append(Activation, name, self.width(x), x=x, activation=activation)

    def gated(self, gate: int, up: int, name: str, activation: ActivationKind) -> int:
        return self._append(Gated, name, self.width(up), gate=gate, up=up, activation=activation)

    def scale(self, x: int, name: str, factor: float) -> int:
        return self._append(Scale, name, self.width(x), x=x, factor=factor)

    def softcap(self, x: int, name: str, cap: float) -> int:
        return self._append(Softcap, name, self.width(x), x=x, cap=cap)

    def clip(self, x: int, name: str, limit: float) -> int:
        return self._append(Clip, name, self.width(x), x=x, limit=limit)

    def head(self, x: int, weight: Weight | str, vocab_size: int, *, bias: str | None = None) -> int:
        """The projection to logits; give the embedding's :class:`Weight` where it is tied."""
        name = weight.name if isinstance(weight, Weight) else weight
        return self.linear(x, "head", name, vocab_size, bias=bias)
