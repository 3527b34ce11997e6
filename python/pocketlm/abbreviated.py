"""Names of tensors and operations in few characters: shortened in the middle, and no two to the same."""

from __future__ import annotations

from collections.abc import Iterable

LEAST = 12  # characters of a name, however narrow the terminal: "and 120 more" stands among them
_HEADS = (3, 2, 1, 0)  # characters that stay of the beginning, if the rest tells names apart
_GAP = "…"


def abbreviated(names: Iterable[str], width: int) -> dict[str, str]:
    """What each name looks like in ``width`` characters, such as ``lay…attn.q.norm``; in more characters
    where so few would not tell them apart."""
    every = list(dict.fromkeys(names))
    longest = max(map(len, every), default=0)
    for room in (*range(min(width, longest), LEAST - 1, -1), *range(width + 1, longest)):
        for head in _HEADS:
            found = [name if len(name) <= room else _cut(name, head, room) for name in every]
            if len({*found}) == len(found):
                return dict(zip(every, found, strict=True))
    return dict(zip(every, every, strict=True))


def least_width(names: Iterable[str]) -> int:
    """Characters that tell names apart."""
    return max(LEAST, *map(len, abbreviated(names, LEAST).values()), 0)


def _cut(name: str, head: int, room: int) -> str:
    """The beginning of a name and as many of its last parts as there is room for."""
    tail = name[-(room - head - len(_GAP)) :]
    part, dot, rest = tail.partition(".")
    # What is left of a number would be another one; of a word it is better than nothing.
    if dot and rest and name[-len(tail) - 1] != "." and (part.isdigit() or len(part) <= len(rest)):
        tail = rest
    return name[:head] + _GAP + tail.lstrip(".")
