"""What a step takes of each job, what room that needs, and how long the engine may go on with it."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pocketlm.errors import PocketlmError
from pocketlm.generate.job import Evaluation, Generation, Job
from pocketlm.generate.pace import Pace
from pocketlm.generate.params import MAX_GUESSES

if TYPE_CHECKING:
    from pocketlm.generate.engine import Engine, StepResult
    from pocketlm.generate.job import Item

    Batch = list[tuple[Job, Item]]

BLOCK = 64  # tokens of a block of the key-value cache
LOGIT_BYTES = 64 << 20  # most memory for the logits of a step
# How long the engine may go on by itself while every job generates. A stream's pieces then come at most this
# far apart, beside the time of a step; who waits for the whole text is spared more of the calls.
RUN_STEPS = 64
STREAM_SECONDS = 0.002
PATIENT_SECONDS = 0.02
STOP_STRING_STEPS = 4  # what is computed behind a stop string is lost


def blocks(tokens: int) -> int:
    """Blocks of the cache that so many tokens of a sequence take."""
    return -(-tokens // BLOCK)


def logit_rows(engine: Engine) -> int:
    """Most rows of a step that give logits."""
    return max(1, LOGIT_BYTES // (4 * engine.vocab_size))


def compose(running: Sequence[Job], engine: Engine, pace: Pace) -> Batch:
    """One token of every job that generates; the prompts share the rest of the rows evenly."""
    batch: Batch = [(job, job.item(1)) for job in running if not job.left]
    prompts = [job for job in running if job.left]
    rows = pace.rows(engine.max_rows - len(batch), shared=bool(batch))
    with_logits = logit_rows(engine)
    for index, job in enumerate(prompts):
        share = max(rows // (len(prompts) - index), min(16, rows))
        count = min(job.left, share, with_logits if isinstance(job, Evaluation) else share)
        if count < 1:
            continue
        if isinstance(job, Evaluation):
            with_logits -= count
        rows -= count
        batch.append((job, job.item(count)))
    return batch


def blocks_needed(batch: Batch) -> int:
    """Most free blocks that a step may need, guesses included."""
    needed = 0
    for job, item in batch:
        length = job.sequence.length if job.sequence is not None else 0
        end = length + len(item[1])
        most = max(end, min(end + MAX_GUESSES, job.total))
        # One more: the last block may be shared and need a copy.
        needed += blocks(most) - blocks(length) + 1
    return needed


def limits(batch: Batch) -> tuple[int, float]:
    """Steps and seconds for which the engine may go on by itself. It stops anyway where a text ends, and
    where a job comes or is cancelled."""
    steps, seconds = RUN_STEPS, PATIENT_SECONDS
    for job, _ in batch:
        if not isinstance(job, Generation) or job.left:
            return 1, 0.0
        if job.has_stop_strings:
            steps = STOP_STRING_STEPS
        if not job.patient:
            seconds = STREAM_SECONDS
    return steps, seconds


def run(
    engine: Engine, items: Sequence[Item], steps: int, seconds: float, results: list[StepResult | Exception]
) -> None:
    """Adds to ``results`` what the engine gives for each item, or what is wrong with it alone.

    A step that fails leaves all sequences as they were, and what it meets may be of one text (logits that are
    not finite, say): each is then tried by itself.
    """
    step = functools.partial(engine.step, steps=steps, seconds=seconds)
    try:
        # One call of compiled code: no signal's handler can come between a step and the note of its results.
        results.extend(itertools.chain.from_iterable(map(step, [list(items)])))
    except (PocketlmError, MemoryError) as problem:
        if len(items) == 1:
            results.append(problem)
            return
        for item in items:
            run(engine, [item], 1, 0.0, results)


def is_foreign(problem: BaseException) -> bool:
    """Whether an exception comes from a signal's handler, which may raise anything anywhere, but in the main
    thread only. What the engine raises is of our own kinds, or a panic of its."""
    ours = isinstance(problem, (PocketlmError, MemoryError)) or type(problem).__name__ == "PanicException"
    return threading.current_thread() is threading.main_thread() and not ours
