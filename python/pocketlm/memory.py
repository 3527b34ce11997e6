"""What memory there is, and room in it for what a caller asks for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pocketlm._core import machine_memory
from pocketlm.errors import MemoryLimitError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pocketlm.generate.engine import Engine


def installed() -> int | None:
    """Bytes of memory that the machine, or the container, has; ``None`` if the system does not say."""
    found = machine_memory()
    if found is None:  # not Linux
        with contextlib.suppress(AttributeError, ValueError, OSError):
            found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found


def empty_logits(tokens: int, engines: Sequence[Engine], max_memory: int | None) -> NDArray[np.float32]:
    """An array [tokens, vocabulary] for logits of the first of ``engines``, beside the memory of all of them.

    Raises:
        MemoryLimitError: it exceeds ``max_memory``, or without that the machine.
    """
    import numpy as np

    vocab_size = engines[0].vocab_size
    # Weights are mapped: without a limit, they need not be in memory all at once.
    counted = ("cache", "scratch") if max_memory is None else ("weights", "cache", "scratch")
    limit = installed() if max_memory is None else max_memory
    used = sum(engine.memory()[kind] for engine in engines for kind in counted)
    needed = 4 * tokens * vocab_size
    refusal = MemoryLimitError(
        f"the logits of {tokens} tokens need {needed / 1e6:,.1f} MB, more than is left "
        f"{'on this machine' if max_memory is None else 'within max_memory'}; iter_logits gives them a few "
        "rows at a time"
    )
    if limit is not None and needed > limit - used:
        raise refusal
    try:
        return np.empty((tokens, vocab_size), np.float32)
    except (MemoryError, ValueError) as problem:  # ValueError: beyond the size of any array
        raise refusal from problem
