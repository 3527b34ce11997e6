"""What a form of a model says of windows of tokens, beside what the source says.

Used by ``benches/quality.py`` and, in llama.cpp's environment, by ``benches/llama_quality.py``, so that
nothing but numpy is imported here.

The source's logits of all scored tokens lie in a file, [tokens, vocabulary] float32, which is mapped.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 32  # rows in float64 at a time: a vocabulary may be large
Rows = NDArray[np.float32]


class Scores:
    """Sums over the scored tokens of each window, in nats: negative log-likelihoods, and KL(source || form).

    Args:
        counts: scored tokens of each window.
        source: the file of the source's logits.
        written: the vocabulary's size, to write that file with the logits that come; their KL is 0.
    """

    def __init__(self, counts: list[int], source: Path, written: int | None = None) -> None:
        self.nll = np.zeros(len(counts))
        self.kl = np.zeros(len(counts))
        self._starts = np.cumsum([0, *counts])
        self._writes = written is not None
        if written is not None:
            shape = (int(self._starts[-1]), written)
            free, needed = shutil.disk_usage(source.parent).free, 4 * shape[0] * shape[1]
            if free < needed:  # a map does not say so
                raise OSError(f"{source.parent}: {needed} bytes for the source's logits, and {free} are free")
            self._source = np.lib.format.open_memmap(source, mode="w+", dtype=np.float32, shape=shape)
        else:
            self._source = np.load(source, mmap_mode="r")

    def add(self, window: int, first: int, rows: Rows, targets: NDArray[Any]) -> None:
        """Takes logits [tokens, vocabulary] of scored tokens ``targets`` of a window, the ``first`` and on.

        Raises:
            ValueError: logits are not finite, or more than the window has.
        """
        at = int(self._starts[window]) + first
        if not np.isfinite(rows).all() or at + len(rows) > self._starts[window + 1]:
            raise ValueError(f"window {window}: logits that are not finite, or too many")
        if self._writes:
            self._source[at : at + len(rows)] = rows
        for start in range(0, len(rows), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            theirs = log_softmax(rows[part])
            self.nll[window] -= theirs[np.arange(len(theirs)), targets[part]].sum()
            if not self._writes:
                ours = log_softmax(self._source[at + start : at + start + len(theirs)])
                self.kl[window] += max(0.0, float((np.exp(ours) * (ours - theirs)).sum()))


def log_softmax(logits: Rows) -> NDArray[np.float64]:
    """Log-probabilities of logits [rows, vocabulary], in float64."""
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    values -= np.log(np.exp(values).sum(-1, keepdims=True))
    return values
