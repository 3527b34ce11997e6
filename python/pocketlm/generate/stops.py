"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Iterable


class StopStrings:
    """Lets text through up to the first stop string, which may span any number of pieces.

    Text that could be the beginning of a stop string is held back until it is certain. The outcome is that of
    searching
    the whole text: the stop string that ends first wins, and among those the one that begins first.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None  # the stop string that was met

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._stops)

    def push(self, text: str) -> str:
        """Takes a piece; returns the text that is certain not to be part of a stop string."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        start, self.found = self._first(text)
        if self.found is not None:
            self._held = ""
            return text[:start]
        keep = self._overlap(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """The text held back, when no more will come."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> tuple[int, str | None]:
        found = [(i + len(stop), i, stop) for stop in self._stops if (i := text.find(stop)) >= 0]
        if not found:
            return 0, None
        _, start, stop = min(found)
        return start, stop

    def _overlap(self, text: str) -> int:
        # Characters at the end of the text that begin a stop string.
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
