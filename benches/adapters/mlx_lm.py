"""MLX-LM on the processor."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benches.adapters.base import Adapter, group, whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Peer(Adapter):
    """See :class:`Adapter`. Groups of 64 weights, as its converter makes by default."""

    title = "mlx-lm"
    packages = ("mlx-lm==0.32.2", "mlx[cpu]==0.32.4")
    forms = {"4": 0.85, "8": 0.99}  # noqa: RUF012
    families = frozenset({"llama", "openelm"})

    def convert(self, checkpoint: Path, variant: str, target: Path) -> Path:
        def make(partial: Path) -> None:
            from mlx_lm.utils import load_model, quantize_model, save_config, save_model

            model, config = load_model(checkpoint, lazy=True)
            model, config = quantize_model(model, config, group_size=group(checkpoint, 64), bits=int(variant))
            save_model(partial, model)
            save_config(config, partial / "config.json")

        return whole(target / variant, make)

    def load(self, path: Path, threads: int, context: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        import mlx.core as mx
        from mlx_lm.utils import load_model

        self.mx = mx
        mx.set_default_device(mx.cpu)
        self.model, _ = load_model(path)

    def generate(self, ids: Sequence[int], count: int) -> tuple[list[int], list[float]]:
        from mlx_lm.generate import generate_step

        tokens, times = [], []
        for token, _ in generate_step(self.mx.array(list(ids)), self.model, max_tokens=count):
            tokens.append(int(token))
            times.append(time.perf_counter())
        return tokens, times

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        found = self.model(self.mx.array([list(ids)]))[0, -1].astype(self.mx.float32)
        import numpy as np

        return np.array(found)

    def version(self) -> str:
        return f"{importlib.metadata.version('mlx-lm')} (mlx {importlib.metadata.version('mlx')})"
