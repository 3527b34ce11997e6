"""Token ids to text, one at a time, without ever splitting a character.

A token may hold a part of a UTF-8 sequence, and its text may depend on the token before it (a leading space
that the first token loses). So text is decoded over a short window of recent tokens, and what the window adds
is handed out once it can no longer change. Tokens that stand for one byte (byte fallback) are decoded here:
the library shows a whole run of them as invalid while its last character is unfinished. For the same reasons
``tokenizers.decoders.DecodeStream`` does not serve: on such runs, and on invalid bytes, its text differs from
that of decoding the whole.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence

REPLACEMENT = "\ufffd"
_LONGEST_PARTIAL = 3  # bytes of an unfinished UTF-8 sequence; decoders show each as one replacement character
_LONGEST_WINDOW = 256  # tokens; reached only by a model that emits endless invalid bytes
_CONTEXT = 8  # tokens of the prompt that precede the first token


class Detokenizer:
    """The text of a growing sequence of tokens.

    ``decode`` maps token ids to text. ``skip`` holds ids that have no text (special tokens), ``byte_tokens``
    the byte of those that stand for one. ``context`` gives the tokens before the first one: their text is not
    repeated, but the first token's leading space is kept.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        skip: frozenset[int] = frozenset(),
        byte_tokens: Mapping[int, int] | None = None,
        context: Iterable[int] = (),
    ) -> None:
        self._decode, self._skip, self._bytes = decode, skip, byte_tokens or {}
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._run: list[int] = []  # the last byte tokens, if the last token was one
        self._ids = [i for i in context if i not in skip][-_CONTEXT:]
        text = decode(self._ids) if self._ids else ""
        if text.endswith(REPLACEMENT):
            self._ids, text = [], ""
        self._sent = len(text)  # characters of the window's text that are out already
        self._group = 0  # where in the window the tokens since the last clean end of text begin

    def push(self, token: int) -> str:
        """Adds a token; returns the text that it completes, possibly empty."""
        if token in self._skip:
            return ""
        if token in self._bytes:
            first = not self._ids and not self._run
            self._run = [*self._run[-3:], token]
            if first and self._bytes[token] < 0x80:
                return self._decode(self._run)  # a space may be one that a text's beginning loses
            return self._utf8.decode(bytes([self._bytes[token]]))
        before = self._end_run()
        self._ids.append(token)
        text = self._decode(self._ids)
        end = len(text)
        while end > len(text) - _LONGEST_PARTIAL and text[end - 1 : end] == REPLACEMENT:
            end -= 1
        fresh = text[self._sent : end]
        self._sent = max(self._sent, end)
        if end == len(text):
            self._slide(bool(fresh))
        elif len(self._ids) > _LONGEST_WINDOW:
            fresh += self.flush()
        return before + fresh

    def push_all(self, tokens: Sequence[int]) -> str:
        """:meth:`push` for several tokens, at the price of one."""
        plain = [token for token in tokens if token not in self._skip]
        if len(plain) < 2 or self._run or any(token in self._bytes for token in plain):
            return "".join([self.push(token) for token in plain])
        *earlier, last = plain
        self._ids += earlier
        return self.push(last)

    def flush(self) -> str:
        """The text held back; unfinished characters are shown as U+FFFD. Starts afresh after it."""
        rest = self._end_run()
        rest += self._decode(self._ids)[self._sent :] if self._ids else ""
        self._ids, self._sent, self._group = [], 0, 0
        return rest

    def _end_run(self) -> str:
        if not self._run:
            return ""
        if not self._ids:
            self._ids, self._sent, self._group = self._run, len(self._decode(self._run)), 0
        self._run = []
        return self._utf8.decode(b"", final=True)

    def _slide(self, has_text: bool) -> None:
        # The window must keep tokens with text, so that the next one is not taken for the first of all.
        if not has_text:
            return
        del self._ids[: self._group]
        self._group = len(self._ids)
        self._sent = len(self._decode(self._ids))
