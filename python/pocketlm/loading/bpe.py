"""Byte-pair tokenizers put together from their parts, faster than the library reads them.

The library reads the merges of a ``tokenizer.json`` through an intermediate form, and tells the vocabulary
only by copying it. A parser of our own and the library's constructor are faster together, and have the
vocabulary at once. What is not of the usual form goes back to the library.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pocketlm._core import read_byte_pairs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_OPTIONS = {
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def read_bpe(data: bytes) -> tuple[Tokenizer, dict[str, int]] | None:
    """The tokenizer that ``Tokenizer.from_buffer(data)`` makes, and the ids of its tokens by their text, but
    without truncation and padding. ``None`` if ``data`` is no byte-pair tokenizer of the usual form, damaged
    ones included, of which the library knows better what to say."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE

    try:
        if (tables := read_byte_pairs(data)) is None:
            return None
        vocabulary, merges, rest = tables
        found = json.loads(rest)
        model, added = found.pop("model"), found.pop("added_tokens")
        if model.pop("type") != "BPE" or not model.keys() <= _OPTIONS:
            return None
        options = {name: value for name, value in model.items() if value is not None}
        shell = {"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
        steps = Tokenizer.from_str(json.dumps({**found, **shell}))
        tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, **options))
        for name in _STEPS:
            if (step := getattr(steps, name)) is not None:
                setattr(tokenizer, name, step)
        ids = {token["content"]: token["id"] for token in added}
        tokenizer.add_tokens(
            [AddedToken(token["content"], **{f: token[f] for f in _FLAGS}) for token in added]
        )
        vocabulary.update(ids)
        # The library numbers added tokens itself. Where a file has other numbers, it has to read it whole.
        if any(tokenizer.token_to_id(text) != number for text, number in ids.items()):
            return None
        # Which of two tokens a number stands for would be chance.
        if len(set(vocabulary.values())) != len(vocabulary):
            return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None
    except Exception as error:
        # The library raises plain Exception for every fault of a part.
        if type(error) is not Exception:
            raise
        return None
    return tokenizer, vocabulary
