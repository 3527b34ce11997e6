"""Data-parallel training by single-threaded processes that share their gradients through memory.

XLA's threads wait for each other by spinning, hundreds of times in a step: on two cores a third of the time
is lost, and most of it where other programs run too. Processes with one thread each meet once in a step, and
sleep while they wait.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable
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
    """Averages gradients over the workers, and gives each of them what the others computed.

    Sums are formed in the same order everywhere, so the workers' weights stay equal to the bit.
    """

    def __init__(self, link: Link, params: dict[str, jax.Array], gathered: list[str]) -> None:
        """``gathered`` names the tensors that :meth:`gather` passes around, each shaped as in ``params``."""
        self.link, self.gathered = link, gathered
        self.shapes = {name: value.shape for name, value in params.items()}
        self.step = 0
        if link.barrier is not None:
            self.memory = SharedMemory(link.memory)
            size = sum(value.size for value in params.values())
            # Two sets of slots for gradients: a fast worker may write those of the next step while a slow one
            # still reads. The last slot is what is gathered: a barrier comes between reading and writing it.
            slots = np.ndarray((2 * link.workers + 1, size + 2), np.float32, self.memory.buf)
            self.slots, self.common = slots[:-1].reshape(2, link.workers, -1), slots[-1]

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
        result = {name: jnp.asarray(view) for name, view in self.views(total, self.shapes).items()}
        return float(total[-2]), result, bool(slots[0, -1])

    def gather(self, own: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Everyone's tensors, given this worker's."""
        if self.link.barrier is None:
            return own
        views = self.views(self.common, self.gathered)
        for name, value in own.items():
            views[name][...] = np.asarray(value)
        self.link.barrier.wait(PATIENCE)
        return {name: jnp.array(view) for name, view in views.items()}

    def views(self, flat: np.ndarray, names: Iterable[str]) -> dict[str, np.ndarray]:
        """Consecutive pieces of a vector in the shapes of the tensors called ``names``."""
        result, start = {}, 0
        for name in names:
            end = start + math.prod(self.shapes[name])
            result[name] = flat[start:end].reshape(self.shapes[name])
            start = end
        return result

    def close(self) -> None:
        """Lets go of the shared memory."""
        if self.link.barrier is not None:
            del self.slots, self.common
            self.memory.close()


def launch(run: Callable[[argparse.Namespace, Link], Any], arguments: argparse.Namespace, floats: int) -> Any:
    """Calls ``run`` in ``arguments.workers`` processes, this one the first; returns its result here."""
    workers = arguments.workers
    if workers == 1:
        return run(arguments, Link(0, 1))
    os.environ[THREADS] = "1"
    context = multiprocessing.get_context("spawn")
    memory = SharedMemory(create=True, size=(2 * workers + 1) * (floats + 2) * 4)
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
