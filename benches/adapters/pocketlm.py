"""pocketlm through its public interface, in the environment that runs the benchmark."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benches.adapters.base import Adapter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IN_CACHE = 128 << 20  # bytes that a processor's cache may hold
BURST = 4  # tokens between two readings
PEAK_SECONDS = 0.2  # of measuring what the cores could compute


def greedy(count: int) -> dict[str, Any]:
    """Options of so many tokens as the others generate them: the likeliest, one a step, whatever they are."""
    return {"max_tokens": count, "temperature": 0.0, "ignore_eos": True, "num_speculative_tokens": 0}


class Peer(Adapter):
    """See :class:`Adapter`.

    Variants are bits per weight of the projections, with the embedding at 8 bits, as ``--bits`` makes it;
    with ``all`` before them, bits per weight of everything, as ``--bits-all`` does; or ``16``: the checkpoint
    as it is.
    """

    title = "pocketlm"
    forms = {  # noqa: RUF012
        "16": 0.9999,
        "8": 0.995,
        "4": 0.85,
        "all4": 0.85,
        "3.5": 0.75,
        "all3.5": 0.75,
        "3": 0.7,
        "2": 0.3,
    }
    exact = frozenset({"16"})
    families = frozenset({"llama", "openelm"})
    has_batches = True
    kv_dtype: Literal["f16", "int8"] = "f16"

    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        path = checkpoint if variant == "16" else self._palettized(checkpoint, variant, target)
        _read_anew(path)
        return path

    def _palettized(self, checkpoint: Path, variant: str, target: Path) -> Path:
        path = target / f"{variant}-bit"
        if not path.exists():  # palettize is atomic: a directory that is there is whole
            program = str(Path(sys.executable).with_name("pocketlm"))
            bits = variant.removeprefix("all")
            budget = "--bits" if bits == variant else "--bits-all"
            command = [program, "palettize", str(checkpoint), str(path), budget, bits]
            subprocess.run(command, check=True)
        return path

    def load(self, path: Path, threads: int, context: int) -> None:
        import pocketlm

        # As much as the others have for one text, and what short prompts of a batch need.
        room = max(context, 512 * self.rows if self.rows > 1 else 0)
        self.threads = threads
        self.model = pocketlm.load(
            path, threads=threads, context=context, cache_tokens=room, kv_dtype=self.kv_dtype
        )

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        times: list[float] = []
        options = greedy(count)
        for chunk in self.model.stream(ids, **options):
            now = time.perf_counter()
            tokens.extend(chunk.tokens)
            times.extend([now] * len(chunk.tokens))
        return tokens, times

    def batch(self, prompts: Sequence[Sequence[int]], count: int) -> tuple[int, float]:
        began = time.perf_counter()
        options = greedy(count + 1)
        found = self.model.generate([list(ids) for ids in prompts], **options)
        seconds = time.perf_counter() - began - max(c.timings.ttft_seconds for c in found)
        return len(prompts) * count, seconds

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        import numpy as np

        return np.asarray(self.model.logits(list(ids))[-1])

    def decode_beside_reads(self, ids: Sequence[int], count: int) -> dict[str, float]:
        engine = self.model.engine
        size = engine.weight_bytes_per_token
        if size < IN_CACHE:
            return {}
        options = greedy(count)
        chunks = iter(self.model.stream(ids, **options))
        next(chunks)
        pairs = []
        read = size / engine.read_bandwidth(0.0)
        while True:
            began, tokens = time.perf_counter(), 0
            for chunk in chunks:
                tokens += len(chunk.tokens)
                if tokens >= BURST:
                    break
            if tokens < BURST:
                break
            decode, before = (time.perf_counter() - began) / tokens, read
            read = statistics.mean(size / engine.read_bandwidth(0.0) for _ in range(2))
            pairs.append((decode, (before + read) / 2))
        if not pairs:
            return {}  # too few tokens to say
        decode, read = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        share = statistics.median(pair[1] / pair[0] for pair in pairs)
        return {"bytes_per_token": size, "decode_seconds": decode, "read_seconds": read, "share": share}

    def share_of_peak(self, tokens_per_second: float) -> float | None:
        from pocketlm._core import int8_peak
        from pocketlm.graph import Attention, Linear
        from pocketlm.kinds import PALETTE_KINDS
        from pocketlm.profile.work import matrix

        if (loaded := self.model.loaded) is None:
            return None
        # Of a prompt only the last token goes through what follows the last attention: no work that was done.
        ops = loaded.graph.ops
        last = max((at for at, op in enumerate(ops) if isinstance(op, Attention)), default=0)
        products = [op for op in ops[:last] if isinstance(op, Linear)]
        found = [matrix(loaded.store, op) for op in products]
        if not products or not all(info and info.kind in PALETTE_KINDS for info in found):
            return None
        macs = sum(op.weight.shape[0] * op.weight.shape[1] for op in products)
        return float(tokens_per_second * macs / int8_peak(self.threads, PEAK_SECONDS))

    def version(self) -> str:
        from pocketlm import _core

        build = zlib.crc32(Path(str(_core.__file__)).read_bytes())  # so that figures of another are not kept
        return f"{_core.__version__} ({_core.current_isa()}, build {build:08x})"


def _read_anew(path: Path) -> None:
    """Has the weights read in as they are after ``palettize`` or a download, in large pages. What has been in
    the system's memory for long, or was copied, may lie there in small ones."""
    import pocketlm
    from pocketlm.loading.files import forget_pages

    for file in path.glob("*.safetensors"):
        with file.open("rb") as opened:
            forget_pages(opened.fileno())
    with pocketlm.load(path, prewarm=True):
        pass
