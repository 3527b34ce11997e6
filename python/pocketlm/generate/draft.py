"""A small model that guesses what a larger one will say, so that the larger one computes several tokens in
one step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pocketlm.errors import PocketlmError
from pocketlm.generate.engine import CacheSequence, Engine
from pocketlm.generate.job import Generation


@dataclass
class _Draft:
    sequence: CacheSequence
    known: list[int] = field(default_factory=list)  # tokens in it
    sure: int = 0  # those of them that are certainly the text's
    sampler: Any = None


class Drafter:
    """Guesses with an engine of its own. Only the thread that leads the scheduler calls it.

    It samples with the request's own parameters and seed: random numbers depend on seed and position alone,
    so that two models which see the same probabilities choose the same tokens.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._drafts: dict[Generation, _Draft | None] = {}

    def propose(self, jobs: Sequence[Generation], target: Engine) -> bool:
        """Hands guesses to the continuations of those jobs for which they were measured to pay. Returns
        whether there are any."""
        items, chosen = [], []
        for job in jobs:
            count = target.drafts(job.continuation, len(jobs))
            if count == 0:
                job.continuation.pass_draft()
                continue
            try:
                item = self._item(job, count, self.engine.max_rows // len(jobs))
            except PocketlmError:
                # Its cache is full, or its context ends: the request goes on without.
                self.release(job)
                self._drafts[job] = None
                continue
            if item is not None:
                items.append(item)
                chosen.append(job)
        if not items:
            return False
        began = time.perf_counter()
        try:
            results = self.engine.step(items, steps=64, seconds=1.0)
        except PocketlmError:
            for job in chosen:
                self.release(job)
                self._drafts[job] = None
            return False
        seconds = (time.perf_counter() - began) / len(chosen)
        for job, item, result in zip(chosen, items, results, strict=True):
            draft = self._drafts[job]
            assert draft is not None
            draft.known += item[1] + result.tokens
            del draft.known[draft.sequence.length :]
            job.continuation.draft(result.tokens, seconds)
        return True

    def _item(self, job: Generation, count: int, rows: int) -> tuple[Any, ...] | None:
        ids = job.prompt + job.tokens
        if job not in self._drafts:
            self._drafts[job] = _Draft(self.engine.sequence())
        draft = self._drafts[job]
        if draft is None or len(ids) + count > self.engine.context_length:
            return None
        shared, most = draft.sure, min(len(draft.known), len(ids) - 1)
        while shared < most and draft.known[shared] == ids[shared]:
            shared += 1
        draft.sequence.truncate(shared)
        del draft.known[shared:]
        while len(ids) - shared > rows:
            chunk = ids[shared : shared + rows]
            self.engine.step([(draft.sequence, chunk, None, "none", None)])
            draft.known += chunk
            shared += len(chunk)
        draft.sure = shared
        if draft.sampler is None or job.penalized:
            draft.sampler = job.draft_sampler(ids)
        continuation = self.engine.continuation(ids[-1:], max_tokens=count)
        return draft.sequence, ids[shared:], draft.sampler, "none", continuation

    def release(self, job: Generation) -> None:
        """Forgets a job."""
        draft = self._drafts.pop(job, None)
        if draft is not None:
            draft.sequence.free()

    def clear(self) -> None:
        """Forgets all jobs, in a child after a fork."""
        self._drafts.clear()
