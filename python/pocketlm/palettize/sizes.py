"""Bytes of a palettized model before it is made: those of each choice, of what depends on none, and of a
recovery adapter, whose ranks are not known yet, at most."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from pocketlm.adapters.config import stored_bytes
from pocketlm.adapters.write import adapter_layout
from pocketlm.kinds import BITS
from pocketlm.loading import LoadedModel
from pocketlm.palettize.allocate import Rest
from pocketlm.palettize.ranks import SPREAD, STEP
from pocketlm.palettize.recipe import KEEP, Candidate, Recipe
from pocketlm.palettize.recovery import Recovery
from pocketlm.palettize.tensors import file_bytes, outputs, palette_parts


class Sizes:
    """What a model takes.

    Args:
        model, known: the source and its matrices.
        kinds: that matrices may become.
        fixed: what is decided already.
        recovery: the adapter that is to come.
    """

    def __init__(
        self,
        model: LoadedModel,
        known: Sequence[Candidate],
        kinds: Iterable[str],
        fixed: Recipe,
        recovery: Recovery,
    ) -> None:
        self._model, self._known, self._recovery = model, list(known), recovery
        self._kinds, self._fixed = {*kinds, *fixed.values()}, fixed

    def of(self, tensor: Candidate, kind: str) -> int:
        """Bytes of a matrix as a kind."""
        if kind == KEEP:
            return self._model.store.info(tensor.name).bytes
        return sum(part.nbytes for part in palette_parts(tensor.name, kind, tensor.shape))

    def rest(self, seconds: float = 0.0) -> Rest:
        """What does not depend on kinds; ``seconds`` are those of a decode step outside of products."""
        chosen = {tensor.name: KEEP for tensor in self._known}
        everything = outputs(self._model, self._known, chosen)
        others = [tensor for tensor in everything if tensor.candidate is None]
        adapter = self.adapter(self._fixed)
        header = max(
            file_bytes(outputs(self._model, self._known, dict.fromkeys(chosen, kind))) for kind in self._kinds
        )
        return Rest(
            bytes=sum(part.nbytes for tensor in others for part in tensor.parts) + adapter,
            file_bytes=header + self._adapter_header(),
            parameters=sum(tensor.elements for tensor in everything),
            seconds=seconds,
            adapter_bytes=adapter,
        )

    def adapter(self, chosen: Recipe) -> int:
        """Bytes of the adapter's matrices at most, of those that ``chosen`` does not keep: their budget, or
        where that is less all that they may have."""
        rank, int8 = self._recovery.rank, self._recovery.int8
        shapes = [tensor.shape for tensor in self._corrected(chosen)]
        budget = sum((1 if int8 else 2) * rank * sum(shape) for shape in shapes)
        full = sum(stored_bytes(self._most(shape), *shape, int8=int8) for shape in shapes)
        return min(budget, full)

    def _most(self, shape: tuple[int, int]) -> int:
        return min(SPREAD * self._recovery.rank, *shape)

    def _corrected(self, chosen: Recipe) -> list[Candidate]:
        return corrected(self._known, chosen) if self._recovery.rank else []

    def _adapter_header(self) -> int:
        """Of the adapter's file, which is longest where every matrix has the rank that it may have."""
        found = self._corrected(self._fixed)
        if not found:
            return 0
        shapes = {tensor.name: (self._most(tensor.shape), *tensor.shape) for tensor in found}
        return len(adapter_layout(shapes, int8=self._recovery.int8).header)


def corrected(known: Iterable[Candidate], chosen: Recipe) -> list[Candidate]:
    """The matrices that an adapter corrects: projections, but for those that are kept."""
    return [t for t in known if not t.is_embedding and (t.name not in chosen or chosen[t.name] in BITS)]


def even_ranks(tensors: Sequence[Candidate], rank: int) -> dict[str, int]:
    """Ranks by tensor in the steps that the adapter's have, ``rank`` on average, as long as nothing is known
    of where they help most. Tensors without a term are left out."""
    ends = [rank * at // STEP * STEP for at in range(len(tensors) + 1)]
    found = {
        tensor.name: min(two - one, *tensor.shape)
        for tensor, (one, two) in zip(tensors, itertools.pairwise(ends), strict=True)
    }
    return {name: most for name, most in found.items() if most}
