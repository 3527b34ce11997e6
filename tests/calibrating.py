"""What the tests of calibrations share."""

from __future__ import annotations

from typing import Any

import numpy as np

TEXT = " ".join(f"w{i * 7 % 97}" for i in range(1500))


def some_windows(vocab: int, count: int = 5, length: int = 12) -> Any:
    return np.random.default_rng(1).integers(0, vocab, (count, length)).astype(np.uint32)
