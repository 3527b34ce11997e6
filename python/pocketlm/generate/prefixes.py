"""Sequences kept after their request, so that a later one with the same beginning need not compute it
again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketlm.generate.engine import CacheSequence

MIN_SHARED = 8  # tokens; less is cheaper to compute than to look after
MAX_ENTRIES = 32


class _Entry:
    # No dataclass, of which importing pocketlm would compile the methods.
    def __init__(self, ids: list[int], sequence: CacheSequence, owner: Hashable | None) -> None:
        self.ids, self.sequence, self.owner = ids, sequence, owner


class PrefixCache:
    """Finished sequences, least recently used first. Nothing here is needed: any entry may be dropped at any
    time.

    An ``owner`` (a session) has at most one entry, which it takes back and extends; other requests get a
    fork.
    Not safe for use from several threads at once: the scheduler calls it under its lock.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, ids: Sequence[int], owner: Hashable | None = None) -> CacheSequence | None:
        """A sequence that holds the longest known beginning of ``ids`` short of its last token, or ``None``.

        The last token is always left to compute, since its logits are wanted.
        """
        best, most = None, 0
        for entry in self._entries:
            shared = _shared(entry.ids, ids)
            mine = owner is not None and entry.owner == owner
            if shared > most and (shared >= MIN_SHARED or mine):
                best, most = entry, shared
        if best is None:
            return None
        self._entries.remove(best)
        if owner is not None and best.owner == owner:
            sequence = best.sequence
        else:
            self._entries.append(best)
            sequence = best.sequence.fork()
        if sequence.length > most:
            sequence.truncate(most)
        return sequence

    def keep(self, ids: list[int], sequence: CacheSequence, owner: Hashable | None = None) -> None:
        """Takes over a sequence that holds ``ids``."""
        for entry in list(self._entries):
            replaced = owner is not None and entry.owner == owner
            if replaced or (entry.owner is None and _begins(ids, entry.ids)):
                self._drop(entry)
        if owner is None and any(_begins(entry.ids, ids) for entry in self._entries):
            sequence.free()
            return
        self._entries.append(_Entry(ids, sequence, owner))
        while len(self._entries) > MAX_ENTRIES:
            self.evict()

    def fork(self, owner: Hashable) -> tuple[list[int], CacheSequence] | None:
        """The tokens that are kept for an owner, and a fork of their sequence."""
        for entry in self._entries:
            if entry.owner == owner:
                return entry.ids, entry.sequence.fork()
        return None

    def evict(self) -> bool:
        """Frees the entry that was not used for longest; ``False`` if there is none."""
        if not self._entries:
            return False
        self._drop(self._entries[0])
        return True

    def forget(self, owner: Hashable) -> None:
        """Frees the entry of an owner."""
        for entry in [e for e in self._entries if e.owner == owner]:
            self._drop(entry)

    def clear(self) -> None:
        """Frees everything."""
        while self.evict():
            pass

    def _drop(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        entry.sequence.free()


def _begins(ids: Sequence[int], start: Sequence[int]) -> bool:
    return list(ids[: len(start)]) == list(start)


def _shared(known: Sequence[int], ids: Sequence[int]) -> int:
    most = min(len(known), len(ids) - 1)
    # Whole runs compare at the speed of lists; only the run with the difference is walked.
    start, run = 0, 256
    while start < most:
        end = min(start + run, most)
        if known[start:end] != ids[start:end]:
            return next(i for i in range(start, end) if known[i] != ids[i])
        start = end
    return most
