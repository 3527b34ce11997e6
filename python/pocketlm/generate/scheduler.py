"""Decides what runs in each step of the engine: continuous batching, from any number of threads, without one
of its own.

Whoever waits for a result leads: one waiting thread at a time composes steps and runs them for *all* jobs,
and when its own result is there, another waiting thread takes the lead. Against a thread that serves a queue
this saves two thread switches for each token, leaves nothing behind at ``fork`` or at exit, and Ctrl-C
reaches the caller between two steps. A caller that cannot wait (an event loop) leaves a listener; a thread
leads while there are listeners. Only who leads uses the engine and the kept sequences: what else needs them
takes the lead between two steps. The lock is never held while the engine runs.

A job is admitted when the cache has room for all that it may come to hold, so an admitted job never fails for
memory; jobs are admitted in the order in which they came. Each step takes one token of every job that is
generating, and shares the rest of the rows between the prompts, evenly, so that a long prompt holds up
neither the running nor the waiting.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING

from pocketlm.errors import CancelledError, ContextLengthError, InternalError, ParameterError
from pocketlm.generate.batch import BLOCK, blocks, blocks_needed, compose, is_foreign, limits, run
from pocketlm.generate.job import Generation, Job
from pocketlm.generate.pace import Pace
from pocketlm.generate.prefixes import PrefixCache
from pocketlm.generate.result import Chunk

if TYPE_CHECKING:
    from pocketlm.generate.batch import Batch
    from pocketlm.generate.draft import Drafter
    from pocketlm.generate.engine import Engine, StepResult

MAX_RUNNING = 64
PATIENCE = 1.0  # seconds after which who waits looks again, should a signal's handler have cost it its call


class Scheduler:
    """Runs jobs on an engine. All methods may be called from any thread."""

    def __init__(self, engine: Engine, drafter: Drafter | None = None) -> None:
        self.engine = engine
        self._drafter = drafter
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._prefixes = PrefixCache()
        self._pace = Pace()
        self._forgotten: list[Hashable] = []  # owners whose sequences are to be freed
        self._closed = False
        self._reset()
        _live.add(self)

    def _reset(self) -> None:
        # Taken by itself, in compiled code: in the condition's own `with` a signal's handler could leave it
        # taken.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._leader: int | None = None  # the thread that leads
        self._guests = 0  # threads that want the lead for something else than steps
        self._driver: threading.Thread | None = None

    def submit(self, *jobs: Job) -> None:
        """Queues jobs; they run when somebody waits.

        Raises:
            ContextLengthError: a job can never fit the cache.
            ParameterError: the model is closed.
        """
        for job in jobs:
            if blocks(job.total) * BLOCK > self.engine.cache_tokens:
                raise ContextLengthError(
                    f"{job.total} tokens do not fit the cache of {self.engine.cache_tokens} tokens; "
                    "load the model with a larger one"
                )
        with self._lock:
            self.check_open()
            self._waiting.extend(jobs)
            self.engine.interrupt()
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether the model is closed."""
        return self._closed

    def check_open(self) -> None:
        """Refuses a model that is closed.

        Raises:
            ParameterError: it is.
        """
        if self._closed:
            raise ParameterError("the model is closed")

    def wait(self, ready: Callable[[], bool]) -> None:
        """Runs steps, or waits while another thread does, until ``ready()``.

        Raises:
            ParameterError: called by what a step calls, which would wait for itself.
            InternalError: there is nothing left to run, and still it is not ready.
        """
        while True:
            leading = False
            try:
                with self._lock:
                    if self._leader == threading.get_ident():
                        raise ParameterError("the model is at work in this thread already")
                    while (self._leader is not None or self._guests) and not ready():
                        self._changed.wait(PATIENCE)
                    if ready():
                        return
                    self._leader, leading = threading.get_ident(), True
                while not ready() and not self._guests:
                    if not self._step():
                        self._check_idle(ready)
            finally:
                if leading:
                    # Before any call, in which a signal's handler could keep this from happening.
                    self._leader = None
                    self._after_lead()

    def _check_idle(self, ready: Callable[[], bool]) -> None:
        with self._lock:  # others may submit jobs at any time
            if not (self._running or self._waiting or ready()):
                raise InternalError("the scheduler has nothing to do, but a caller waits for a result")

    @contextlib.contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Leads without running steps: nobody else uses the engine or the kept sequences meanwhile."""
        if self._leader == threading.get_ident():  # called by what a step calls
            yield
            return
        waiting = leading = False
        try:
            with self._lock:
                self._guests += 1
                waiting = True
                self.engine.interrupt()
                while self._leader is not None:
                    self._changed.wait(PATIENCE)
                self._leader, leading = threading.get_ident(), True
                self._guests -= 1
                waiting = False
            yield
        finally:
            if waiting:
                self._guests -= 1
            if leading:
                self._leader = None  # as in `wait`
            self._after_lead()

    def _after_lead(self) -> None:
        with self._lock:
            self._changed.notify_all()
            if self._leader is None:
                self._retire()  # what was cancelled or forgotten meanwhile

    def take(self, job: Generation) -> Chunk | None:
        """What is new of a text (see :meth:`Generation.take`)."""
        with self._lock:
            return job.take()

    def listen(self, job: Generation, listener: Callable[[], None]) -> bool:
        """Whether a job has news already. If not, ``listener`` is called once it has, from a thread that does
        the work."""
        with self._lock:
            if job.has_news():
                return True
            job.listeners.append(listener)
            if self._driver is None or not self._driver.is_alive():
                self._driver = threading.Thread(target=self._drive, name="pocketlm-driver", daemon=True)
                self._driver.start()
            return False

    def _drive(self) -> None:
        def idle() -> bool:
            return not any(
                isinstance(j, Generation) and j.listeners for j in (*self._running, *self._waiting)
            )

        while True:
            self.wait(idle)
            with self._lock:
                if idle():
                    self._driver = None
                    return

    def cancel(self, *jobs: Job) -> None:
        """Ends jobs at once. What they hold is freed now if nothing runs, otherwise after the step that is
        running, whose results are not theirs any more."""
        with self._lock:
            for job in jobs:
                job.cancelled = True
                if not job.finished:
                    job.end()
                    _notify(job)
            self.engine.interrupt()
            if self._leader is None:
                self._retire()
            self._changed.notify_all()

    def forget(self, owner: Hashable) -> None:
        """Frees what is kept for an owner: at once if nothing runs, otherwise after the step that is
        running."""
        with self._lock:
            self._forgotten.append(owner)
            if self._leader is None:
                self._retire()

    def kept(self, owner: Hashable) -> tuple[list[int], bytes]:
        """The tokens that are kept for an owner, and their keys and values; nothing if memory had no room.
        Waits for the step that is running."""
        with self._between_steps():
            found = self._prefixes.fork(owner)
            if found is None:
                return [], b""
            ids, sequence = found
            try:
                return ids, self.engine.export(sequence)
            finally:
                sequence.free()

    def keep(self, owner: Hashable, ids: list[int], data: bytes) -> None:
        """Keeps tokens for an owner, if there is room beside the running jobs, as if they had just been
        computed. Waits for the step that is running, whose room is not to be taken.

        Raises:
            ParameterError: the model is closed.
        """
        with self._between_steps():
            self.check_open()
            needed = blocks(len(ids))
            if (sum(blocks(job.total) for job in self._running) + needed) * BLOCK > self.engine.cache_tokens:
                return
            self._free_blocks(needed)
            self._prefixes.keep(ids, self.engine.restore(len(ids), data), owner)

    def close(self) -> None:
        """Ends all jobs and frees the cache. Waits for the step that is running."""
        with self._lock:
            self._closed = True
            for job in (*self._waiting, *self._running):
                job.cancelled = True
        self.wait(lambda: not self._running and not self._waiting)
        with self._between_steps():
            self._prefixes.clear()

    def _step(self) -> bool:
        """Whether there was anything to run."""
        with self._lock:
            self._retire()
            self._admit()
            batch = compose(self._running, self.engine, self._pace)
            if not batch:
                if self._waiting:
                    raise InternalError("the scheduler has jobs but cannot run any")
                return False
            self._free_blocks(blocks_needed(batch))
        results: list[StepResult | Exception] = []
        try:
            steps, seconds = limits(batch)
            if self._drafter is not None:
                jobs = [job for job, _ in batch if isinstance(job, Generation) and not job.left]
                # Further steps would be without the draft model.
                steps = 1 if jobs and self._drafter.propose(jobs, self.engine) else min(steps, 16)
            began = time.perf_counter()
            run(self.engine, [item for _, item in batch], steps, seconds, results)
            if any(job.left for job, _ in batch):
                rows = sum(len(item[1]) for _, item in batch)
                self._pace.note(rows, time.perf_counter() - began)
            self._accept(batch, results)
        except BaseException as problem:
            if is_foreign(problem):
                # None of the jobs' business: what was computed is theirs, and whoever leads next goes on.
                self._accept(batch, results)
                raise
            with self._lock:
                for job, _ in batch:
                    self._finish(job, problem)
                self._changed.notify_all()
            if not isinstance(problem, Exception):
                raise
        return True

    def _accept(self, batch: Batch, results: list[StepResult | Exception]) -> None:
        """Gives jobs their results, each once: a second call goes on behind what the first has given."""
        with self._lock:
            while results:
                (job, item), result = batch.pop(0), results.pop(0)
                if job.finished:  # cancelled while the step ran
                    continue
                if isinstance(result, Exception):
                    self._finish(job, result)
                    continue
                try:
                    job.accept(len(item[1]), result)
                except Exception as problem:
                    self._finish(job, problem)
                except BaseException:
                    self._finish(job, CancelledError("the step was interrupted"))
                    raise
            self._retire()
            self._changed.notify_all()

    def _free_blocks(self, needed: int) -> None:
        while self.engine.cache_tokens_free < needed * BLOCK and self._prefixes.evict():
            pass

    def _retire(self) -> None:
        for job in [j for j in self._waiting if j.cancelled]:
            self._waiting.remove(job)
            if not job.finished:
                job.end()
            _notify(job)
        for job in [j for j in self._running if j.cancelled or j.finished]:
            self._finish(job)
        while self._forgotten:
            self._prefixes.forget(self._forgotten.pop())
        for job in self._running:
            _notify(job)

    def _finish(self, job: Job, error: BaseException | None = None) -> None:
        if job in self._running:
            self._running.remove(job)
        if not job.finished:
            job.end(error)
        if self._drafter is not None and isinstance(job, Generation):
            self._drafter.release(job)
        sequence = job.sequence
        if sequence is not None:
            if job.keeps and error is None and sequence.length and not self._closed:
                ids = job.held()
                if sequence.length > len(ids):
                    sequence.truncate(len(ids))
                self._prefixes.keep(ids, sequence, job.owner)
            else:
                sequence.free()
            job.sequence = None
        _notify(job)

    def _admit(self) -> None:
        most = min(MAX_RUNNING, self.engine.max_rows)
        reserved = sum(blocks(job.total) for job in self._running)
        while self._waiting and len(self._running) < most:
            job = self._waiting[0]
            reserved += blocks(job.total)
            if reserved * BLOCK > self.engine.cache_tokens:
                return
            kept = self._prefixes.take(job.known(), job.owner) if job.keeps else None
            job.begin(kept if kept is not None else self.engine.sequence())
            self._running.append(self._waiting.popleft())

    def _after_fork(self) -> None:
        # Threads that waited are not in the child, and the sequences' owners with them.
        self._reset()
        for job in (*self._running, *self._waiting):
            job.end(InternalError("the process forked while this request was running"))
        self._running.clear()
        self._waiting.clear()
        if self._drafter is not None:
            self._drafter.clear()


_live: weakref.WeakSet[Scheduler] = weakref.WeakSet()


def _after_fork() -> None:
    for scheduler in list(_live):
        scheduler._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _notify(job: Job) -> None:
    if isinstance(job, Generation) and job.listeners and job.has_news():
        listeners, job.listeners = job.listeners, []
        for listener in listeners:
            listener()
