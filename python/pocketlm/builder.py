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
    """Collects operations. Each method appends one and returns its index.

    A value is the index of the operation that made it, and is a matrix [tokens, width]. ``name`` is the
    canonical name of the site, without its layer; no two operations may have the same. Weights are given by
    their names in the checkpoint. What does not fit together (widths, heads, a cache that nobody wrote) is a
    :class:`~pocketlm.errors.ConfigError` of the engine that names the site; methods do not look at it.

    Args:
        model_type: the family's name.
        vocab_size: the number of logits.
        context_length: positions that the model was made for.
    """

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
        """Channels of a value.

        Raises:
            IndexError: no operation has that index yet.
        """
        return self._ops[value].width

    def build(self) -> Graph:
        """The finished graph; the last operation yields the logits.

        Raises:
            ConfigError: two operations have the same name.
        """
        return Graph(*self._header, tuple(self._ops))

    def _append(self, cls: type[Op], name: str, width: int, **fields: Any) -> int:
        self._ops.append(cls(self._prefix + name, width, **fields))
        return len(self._ops) - 1

    def embed(self, name: str, weight: Weight, scale: float = 1.0) -> int:
        """Rows of ``weight`` [rows, width] at the token ids, times ``scale``. The same :class:`Weight` can be
        the head's."""
        return self._append(Embed, name, weight.shape[1], weight=weight, scale=scale)

    def positions(self, name: str, weight: Weight) -> int:
        """Rows of ``weight`` [at least the context length, width] at the tokens' positions (learned absolute
        positions); to be added to the embedding."""
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
        """Normalises the channels of ``x``: RMSNorm, or LayerNorm with ``norm="layer"``.

        Args:
            weight: the gain [width], or [group]; ``None`` for a gain of 1.
            eps: added to the mean square (or variance) before the root.
            bias: added at the end [width], or [group].
            offset: added to the gain, 1 where the checkpoint stores it less 1 (Gemma).
            group: normalise runs of so many channels, each by itself: the head dimension, for norms of
                queries and keys. It must divide the width; ``None`` for all channels together.
        """
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
        """``x @ weight.T + bias``.

        Args:
            weight: the matrix, [``width``, channels of ``x``] in the checkpoint.
            width: channels of the result.
            bias: [``width``].
            transposed: the checkpoint stores the matrix as [channels of ``x``, ``width``] (Conv1D of GPT-2).
        """
        return self._append(
            Linear,
            name,
            width,
            x=x,
            weight=Weight(weight, (width, self.width(x)), transposed=transposed),
            bias=Weight(bias, (width,)) if bias else None,
        )

    def slice(self, x: int, name: str, start: int, width: int) -> int:
        """Channels ``start`` to ``start + width`` of ``x``."""
        return self._append(Slice, name, width, x=x, start=start)

    def split(self, x: int, *parts: tuple[str, int]) -> tuple[int, ...]:
        """Consecutive slices of ``x`` from its first channel on, each given as (name, width)."""
        start, values = 0, []
        for name, width in parts:
            values.append(self.slice(x, name, start, width))
            start += width
        return tuple(values)

    def rope(self, x: int, name: str, head_dim: int, rotary: Rotary) -> int:
        """Rotates each head of ``x`` [tokens, heads * head_dim] by its token's position. Queries and keys are
        rotated apart, before the attention; :func:`pocketlm.families.rope.rotary` reads the configuration."""
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
        """Causal attention; the result is [tokens, heads * head_dim].

        Args:
            q: queries [tokens, heads * head_dim], rotated where the model does so.
            k, v: keys and values [tokens, kv_heads * head_dim], which are put into ``cache``; ``None`` for
                both to attend to what an earlier layer put there.
            heads, kv_heads: of queries, and of keys and values; the second divides the first.
            scale: what scores are multiplied by, ``head_dim ** -0.5`` as a rule.
            cache: the number of the layer's cache of keys and values: 0, 1, ... Each is written once.
            window: a token sees so many last tokens, itself included; ``None`` for all.
            softcap: scores become ``softcap * tanh(score / softcap)``.
        """
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
        """``a + b``, of the same width."""
        return self._append(Add, name, self.width(a), a=a, b=b)

    def activation(self, x: int, name: str, activation: ActivationKind) -> int:
        """``activation(x)``, elementwise."""
        return self._append(Activation, name, self.width(x), x=x, activation=activation)

    def gated(self, gate: int, up: int, name: str, activation: ActivationKind) -> int:
        """``activation(gate) * up``, elementwise, of the same width (SwiGLU and its like)."""
        return self._append(Gated, name, self.width(up), gate=gate, up=up, activation=activation)

    def scale(self, x: int, name: str, factor: float) -> int:
        """``x * factor``; unlike a scale of :meth:`embed` or :meth:`attention`, an operation of its own."""
        return self._append(Scale, name, self.width(x), x=x, factor=factor)

    def softcap(self, x: int, name: str, cap: float) -> int:
        """``cap * tanh(x / cap)``: values stay between ``-cap`` and ``cap``, which is positive."""
        return self._append(Softcap, name, self.width(x), x=x, cap=cap)

    def clip(self, x: int, name: str, limit: float) -> int:
        """``x`` limited to [``-limit``, ``limit``]; ``limit`` is positive."""
        return self._append(Clip, name, self.width(x), x=x, limit=limit)

    def head(self, x: int, weight: Weight | str, vocab_size: int, *, bias: str | None = None) -> int:
        """The projection ``head`` to logits [tokens, vocab_size], outside of all layers; give the embedding's
        :class:`Weight` where it is tied."""
        name = weight.name if isinstance(weight, Weight) else weight
        return self.linear(x, "head", name, vocab_size, bias=bias)
