"""A small model that guesses what a larger one will say, so that the larger one computes several tokens in
one step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pocketlm.errors import PocketlmError
from pocketlm.generate.job import Generation
from pocketlm.generate.pace import Pace

if TYPE_CHECKING:
    from pocketlm.generate.engine import CacheSequence, Engine


class _Draft:
    def __init__(self, sequence: CacheSequence) -> None:
        self.sequence = sequence
        self.sampler: Any = None
        self.known: list[int] = []  # tokens in it
        self.sure = 0  # those of them that are certainly the text's


class Drafter:
    """Guesses with an engine of its own. Only the thread that leads the scheduler calls it.

    It samples with the request's own parameters and seed: random numbers depend on seed and position alone,
    so that two models which see the same probabilities choose the same tokens.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._drafts: dict[Generation, _Draft | None] = {}
        self._pace = Pace()

    def propose(self, jobs: Sequence[Generation], target: Engine) -> bool:
        """Hands guesses to the continuations of those jobs for which they were measured to pay. Returns
        whether there are any.

        Of a long text only so much is read at a call as takes the time of a step; until all of it is, the
        text goes on without guesses. So nobody waits long for a draft model, nor to be cancelled.
        """
        items, chosen, read = [], [], 0
        rows = max(1, self._pace.rows(self.engine.max_rows, shared=True) // len(jobs))
        began = time.perf_counter()
        for job in jobs:
            count = target.drafts(job.continuation, len(jobs))
            if count == 0:
                job.continuation.pass_draft()
                continue
            ids = job.prompt + job.tokens
            try:
                draft = self._resume(job, ids)
                if draft is None or len(ids) + count > self.engine.context_length:
                    continue
                if len(ids) - draft.sure > rows:
                    self._read(draft, ids[draft.sure : draft.sure + rows])
                    read += rows
                else:
                    items.append(self._item(job, draft, ids, count))
                    chosen.append(job)
            except PocketlmError:
                self._give_up(job)
        if read:
            self._pace.note(read, time.perf_counter() - began)
        return bool(items) and self._guess(chosen, items)

    def _resume(self, job: Generation, ids: list[int]) -> _Draft | None:
        """The draft of a text, cut to what agrees with ``ids``; ``None`` if it was given up."""
        if job not in self._drafts:
            self._drafts[job] = _Draft(self.engine.sequence())
        draft = self._drafts[job]
        if draft is not None:
            shared, most = draft.sure, min(len(draft.known), len(ids) - 1)
            while shared < most and draft.known[shared] == ids[shared]:
                shared += 1
            draft.sequence.truncate(shared)
            del draft.known[shared:]
            draft.sure = shared
        return draft

    def _read(self, draft: _Draft, ids: list[int]) -> None:
        self.engine.step([(draft.sequence, ids, None, "none", None)])
        draft.known += ids
        draft.sure += len(ids)

    def _item(self, job: Generation, draft: _Draft, ids: list[int], count: int) -> tuple[Any, ...]:
        if draft.sampler is None or job.penalized:
            draft.sampler = job.draft_sampler(ids)
        continuation = self.engine.continuation(ids[-1:], max_tokens=count)
        return draft.sequence, ids[draft.sure :], draft.sampler, "none", continuation

    def _guess(self, jobs: Sequence[Generation], items: list[tuple[Any, ...]]) -> bool:
        began = time.perf_counter()
        try:
            results = self.engine.step(items, steps=64, seconds=1.0)
        except PocketlmError:
            for job in jobs:
                self._give_up(job)
            return False
        seconds = (time.perf_counter() - began) / len(jobs)
        for job, item, result in zip(jobs, items, results, strict=True):
            draft = self._drafts[job]
            assert draft is not None
            draft.known += item[1] + result.tokens
            del draft.known[draft.sequence.length :]
            job.continuation.draft(result.tokens, seconds)
        return True

    def _give_up(self, job: Generation) -> None:
        """Its cache is full, or its context ends: the request goes on without."""
        self.release(job)
        self._drafts[job] = None

    def release(self, job: Generation) -> None:
        """Forgets a job."""
        draft = self._drafts.pop(job, None)
        if draft is not None:
            draft.sequence.free()

    def clear(self) -> None:
        """Forgets all jobs, in a child after a fork."""
        self._drafts.clear()
