"""Steps of a model's double, to measure what each operation takes with weights of some kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from pocketlm._core import Engine, Sampler, Sequence
from pocketlm.graph import Graph
from pocketlm.profile.double import double_of, random_store, token_ids
from pocketlm.profile.measure import DISPATCH, SAMPLE, Floats, shares

_CHUNK = 64  # tokens of a step that fills the cache


@dataclasses.dataclass(frozen=True)
class Setting:
    """How steps run.

    Attributes:
        context: tokens in the cache when decoding.
        chunk: tokens of a prefill.
        decode_threads, prefill_threads: of the two steps.
        precise: activations are in float32.
        kv_dtype: of the cache.
    """

    context: int
    chunk: int
    decode_threads: int
    prefill_threads: int
    precise: bool = False
    kv_dtype: str = "f16"


class StandIn:
    """A double, ready to run.

    Args:
        graph: of the model.
        kinds: of each product's weight, by the operation's name.
        setting: of the steps.

    Attributes:
        bytes: of its weights, caches and scratch.
    """

    def __init__(self, graph: Graph, kinds: Mapping[str, str], setting: Setting) -> None:
        self._names = [*(op.name for op in graph.ops), SAMPLE, DISPATCH]
        self._elements = {op.name: op.weight.shape[0] * op.weight.shape[1] for op in graph.linears()}
        self._context, self._chunk = setting.context, setting.chunk
        double, weights = double_of(graph, kinds, max(setting.context + 1, setting.chunk))
        store = random_store(weights)
        self._ids = token_ids(double, setting.chunk + _CHUNK)

        def engine(threads: int, tokens: int, rows: int) -> Engine:
            return Engine(
                double.to_json(),
                store,
                threads=threads,
                cache_tokens=tokens,
                max_rows=rows,
                precise=setting.precise,
                kv_dtype=setting.kv_dtype,
            )

        self._decoding = engine(setting.decode_threads, setting.context + 1, _CHUNK)
        self._prefilling = engine(setting.prefill_threads, setting.chunk, setting.chunk)
        self._decoded, self._prefilled = self._decoding.sequence(), self._prefilling.sequence()
        engines = self._decoding.memory(), self._prefilling.memory()
        self.bytes = sum(one["cache"] + one["scratch"] for one in engines) + engines[0]["weights"]
        for start in range(0, setting.context, _CHUNK):
            ids = self._ids[: min(_CHUNK, setting.context - start)]
            self._decoding.step([(self._decoded, ids, None, "none")])

    def decode(self, steps: int) -> Floats:
        """Seconds [steps, operations] of a token. One more step before these brings the weights into the
        caches, as far as they fit."""
        found = [self._step(self._decoding, self._decoded, 1, self._context) for _ in range(steps + 1)]
        times: Floats = np.array(found[1:]) @ shares(self._decoding.phases(), self._names, None)
        return times

    def prefill(self, steps: int) -> Floats:
        """Seconds [steps, operations] of the prefill of a chunk."""
        found = [self._step(self._prefilling, self._prefilled, self._chunk, 0) for _ in range(steps)]
        times: Floats = np.array(found) @ shares(self._prefilling.phases(), self._names, self._elements)
        return times

    def close(self) -> None:
        """Gives the memory back."""
        self._decoding.close()
        self._prefilling.close()

    def _step(self, engine: Engine, sequence: Sequence, rows: int, before: int) -> list[float]:
        times = engine.step_timed([(sequence, self._ids[:rows], Sampler(temperature=0), "none")])[1]
        sequence.truncate(before)
        return times
