"""pocketlm through its public interface, in the environment that runs the benchmark."""

from __future__ import annotations

import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benches.adapters.base import Adapter


class Peer(Adapter):
    """See :class:`Adapter`. Variants are bits per weight, or ``16`` for the checkpoint as it is."""

    title = "pocketlm"
    variants = {"16": 0.9999, "8": 0.995, "4": 0.85, "3.5": 0.75, "3": 0.7, "2": 0.3}  # noqa: RUF012
    exact = frozenset({"16"})
    families = frozenset({"llama", "openelm", "phi3"})
    has_batches = True

    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        if variant == "16":
            return checkpoint
        path = target / f"{variant}-bit"
        if not path.exists():  # palettize is atomic: a directory that is there is whole
            program = str(Path(sys.executable).with_name("pocketlm"))
            command = [program, "palettize", str(checkpoint), str(path), "--bits", variant]
            subprocess.run(command, check=True)
        return path

    def load(self, path: Path, threads: int, context: int) -> None:
        import pocketlm

        # As much as the others have for one text, and what short prompts of a batch need.
        room = max(context, 512 * self.rows if self.rows > 1 else 0)
        self.model = pocketlm.load(path, threads=threads, context=context, cache_tokens=room)

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        times: list[float] = []
        # As the others: one token a step.
        options = {"max_tokens": count, "temperature": 0.0, "ignore_eos": True, "num_speculative_tokens": 0}
        for chunk in self.model.stream(ids, **options):
            now = time.perf_counter()
            tokens.extend(chunk.tokens)
            times.extend([now] * len(chunk.tokens))
        return tokens, times

    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[int, float]:
        began = time.perf_counter()
        options = {"max_tokens": count + 1, "temperature": 0.0, "ignore_eos": True}
        found = self.model.generate([list(ids) for ids in prompts], **options)
        seconds = time.perf_counter() - began - max(c.timings.ttft_seconds for c in found)
        return len(prompts) * count, seconds

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return np.asarray(self.model.logits(list(ids))[-1])

    def bytes_per_token(self) -> int:
        return int(self.model.engine.weight_bytes_per_token)

    def version(self) -> str:
        from pocketlm import _core

        build = zlib.crc32(Path(str(_core.__file__)).read_bytes())  # so that figures of another are not kept
        return f"{_core.__version__} ({_core.current_isa()}, build {build:08x})"
