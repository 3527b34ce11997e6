"""Byte-pair tokenizers from their parts: at once what decodes, and what encodes with the first text.

The library's object of a vocabulary of 32,000 tokens takes twice as long to make as all else that opens a
model, and is of no use to a caller who has token ids, as programs often do. So a parser of our own reads
and checks the tables, and the library's tokenizer is put together from them later. Byte-level tokens become
text without the library, which is then not even imported before it has a text to encode; other tokens are
decoded by the library's decoder. What is not of the usual form is left to the library, at once.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pocketlm._core import BytePairs, byte_level_text

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

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
_BYTE_LEVEL = ("add_prefix_space", "trim_offsets", "use_regex")
_STEPS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MEMBERS = {"version", "truncation", "padding", "added_tokens", "model", *_STEPS}

# Held while the library is imported, and by a fork: a child could not finish what another thread had begun.
_importing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_importing.acquire,
        after_in_parent=_importing.release,
        after_in_child=_importing.release,
    )


def is_refusal(problem: BaseException) -> bool:
    """Whether that is how the library refuses what it is given: mostly by a bare ``Exception``, else by one
    of Python's own or by a panic, which is not even an ``Exception``. All else comes from elsewhere: a
    signal's handler may raise anything anywhere."""
    own = isinstance(problem, (ValueError, TypeError, ArithmeticError, LookupError))
    return own or type(problem) is Exception or type(problem).__name__ == "PanicException"


def _library() -> ModuleType:
    """The tokenizers library.

    Raises:
        ImportError: it cannot be imported, or a signal handler wants it that interrupted its import.
    """
    with _importing:
        import tokenizers

        if getattr(tokenizers.__spec__, "_initializing", False):
            raise ImportError("tokenizers is being imported by what was interrupted")
        return tokenizers


class BytePairTokenizer:
    """What pocketlm uses of the library's ``Tokenizer``, with the same names and results.

    Safe to use from any number of threads.
    """

    def __init__(self, data: bytes, tables: BytePairs, parts: dict[str, Any]) -> None:
        """``data`` is the file; ``tables`` and ``parts`` are what it holds.

        Raises:
            Exception: what the library raises for steps or options that it does not take. Those of byte-level
                tokens without a normalizer are not looked at before there is a text to encode.
        """
        self._data, self._tables, self._parts = data, tables, parts
        self._added: dict[int, str] = {token["id"]: token["content"] for token in parts["added_tokens"]}
        self._ids = {text: number for number, text in self._added.items()}
        self.special = frozenset(token["id"] for token in parts["added_tokens"] if token["special"])
        self.size = max(tables.size, 1 + max(self._added, default=-1))
        self.longest = max(tables.longest, *map(len, self._ids), 0)
        self._steps: Tokenizer | None = None
        self._whole: Tokenizer | None = None
        self._refused: BaseException | None = None
        byte_level = _is_byte_level(parts.get("decoder"))
        self.waits = byte_level and parts.get("normalizer") is None
        self._join: Callable[[list[str]], str] = byte_level_text
        if not self.waits:
            decoder = self.steps.decoder
            if not byte_level:
                self._join = " ".join if decoder is None else decoder.decode

    @property
    def steps(self) -> Tokenizer:
        """The library's tokenizer with the steps and options of this one, but no tokens.

        Raises:
            Exception: what the library raises for those that it does not take.
        """
        if (found := self._steps) is None:
            model = {**self._parts["model"], "type": "BPE", "vocab": {}, "merges": []}
            shell: dict[str, Any] = {"added_tokens": [], "model": model, "truncation": None, "padding": None}
            found = self._steps = _library().Tokenizer.from_str(json.dumps(self._parts | shell))
        return found

    @property
    def whole(self) -> Tokenizer:
        """The library's tokenizer, made when first asked for.

        Raises:
            Exception: what the library raises for parts that it does not take.
        """
        # Without a lock, which a signal handler could find taken for ever: threads that come here at once
        # each make one.
        data = self._data
        if (found := self._whole) is not None:
            return found
        if self._refused is not None:
            raise self._refused
        try:
            found = self._whole = self._assembled() or _read(data)
        except BaseException as problem:
            if is_refusal(problem):
                self._refused = problem
            raise
        self._data = b""
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies are the library's."""
        return _same, (self.whole,)

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        """As the library's."""
        # An empty text has the tokens that the last step adds, whatever the vocabulary.
        inner = self.whole if text else self.steps
        return inner.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """As the library's: ids without a token have no text."""
        if self._whole is not None:  # faster by a microsecond
            return self._whole.decode(ids, skip_special_tokens=skip_special_tokens)
        if skip_special_tokens:
            ids = [i for i in ids if i not in self.special]
        texts = self._tables.texts(ids)
        if None in texts:
            found = [self._added.get(i) if text is None else text for i, text in zip(ids, texts, strict=True)]
            return self._join([text for text in found if text is not None])
        return self._join(texts)  # type: ignore[arg-type]  # as seen, none is None

    def id_to_token(self, token: int) -> str | None:
        """The text of a token."""
        return self._added.get(token) or self._tables.texts([token])[0]

    def token_to_id(self, text: str) -> int | None:
        """The id of a token."""
        found = self._ids.get(text)
        return self._tables.id(text) if found is None else found

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        return self._tables.vocabulary() | self._ids

    @property
    def model(self) -> Any:
        """The library's model."""
        return self.whole.model

    def _assembled(self) -> Tokenizer | None:
        """The library's tokenizer from its parts; ``None`` where that would not be what it reads itself."""
        options = {name: value for name, value in self._parts["model"].items() if value is not None}
        try:
            steps, library = self.steps, _library()
            model = library.models.BPE(
                vocab=self._tables.vocabulary(), merges=self._tables.merges(), **options
            )
            found: Tokenizer = library.Tokenizer(model)
            for name in _STEPS:
                if (step := getattr(steps, name)) is not None:
                    setattr(found, name, step)
            tokens = self._parts["added_tokens"]
            found.add_tokens(
                [library.AddedToken(t["content"], **{flag: t[flag] for flag in _FLAGS}) for t in tokens]
            )
        except (TypeError, ValueError, OverflowError, RecursionError):
            return None
        except Exception as error:
            # The library raises plain Exception for every fault of a part.
            if type(error) is not Exception:
                raise
            return None
        return found if all(found.token_to_id(text) == i for text, i in self._ids.items()) else None


def _read(data: bytes) -> Tokenizer:
    found: Tokenizer = _library().Tokenizer.from_buffer(data)
    found.no_truncation()
    found.no_padding()
    return found


def _same(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer


def of_tables(data: bytes, tables: BytePairs) -> BytePairTokenizer | None:
    """The tokenizer that ``Tokenizer.from_buffer(data)`` makes, but without truncation and padding;
    ``tables`` are those of ``data``. ``None`` if it is not of the usual form, some damaged ones included, of
    which the library knows better what to say."""
    try:
        parts = json.loads(tables.rest, object_pairs_hook=_unique)
        model, added = parts["model"], parts["added_tokens"]
        if model.pop("type") != "BPE" or not model.keys() <= _OPTIONS:
            return None
        if parts.get("version") != "1.0" or not parts.keys() <= _MEMBERS:
            return None
        # Of such tokens the library decodes what the normalizer makes of them.
        if parts.get("normalizer") is not None and any(token["normalized"] for token in added):
            return None
        prefix = model.get("continuing_subword_prefix") or ""
        if not tables.merges_are_tokens(len(prefix.encode())) or not _numbered_alike(tables, added):
            return None
        return BytePairTokenizer(data, tables, parts)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None
    except Exception as error:
        # As above.
        if type(error) is not Exception:
            raise
        return None


def _is_byte_level(decoder: Any) -> bool:
    """Whether the library takes a decoder for byte-level tokens, all of which do what :func:`byte_level_text`
    does."""
    return (
        isinstance(decoder, dict)
        and {"type", "add_prefix_space", "trim_offsets"} <= decoder.keys() <= {"type", *_BYTE_LEVEL}
        and decoder["type"] == "ByteLevel"
        and all(type(decoder.get(option, True)) is bool for option in _BYTE_LEVEL)
    )


def _unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, no key of which may be there twice, as for the library."""
    found = dict(members)
    if len(found) < len(members):
        raise ValueError("a key is there twice")
    return found


def _numbered_alike(tables: BytePairs, added: list[dict[str, Any]]) -> bool:
    """Whether the library, which numbers added tokens itself, would number them as the file does, and no two
    tokens alike."""
    following, seen = len(tables), set()
    for token in added:
        text, number = token["content"], token["id"]
        if (
            not text
            or text in seen
            or type(number) is not int
            or any(type(token[flag]) is not bool for flag in _FLAGS)
        ):
            return False
        seen.add(text)
        expected = tables.id(text)
        if expected is None:
            # Where numbers have gaps, the library's versions do not agree on what comes next.
            if tables.size != len(tables):
                return False
            expected, following = following, following + 1
        if number != expected:
            return False
    return True
