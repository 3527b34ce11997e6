"""Token files: training windows in a reproducible order, and the evaluation text.

The order is a function of (seed, epoch, context) alone, so a position of two numbers resumes it exactly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pocketlm.errors import FileFormatError, MissingFileError, ParameterError


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        MissingFileError, FileFormatError: naming the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path}: {error}") from error


def read_tokens(path: Path, vocab_size: int) -> np.ndarray:
    """A file of uint16 token ids, mapped into memory.

    Raises:
        MissingFileError, FileFormatError: naming the file, also where an id is not in the vocabulary.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; python -m training.prepare writes it")
    if path.stat().st_size == 0 or path.stat().st_size % 2:
        raise FileFormatError(f"{path}: {path.stat().st_size} bytes are not 16-bit tokens")
    tokens = np.memmap(path, np.uint16, mode="r")
    if (top := int(tokens.max())) >= vocab_size:
        raise FileFormatError(f"{path}: holds token {top}, but the vocabulary has {vocab_size}")
    return tokens


@dataclass(frozen=True)
class Position:
    """Where in the data training stands: the next window of an epoch at a context length."""

    epoch: int = 0
    window: int = 0
    context: int = 0


class Stream:
    """Shuffled windows of ``context + 1`` tokens. Every epoch tiles the file anew, from another offset."""

    def __init__(self, tokens: np.ndarray, batch: int, context: int, seed: int) -> None:
        self.tokens, self.batch, self.context, self.seed = tokens, batch, context, seed
        self.count = (len(tokens) - 1 - context) // context
        if batch < 1 or context < 1 or self.count < batch:
            raise ParameterError(
                f"batch {batch} x context {context} needs more than {len(tokens)} training tokens"
            )
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def starts(self, epoch: int) -> np.ndarray:
        """First tokens of the windows of an epoch, in order."""
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch, self.context])
            self._starts = rng.integers(self.context) + rng.permutation(self.count) * self.context
            self._epoch = epoch
        return self._starts

    def take(self, position: Position) -> tuple[np.ndarray, Position]:
        """The windows [batch, context + 1] at a position, and the position after them.

        At the end of an epoch, where less than a batch is left, and where the context length differs from the
        position's, the next epoch starts.
        """
        epoch, window = position.epoch, position.window
        if position.context not in (0, self.context) or window + self.batch > self.count:
            epoch, window = epoch + 1, 0
        chosen = self.starts(epoch)[window : window + self.batch]
        windows = self.tokens[chosen[:, None] + np.arange(self.context + 1)].astype(np.int32)
        return windows, Position(epoch, window + self.batch, self.context)
