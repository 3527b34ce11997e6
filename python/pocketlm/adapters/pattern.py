"""Regular expressions from files, matched in bounded time.

Python's own matcher tries one way after the other, and an expression of a few characters can keep it busy for
ever. Here all ways advance together, as a set of positions (Thompson 1968), and steps are counted. Parsing is
left to Python, which has no public name for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from pocketlm.errors import AdapterError, UnsupportedError

MAX_LENGTH = 2000
MAX_STEPS = 2_000_000  # of all texts; a real expression takes some thousand for each

_CLASSES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda c: c.isalnum() or c == "_",
}


class Pattern:
    """A regular expression without backreferences, lookbehind, flags, atomic groups, possessive repeats.

    Raises:
        AdapterError: it is malformed.
        UnsupportedError: it is longer than :data:`MAX_LENGTH`, or has one of those.
    """

    def __init__(self, text: str, where: str) -> None:
        self._where, self._text, self._left = where, text, MAX_STEPS
        if len(text) > MAX_LENGTH:
            raise self._unsupported(f"is longer than {MAX_LENGTH} characters")
        try:
            self._items: Any = _parser.parse(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise AdapterError(f"{where} is {text!r:.100}, no regular expression ({error})") from error
        if self._items.state.flags != re.UNICODE:
            raise self._unsupported("has flags")

    def fullmatch(self, text: str) -> bool:
        """Whether the whole of ``text`` matches.

        Raises:
            UnsupportedError: it uses what is not supported, or takes more than :data:`MAX_STEPS` steps with
                those before.
        """
        try:
            return len(text) in self._after(self._items, text, {0})
        except RecursionError as error:
            raise self._unsupported("is nested too deeply") from error

    def _unsupported(self, problem: str) -> UnsupportedError:
        return UnsupportedError(f"{self._where} is {self._text!r:.100}, which {problem}")

    def _after(self, items: Any, text: str, starts: set[int]) -> set[int]:
        """Where a sequence can end that starts at one of ``starts``."""
        for kind, value in items:
            self._left -= 1 + len(starts)
            if self._left < 0:
                raise self._unsupported("takes too long to match")
            starts = self._step(kind.name, value, text, starts)
        return starts

    def _step(self, kind: str, value: Any, text: str, starts: set[int]) -> set[int]:
        match kind:
            case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
                return {i + 1 for i in starts if i < len(text) and self._takes(kind, value, text[i])}
            case "BRANCH":
                return set().union(*(self._after(branch, text, starts) for branch in value[1]))
            case "SUBPATTERN" if not (value[1] or value[2]):
                return self._after(value[3], text, starts)
            case "MAX_REPEAT" | "MIN_REPEAT":
                least, most, item = value
                return self._repeat(least, most, item, text, starts)
            case "AT":
                return {i for i in starts if self._is_at(value.name, text, i)}
            case "ASSERT" | "ASSERT_NOT" if value[0] == 1:
                wanted = kind == "ASSERT"
                return {i for i in starts if bool(self._after(value[1], text, {i})) is wanted}
        raise self._unsupported(f"has a part that is not supported ({kind})")

    def _repeat(self, least: int, most: int, item: Any, text: str, starts: set[int]) -> set[int]:
        found = set(starts) if least == 0 else set()
        count = 0
        while starts and count < most:
            starts = self._after(item, text, starts)
            count += 1
            if count >= least:
                starts = starts - found  # what follows from the others is known
                found |= starts
        return found

    def _takes(self, kind: str, value: Any, char: str) -> bool:
        match kind:
            case "LITERAL":
                return ord(char) == int(value)
            case "NOT_LITERAL":
                return ord(char) != int(value)
            case "ANY":
                return char != "\n"
            case "RANGE":
                return bool(value[0] <= ord(char) <= value[1])
            case "CATEGORY":
                negated, name = "_NOT_" in value.name, value.name.rpartition("_")[2]
                return _CLASSES[name](char) is not negated
        negated = value[0][0].name == "NEGATE"
        return any(self._takes(k.name, v, char) for k, v in value[negated:]) is not negated

    def _is_at(self, name: str, text: str, i: int) -> bool:
        if name in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return i == 0
        if name in ("AT_END", "AT_END_STRING"):
            return i == len(text) or (name == "AT_END" and text[i:] == "\n")
        word = _CLASSES["WORD"]
        sides = [0 <= j < len(text) and word(text[j]) for j in (i - 1, i)]
        return (sides[0] != sides[1]) is (name == "AT_BOUNDARY")
