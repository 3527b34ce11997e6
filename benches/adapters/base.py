"""What an adapter does. It runs in the environment of its runtime, one process for each measurement."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Adapter(abc.ABC):
    """One runtime.

    Attributes:
        title: its name in tables.
        packages: what ``pip`` installs for it into an environment of its own; none for this environment.
        from_source: those of them to build on this machine, for this machine.
        build_variables: environment variables of that installation.
        variants: what ``convert`` can make, with the cosine similarity to the exact logits that it must reach
        on
            random weights (which compress worse than trained ones).
        exact: variants that hold the checkpoint's weights, so that logits must agree closely.
    """

    title: str
    packages: Sequence[str] = ()
    from_source: Sequence[str] = ()
    build_variables: Mapping[str, str] = {}
    variants: Mapping[str, float]
    exact: frozenset[str] = frozenset()

    @abc.abstractmethod
    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        """Makes the runtime's own form of a Hugging Face checkpoint and returns its path; ``target`` is a
        directory that is kept, so what is there already need not be made again."""

    @abc.abstractmethod
    def load(self, path: Path, threads: int, context: int) -> None:
        """Opens a converted model, ready to generate, with room for ``context`` tokens."""

    @abc.abstractmethod
    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        """Continues a fresh prompt greedily by exactly ``count`` tokens, end tokens ignored.

        Returns the tokens and the time (``time.perf_counter``) at which each was in the caller's hands.
        """

    @abc.abstractmethod
    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits [vocabulary] after the last token of a prompt."""

    @abc.abstractmethod
    def version(self) -> str:
        """The runtime's version and, where it tells, what it uses of the machine."""
