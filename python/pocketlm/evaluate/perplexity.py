"""How well a model predicts a text: perplexity, and bits per byte, which compares models of different
vocabularies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketlm.errors import ParameterError, WeightError
from pocketlm.evaluate.statistics import mean
from pocketlm.evaluate.windows import Window, batched, check_context, check_progress, windows
from pocketlm.scores import token_logprobs

if TYPE_CHECKING:
    from pocketlm.model import LM

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
        windows: how many the text was cut into.
        perplexity_se, bits_per_byte_se: standard errors, from the scatter of the windows (see
            :mod:`pocketlm.evaluate.statistics`); ``None`` for a single window.
    """

    tokens: int
    bytes: int
    nll: float
    perplexity: float
    bits_per_byte: float
    windows: int
    perplexity_se: float | None
    bits_per_byte_se: float | None

    def to_dict(self) -> dict[str, float | None]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, nll: ArrayLike, tokens: ArrayLike, sizes: ArrayLike) -> Perplexity:
        """From negative log-likelihoods, tokens and bytes, each [windows]."""
        perplexity = mean(nll, tokens).exp()
        bits = mean(nll, sizes).scaled(1 / math.log(2))
        return cls(
            tokens=int(np.sum(tokens)),
            bytes=int(np.sum(sizes)),
            nll=float(np.sum(nll)),
            perplexity=perplexity.value,
            bits_per_byte=bits.value,
            windows=len(np.asarray(nll)),
            perplexity_se=perplexity.se,
            bits_per_byte_se=bits.se,
        )


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

    The text is cut into windows of ``context`` tokens, each run by itself; :func:`windows
    <pocketlm.evaluate.windows.windows>` says how, and what ``stride`` and ``limit`` do. ``progress`` is
    called with the number of bytes done.

    Raises:
        ParameterError: ``context`` or ``stride`` is out of range, or the text is too short to score.
        MissingFileError, StorageError: the file cannot be read.
        FileFormatError: it is not UTF-8.
        WeightError: the model gives numbers that are not finite.
    """
    context, stride, limit = check_context(context, stride, limit, lm.context)
    check_progress(progress)
    nll: list[float] = []
    counts: list[int] = []
    sizes: list[int] = []
    for batch in batched(windows(lm.tokenizer, path, context=context, stride=stride, limit=limit), _TOGETHER):
        nll += window_nll(lm, batch)
        counts += [window.scored for window in batch]
        sizes += [window.bytes for window in batch]
        if progress is not None:
            progress(sum(sizes))
    if not sum(sizes):
        raise ParameterError(f"{path}: holds no text that can be scored")
    return Perplexity.of(nll, counts, sizes)


def window_nll(lm: LM, together: Sequence[Window]) -> list[float]:
    """Negative log-likelihood, in nats, of the scored tokens of each of some windows that run as one batch.

    Raises:
        WeightError: the model gives numbers that are not finite.
    """
    totals = np.zeros(len(together))

    def receiver(index: int, window: Window) -> Callable[[int, NDArray[np.float32]], None]:
        targets = np.asarray(window.ids[1:])

        def receive(start: int, rows: NDArray[np.float32]) -> None:
            # Row i predicts token i + 1.
            low, high = max(start, window.first - 1), min(start + len(rows), len(targets))
            if low < high:
                with np.errstate(invalid="ignore"):  # what is not finite is looked for afterwards
                    totals[index] -= token_logprobs(rows[low - start : high - start], targets[low:high]).sum()

        return receive

    if together:
        lm.evaluate([w.ids for w in together], [receiver(i, w) for i, w in enumerate(together)])
    if not np.isfinite(totals).all():
        raise WeightError(f"{lm.name or 'the model'}: gives logits that are not finite numbers")
    return totals.tolist()
