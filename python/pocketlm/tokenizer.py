"""Text to token ids and back: a model's ``tokenizer.json`` with the settings in the files beside it."""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pocketlm.checks import shown, token_ids
from pocketlm.detokenize import Detokenizer
from pocketlm.errors import ContextLengthError, ParameterError, TemplateError, TokenizerError
from pocketlm.loading.bpe import BytePairTokenizer, is_refusal
from pocketlm.loading.tokenizer import ReadTokenizer

if TYPE_CHECKING:
    import tokenizers

    from pocketlm.loading import LoadedModel
    from pocketlm.template import ChatTemplate

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")

_BYTE = r"<0x[0-9A-F]{2}>"

Result = TypeVar("Result")


class Tokenizer:
    """A model's tokenizer.

    Attributes:
        bos: id of the token that begins a text, or ``None``.
        eos: ids that end a generation.
        size: one more than the largest token id.
        template: the chat template, or ``None``.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer | ReadTokenizer,
        *,
        config: Mapping[str, Any] | None = None,
        template: str | None = None,
        eos: Iterable[int] = (),
        vocab_size: int | None = None,
        source: str = "tokenizer.json",
    ) -> None:
        """Wraps ``inner``. ``config`` is a parsed tokenizer_config.json; ``eos`` adds ids that end a
        generation.

        Raises:
            TokenizerError: a token id is beyond ``vocab_size`` (rows of the embedding), or a special token is
                unknown.
        """
        read = inner if isinstance(inner, ReadTokenizer) else _guard(source, lambda: ReadTokenizer.of(inner))
        self._inner, self._source = read.inner, source
        self.size, self._longest = read.size, read.longest
        config = config or {}
        if not self.size:
            raise TokenizerError(f"{source}: the vocabulary is empty")
        if vocab_size is not None and self.size > vocab_size:
            raise TokenizerError(
                f"{source}: has token ids up to {self.size - 1}, but the model's embedding has {vocab_size} "
                "rows; the tokenizer does not belong to this model"
            )
        self._limit = vocab_size if vocab_size is not None else self.size
        special = {key: text for key in _SPECIAL if (text := _token_text(config, key, source)) is not None}
        self.bos = self._known(special, "bos_token")
        end = self._known(special, "eos_token")
        self.eos = frozenset({*eos, *([] if end is None else [end])})
        for token in self.eos:
            if not 0 <= token < self._limit:
                raise TokenizerError(f"{source}: eos_token_id {token} is not a token of this model")
        self._add_bos = config.get("add_bos_token") if isinstance(config.get("add_bos_token"), bool) else None
        self._skip = _guard(source, lambda: _special(self._inner)) | self.eos
        if self.bos is not None:
            self._skip |= {self.bos}
        self._bytes = _guard(source, lambda: _byte_tokens(self._inner))
        self.template: ChatTemplate | None = None
        if template is not None:
            # Imported here: Jinja takes longer to import than all of pocketlm.
            from pocketlm.template import ChatTemplate

            self.template = ChatTemplate(template, special)
        if self.bos is None:
            self.bos = self._leading_token()

    @classmethod
    def of(cls, model: LoadedModel, eos: Iterable[int] = (), found: ReadTokenizer | None = None) -> Tokenizer:
        """The tokenizer of an opened model; ``eos`` adds ids that end a generation, ``found`` is what was
        read of it already.

        Raises:
            TokenizerError: it is missing, damaged or not of this model.
            TemplateError: its chat template is not valid.
        """
        return cls(
            model.read_tokenizer(found),
            config=model.tokenizer_config,
            template=model.chat_template,
            eos=eos,
            vocab_size=model.graph.vocab_size,
            source=str(model.tokenizer_path),
        )

    def prewarm(self) -> None:
        """Makes what encodes texts, which else waits for the first one.

        Raises:
            TokenizerError: the library does not take the tokenizer.
        """
        if isinstance(inner := self._inner, BytePairTokenizer):
            _guard(self._source, lambda: inner.whole)

    def same_tokens(self, other: Tokenizer) -> bool:
        """Whether every token has the same id and text in both."""
        return self is other or self._inner.get_vocab() == other._inner.get_vocab()

    def encode(self, text: str, *, bos: bool = True, limit: int | None = None) -> list[int]:
        """Token ids of ``text``, after the token that begins a text if the model uses one and ``bos`` is set.

        Raises:
            ParameterError: ``text`` is not a string, or not valid Unicode.
            ContextLengthError: the text is certainly longer than ``limit`` tokens (checked before the work).
            TokenizerError: the library does not take the tokenizer, of which the first text is told.
        """
        # A normalizer can shorten text, though hardly to a quarter.
        if limit is not None and isinstance(text, str) and len(text) > 4 * limit * self._longest:
            raise ContextLengthError(
                f"a text of {len(text)} characters does not fit a context of {limit} tokens"
            )
        _check_text(text)
        encoding = _guard(self._source, lambda: self._inner.encode(text, add_special_tokens=bos))
        ids, added = list(encoding.ids), encoding.special_tokens_mask
        if bos:
            # Some tokenizers also close a text, which a text to be continued must not be.
            end = len(ids)
            while end and added[end - 1] and not all(added[:end]):
                end -= 1
            start = 0
            while start < end and added[start] and self._add_bos is False:
                start += 1
            ids = ids[start:end]
            if self._add_bos and self.bos is not None and ids[:1] != [self.bos]:
                ids.insert(0, self.bos)
        if ids and max(ids) >= self._limit:
            raise TokenizerError(
                f"{self._source}: made token id {max(ids)}, beyond the {self._limit} of the model"
            )
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of token ids; special tokens are left out unless ``special`` is set. Unknown ids have no
        text.

        Raises:
            ParameterError: an id is negative, beyond 32 bits, or not an integer.
        """
        try:
            # What bytes hold are integers, but no token ids.
            found = None if isinstance(ids, bytes | bytearray) else list(ids)
        except TypeError:
            found = None
        if found is None:
            raise ParameterError(f"ids: expected a sequence of integers, not {type(ids).__name__}")
        values = token_ids("ids", found, 1 << 32)
        return _guard(self._source, lambda: self._inner.decode(values, skip_special_tokens=not special))

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """An incremental decoder of the tokens that follow ``context``; special tokens have no text."""
        return Detokenizer(
            lambda ids: self._inner.decode(ids, skip_special_tokens=False),
            skip=self._skip,
            byte_tokens=self._bytes,
            context=context[-64:],
        )

    def token_text(self, token: int) -> str:
        """The token as the vocabulary writes it, or an empty string for an id without one.

        Raises:
            ParameterError: ``token`` is not an integer.
        """
        # Python's own, which engines give, are told by their type at once.
        if type(token) is not int and (type(token) is bool or not isinstance(token, numbers.Integral)):
            raise ParameterError(f"token: must be an integer, not {shown(token)}")
        # The library takes no id that 32 bits do not hold.
        return self._inner.id_to_token(int(token)) or "" if 0 <= token < self.size else ""

    def decode_token(self, token: int) -> str:
        """The text of one token in the middle of a text: ``" upon"``, where the vocabulary writes "Ġupon" or
        "▁upon". Bytes that are no whole character are U+FFFD; a special token is its name; an id without a
        token has no text.

        Raises:
            ParameterError: the id is negative or not an integer.
        """
        alone, twice = self.decode([token], special=True), self.decode([token, token], special=True)
        # Some decoders take the space off the first word, so the text is what a second one adds. That its
        # bytes and the first one's make a character together is possible, if hardly; then it stands alone.
        return (twice.startswith(alone) and twice[len(alone) :]) or alone

    @property
    def unknown(self) -> int | None:
        """The id that stands for text that the vocabulary cannot spell, or ``None`` if it can spell all."""
        model = _guard(self._source, lambda: self._inner.model)
        token = getattr(model, "unk_token", None)
        if isinstance(token, str):
            return self._inner.token_to_id(token)
        found = getattr(model, "unk_id", None)  # of the Unigram model
        return found if isinstance(found, int) else None

    def pieces(self) -> int:
        """How many tokens of the vocabulary are more than one character or byte."""
        is_byte = re.compile(_BYTE).fullmatch
        return sum(len(text) > 1 and not is_byte(text) for text in self.vocabulary())

    def token_id(self, text: str) -> int | None:
        """The id of a token of the vocabulary, by its exact text.

        Raises:
            ParameterError: ``text`` is not a string, or not valid Unicode.
        """
        _check_text(text)
        return _guard(self._source, lambda: self._inner.token_to_id(text))

    def vocabulary(self) -> dict[str, int]:
        """Every token's text, as the vocabulary writes it, with its id."""
        return _guard(self._source, self._inner.get_vocab)

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of ``text`` without special tokens, and where each begins and ends in it (characters).

        Raises:
            As :meth:`encode`.
        """
        _check_text(text)
        encoding = _guard(self._source, lambda: self._inner.encode(text, add_special_tokens=False))
        return list(encoding.ids), list(encoding.offsets)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], *, limit: int | None = None, **variables: Any
    ) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the assistant's answer.

        Raises:
            TemplateError: there is no template, or it fails on these messages.
            ContextLengthError: as :meth:`encode`.
        """
        if self.template is None:
            raise TemplateError(f"{self._source}: this model has no chat template")
        return self.encode(self.template.render(messages, **variables), bos=False, limit=limit)

    @property
    def adds_bos(self) -> bool:
        """Whether an encoded text begins with a token of its own."""
        return self._leading_token() is not None

    def _leading_token(self) -> int | None:
        ids = self.encode("")
        return ids[0] if ids else None

    def _known(self, special: Mapping[str, str], key: str) -> int | None:
        if key not in special:
            return None
        if (token := _guard(self._source, lambda: self._inner.token_to_id(special[key]))) is None:
            raise TokenizerError(f"{self._source}: {key} {special[key]!r:.60} is not in the vocabulary")
        return token


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise ParameterError(f"text: expected a string, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as problem:
        raise ParameterError("text: holds a lone surrogate, which is not valid Unicode") from problem


def _guard(source: str, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except ImportError as problem:
        raise TokenizerError(
            f"{source}: the tokenizers library cannot be imported: {problem!s:.200}"
        ) from problem
    except BaseException as problem:
        if not is_refusal(problem):
            raise
        raise TokenizerError(f"{source}: damaged or not supported: {problem!s:.200}") from problem


def _special(inner: tokenizers.Tokenizer | BytePairTokenizer) -> frozenset[int]:
    """Ids of the tokens that are no text."""
    if isinstance(inner, BytePairTokenizer):
        return inner.special
    return frozenset(i for i, token in inner.get_added_tokens_decoder().items() if token.special)


def _byte_tokens(inner: tokenizers.Tokenizer | BytePairTokenizer) -> dict[int, int]:
    """The bytes of tokens that stand for one, as "<0x41>" does, if the decoder makes an "A" of that."""
    letter = inner.token_to_id("<0x41>")
    if letter is None or inner.decode([letter], skip_special_tokens=False) != "A":
        return {}
    found = {byte: inner.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return {token: byte for byte, token in found.items() if token is not None}


def _token_text(config: Mapping[str, Any], key: str, source: str) -> str | None:
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{source}: {key!r} in tokenizer_config.json must be a string")
    return value or None
