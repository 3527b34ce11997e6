"""Memory for training: what the machine has, and what a model takes."""

from __future__ import annotations

from pocketlm.graph import Graph
from pocketlm.memory import installed

_SHARE = 0.7  # of the memory, for training


def memory_limit() -> int | None:
    """Bytes that training may take, or ``None`` if the system does not say what it has. It is a share of all
    memory, not of what is free now, so that the same work is done in the same way at any time."""
    found = installed()
    return None if found is None else int(_SHARE * found)


def end_to_end_bytes(graph: Graph, tokens: int) -> int:
    """About what training end to end takes with ``tokens`` tokens in a step: both models' weights in float32
    and codes of a byte, both models' results, and the logits with what their loss keeps."""
    elements = 0
    for weight in graph.weights().values():
        size = 1
        for number in weight.shape:
            size *= number
        elements += size
    results = sum(op.width for op in graph.ops)
    return 9 * elements + 4 * tokens * (2 * results + 4 * graph.vocab_size)
