"""A graph cut where a single value passes from one part to the next, so that a model can be run part by part.

Statistics of every projection's inputs need memory in the square of their widths, and a text has to pass
through all layers. Run one part after the other over the whole text, only one part's statistics are in memory
at a time, and the only thing to keep of the text is the one value [tokens, width] at the border.
"""

from __future__ import annotations

import dataclasses

from pocketlm.graph import Attention, Embed, Graph, Op, Weight

HIDDEN = "pocketlm.calibration.hidden"  # the tensor that a segment starts from
_OPERANDS = ("x", "a", "b", "q", "k", "v", "gate", "up")


@dataclasses.dataclass(frozen=True)
class Segment:
    """Operations ``start`` to ``stop`` of a graph.

    The first reads token ids, the others the last result of the one before: nothing else of it.
    """

    graph: Graph
    start: int
    stop: int

    @property
    def ops(self) -> tuple[Op, ...]:
        """Its operations, with operands as in the whole graph."""
        return self.graph.ops[self.start : self.stop]

    def runnable(self, rows: int) -> Graph:
        """A graph of these operations alone.

        But for the first segment it begins with a lookup in the tensor :data:`HIDDEN` [rows, width], which
        holds the result of the segment before; row numbers take the place of token ids.
        """
        shift = self.start
        ops: list[Op] = []
        if self.start:
            width = self.graph.ops[self.start - 1].width
            ops.append(Embed("calibration.hidden", width, Weight(HIDDEN, (rows, width))))
            shift -= 1
        caches: dict[int, int] = {}
        for op in self.ops:
            changes = {
                key: getattr(op, key) - shift for key in _OPERANDS if _is_index(getattr(op, key, None))
            }
            if isinstance(op, Attention):
                changes["cache"] = caches.setdefault(op.cache, len(caches))
            ops.append(dataclasses.replace(op, **changes))
        return Graph(self.graph.model_type, ops[-1].width, self.graph.context_length, tuple(ops))


def segments(graph: Graph) -> list[Segment]:
    """The graph in as many parts as it has borders that only the result of the last operation crosses.

    A transformer of the usual form has two for each layer. Where layers share keys and values, or read an
    earlier layer's result, a part is longer; at worst it is the whole graph.
    """
    last_reader = list(range(len(graph.ops)))
    written: dict[int, int] = {}
    cache_reader: dict[int, int] = {}
    for index, op in enumerate(graph.ops):
        for operand in op.inputs():
            last_reader[operand] = index
        if isinstance(op, Attention):
            written.setdefault(op.cache, index)
            cache_reader[op.cache] = index
    borders, reach = [0], 0
    for border in range(1, len(graph.ops)):
        # Up to where something before operation `border - 1`, or a cache, is still read.
        if border > 1:
            reach = max(reach, last_reader[border - 2])
        for cache, index in written.items():
            if index < border:
                reach = max(reach, cache_reader[cache])
        if reach < border and last_reader[border - 1] >= border:
            borders.append(border)
    # A part without a product, or one that would end in nothing but ids' lookups, is not worth a pass.
    return _merged(graph, [*borders, len(graph.ops)])


def _merged(graph: Graph, borders: list[int]) -> list[Segment]:
    """Segments of at least one product each."""
    found: list[Segment] = []
    start = 0
    for stop in borders[1:]:
        products = any(hasattr(op, "weight") and op.kind == "linear" for op in graph.ops[start:stop])
        if products or stop == len(graph.ops):
            found.append(Segment(graph, start, stop))
            start = stop
    return found


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
