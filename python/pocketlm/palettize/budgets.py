"""What a palettized model may take: the arguments that bound its bits, size, speed and divergence."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterable
from typing import Any

from pocketlm.checks import integer, shown
from pocketlm.errors import ParameterError
from pocketlm.kinds import BEST
from pocketlm.palettize.recipe import KEEP, KINDS, kind_text

DEFAULT_BITS, DEFAULT_EMBEDDING_BITS = 4.0, 8
_MOST_BYTES = 1 << 62


@dataclasses.dataclass(frozen=True)
class Budgets:
    """Limits that all hold together; ``None`` for no such limit.

    Attributes:
        bits: average bits of a code over the projections.
        bits_all: stored bits per parameter over everything, codebooks, scales and norms included.
        size: bytes of the file of weights, and of a recovery adapter's.
        tokens_per_second: at least so many, when decoding on this machine.
        max_kl: nats per token from the source. With it the smallest model is sought, without it the one
            of least divergence.
        kinds: that may be chosen.
        embedding_bits: of the embedding and the head; ``None`` leaves them free.
        by_default: nobody asked for ``bits``: they are the average of what no recipe fixes.
    """

    bits: float | None
    bits_all: float | None
    size: int | None
    tokens_per_second: float | None
    max_kl: float | None
    kinds: tuple[str, ...]
    embedding_bits: int | None
    by_default: bool = False

    @classmethod
    def of(
        cls,
        *,
        bits: float | None = None,
        bits_all: float | None = None,
        size: int | None = None,
        tokens_per_second: float | None = None,
        max_kl: float | None = None,
        kinds: str | Iterable[Any] | None = None,
        embedding_bits: int | None = None,
    ) -> Budgets:
        """From arguments. Without any budget ``bits`` is 4. The embedding is free where a budget counts it,
        else it has 8 bits.

        Raises:
            ParameterError: a budget is out of range, or a kind is unknown; names it.
        """
        _number("bits", bits, 2, 8)
        _number("bits_all", bits_all, 1, 32)
        _number("tokens_per_second", tokens_per_second, 0, math.inf)
        _number("max_kl", max_kl, 0, math.inf)
        if size is not None:
            size = integer("size", size, 1, _MOST_BYTES)
        whole = isinstance(embedding_bits, int) and not isinstance(embedding_bits, bool)
        if embedding_bits is not None and not (whole and embedding_bits in BEST):
            raise ParameterError(f"embedding_bits: must be {_listed(BEST)}, not {shown(embedding_bits)}")
        by_default = False
        if all(limit is None for limit in (bits_all, size, tokens_per_second, max_kl)):
            by_default = bits is None
            bits = DEFAULT_BITS if bits is None else bits
            embedding_bits = DEFAULT_EMBEDDING_BITS if embedding_bits is None else embedding_bits
        chosen = tuple(BEST.values()) if kinds is None else _kinds(kinds)
        return cls(bits, bits_all, size, tokens_per_second, max_kl, chosen, embedding_bits, by_default)

    @property
    def only_bits(self) -> bool:
        """Whether nothing but the average of the projections is limited."""
        return all(v is None for v in (self.bits_all, self.size, self.tokens_per_second, self.max_kl))

    def to_dict(self) -> dict[str, Any]:
        """The limits that there are, and the kinds, as plain data."""
        found = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        del found["by_default"]
        return {**found, "kinds": list(self.kinds)}


def _number(name: str, value: Any, least: float, most: float) -> None:
    wrong = isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most
    # What float64 cannot hold is infinite too: an integer has no bounds.
    if value is not None and (wrong or not 0 < value <= sys.float_info.max):
        bounds = f"from {least:g} to {most:g}" if least else "above 0"
        raise ParameterError(f"{name}: must be a number {bounds}, not {_told(value)}")


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else shown(value)


def _kinds(kinds: str | Iterable[Any]) -> tuple[str, ...]:
    """Kinds by name or by bits, from a sequence or as ``2,4``; in the order of :data:`KINDS`."""
    if not isinstance(kinds, Iterable):
        raise ParameterError(f"kinds: must be names of kinds or bits, not {shown(kinds)}")
    given = kinds.split(",") if isinstance(kinds, str) else list(kinds)
    found = set()
    for kind in given:
        name = kind_text(kind)
        bits = int(name) if len(name) < 9 and name.isascii() and name.isdigit() else 0
        name = BEST.get(bits, name)
        if name not in KINDS:
            raise ParameterError(
                f"kinds: {shown(kind)} is not one of {', '.join(KINDS)} or of the bits {_listed(BEST)}"
            )
        found.add(name)
    if not found - {KEEP}:
        raise ParameterError("kinds: name at least one that is palettized")
    return tuple(kind for kind in KINDS if kind in found)


def _listed(numbers: Iterable[int]) -> str:
    first, last = (words := [str(number) for number in sorted(numbers)])[:-1], words[-1]
    return f"{', '.join(first)} or {last}"
