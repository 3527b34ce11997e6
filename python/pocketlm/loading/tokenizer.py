"""Opens a model's tokenizer and checks that it is this model's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketlm._core import BytePairs, BytePairsReading
from pocketlm.errors import FileFormatError, MissingFileError, PocketlmError, TokenizerError
from pocketlm.loading.bpe import BytePairTokenizer, is_refusal, of_tables
from pocketlm.loading.files import read_small
from pocketlm.records import dataclass

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_BYTES = 64 << 20  # twice the largest published one (Gemma 3's)
MAX_GROWTH = 4096  # how many times longer replacements may make a text; published ones come to 16 at most


@dataclass(frozen=True)
class ReadTokenizer:
    """A tokenizer that neither truncates nor pads, with what reading it told of its vocabulary."""

    inner: Tokenizer | BytePairTokenizer
    size: int
    """One more than the largest id."""
    longest: int
    """Characters of the longest token."""

    @classmethod
    def of(cls, inner: Tokenizer) -> ReadTokenizer:
        """A tokenizer of the library, which is changed to that end.

        Raises:
            Exception: what the library raises for a damaged one.
        """
        inner.no_truncation()
        inner.no_padding()
        vocabulary = inner.get_vocab(with_added_tokens=True)
        return cls(inner, 1 + max(vocabulary.values(), default=-1), max(map(len, vocabulary), default=0))


class TokenizerReading:
    """A ``tokenizer.json`` that is being read, its large tables in a thread of their own."""

    def __init__(self, path: Path) -> None:
        """Begins. Raises nothing: what is wrong is said by :meth:`result`."""
        self._path = path
        self._data = b""
        self._tables: BytePairsReading | None = None
        self._problem: PocketlmError | None = None
        try:
            self._data = read_small(path, MAX_BYTES)
        except PocketlmError as problem:
            self._problem = problem
        else:
            self._tables = BytePairs.reading(self._data)

    def result(self) -> ReadTokenizer:
        """The tokenizer, of whatever model it is; to be called once.

        Raises:
            TokenizerError: the file is missing, damaged or out for harm.
            StorageError: it cannot be read.
        """
        if isinstance(self._problem, MissingFileError):
            raise TokenizerError(f"{self._problem}; a model needs its tokenizer.json") from self._problem
        if isinstance(self._problem, FileFormatError):
            raise TokenizerError(str(self._problem)) from self._problem
        if self._problem is not None:
            raise self._problem
        try:
            found, steps = self._put_together()
            parts = () if steps is None else (steps.normalizer, steps.decoder)
            grown = max((_growth(_state(part)) for part in parts), default=1.0)
        except BaseException as error:
            if not is_refusal(error):
                raise
            raise TokenizerError(f"{self._path}: damaged or of an unknown form ({error})"[:500]) from error
        if grown > MAX_GROWTH:
            raise TokenizerError(
                f"{self._path}: its replacements would make a text up to {grown:.3g} times longer"
            )
        return found

    def _put_together(self) -> tuple[ReadTokenizer, Tokenizer | None]:
        """The tokenizer, and one of the library that has its steps, unless these neither normalize nor
        replace."""
        tables = None if self._tables is None else self._tables.result()
        if tables is not None and (found := of_tables(self._data, tables)) is not None:
            return ReadTokenizer(found, found.size, found.longest), None if found.waits else found.steps
        # Imported here, since neither benchmarks nor token ids need it.
        from tokenizers import Tokenizer

        whole = Tokenizer.from_buffer(self._data)
        return ReadTokenizer.of(whole), whole


def read_tokenizer(path: Path) -> ReadTokenizer:
    """The tokenizer in ``path``, as :meth:`TokenizerReading.result` gives it."""
    return TokenizerReading(path).result()


def check_tokenizer(path: Path, size: int, vocab_size: int) -> None:
    """Whether the tokenizer of ``path``, with ids below ``size``, may be that of a model with ``vocab_size``
    embeddings.

    Raises:
        TokenizerError: an id is beyond the embedding, or the embedding more than twice as large (padding
            explains less).
    """
    if size > vocab_size:
        raise TokenizerError(
            f"{path}: token id {size - 1} is beyond the model's embedding of {vocab_size} rows"
        )
    if 2 * size < vocab_size:
        raise TokenizerError(f"{path}: {size} tokens for an embedding of {vocab_size} rows: not this model's")


def _state(part: Any) -> Any:
    """A normalizer or decoder as plain data."""
    return None if part is None else json.loads(part.__getstate__())


def _growth(step: Any) -> float:
    """How many times longer a normalizer or decoder may make a text by what it replaces.

    A few lines of such a file can stand for terabytes of text, which the library would make without asking.
    """
    if not isinstance(step, dict):
        return 1.0
    inner = step.get("normalizers") or step.get("decoders")
    if isinstance(inner, list):
        return math.prod(map(_growth, inner))
    if step.get("type") != "Replace":
        return 1.0
    pattern, size = step.get("pattern"), len(step.get("content") or "")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    # A regular expression can match nothing at all, before every character.
    return max(1.0, size / len(literal)) if literal else 1.0 + size
