"""How many tokens of prompts a step takes."""

from __future__ import annotations

FIRST_ROWS = 128  # of the first step, when the machine's speed is not known yet
LEAST_ROWS = 32  # below this a step's fixed costs show
# Seconds that a step should take. While another text is being generated, its next token waits for the
# prompt's step; else only who cancels, or comes anew, waits for it. The weights are read and decoded for each
# step: two Zen 3 cores with AVX2, llama-3.2-1b at 4 bits, 2,048 tokens, do 141 tokens/s in steps of 32 rows,
# 150 of 64, 153 of 128 and 153 of 256; in 16 bits, 512 tokens, 48 in steps of 32, 58 of 56 and 69 of 128,
# which take two seconds.
SHARED_SECONDS = 0.25
ALONE_SECONDS = 2.0


class Pace:
    """Plans as many rows as lately took the time that a step should take."""

    def __init__(self) -> None:
        self._planned = FIRST_ROWS
        self._rows_per_second: float | None = None

    def rows(self, most: int, shared: bool) -> int:
        """Rows for the prompts of a step, at most ``most``; ``shared`` with texts that are generated."""
        wanted = FIRST_ROWS
        if self._rows_per_second is not None:
            seconds = SHARED_SECONDS if shared else ALONE_SECONDS
            wanted = max(int(min(self._rows_per_second * seconds, most)), LEAST_ROWS)
        self._planned = min(wanted, most)
        return self._planned

    def note(self, rows: int, seconds: float) -> None:
        """Learns from a step; not from one of far fewer rows than planned, which is slower for each."""
        if seconds > 0 and 2 * rows >= self._planned:
            self._rows_per_second = rows / seconds
