"""Several texts of one prompt, which is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pocketlm.generate.job import Generation, Job
from pocketlm.generate.prefixes import MIN_SHARED
from pocketlm.generate.result import Completion
from pocketlm.generate.scheduler import Scheduler
from pocketlm.records import replace

if TYPE_CHECKING:
    from pocketlm.generate.engine import StepResult


class Prefill(Job):
    """Computes tokens for nothing but to leave them in the cache, where later requests take them up."""

    keeps = True

    def __init__(self, ids: Sequence[int]) -> None:
        super().__init__(ids, len(ids))

    def accept(self, count: int, result: StepResult) -> None:
        self.done += count
        if not self.left:
            self.end()


def run(scheduler: Scheduler, groups: Sequence[Sequence[Generation]]) -> list[Completion]:
    """The completion of each group: the texts of one prompt, the first with the others attached.

    A prompt with several texts is computed first, and each text goes on from there. Should the memory be
    taken by others in between, it is computed again: that costs time and changes nothing.
    """
    shared = [group[0].prompt[:-1] for group in groups if len(group) > 1]
    finish(scheduler, [Prefill(ids) for ids in shared if len(ids) >= MIN_SHARED])
    jobs = [job for group in groups for job in group]
    for job in jobs:
        job.patient = True
    finish(scheduler, jobs)
    found = [[job.completion() for job in group] for group in groups]
    return [replace(first, others=tuple(others)) for first, *others in found]


def finish(scheduler: Scheduler, jobs: Sequence[Job]) -> None:
    """Runs jobs to their end and raises what any of them failed with. Jobs that an interrupt leaves
    unfinished are cancelled."""
    if not jobs:
        return
    scheduler.submit(*jobs)
    try:
        scheduler.wait(lambda: all(job.finished for job in jobs))
    finally:
        scheduler.cancel(*(job for job in jobs if not job.finished))
    for job in jobs:
        if job.error is not None:
            raise job.error
