"""Which tensor gets which kind, so that a model within its budgets loses least; where the loss is bounded, so
that it is smallest."""

from __future__ import annotations

import dataclasses
import decimal
import math
from collections.abc import Callable, Sequence
from typing import Any

from pocketlm.errors import BudgetError
from pocketlm.palettize.budgets import Budgets
from pocketlm.palettize.knapsack import solve
from pocketlm.palettize.recipe import KEEP, Candidate, Recipe

_FOUR_DIGITS = decimal.Context(prec=4, rounding=decimal.ROUND_CEILING)
_FOUR_DOWN = decimal.Context(prec=4, rounding=decimal.ROUND_FLOOR)


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a tensor costs as one kind.

    Attributes:
        kind: p2 to p8, or keep.
        damage: nats per token, or another measure of loss that adds up.
        bytes: stored, codebooks and scales included.
        bits: of a code, or of a number that is kept.
        seconds: of its products in a decode step; 0 where nobody asks.
    """

    kind: str
    damage: float
    bytes: int
    bits: int
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Item:
    """A tensor and what may become of it; one choice where that is fixed."""

    tensor: Candidate
    choices: tuple[Choice, ...]

    @property
    def fixed(self) -> bool:
        """Whether nothing is to be chosen."""
        return len(self.choices) == 1

    @property
    def counted(self) -> bool:
        """Whether it counts in the average bits: a projection, unless it is kept by hand (nothing could make
        up for its 16 bits)."""
        return not self.tensor.is_embedding and not (self.fixed and self.choices[0].kind == KEEP)


@dataclasses.dataclass(frozen=True)
class Rest:
    """What does not depend on kinds.

    Attributes:
        bytes: of tensors without a choice of kind, and of a recovery adapter's at most.
        file_bytes: of the files' headers and alignment, at most.
        parameters: of the whole model.
        seconds: of a decode step outside of products.
        adapter_bytes: of ``bytes``, those of the adapter.
    """

    bytes: int
    file_bytes: int
    parameters: int
    seconds: float = 0.0
    adapter_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class _Limit:
    """A budget as a bound on a sum over the tensors' choices; ``told`` says a sum as the budget's value."""

    name: str
    most: float
    weight: Callable[[Item, Choice], float]
    told: Callable[[float], str]

    def least(self, items: Sequence[Item]) -> float:
        return sum(min(self.weight(item, choice) for choice in item.choices) for item in items)


def allocate(items: Sequence[Item], budgets: Budgets, rest: Rest, *, scale: float = 1.0) -> Recipe:
    """The kind of each tensor: least total damage within the budgets; with ``max_kl`` fewest bytes.
    ``scale`` is what damages are multiplied by before they are held against ``max_kl``.

    Raises:
        BudgetError: a budget cannot be met, or not together with the others; says what can.
    """
    limits = check(items, budgets, rest, scale=scale)

    def damage(_: Item, choice: Choice) -> float:
        return choice.damage

    def stored(_: Item, choice: Choice) -> float:
        return choice.bytes

    found = _solve(items, damage if budgets.max_kl is None else stored, limits)
    if found is None:
        raise BudgetError(_together(items, budgets, limits))
    return {item.tensor.name: item.choices[pick].kind for item, pick in zip(items, found, strict=True)}


def check(items: Sequence[Item], budgets: Budgets, rest: Rest, *, scale: float = 1.0) -> list[_Limit]:
    """The budgets as limits, each of which can be met by itself.

    Raises:
        BudgetError: one cannot; says the nearest that can.
    """
    limits = _limits(items, budgets, rest, scale)
    for limit in limits:
        if (least := limit.least(items)) > limit.most:
            raise BudgetError(
                f"{_asked(budgets, limit)} cannot be met with the kinds "
                f"{', '.join(budgets.kinds)}; the nearest that can is {limit.told(least)}"
            )
    return limits


def binding(items: Sequence[Item], budgets: Budgets, rest: Rest) -> list[str]:
    """The budgets, as they were given, without which less would be lost: each alone, or all of them where it
    takes more than one to let go. None where the least that the kinds can lose is within all of them."""

    def lost(wanted: Budgets) -> float:
        recipe = allocate(items, wanted, rest)
        return sum(c.damage for item in items for c in item.choices if c.kind == recipe[item.tensor.name])

    limits, least = _limits(items, budgets, rest, 1.0), lost(budgets)
    if least <= sum(min(choice.damage for choice in item.choices) for item in items):
        return []

    def without(limit: _Limit) -> Budgets:
        let_go: dict[str, Any] = {limit.name: None}
        return dataclasses.replace(budgets, **let_go)

    alone = [limit for limit in limits if lost(without(limit)) < least]
    return [_asked(budgets, limit) for limit in alone or limits]


def _solve(
    items: Sequence[Item], value: Callable[[Item, Choice], float], limits: Sequence[_Limit]
) -> tuple[int, ...] | None:
    solution = solve(
        [[value(item, choice) for choice in item.choices] for item in items],
        [[[limit.weight(item, choice) for limit in limits] for choice in item.choices] for item in items],
        [limit.most for limit in limits],
    )
    return None if solution is None else solution.picks


def _limits(items: Sequence[Item], budgets: Budgets, rest: Rest, scale: float) -> list[_Limit]:
    found = []
    if budgets.bits is not None:
        inner = {i.tensor.name for i in items if i.counted and not (budgets.by_default and i.fixed)}
        elements = sum(item.tensor.elements for item in items if item.tensor.name in inner)

        def code_bits(item: Item, choice: Choice) -> float:
            return item.tensor.elements * choice.bits if item.tensor.name in inner else 0

        most = math.floor(budgets.bits * elements + 1e-6)
        found.append(_Limit("bits", most, code_bits, lambda bits: rounded_up(bits / max(1, elements))))

    def stored(_: Item, choice: Choice) -> float:
        return choice.bytes

    by_size = math.inf if budgets.size is None else budgets.size - rest.file_bytes - rest.bytes
    parameters, other = rest.parameters, rest.bytes
    of_them = f" (with {rest.adapter_bytes} bytes of the recovery adapter)" if rest.adapter_bytes else ""
    by_bits = math.inf
    if budgets.bits_all is not None:
        by_bits = math.floor(budgets.bits_all * parameters / 8 + 1e-6) - other

    def told_bits(size: float) -> str:
        return rounded_up(8 * (size + other) / parameters) + of_them

    # Of two bounds on the same sum only the lower one matters.
    if by_size < by_bits:
        more = rest.bytes + rest.file_bytes
        found.append(_Limit("size", by_size, stored, lambda size: f"{size + more:.0f} bytes{of_them}"))
    elif by_bits < math.inf:
        found.append(_Limit("bits_all", by_bits, stored, told_bits))
    if budgets.tokens_per_second is not None:
        left = 1 / budgets.tokens_per_second - rest.seconds
        found.append(
            _Limit(
                "tokens_per_second",
                left,
                lambda _, choice: choice.seconds,
                lambda seconds: rounded_down(1 / (seconds + rest.seconds)),
            )
        )
    if budgets.max_kl is not None:
        found.append(_Limit("max_kl", budgets.max_kl, lambda _, choice: scale * choice.damage, rounded_up))
    return found


def _together(items: Sequence[Item], budgets: Budgets, limits: Sequence[_Limit]) -> str:
    """Why limits that can be met one by one cannot be met together: how far each one would have to give."""
    ways = []
    for limit in limits:
        others = [other for other in limits if other is not limit]
        picks = _solve(items, limit.weight, others)
        if picks is not None:
            total = sum(limit.weight(i, i.choices[pick]) for i, pick in zip(items, picks, strict=True))
            ways.append(f"{limit.name} {limit.told(total)}")
    given = ", ".join(_asked(budgets, limit) for limit in limits)
    nearest = f"; with the others as they are, the nearest is {' or '.join(ways)}" if ways else ""
    return f"{given} cannot be met together with the kinds {', '.join(budgets.kinds)}{nearest}"


def _asked(budgets: Budgets, limit: _Limit) -> str:
    """A budget as it was given; bytes to the last one, like the nearest size that can be met."""
    value = getattr(budgets, limit.name)
    return f"{limit.name} {value if isinstance(value, int) else format(value, 'g')}"


def rounded_up(value: float) -> str:
    """A number rounded up to four significant digits, so that it can be met: what it says is never less."""
    if value <= 0:
        return "0"
    # In decimal digits: products with powers of ten round, now and then to less than there is.
    return f"{float(_FOUR_DIGITS.create_decimal(repr(float(value)))):.10g}"


def rounded_down(value: float) -> str:
    """A number above 0 rounded down to four significant digits: what it says is never more."""
    return f"{float(_FOUR_DOWN.create_decimal(repr(float(value)))):.10g}"
