"""Runs steps with and without the engine's clock, and gives each operation its part of the time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm._core import Engine, Sampler, StepResult
from pocketlm.profile.energy import Meter
from pocketlm.profile.work import Load

DISPATCH, SAMPLE = "dispatch", "sample"
DECODE_STEPS = 20  # for each repeat: a step is far shorter than a prefill
_LEAST_SECONDS = 1.0  # of measuring: a shared machine is fast and slow for longer than a small model's steps
_SETTLING_SECONDS, _SETTLING_STEPS = 1.0, 200

Floats = NDArray[np.float64]
Step = Callable[[list[Any]], tuple[list[StepResult], list[float]]]  # makes a step of items, and times it
Run = Callable[[Step], Floats]  # makes one or more such steps, and adds up their times


@dataclasses.dataclass(frozen=True)
class Times:
    """Steps measured in turn: each one with the clock follows one without it.

    Attributes:
        phases: seconds [steps, phases + 1] of every phase; the last column is in none.
        plain: seconds [steps] of steps without the clock.
    """

    phases: Floats
    plain: Floats

    @property
    def timed(self) -> Floats:
        """Seconds [steps] of the steps with the clock."""
        totals: Floats = self.phases.sum(axis=1)
        return totals

    @property
    def quiet(self) -> NDArray[np.bool_]:
        """Which steps [steps] count: the fastest quarter of the pairs. What else runs on a machine only ever
        adds to a step; by pairs, the steps with and without the clock come from the same moments."""
        pairs = self.plain + self.timed
        return pairs <= np.quantile(pairs, 0.25)

    @property
    def clock(self) -> float:
        """What the clock adds to a step, as a share of it: the median over all pairs, which noise moves
        least. 0 where it is lost in noise."""
        return max(0.0, float(np.median(self.timed / self.plain)) - 1)


def decode_times(engine: Engine, context: int, steps: int, meter: Meter) -> Times:
    """Decodes one token after ``context`` others, again and again.

    For some steps before, the engine may find how many threads it decodes best on; then it holds that number,
    for prefills as well, until it is told otherwise.

    Raises:
        MemoryLimitError: the cache has no room.
    """
    with _decoding(engine, context) as run:
        whole = partial(engine.step_timed, phases=False)
        began, tries = time.perf_counter(), 0
        while tries < _SETTLING_STEPS and time.perf_counter() - began < _SETTLING_SECONDS:
            run(whole)
            tries += 1
        engine.hold_threads(True)
        return _alternate(engine, run, steps, meter)


@contextmanager
def _decoding(engine: Engine, context: int) -> Iterator[Run]:
    """Decodes one token after ``context`` others."""
    ids = _ids(engine, context + 1)
    with ExitStack() as stack:
        sequence = engine.sequence()
        stack.callback(sequence.free)
        for start in range(0, context, engine.max_rows):
            engine.step([(sequence, ids[start : min(context, start + engine.max_rows)], None, "none")])

        def run(step: Step) -> Floats:
            sampler = Sampler(temperature=0)
            found = np.array(step([(sequence, ids[context:], sampler, "none")])[1])
            sequence.truncate(context)
            return found

        yield run


def prefill_times(engine: Engine, load: Load, repeats: int, meter: Meter) -> Times:
    """Prefills a prompt of random tokens from nothing, again and again."""
    ids = _ids(engine, load.tokens)
    with ExitStack() as stack:
        sequence = engine.sequence()
        stack.callback(sequence.free)

        def run(step: Step) -> Floats:
            parts = []
            for start, count in load.chunks:
                sampler = Sampler(temperature=0) if start + count == load.tokens else None
                parts.append(step([(sequence, ids[start : start + count], sampler, "none")])[1])
            sequence.truncate(0)
            found: Floats = np.array(parts).sum(axis=0)
            return found

        return _alternate(engine, run, repeats, meter)


def _alternate(engine: Engine, run: Run, steps: int, meter: Meter) -> Times:
    """Steps with and without the clock in turn, so that whatever else the machine does meets both: so many of
    each, or more if these would be over too soon."""
    whole = partial(engine.step_timed, phases=False)
    run(whole)  # pages come in
    phases: list[Floats] = []
    plain: list[Floats] = []
    with meter.running():
        began = time.perf_counter()
        while len(plain) < steps or time.perf_counter() - began < _LEAST_SECONDS:
            plain.append(run(whole))
            phases.append(run(engine.step_timed))
    return Times(np.array(phases), np.array(plain)[:, 0])


def _ids(engine: Engine, count: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(0).integers(0, engine.vocab_size, count)]


def shares(
    phases: Sequence[Mapping[str, Any]], names: Sequence[str], weights: Mapping[str, int] | None
) -> Floats:
    """What part of each phase's time is each operation's: [phases + 1, names], rows summing to 1.

    Products of one phase divide it by ``weights`` (their elements) if given, else by bytes; others by the
    engine's estimate of work. Phases without operations go to ``sample``, what is in no phase to
    ``dispatch``.
    """
    index = {name: at for at, name in enumerate(names)}
    found = np.zeros((len(phases) + 1, len(names)))
    for at, phase in enumerate(phases):
        members: list[tuple[str, int]] = phase["members"]
        if weights is not None and phase["kind"] == "linear":
            members = [(name, weights.get(name, 0) if share else 0) for name, share in members]
        total = sum(share for _, share in members)
        if not members:
            found[at, index[SAMPLE]] = 1
        for name, share in members:
            found[at, index[name]] = share / total if total else 1 / len(members)
    found[-1, index[DISPATCH]] = 1
    return found
