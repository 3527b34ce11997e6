"""Opens a model's tokenizer and checks that it is this model's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pocketlm.errors import FileFormatError, MissingFileError, TokenizerError
from pocketlm.loading.bpe import read_bpe
from pocketlm.loading.files import read_small

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_BYTES = 64 << 20  # twice the largest published one (Gemma 3's)
MAX_GROWTH = 4096  # how many times longer replacements may make a text; published ones come to 16 at most


class ReadTokenizer(NamedTuple):
    """A tokenizer, and the ids of its tokens by their text: the library takes long to tell them."""

    inner: Tokenizer
    vocabulary: dict[str, int]


def read_tokenizer(path: Path) -> ReadTokenizer:
    """The tokenizer in ``path`` (``tokenizer.json``), of whatever model it is.

    Raises:
        TokenizerError: the file is missing, damaged or out for harm.
    """
    # Imported here: opening a model for benchmarks needs no tokenizer.
    from tokenizers import Tokenizer

    try:
        data = read_small(path, MAX_BYTES)
    except MissingFileError as error:
        raise TokenizerError(f"{error}; a model needs its tokenizer.json") from error
    except FileFormatError as error:
        raise TokenizerError(str(error)) from error
    try:
        if (found := read_bpe(data)) is not None:
            tokenizer, vocabulary = found
        else:
            tokenizer = Tokenizer.from_buffer(data)
            vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        grown = max(_growth(_state(part)) for part in (tokenizer.normalizer, tokenizer.decoder))
    # The library raises plain Exception for every fault of a file, and wraps panics in BaseException.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise TokenizerError(f"{path}: damaged or of an unknown form ({error})"[:500]) from error
    if grown > MAX_GROWTH:
        raise TokenizerError(f"{path}: its replacements would make a text up to {grown:.3g} times longer")
    return ReadTokenizer(tokenizer, vocabulary)


def check_tokenizer(path: Path, vocabulary: Mapping[str, int], vocab_size: int) -> None:
    """Whether the tokenizer of ``path`` may be that of a model with ``vocab_size`` embeddings.

    Raises:
        TokenizerError: an id is beyond the embedding, or the embedding more than twice as large (padding
            explains less).
    """
    largest = max(vocabulary.values(), default=-1)
    if largest >= vocab_size:
        raise TokenizerError(
            f"{path}: token id {largest} is beyond the model's embedding of {vocab_size} rows"
        )
    if 2 * (largest + 1) < vocab_size:
        raise TokenizerError(
            f"{path}: {largest + 1} tokens for an embedding of {vocab_size} rows: not this model's"
        )


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
