"""What a model lost against the one that it was made from: both read the same text, token by token.

Two models that see the same tokens make the same easy and hard guesses, so their difference is known far
better than either's perplexity: all figures are paired, and their errors come from how the difference
scatters over windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.errors import ParameterError, TokenizerError, WeightError
from pocketlm.evaluate.perplexity import Perplexity
from pocketlm.evaluate.statistics import mean, quantile
from pocketlm.evaluate.windows import check_context, check_progress, windows

if TYPE_CHECKING:
    from pocketlm.model import LM

_ROWS = 16  # rows in float64 at a time: a vocabulary may be large
_TAIL = 0.999


@dataclass(frozen=True)
class Comparison:
    """A model against its source over a text. Every ``..._se`` is the standard error of the figure it is
    named for (:mod:`pocketlm.evaluate.statistics`), or ``None`` for a single window.
    ``kl_p999_se`` is ``None`` too where there are too few tokens, always below 1,000.

    Attributes:
        model, source: each one's perplexity and bits per byte.
        perplexity_ratio: the model's perplexity over the source's; its error is that of the paired
            difference.
        kl_mean: mean over tokens of KL(source || model) of the next token's distributions, in nats.
        kl_p999: the value that 99.9 % of the tokens' KL do not exceed.
        top1_agreement: share of tokens where both find the same one likeliest.
    """

    model: Perplexity
    source: Perplexity
    perplexity_ratio: float
    perplexity_ratio_se: float | None
    kl_mean: float
    kl_mean_se: float | None
    kl_p999: float
    kl_p999_se: float | None
    top1_agreement: float
    top1_agreement_se: float | None

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


@dataclass
class _Tokens:
    """Figures of the scored tokens of a window: the log-probability that each model gave them, the
    divergence, and whether the likeliest token was the same."""

    model: NDArray[np.float64]
    source: NDArray[np.float64]
    kl: NDArray[np.float64]
    same: NDArray[np.bool_]


def compare(
    lm: LM,
    source: LM,
    path: str | PathLike[str],
    *,
    context: int = 512,
    stride: int | None = None,
    limit: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Comparison:
    """Compares ``lm`` with ``source`` over a UTF-8 text file, cut into windows as
    :func:`pocketlm.evaluate.perplexity.measure` does; the numbers mean the same there and here.

    Both models advance together and logits are dropped as soon as they are compared, so memory does not
    depend on ``context`` times the vocabulary; eight bytes are kept for each token.

    Raises:
        TokenizerError: the models do not share a vocabulary, or split the text otherwise.
        ParameterError: ``context`` or ``stride`` is out of range, or the text is too short to score.
        MissingFileError, StorageError: the file cannot be read.
        FileFormatError: it is not UTF-8.
        WeightError: a model gives numbers that are not finite.
    """
    context, stride, limit = check_context(context, stride, limit, min(lm.context, source.context))
    check_progress(progress)
    _check_vocabularies(lm, source)
    found: list[tuple[int, float, float, float, int, int]] = []
    divergences: list[NDArray[np.float64]] = []
    done = 0
    cut = windows(source.tokenizer, path, context=context, stride=stride, limit=limit, same=lm.tokenizer)
    for window in cut:
        tokens = _window(lm, source, window.ids, window.first)
        if not (np.isfinite(tokens.model).all() and np.isfinite(tokens.source).all()):
            at_fault = lm if np.isfinite(tokens.source).all() else source
            raise WeightError(f"{at_fault.name or 'the model'}: gives logits that are not finite numbers")
        divergences.append(tokens.kl)
        found.append(
            (
                window.scored,
                -float(tokens.model.sum()),
                -float(tokens.source.sum()),
                float(tokens.kl.sum()),
                int(tokens.same.sum()),
                window.bytes,
            )
        )
        done += window.bytes
        if progress is not None:
            progress(done)
    if not done:
        raise ParameterError(f"{path}: holds no text that can be scored")
    counts, model_nll, source_nll, kl, same, sizes = map(np.asarray, zip(*found, strict=True))
    ratio = mean(model_nll - source_nll, counts).exp()
    kl_mean, agreement = mean(kl, counts), mean(same, counts)
    tail = quantile(np.concatenate(divergences), counts, _TAIL)
    return Comparison(
        model=Perplexity.of(model_nll, counts, sizes),
        source=Perplexity.of(source_nll, counts, sizes),
        perplexity_ratio=ratio.value,
        perplexity_ratio_se=ratio.se,
        kl_mean=kl_mean.value,
        kl_mean_se=kl_mean.se,
        kl_p999=tail.value,
        kl_p999_se=tail.se,
        top1_agreement=agreement.value,
        top1_agreement_se=agreement.se,
    )


def _check_vocabularies(lm: LM, source: LM) -> None:
    sizes = lm.engine.vocab_size, source.engine.vocab_size
    if sizes[0] != sizes[1]:
        raise TokenizerError(f"the models' vocabularies differ: {sizes[0]} and {sizes[1]} tokens")
    ours, theirs = lm.tokenizer, source.tokenizer
    if ours is theirs:
        return
    first, second = ours.vocabulary(), theirs.vocabulary()
    if first != second:
        token = min(text for text in {*first, *second} if first.get(text) != second.get(text))
        raise TokenizerError(
            f"the models' tokenizers differ: {token!r:.60} is {first.get(token)} and {second.get(token)}"
        )
    if (ours.bos, ours.adds_bos) != (theirs.bos, theirs.adds_bos):
        raise TokenizerError("the models' tokenizers begin a text differently")


def _window(lm: LM, source: LM, ids: list[int], first: int) -> _Tokens:
    # Row i predicts token i + 1; the last row predicts nothing.
    targets = np.asarray(ids[first:])
    parts = [
        _block(model, reference, targets[start : start + len(model)])
        for start, model, reference in _together(
            lm.iter_logits(ids[:-1], first - 1), source.iter_logits(ids[:-1], first - 1)
        )
    ]
    return _Tokens(*(np.concatenate([getattr(part, key) for part in parts]) for key in _KEYS))


_KEYS = ("model", "source", "kl", "same")
Rows = NDArray[np.float32]


def _together(
    left: Iterator[tuple[int, Rows]], right: Iterator[tuple[int, Rows]]
) -> Iterator[tuple[int, Rows, Rows]]:
    """Rows of both in blocks of equal size, however each comes; with the number of rows before."""
    a = b = np.empty((0, 0), np.float32)
    start = 0
    while True:
        if not len(a):
            a = next(left, (0, a))[1]
        if not len(b):
            b = next(right, (0, b))[1]
        count = min(len(a), len(b), _ROWS)
        if not count:
            return
        yield start, a[:count], b[:count]
        a, b, start = a[count:], b[count:], start + count


def divergences(model: Rows, source: Rows) -> NDArray[np.float64]:
    """KL(source || model) [rows], in nats, of the distributions that logits [rows, vocabulary] stand for, in
    float64. Where logits are not finite it is not either."""
    found = np.empty(len(model))
    for start in range(0, len(model), _ROWS):
        rows = slice(start, start + _ROWS)
        with np.errstate(invalid="ignore"):
            found[rows] = _kl(_log_softmax(model[rows]), _log_softmax(source[rows]))
    return found


def _block(model: Rows, source: Rows, targets: NDArray[Any]) -> _Tokens:
    rows = np.arange(len(targets))
    with np.errstate(invalid="ignore"):  # what is not finite is looked for afterwards
        log_q, log_p = _log_softmax(model), _log_softmax(source)
        kl = _kl(log_q, log_p)
    return _Tokens(
        model=log_q[rows, targets],
        source=log_p[rows, targets],
        kl=kl,
        same=model.argmax(-1) == source.argmax(-1),
    )


def _kl(log_q: NDArray[np.float64], log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.exp(log_p)
    # Where p underflows to 0 it counts nothing, whatever the other model says.
    terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    found: NDArray[np.float64] = np.maximum(terms.sum(-1), 0.0)
    return found


def _log_softmax(logits: Rows) -> NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    values -= np.log(np.exp(values).sum(-1, keepdims=True))
    return values
