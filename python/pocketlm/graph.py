"""The model as data: a dozen kinds of operation, and the graph that holds them in order.

A family (``pocketlm.families``) turns a ``config.json`` into a :class:`Graph` with a
:class:`~pocketlm.builder.GraphBuilder`. Three interpreters run it: the
Rust engine (fast), :mod:`pocketlm.interpret.reference` (NumPy, the oracle of the tests) and
:mod:`pocketlm.interpret.jax` (gradients). An operation refers to its inputs by the index of the operation
that made them; every value is a float matrix ``[tokens, width]``. Operations carry the canonical name of
their site (``layers.7.ffn.down``), by which the profiler, the adapters, the bit recipe and error messages
speak of them; weights carry the tensor name of the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import ClassVar, Literal

from pocketlm.checks import shown
from pocketlm.errors import ConfigError
from pocketlm.records import dataclass

ActivationKind = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
NormKind = Literal["rms", "layer"]


@dataclass(frozen=True)
class Weight:
    """A tensor of the checkpoint: its name there and the shape that it must have.

    ``shared_with`` names the tensor whose bytes this one repeats (checkpoints of models with shared layers
    store copies). ``transposed`` marks matrices stored as [inputs, outputs] (the Conv1D of GPT-2); ``shape``
    is always [outputs, inputs].
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    shared_with: str | None = None


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (Su et al., arXiv 2104.09864).

    ``frequencies`` holds the inverse frequencies in radians per token, one for each rotated pair; the first
    ``2 * len(frequencies)`` channels of each head are rotated, the rest pass through. ``scale`` multiplies
    cosine and sine (the attention factor of YaRN and LongRoPE). Pairs are (i, i + n/2), or (2i, 2i + 1) when
    ``interleaved``.
    """

    frequencies: tuple[float, ...]
    scale: float = 1.0
    interleaved: bool = False


@dataclass(frozen=True)
class Op:
    """Base of all operations. ``name`` is the site's canonical name, ``width`` the channels of the result."""

    kind: ClassVar[str] = ""
    name: str
    width: int

    def inputs(self) -> tuple[int, ...]:
        """Indices of the operations whose results this one reads."""
        return tuple(
            value
            for key in ("x", "a", "b", "q", "k", "v", "gate", "up")
            if (value := getattr(self, key, None)) is not None
        )

    def weights(self) -> tuple[Weight, ...]:
        """The tensors that this operation reads."""
        return tuple([value for value in vars(self).values() if isinstance(value, Weight)])


@dataclass(frozen=True)
class Embed(Op):
    """Rows of ``weight`` [vocabulary, width] at the token ids, times ``scale``."""

    kind: ClassVar[str] = "embed"
    weight: Weight
    scale: float = 1.0


@dataclass(frozen=True)
class Positions(Op):
    """Rows of ``weight`` [context, width] at the tokens' positions (learned absolute positions)."""

    kind: ClassVar[str] = "positions"
    weight: Weight


@dataclass(frozen=True)
class Norm(Op):
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450) over channels.

    With ``group`` each run of that many channels is normalised by itself (per-head query and key norms;
    ``weight`` is then [group]). The gain is ``weight + offset`` (Gemma stores w - 1), or 1 without a weight.
    """

    kind: ClassVar[str] = "norm"
    x: int
    norm: NormKind
    eps: float
    weight: Weight | None = None
    bias: Weight | None = None
    offset: float = 0.0
    group: int | None = None


@dataclass(frozen=True)
class Linear(Op):
    """``x @ weight.T + bias`` with ``weight`` [width, inputs]."""

    kind: ClassVar[str] = "linear"
    x: int
    weight: Weight
    bias: Weight | None = None


@dataclass(frozen=True)
class Slice(Op):
    """Channels ``start`` to ``start + width`` of ``x`` (the parts of a fused projection)."""

    kind: ClassVar[str] = "slice"
    x: int
    start: int


@dataclass(frozen=True)
class Rope(Op):
    """Rotates each head of ``x`` by its token's position."""

    kind: ClassVar[str] = "rope"
    x: int
    head_dim: int
    rotary: Rotary


@dataclass(frozen=True)
class Attention(Op):
    """Causal grouped-query attention (arXiv 2305.13245) over the cache of layer ``cache``.

    ``q`` is [tokens, heads * head_dim]; ``k`` and ``v`` are [tokens, kv_heads * head_dim], or both ``None``
    where a layer attends to the keys and values that an earlier layer left in ``cache``. Scores are
    multiplied by ``scale``, then passed through ``softcap * tanh(s / softcap)`` if given. A ``window`` of w
    sees the last w tokens, its own included.
    """

    kind: ClassVar[str] = "attention"
    q: int
    k: int | None
    v: int | None
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    cache: int
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class Add(Op):
    """``a + b``."""

    kind: ClassVar[str] = "add"
    a: int
    b: int


@dataclass(frozen=True)
class Activation(Op):
    """``activation(x)``, elementwise."""

    kind: ClassVar[str] = "activation"
    x: int
    activation: ActivationKind


@dataclass(frozen=True)
class Gated(Op):
    """``activation(gate) * up``, elementwise (arXiv 2002.05202)."""

    kind: ClassVar[str] = "gated"
    gate: int
    up: int
    activation: ActivationKind


@dataclass(frozen=True)
class Scale(Op):
    """``x * factor``."""

    kind: ClassVar[str] = "scale"
    x: int
    factor: float


@dataclass(frozen=True)
class Softcap(Op):
    """``cap * tanh(x / cap)``."""

    kind: ClassVar[str] = "softcap"
    x: int
    cap: float


@dataclass(frozen=True)
class Clip(Op):
    """``x`` limited to [-limit, limit]."""

    kind: ClassVar[str] = "clip"
    x: int
    limit: float


@dataclass(frozen=True)
class Graph:
    """A model: its operations in order of execution. The last one yields the logits.

    ``vocab_size`` is the number of logits, ``context_length`` the number of positions that the model was made
    for.

    Raises:
        ConfigError: two operations have the same name.
    """

    model_type: str
    vocab_size: int
    context_length: int
    ops: tuple[Op, ...]

    def __post_init__(self) -> None:
        names: set[str] = set()
        for op in self.ops:
            if op.name in names:
                raise ConfigError(
                    f"graph {shown(self.model_type)}: two operations are called {shown(op.name)}"
                )
            names.add(op.name)

    def weights(self) -> dict[str, Weight]:
        """Every tensor that the graph reads, by name, in order of first use."""
        found: dict[str, Weight] = {}
        for op in self.ops:
            for weight in op.weights():
                found.setdefault(weight.name, weight)
        return found

    def linears(self) -> Iterator[Linear]:
        """The matrix products, in order."""
        return (op for op in self.ops if isinstance(op, Linear))

    def head(self) -> Linear | None:
        """The product whose result becomes the logits, if no attention follows it: the last that is neither
        half of a low-rank term. Its activations are read in two terms (docs/numerics.md)."""
        ops = self.ops

        def behind(op: Linear) -> Op:
            x = ops[op.x]
            return ops[x.x] if isinstance(x, Scale) else x  # a term's halves may have a scale between them

        halves = {behind(op).name for op in self.linears()}
        last = max((at for at, op in enumerate(ops) if isinstance(op, Attention)), default=-1)
        for op in reversed(ops[last + 1 :]):
            if isinstance(op, Linear) and not isinstance(behind(op), Linear) and op.name not in halves:
                return op
        return None

    def to_json(self) -> str:
        """The graph as the engine reads it: ``{"ops": [{"kind": ..., field: value, ...}], ...}``, with the
        frequencies of rotations written once, ``{"rotaries": [...]}``, and known by their number there."""
        rotaries: dict[Rotary, int] = {}
        ops = []
        for op in self.ops:
            fields = {"kind": op.kind, **vars(op)}
            if isinstance(op, Rope):
                fields["rotary"] = rotaries.setdefault(op.rotary, len(rotaries))
            ops.append(fields)
        return json.dumps({**vars(self), "rotaries": list(rotaries), "ops": ops}, default=_fields)


def _fields(value: Weight | Rotary) -> dict[str, object]:
    # Not by ``dataclasses.asdict``, which copies every number and takes ten times as long.
    if not isinstance(value, Weight | Rotary):
        raise TypeError(f"a graph holds no {type(value).__name__}")
    return vars(value)
