"""The palettized kinds of weights, as the compiled part knows them. A new kind appears here by itself."""

from __future__ import annotations

from pocketlm._core import palette_kinds
from pocketlm.records import dataclass


@dataclass(frozen=True)
class PaletteKind:
    """A palettized kind.

    Attributes:
        name: in files, recipes and reports.
        bits: of a weight's code; codebooks and scales come on top.
        entries: int8 entries of the codebook that 16 rows share; 0 where there is none.
        grid: smallest and largest entry (without a codebook: value).
    """

    name: str
    bits: int
    entries: int
    grid: tuple[int, int]


PALETTE_KINDS = {kind[0]: PaletteKind(*kind) for kind in palette_kinds()}
PALETTES = tuple(PALETTE_KINDS)
BITS = {kind.name: kind.bits for kind in PALETTE_KINDS.values()}
# The kind of so many bits that is chosen where only bits are asked for: of several, the last is the best.
BEST = {kind.bits: kind.name for kind in PALETTE_KINDS.values()}
