"""Attaching an adapter: a rewrite of the graph, which all interpreters then run as any other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketlm.graph import Add, Graph, Linear, Op, Scale, Weight
from pocketlm.records import dataclass, replace

# Ends of the names of what is added to a site.
SUFFIX_A, SUFFIX_B, SUFFIX_SCALE, SUFFIX_SUM = ".lora_a", ".lora_b", ".lora_scale", ".lora"
_OPERANDS = ("x", "a", "b", "q", "k", "v", "gate", "up")


@dataclass(frozen=True)
class LowRank:
    """The low-rank term of a weight: names of A [rank, inputs] and B [outputs, rank], and the factor."""

    a: str
    b: str
    rank: int
    scale: float = 1.0


def attach(graph: Graph, terms: Mapping[str, LowRank]) -> Graph:
    """``y = Wx + scale * B(Ax)`` in place of each product ``y = Wx`` whose weight's name is in ``terms``.

    The product keeps its name (``layers.7.ffn.down``); what is added is called ``layers.7.ffn.down.lora_a``,
    ``.lora_b``, ``.lora`` for the sum, and ``.lora_scale`` where the scale is not 1.
    """
    ops: list[Op] = []
    moved: list[int] = []  # where the result of each of the graph's operations is now

    def add(op: Op) -> int:
        ops.append(op)
        return len(ops) - 1

    for op in graph.ops:
        at = add(_moved(op, moved))
        if isinstance(op, Linear) and (term := terms.get(op.weight.name)) is not None:
            outputs, inputs = op.weight.shape
            x = moved[op.x]
            inner = add(
                Linear(op.name + SUFFIX_A, term.rank, x=x, weight=Weight(term.a, (term.rank, inputs)))
            )
            if term.scale != 1.0:
                inner = add(Scale(op.name + SUFFIX_SCALE, term.rank, x=inner, factor=term.scale))
            outer = add(
                Linear(op.name + SUFFIX_B, outputs, x=inner, weight=Weight(term.b, (outputs, term.rank)))
            )
            at = add(Add(op.name + SUFFIX_SUM, outputs, a=at, b=outer))
        moved.append(at)
    return replace(graph, ops=tuple(ops))


def _moved(op: Op, moved: list[int]) -> Op:
    changes: dict[str, Any] = {
        key: moved[value] for key in _OPERANDS if (value := getattr(op, key, None)) is not None
    }
    return replace(op, **changes) if changes else op


def is_adapter(op: Op) -> bool:
    """Whether an operation is one of those that :func:`attach` adds."""
    return op.name.endswith((SUFFIX_A, SUFFIX_B, SUFFIX_SCALE, SUFFIX_SUM))
