"""Palettized forms of single tensors, to lay over the source's weights: models of any recipe, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pocketlm._core import Palettized, WeightStore
from pocketlm.loading import LoadedModel
from pocketlm.palettize.importance import Importance
from pocketlm.palettize.recipe import KEEP, Candidate

Work = Callable[..., Palettized]


class Forms:
    """What each tensor is as each kind: made when first asked for, and kept until it is dropped.

    Args:
        model: the source.
        work: what palettizes a tensor, as :func:`pocketlm._core.palettize_tensor`.
    """

    def __init__(self, model: LoadedModel, importance: Importance, threads: int | None, work: Work) -> None:
        self.model = model
        self._importance, self._threads, self._work = importance, threads, work
        self._made: dict[tuple[str, str], tuple[Palettized, WeightStore]] = {}

    def get(self, tensor: Candidate, kind: str) -> WeightStore:
        """A store of nothing but the tensor as that kind (not ``keep``)."""
        return self._get(tensor, kind)[1]

    def error(self, tensor: Candidate, kind: str) -> float:
        """Its weighted squared error, summed over the tensor."""
        return self._get(tensor, kind)[0].error

    def overlaid(self, base: WeightStore, recipe: Mapping[Candidate, str]) -> WeightStore:
        """The weights of ``base`` with those tensors as those kinds; ``keep`` is the source's own."""
        return base.overlay(*(self.get(tensor, kind) for tensor, kind in recipe.items() if kind != KEEP))

    def drop(self, tensor: Candidate, *, but: str | None = None) -> None:
        """Gives the memory of a tensor's forms back, but for one kind."""
        for name, kind in [key for key in self._made if key[0] == tensor.name and key[1] != but]:
            del self._made[name, kind]

    def work(self, store: WeightStore, name: str, kind: str, **options: Any) -> Palettized:
        """As the function that palettizes, which is not asked again for what is there. Gives it away: the
        caller writes it and is done with it."""
        made = self._made.pop((name, kind), None)
        if made is None:
            return self._work(store, name, kind, **options)
        if (progress := options.get("progress")) is not None:
            progress(len(made[0].scale))
        return made[0]

    def _get(self, tensor: Candidate, kind: str) -> tuple[Palettized, WeightStore]:
        key = (tensor.name, kind)
        if key not in self._made:
            made = self._work(
                self.model.store,
                tensor.name,
                kind,
                importance=self._importance.of(tensor),
                transposed=tensor.transposed,
                threads=self._threads,
            )
            self.model.store.release(tensor.name)
            store = WeightStore()
            store.add_palette(tensor.name, kind, tensor.shape, made.codes, made.codebook, made.scale)
            self._made[key] = made, store
        return self._made[key]
