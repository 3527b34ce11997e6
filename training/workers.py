"""Data-parallel training by single-threaded processes that share their gradients through memory.

XLA's threads wait for each other by spinning, hundreds of times in a step: on two cores a third of the time
is lost, and most of it where other programs run too. Processes with one thread each meet once in a step, and
sleep while they wait.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Barrier
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PATIENCE = 3600.0  # seconds to wait for the others; a worker whose parent was killed ends after that
THREADS = "NPROC"  # how many threads XLA starts


@dataclass(frozen=True)
class Link:
    """What a worker needs to find the others."""

    rank: int
    workers: int
    barrier: Barrier | None = None
    memory: str = ""


class Exchange:
    """Averages loss and gradients over the workers; the same sums in the same order in each of them."""

    def __init__(self, link: Link, params: dict[str, jax.Array]) -> None:
        self.link = link
        self.shapes = {name: value.shape for name, value in params.items()}
        self.size = sum(value.size for value in params.values())
        self.step = 0
        if link.barrier is not None:
            # Two sets of slots: a fast worker may write the next step while a slow one still reads this one.
            self.memory = SharedMemory(link.memory)
            self.slots = np.ndarray((2, link.workers, self.size + 2), np.float32, self.memory.buf)

    def mean(
        self, loss: jax.Array, grads: dict[str, jax.Array], stop: bool
    ) -> tuple[float, dict[str, jax.Array], bool]:
        """The means over the workers, and whether the first worker wants to stop after this step."""
        if self.link.barrier is None:
            return float(loss), grads, stop
        slots = self.slots[self.step % 2]
        own = slots[self.link.rank]
        np.concatenate([np.asarray(grads[name]).ravel() for name in self.shapes], out=own[:-2])
        own[-2], own[-1] = float(loss), stop
        self.link.barrier.wait(PATIENCE)
        self.step += 1
        total = slots[0].copy()
        for other in slots[1:]:
            total += other
        total *= np.float32(1 / self.link.workers)
        result, start = {}, 0
        for name, shape in self.shapes.items():
            stop_at = start + int(np.prod(shape))
            result[name] = jnp.asarray(total[start:stop_at].reshape(shape))
            start = stop_at
        return float(total[-2]), result, bool(slots[0, -1])

    def close(self) -> None:
        """Lets go of the shared memory."""
        if self.link.barrier is not None:
            del self.slots
            self.memory.close()


def launch(run: Callable[[argparse.Namespace, Link], Any], arguments: argparse.Namespace, floats: int) -> Any:
    """Calls ``run`` in ``arguments.workers`` processes, this one the first; returns its result here."""
    workers = arguments.workers
    if workers == 1:
        return run(arguments, Link(0, 1))
    os.environ[THREADS] = "1"
    context = multiprocessing.get_context("spawn")
    memory = SharedMemory(create=True, size=2 * workers * (floats + 2) * 4)
    try:
        barrier = context.Barrier(workers)
        links = [Link(rank, workers, barrier, memory.name) for rank in range(workers)]
        others = [context.Process(target=run, args=(arguments, link), daemon=True) for link in links[1:]]
        for process in others:
            process.start()
        try:
            result = run(arguments, links[0])
        except BaseException:
            for process in others:
                process.terminate()
            raise
        for process in others:
            process.join(PATIENCE)
        return result
    finally:
        memory.close()
        memory.unlink()
