"""Makes a plan: costs measured, budgets met, the outcome checked as a whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from pocketlm.errors import BudgetError, ParameterError
from pocketlm.kinds import BEST, BITS
from pocketlm.loading import LoadedModel
from pocketlm.palettize.allocate import Choice, Item, Rest, allocate, binding, check, rounded_up
from pocketlm.palettize.budgets import Budgets
from pocketlm.palettize.damage import Damages, Notes, measure_damages
from pocketlm.palettize.divergence import Divergence
from pocketlm.palettize.forms import Forms
from pocketlm.palettize.importance import Importance
from pocketlm.palettize.plan import Plan, Planned
from pocketlm.palettize.recipe import KEEP, Candidate, Recipe
from pocketlm.palettize.recovery import Recovery
from pocketlm.palettize.relative import layer_count, prior, relative_errors
from pocketlm.palettize.sizes import Sizes, corrected, even_ranks
from pocketlm.palettize.speed import Speeds, measure_speeds

_ROUNDS = 8  # of choosing and measuring until ``max_kl`` is met
_NEAR = 0.97  # of ``max_kl``: a model that comes so near is small enough


class Planner:
    """Measures a model and chooses.

    Args:
        model, known: the source and its matrices.
        fixed: what is decided already.
        sequences: token ids of the held-out sequences; none without a text.
        notes: where measurements are kept.
        forms: makes palettized tensors.
        recovery: the adapter that is to come, which budgets of the whole count.
        timed: whether times are to be measured although no budget needs them.
    """

    def __init__(
        self,
        model: LoadedModel,
        known: Sequence[Candidate],
        fixed: Recipe,
        budgets: Budgets,
        importance: Importance,
        sequences: list[list[int]],
        notes: Notes,
        forms: Forms,
        *,
        recovery: Recovery,
        threads: int | None,
        timed: bool,
        progress: bool,
    ) -> None:
        self._model, self._known, self._fixed, self._budgets = model, known, fixed, budgets
        self._importance, self._notes, self._forms = importance, notes, forms
        self._threads, self._progress, self._recovery = threads, progress, recovery
        self._sizes = Sizes(model, known, budgets.kinds, fixed, recovery)
        self._estimated: dict[str, tuple[str, ...]] = {}
        self._timed = timed or budgets.tokens_per_second is not None
        self._divergence = Divergence(model, sequences, threads) if sequences else None
        if budgets.max_kl is not None and self._divergence is None:
            raise ParameterError("max_kl: needs a text to measure it on: give calibration or validation")

    def check_sizes(self) -> None:
        """Whether the budgets of bits and bytes can be met, which takes neither a text nor a measurement.

        Raises:
            BudgetError: one cannot; says the nearest that can.
        """
        sizes = dataclasses.replace(self._budgets, tokens_per_second=None, max_kl=None)
        check(self._items(self._all_kinds(), {}, None), sizes, self._sizes.rest())

    def plan(self) -> Plan:
        """Measures what is needed, chooses, and measures the whole.

        Raises:
            BudgetError: the budgets cannot be met.
        """
        kinds = self._all_kinds()
        damages = self._damages(kinds)
        speeds = self._speeds() if self._timed else None
        items = self._items(kinds, damages, speeds)
        rest = self._sizes.rest(0.0 if speeds is None else speeds.rest)
        recipe, measured = self._settle(items, rest)
        return self._finish(recipe, damages if self._divergence else {}, speeds, rest, measured)

    def _all_kinds(self) -> dict[Candidate, tuple[str, ...]]:
        return {tensor: self._kinds(tensor) for tensor in self._known}

    def _kinds(self, tensor: Candidate) -> tuple[str, ...]:
        """What may become of a tensor."""
        budgets = self._budgets
        if tensor.name in self._fixed:
            return (self._fixed[tensor.name],)
        if tensor.is_embedding and budgets.embedding_bits is not None:
            return (BEST[budgets.embedding_bits],)
        if self._uniform is not None and not tensor.is_embedding:
            return (self._uniform,)
        return budgets.kinds

    @property
    def _uniform(self) -> str | None:
        """The kind of all projections, where the average is that of a kind, nothing else is asked for and
        nothing is known about what each loses."""
        bits, fixed = self._budgets.bits, self._fixed
        if self._divergence is not None or not self._budgets.only_bits or bits is None or bits not in BEST:
            return None
        kind = BEST[int(bits)]
        counted = [t for t in self._known if not t.is_embedding and fixed.get(t.name) != KEEP]
        even = self._budgets.by_default or all(BITS[fixed.get(t.name, kind)] == bits for t in counted)
        return kind if even and kind in self._budgets.kinds else None

    def _damages(self, kinds: Mapping[Candidate, Sequence[str]]) -> Damages:
        """What each choice costs: nats where there is a text, else relative errors by priors. Nothing is
        measured where nothing is to be chosen."""
        if all(len(choices) == 1 for choices in kinds.values()):
            return {}

        def relative(wanted: Mapping[Candidate, Sequence[str]]) -> dict[str, dict[str, float]]:
            return relative_errors(
                self._model,
                wanted,
                self._importance,
                self._notes,
                threads=self._threads,
                progress=self._progress,
            )

        if self._divergence is None:
            open_ones = {tensor: choices for tensor, choices in kinds.items() if len(choices) > 1}
            layers = layer_count(self._known)
            errors = relative(open_ones)
            return {
                tensor.name: {kind: prior(tensor, layers) * errors[tensor.name][kind] for kind in choices}
                for tensor, choices in open_ones.items()
            }
        # Of an embedding whose kind is given the others are measured too: what-ifs ask for them.
        wanted = {
            tensor: choices
            if tensor.name in self._fixed
            else [*choices, *(kind for kind in self._budgets.kinds if kind not in choices)]
            for tensor, choices in kinds.items()
        }
        found = measure_damages(
            self._model,
            wanted,
            self._forms,
            self._divergence,
            lambda: relative(wanted),
            self._notes,
            progress=self._progress,
        )
        self._estimated = found.estimated
        return found.damages

    def _speeds(self) -> Speeds:
        palettized = [kind for kind in self._budgets.kinds if kind != KEEP]
        recovery = self._recovery
        middle = sorted(palettized, key=lambda kind: BITS[kind])[len(palettized) // 2]
        return measure_speeds(
            self._model,
            self._known,
            middle,
            self._forms,
            self._notes,
            adapter=even_ranks(corrected(self._known, self._fixed), recovery.rank),
            int8=recovery.int8,
            threads=self._threads,
            progress=self._progress,
        )

    def _items(
        self, kinds: Mapping[Candidate, Sequence[str]], damages: Damages, speeds: Speeds | None
    ) -> list[Item]:
        found = []
        for tensor in self._known:
            choices = [self._choice(tensor, kind, damages, speeds) for kind in kinds[tensor]]
            found.append(Item(tensor, tuple(sorted(choices, key=lambda choice: choice.bytes))))
        return found

    def _choice(self, tensor: Candidate, kind: str, damages: Damages, speeds: Speeds | None) -> Choice:
        return Choice(
            kind,
            damages.get(tensor.name, {}).get(kind, 0.0),
            self._sizes.of(tensor, kind),
            BITS.get(kind, self._model.store.info(tensor.name).bytes * 8 // max(1, tensor.elements)),
            0.0 if speeds is None else speeds.seconds[tensor.name][kind],
        )

    def _settle(self, items: Sequence[Item], rest: Rest) -> tuple[Recipe, float | None]:
        """The recipe, and its divergence as measured. Where damages do not add up to what is measured, they
        are scaled by that and chosen from again, until ``max_kl`` is met by little."""
        scale, limit = 1.0, self._budgets.max_kl
        best: tuple[int, Recipe, float] | None = None
        measured, seen = None, set()
        for _ in range(_ROUNDS):
            try:
                recipe = allocate(items, self._budgets, rest, scale=scale)
            except BudgetError:
                if limit is None:
                    raise
                break  # sums of damages may tell more than there is: the whole is measured below
            if self._divergence is None:
                return recipe, None
            measured = self._measure(recipe)
            if limit is None:
                return recipe, measured
            picked = [c for i in items for c in i.choices if c.kind == recipe[i.tensor.name]]
            size, predicted = sum(c.bytes for c in picked), sum(c.damage for c in picked)
            if measured <= limit and (best is None or size < best[0]):
                best = size, recipe, measured
            if _NEAR * limit <= measured <= limit or not predicted or tuple(recipe.items()) in seen:
                break
            seen.add(tuple(recipe.items()))
            ratio = measured / predicted
            scale = ratio if measured <= limit else max(ratio, 1.02 * scale)
        return self._closest(items, rest) if best is None else best[1:]

    def _closest(self, items: Sequence[Item], rest: Rest) -> tuple[Recipe, float]:
        """The recipe that loses least within the other budgets, where all sized to ``max_kl`` missed it."""
        limit = self._budgets.max_kl
        assert limit is not None
        others = dataclasses.replace(self._budgets, max_kl=None)
        recipe = allocate(items, others, rest)
        measured = self._measure(recipe)
        if measured > limit:
            beside = binding(items, others, rest)
            told = f" together with {' and '.join(beside)}," if beside else ""
            raise BudgetError(
                f"max_kl {limit:g} cannot be met{told} with the kinds {', '.join(self._budgets.kinds)}; the "
                f"nearest that can is {rounded_up(measured)}, as measured"
            )
        return recipe, measured

    def _measure(self, recipe: Recipe) -> float:
        assert self._divergence is not None
        key = f"measured {hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]}"
        note = self._notes.note(key)
        if note is None:
            chosen = {tensor: recipe[tensor.name] for tensor in self._known}
            for tensor, kind in chosen.items():
                self._forms.drop(tensor, but=kind)
            note = {"kl": self._divergence.of(self._forms.overlaid(self._model.store, chosen))}
            self._notes.record(key, note)
        return float(note["kl"])

    def _finish(
        self, recipe: Recipe, damages: Damages, speeds: Speeds | None, rest: Rest, measured: float | None
    ) -> Plan:
        planned = [
            Planned(
                tensor,
                recipe[tensor.name],
                damages.get(tensor.name, {}).get(recipe[tensor.name]),
                self._sizes.of(tensor, recipe[tensor.name]),
                None if speeds is None else speeds.seconds[tensor.name][recipe[tensor.name]],
                recipe[tensor.name] in self._estimated.get(tensor.name, ()),
            )
            for tensor in self._known
        ]
        inner = [one for one in planned if not one.tensor.is_embedding]
        elements = sum(one.tensor.elements for one in inner)
        adapter = self._sizes.adapter(recipe)
        size = rest.bytes - rest.adapter_bytes + adapter + sum(one.bytes for one in planned)
        kls = [one.kl for one in planned if one.kl is not None]
        step = None if speeds is None else rest.seconds + sum(one.seconds or 0.0 for one in planned)
        return Plan(
            model=self._model.path.name,
            budgets=self._budgets.to_dict(),
            tensors=tuple(planned),
            bytes=size,
            adapter_bytes=adapter,
            estimated=self._estimated,
            bits_per_weight_projections=8 * sum(one.bytes for one in inner) / elements if elements else 0.0,
            bits_per_weight_all=8 * size / rest.parameters,
            tokens_per_second=None if step is None else 1 / step,
            kl=sum(kls) if len(kls) == len(planned) else None,
            measured_kl=measured,
            measured_tokens=self._divergence.tokens if self._divergence is not None else None,
            sensitivity={
                name: {kind: kl for kind, kl in kinds.items() if kind != KEEP}
                for name, kinds in damages.items()
            },
        )
