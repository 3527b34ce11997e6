"""Find and remove passages that occur elsewhere, by shared runs of words.

Two texts share a passage where their sequences of eight words (lower-cased, without punctuation) agree.
Single agreements are common phrases; only long runs of them are removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

NGRAM = 8
GAP = 32  # words that may differ within one run
MIN_PIECE_WORDS = 100  # what is left between two removed passages is kept if it is at least this long


@dataclass(frozen=True)
class Rule:
    """How long a shared run must be, and how much of a paragraph it must cover for the paragraph to go."""

    min_run: int
    coverage: float


HELD_OUT = Rule(min_run=16, coverage=0.1)
DUPLICATE = Rule(min_run=60, coverage=0.5)

_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Document:
    """A book, a story, or a part of one, as a list of paragraphs."""

    source: str
    paragraphs: list[str]

    @property
    def text(self) -> str:
        """The paragraphs with a blank line between them."""
        return "\n\n".join(self.paragraphs)


class WordIds:
    """Number words in the order of their first appearance, so that hashes are the same in every run."""

    def __init__(self) -> None:
        """Start without words."""
        self._ids: dict[str, int] = {}

    def __call__(self, text: str) -> list[int]:
        """Return the number of every word of the text."""
        words = _WORD.findall(text.lower().replace("'", ""))
        return [self._ids.setdefault(word, len(self._ids) + 1) for word in words]


def ngram_hashes(ids: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash for every run of NGRAM word numbers; shorter input gives an empty array."""
    count = len(ids) - NGRAM + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(NGRAM):
        hashes = hashes * _FACTOR + ids[offset : offset + count].astype(np.uint64)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def shared_words(hits: np.ndarray, length: int, min_run: int) -> np.ndarray:
    """Return a mask of the words in long shared runs, given which n-grams (by first word) are shared."""
    starts = np.flatnonzero(hits)
    mask = np.zeros(length, dtype=bool)
    if not len(starts):
        return mask
    breaks = np.flatnonzero(np.diff(starts) > NGRAM + GAP)
    firsts = starts[np.concatenate(([0], breaks + 1))]
    lasts = starts[np.concatenate((breaks, [len(starts) - 1]))] + NGRAM
    for first, last in zip(firsts, lasts, strict=True):
        # A run must be long and mostly shared: a few stock phrases near each other do not count.
        if last - first >= min_run and hits[first:last].sum() >= (last - first) // 3:
            mask[first:last] = True
    return mask


def _split(document: Document, ids: Sequence[list[int]], mask: np.ndarray, coverage: float) -> list[Document]:
    """Drop the paragraphs with more masked words than allowed, and split the document where they were."""
    if not mask.any():
        return [document]
    pieces: list[list[str]] = [[]]
    position = 0
    for paragraph, words in zip(document.paragraphs, ids, strict=True):
        end = position + len(words)
        if words and mask[position:end].mean() > coverage:
            pieces.append([])
        else:
            pieces[-1].append(paragraph)
        position = end
    kept = [piece for piece in pieces if sum(len(p.split()) for p in piece) >= MIN_PIECE_WORDS]
    return [Document(document.source, piece) for piece in kept]


def _filter(
    documents: Sequence[Document],
    numbered: Sequence[list[list[int]]],
    hits: Callable[[int, np.ndarray], np.ndarray],
    rule: Rule,
) -> list[Document]:
    result: list[Document] = []
    for number, (document, ids) in enumerate(zip(documents, numbered, strict=True)):
        flat = _flatten(ids)
        mask = shared_words(hits(number, ngram_hashes(flat)), len(flat), rule.min_run)
        result += _split(document, ids, mask, rule.coverage)
    return result


def _flatten(ids: Sequence[list[int]]) -> np.ndarray:
    return np.fromiter((word for words in ids for word in words), dtype=np.uint32)


def drop_held_out(documents: Sequence[Document], held_out: Sequence[str]) -> list[Document]:
    """Return the documents without the passages that also occur in held-out text."""
    word_ids = WordIds()
    hashes = [ngram_hashes(np.array(word_ids(text), dtype=np.uint32)) for text in held_out]
    forbidden = np.unique(np.concatenate(hashes))
    numbered = [[word_ids(paragraph) for paragraph in document.paragraphs] for document in documents]
    return _filter(documents, numbered, lambda _, grams: np.isin(grams, forbidden), HELD_OUT)


def drop_duplicates(documents: Sequence[Document]) -> list[Document]:
    """Return the documents without the passages that already occurred in an earlier document."""
    word_ids = WordIds()
    numbered = [[word_ids(paragraph) for paragraph in document.paragraphs] for document in documents]
    grams = [ngram_hashes(_flatten(ids)) for ids in numbered]
    owner = np.repeat(np.arange(len(grams)), [len(g) for g in grams])
    values, first = np.unique(np.concatenate(grams), return_index=True)
    first_owner = owner[first]

    def repeated(number: int, hashes: np.ndarray) -> np.ndarray:
        return first_owner[np.searchsorted(values, hashes)] < number

    return _filter(documents, numbered, repeated, DUPLICATE)
