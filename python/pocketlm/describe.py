"""What a model is made of: tensors, bytes, bits per weight."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Protocol

from pocketlm.adapters.attach import is_adapter
from pocketlm.graph import Graph


class _TensorInfo(Protocol):
    @property
    def kind(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def bits(self) -> float: ...
    @property
    def bytes(self) -> int: ...


class _Store(Protocol):
    def names(self) -> list[str]: ...
    def info(self, name: str) -> Any: ...


@dataclass(frozen=True)
class Tensor:
    """One weight: its kind (``p2`` to ``p8`` palettized, ``f16``, ``bf16``, ``f32``), logical shape, bits of
    a code or number, and bytes with everything that belongs to it (codebooks and scales)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    bits: float
    bytes: int

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Description:
    """A model's size.

    Attributes:
        model_type: its family.
        vocab_size, context_length: logits, and positions that it was made for.
        parameters: numbers in all tensors that it reads, but those of adapters.
        bits_per_weight_projections: 8 * bytes / parameters of the projections inside the layers.
        bits_per_weight_all: the same of everything: embeddings, norms, head, codebooks and scales, and the
            bytes of adapters too.
        bytes: of everything.
        adapter_parameters, adapter_bytes: numbers in the attached adapter's tensors, and their bytes.
        tensors: every tensor, in order of use.
    """

    model_type: str
    vocab_size: int
    context_length: int
    parameters: int
    bits_per_weight_projections: float
    bits_per_weight_all: float
    bytes: int
    adapter_parameters: int
    adapter_bytes: int
    tensors: tuple[Tensor, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, for JSON."""
        return dataclasses.asdict(self)


def describe(graph: Graph, store: _Store) -> Description:
    """Describes the tensors that ``graph`` reads from ``store``. Nothing is read but headers."""
    present = set(store.names())
    tensors = []
    for name in graph.weights():
        if name in present:
            info: _TensorInfo = store.info(name)
            tensors.append(Tensor(name, info.kind, tuple(info.shape), info.bits, info.bytes))
    added = {op.weight.name for op in graph.linears() if is_adapter(op)}
    inner = {op.weight.name for op in graph.linears() if op.name.startswith("layers.")} - added
    projections = [t for t in tensors if t.name in inner]
    adapter = [t for t in tensors if t.name in added]
    base = [t for t in tensors if t.name not in added]
    return Description(
        model_type=graph.model_type,
        vocab_size=graph.vocab_size,
        context_length=graph.context_length,
        parameters=sum(t.parameters for t in base),
        bits_per_weight_projections=_bits(projections, projections),
        bits_per_weight_all=_bits(tensors, base),
        bytes=sum(t.bytes for t in tensors),
        adapter_parameters=sum(t.parameters for t in adapter),
        adapter_bytes=sum(t.bytes for t in adapter),
        tensors=tuple(tensors),
    )


def count(number: float) -> str:
    """A number of parameters for people."""
    units = ((1e9, " billion"), (1e6, " million"), (1e3, " thousand"), (1, ""))
    size, unit = next((found for found in units if number >= found[0]), units[-1])
    value = number / size
    return f"{value:,.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


def _bits(stored: list[Tensor], weights: list[Tensor]) -> float:
    """Stored bits for each weight."""
    parameters = sum(t.parameters for t in weights)
    return 8 * sum(t.bytes for t in stored) / parameters if parameters else 0.0
