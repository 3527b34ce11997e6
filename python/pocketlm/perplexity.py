"""How well a model predicts a text: perplexity, and bits per byte, which compares models of different
vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketlm.errors import FileFormatError, MissingFileError, ParameterError, StorageError
from pocketlm.scores import token_logprobs

if TYPE_CHECKING:
    from pocketlm.model import LM

_PIECE = 1 << 20  # characters tokenized at a time
_TOGETHER = 4  # windows that run as one batch


@dataclass(frozen=True)
class Perplexity:
    """Results over a text.

    Attributes:
        tokens, bytes: what was scored. Without a token that begins a text, the first one of the text cannot
            be.
        nll: negative log-likelihood of all of it, in nats.
        perplexity: exp(nll / tokens).
        bits_per_byte: nll / ln 2 / bytes.
    """

    tokens: int
    bytes: int
    nll: float
    perplexity: float
    bits_per_byte: float

    def to_dict(self) -> dict[str, float]:
        """As plain data, for JSON."""
        return asdict(self)


@dataclass
class _Window:
    ids: list[int]
    first: int  # index of the first token to score


def measure(
    lm: LM,
    path: str | PathLike[str],
    *,
    context: int = 512,
    stride: int | None = None,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Perplexity:
    """Perplexity over a UTF-8 text file of any length.

    The text is cut into windows of ``context`` tokens, each run by itself. A window begins with the token
    that begins a text, if the model has one that its tokenizer adds, and otherwise with the last token of the
    window before. With the default ``stride`` (all that fits) windows do not overlap and every token is
    scored once with what precedes it in its window; a smaller one scores only the last ``stride`` tokens of
    each window, so with more context and more work. Files over a million characters are tokenized in pieces
    that end at a line's end.

    ``limit`` ends after that many tokens. ``progress`` is called with the number of bytes done.

    Raises:
        ParameterError: ``context`` or ``stride`` is out of range, or the text is too short to score.
        MissingFileError, StorageError: the file cannot be read.
        FileFormatError: it is not UTF-8.
    """
    if not 2 <= context <= lm.context:
        raise ParameterError(f"context: must be from 2 to the model's {lm.context}, not {context}")
    if stride is not None and not 1 <= stride < context:
        raise ParameterError(f"stride: must be from 1 to {context - 1}, not {stride}")
    if limit is not None and limit < 1:
        raise ParameterError(f"limit: must be positive, not {limit}")
    total = np.zeros(2)
    batch: list[_Window] = []
    counted = _Counter()
    for window in _windows(lm, Path(path), context, stride or context - 1, limit, counted):
        batch.append(window)
        if len(batch) == _TOGETHER:
            total += _run(lm, batch)
            batch = []
            if progress is not None:
                progress(counted.bytes)
    total += _run(lm, batch)
    tokens, nll = int(total[0]), float(total[1])
    if not tokens or not counted.bytes:
        raise ParameterError(f"{path}: holds no text that can be scored")
    return Perplexity(
        tokens, counted.bytes, nll, math.exp(min(nll / tokens, 700)), nll / math.log(2) / counted.bytes
    )


@dataclass
class _Counter:
    bytes: int = 0


def _windows(
    lm: LM, path: Path, context: int, stride: int, limit: int | None, counted: _Counter
) -> Iterator[_Window]:
    bos = lm.tokenizer.bos if lm.tokenizer.adds_bos else None
    # Tokens that are context only come before `start` in `pending`.
    pending: list[int] = [] if bos is None else [bos]
    start, taken = len(pending), 0
    for ids, sizes in _tokens(lm, path):
        if not pending:
            pending, ids, sizes, start = ids[:1], ids[1:], sizes[1:], 1
        if limit is not None:
            ids, sizes = ids[: limit - taken], sizes[: limit - taken]
        taken += len(ids)
        counted.bytes += sum(sizes)
        pending += ids
        while len(pending) - start >= stride:
            end = start + stride
            yield _cut(pending, start, end, context, bos)
            keep = max(0, end - context)
            pending, start = pending[keep:], end - keep
        if limit is not None and taken >= limit:
            break
    if len(pending) > start:
        yield _cut(pending, start, len(pending), context, bos)


def _cut(pending: list[int], start: int, end: int, context: int, bos: int | None) -> _Window:
    begin = max(0, end - context)
    if bos is None:
        return _Window(pending[begin:end], start - begin)
    # The window's own first token in place of the text's.
    begin = max(begin + 1, 1)
    return _Window([bos, *pending[begin:end]], start - begin + 1)


def _tokens(lm: LM, path: Path) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of pieces of the text, and the bytes that each token adds to it."""
    for text in _pieces(path):
        ids, offsets = lm.tokenizer.offsets(text)
        # A token ends where the next one begins; a character of several tokens counts for the first of them.
        ends = [end for _, end in offsets]
        if ends:
            ends[-1] = len(text)
        sizes, done = [], 0
        for end in ends:
            sizes.append(len(text[done : max(done, end)].encode("utf-8")))
            done = max(done, end)
        yield ids, sizes


def _pieces(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rest = ""
            while block := file.read(_PIECE):
                rest += block
                cut = rest.rfind("\n") + 1
                if cut or len(rest) > 4 * _PIECE:
                    yield rest[: cut or len(rest)]
                    rest = rest[cut or len(rest) :]
            if rest:
                yield rest
    except FileNotFoundError as missing:
        raise MissingFileError(f"{path}: no such file") from missing
    except UnicodeDecodeError as problem:
        raise FileFormatError(f"{path}: not UTF-8 text (byte {problem.start} of a block)") from problem
    except OSError as problem:
        raise StorageError(f"{path}: cannot be read: {problem.strerror or problem}") from problem


def _run(lm: LM, windows: list[_Window]) -> NDArray[np.float64]:
    """Tokens and negative log-likelihood of windows that run together."""
    total = np.zeros(2)

    def receiver(window: _Window) -> Callable[[int, NDArray[np.float32]], None]:
        targets = np.asarray(window.ids[1:])

        def receive(start: int, rows: NDArray[np.float32]) -> None:
            # Row i predicts token i + 1.
            low, high = max(start, window.first - 1), min(start + len(rows), len(targets))
            if low < high:
                logprobs = token_logprobs(rows[low - start : high - start], targets[low:high])
                total[:] += high - low, -float(logprobs.sum())

        return receive

    if windows:
        lm.evaluate([window.ids for window in windows], [receiver(window) for window in windows])
    return total
