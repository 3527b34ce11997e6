"""Opens a model's tokenizer and checks that it is this model's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pocketlm.errors import TokenizerError
from pocketlm.loading.files import storage_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in ``path`` (``tokenizer.json``) of a model with ``vocab_size`` embeddings.

    Raises:
        TokenizerError: the file is missing or damaged, or its ids and the model's embedding do not match: an
        id beyond
            the embedding, or an embedding more than twice as large (padding explains less).
    """
    # Imported here: opening a model for benchmarks needs no tokenizer.
    from tokenizers import Tokenizer

    with storage_errors(path):
        if not path.is_file():
            raise TokenizerError(f"{path}: there is no such file; models need a tokenizer.json")
        data = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(data)
        largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    # The library raises plain Exception for every fault of a file, and wraps panics in BaseException.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise TokenizerError(f"{path}: damaged or of an unknown form ({error})"[:500]) from error
    if largest >= vocab_size:
        raise TokenizerError(
            f"{path}: token id {largest} is beyond the model's embedding of {vocab_size} rows"
        )
    if 2 * (largest + 1) < vocab_size:
        raise TokenizerError(
            f"{path}: {largest + 1} tokens for an embedding of {vocab_size} rows: not this model's"
        )
    return tokenizer
