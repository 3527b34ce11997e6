"""What an adapter does. It runs in the environment of its runtime, one process for each measurement.

Modules of adapters import nothing that is not Python's own, NumPy included, before ``load``: what a runtime
needs is part of its load time and of its memory, and what it does not need of neither.
"""

from __future__ import annotations

import abc
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Adapter(abc.ABC):
    """One runtime.

    Attributes:
        title: its name in tables.
        packages: what ``pip`` installs for it into an environment of its own; none for this environment.
        from_source: those of them to build on this machine, for this machine.
        build_variables: environment variables of that installation.
        run_variables: environment variables of every task.
        forms: what ``convert`` can make, with the cosine similarity to the exact logits that it must reach
            on random weights (which compress worse than trained ones).
        exact: forms that hold the checkpoint's weights, so that logits must agree closely.
        families: the ``model_type`` of the checkpoints that ``convert`` understands.
        forms_of: the adapter whose converted models it uses, if not its own.
        runs_in: the adapter in whose environment it runs, if not its own.
        converts_in: the adapter in whose environment ``convert`` runs, if not its own.
        has_logits: whether ``logits`` works. Where it does not, greedy tokens are compared instead.
        has_batches: whether ``batch`` works.
        rows: how many texts ``batch`` will be given at most, set before ``load``.
    """

    title: str
    packages: Sequence[str] = ()
    from_source: Sequence[str] = ()
    build_variables: Mapping[str, str] = {}
    run_variables: Mapping[str, str] = {}
    forms: Mapping[str, float]
    exact: frozenset[str] = frozenset()
    families: frozenset[str] = frozenset({"llama"})
    forms_of: str = ""
    runs_in: str = ""
    converts_in: str = ""
    has_logits: bool = True
    has_batches: bool = False
    rows: int = 1

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

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits [vocabulary] after the last token of a prompt."""
        raise NotImplementedError(f"{self.title} gives no logits")

    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[int, float]:
        """Continues prompts together by ``count`` tokens each.

        Returns how many tokens were made after every prompt had its first, and in how many seconds.
        """
        raise NotImplementedError(f"{self.title} runs no batches here")

    def decode_beside_reads(self, ids: Sequence[int], count: int) -> dict[str, float]:
        """How decoding uses memory, by short runs of decoding and of plain reading in turn, since the speed
        of a shared machine's memory changes within seconds.

        Returns ``bytes_per_token`` of weights, the medians of ``decode_seconds`` for a token and of
        ``read_seconds``, in which these threads read just these bytes from where they lie, and ``share``, the
        median of the quotients of neighbours. Empty where a runtime cannot read its own weights, or a cache
        holds them.
        """
        return {}

    def share_of_peak(self, tokens_per_second: float) -> float | None:
        """What part of the int8 multiply-adds that the threads could do from registers, as they are measured
        now, the projections of so many tokens of a prompt are. None where a runtime cannot tell."""
        return None

    @abc.abstractmethod
    def version(self) -> str:
        """The runtime's version and, where it tells, what it uses of the machine."""


def group(checkpoint: Path, most: int) -> int:
    """How many weights share a scale: the largest power of two up to ``most`` that divides a checkpoint's
    width."""
    config = json.loads((checkpoint / "config.json").read_text())
    width = config.get("hidden_size") or config["model_dim"]
    return min(most, width & -width)


def whole(path: Path, make: Callable[[Path], object]) -> Path:
    """Calls ``make(partial)`` unless ``path`` is there, and moves what it made there when it is whole."""
    if not path.exists():
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        partial.rename(path)
    return path
